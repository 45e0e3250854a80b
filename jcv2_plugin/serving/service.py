"""What a server does for a request: encode, tokenise, rerank. It knows nothing of HTTP but the statuses of errors."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.checks import check_query_vectors, check_vectors
from jcv2_plugin.encoder.protocol import EncodingRequest, Feature, ModelEntry, ModelList, TokenRequest
from jcv2_plugin.encoder.scored_tokens import scored_tokens
from jcv2_plugin.encoder.windows import LongDocuments, TokenizedTexts, join_windows
from jcv2_plugin.errors import DocumentTooLongError, UnknownDimError
from jcv2_plugin.scoring.rerank import rerank
from jcv2_plugin.serving.answers import RefusedError, embeddings_of
from jcv2_plugin.serving.batches import Batcher, Job, Vectors
from jcv2_plugin.serving.bodies import RerankBody, RerankBodyV2
from jcv2_plugin.serving.metrics import Metrics
from jcv2_plugin.serving.settings import ServerSettings
from jcv2_plugin.serving.tracing import Tracing

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder
    from jcv2_plugin.encoder.model import JinaColbertEncoder

Result = TypeVar("Result")


class Service:
    """An encoder, which nothing else may use, the thread that encodes, and threads for the rest of requests."""

    def __init__(
        self, encoder: JinaColbertEncoder, settings: ServerSettings, metrics: Metrics, tracing: Tracing
    ) -> None:
        self.encoder, self.settings, self.tracing = encoder, settings, tracing
        self.name = settings.name or served_name(encoder)
        self.batcher = Batcher(encoder, settings.max_batch_tokens or default_budget(encoder), metrics, tracing)
        self._fingerprints = {dim: encoder.head_fingerprint(dim) for dim in encoder.dims}
        # A thread for each request, since most of them wait for the encoder.
        self._pool = ThreadPoolExecutor(settings.max_waiting, "jcv2-serve-request")

    def start(self) -> None:
        """Start the threads."""
        self.batcher.start()

    def close(self) -> None:
        """Finish what runs, and end the threads."""
        self._pool.shutdown(wait=True)
        self.batcher.close()

    async def run(self, work: Callable[[Visit], Result]) -> Result:
        """Do a request's work in a thread. If the caller is cancelled, what has not been encoded is dropped."""
        visit = Visit(self)
        context = contextvars.copy_context()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, work, visit)
        finally:
            visit.cancel()

    def models(self) -> dict[str, Any]:
        """Return the answer to ``/v1/models``."""
        encoder = self.encoder
        names = ("query_length", "document_length", "content_length", "revision", "skiplist")
        entry = ModelEntry(
            id=self.name,
            dims=list(encoder.dims),
            default_dim=encoder.dims[0],
            fingerprints={str(dim): value for dim, value in self._fingerprints.items()},
            features=list(get_args(Feature)),
            **{name: getattr(encoder, name) for name in names},
        )
        return ModelList(data=[entry]).model_dump()

    def check_model(self, name: str | None) -> None:
        """Refuse another model than the one served. A name without its owner will do."""
        if name not in (None, self.name, self.name.rpartition("/")[2]):
            raise RefusedError(404, "unknown_model", f"There is no model {name!r:.100} here. There is {self.name!r}.")

    def resolve_dim(self, dim: int | None) -> int:
        """Return the dimension asked for, or the default one."""
        try:
            return self.encoder.resolve_dim(dim)
        except UnknownDimError:
            has = list(self.encoder.dims)
            detail = f"{self.name!r} has no head for dimensions={dim}. It has {has}."
            raise RefusedError(422, "unknown_dimension", detail) from None

    def encode(self, body: EncodingRequest, visit: Visit) -> dict[str, Any]:
        """Return the answer to ``/v1/multi-vector``."""
        self.check_model(body.model)
        dim = self.resolve_dim(body.dimensions)
        length = self.encoder.document_length
        if body.document_length not in (None, length):
            detail = f"The window of this server is document_length={length}, not {body.document_length}."
            raise RefusedError(422, "other_length", detail)
        texts = visit.tokenized(body.input)
        if body.input_type == "query":
            vectors = check_query_vectors(visit.query_vectors(texts, dim))
        else:
            vectors = visit.document_vectors(texts, dim, body.long_documents, body.pool_factor)
            for position, matrix in enumerate(vectors):
                check_vectors(matrix, dim, f"Document {position}")
        items = self._token_items(texts, body, body.return_tokens)
        for item, matrix in zip(items, vectors, strict=True):
            item["embeddings"] = embeddings_of(matrix, body.embedding_type)
        return {
            "object": "list",
            "model": self.name,
            "data": items,
            "usage": {"total_tokens": visit.tokens},
            "fingerprint": self._fingerprints[dim],
        }

    def tokenize(self, body: TokenRequest, visit: Visit) -> dict[str, Any]:
        """Return the answer to ``/v1/tokenize``."""
        self.check_model(body.model)
        texts = visit.tokenized(body.input)
        if body.input_type == "document" and body.long_documents == "error":
            visit.split_documents(texts, "error")
        if body.long_documents == "split":
            visit.check_tokens(sum(texts.counts))
        items = self._token_items(texts, body, True)
        return {"object": "list", "model": self.name, "data": items}

    def _token_items(self, texts: TokenizedTexts, body: EncodingRequest | TokenRequest, with_ids: bool) -> list[Any]:
        items: list[Any] = [{"index": index} for index in range(len(texts))]
        for item, text, ids in zip(items, texts, texts.ids, strict=True):
            if with_ids:
                item["ids"] = ids
            if body.return_tokens:
                tokens = scored_tokens(self.encoder, text, body.input_type, body.long_documents)
                item["tokens"] = [(one.token, one.start, one.end) for one in tokens]
        return items

    def rerank(self, body: RerankBody | RerankBodyV2, visit: Visit, version: str) -> dict[str, Any]:
        """Return the answer to ``/v1/rerank`` or ``/v2/rerank``: a superset of Jina's and Cohere's."""
        self.check_model(body.model)
        dim = self.resolve_dim(body.dimensions)
        visit.check_count(body.documents)  # rerank() asks for a part of them at a time
        documents = visit.cut(body.documents, body.max_tokens_per_doc)
        long_documents = body.long_documents
        if long_documents == "error":  # here, for the error's index
            visit.split_documents(visit.tokenized(documents), long_documents)
            long_documents = "truncate"
        encoder = cast("Encoder", visit)  # it has what rerank() uses
        ranked = rerank(encoder, body.query, documents, dim=dim, long_documents=long_documents)
        results = [
            {
                "index": one.index,
                "relevance_score": one.relevance,
                **(
                    {"document": {"text": body.documents[one.index]}}
                    if isinstance(body, RerankBody) and body.return_documents
                    else {}
                ),
            }
            for one in ranked[: body.top_n]
        ]
        return {
            "id": str(uuid4()),
            "model": self.name,
            "results": results,
            "usage": {"total_tokens": visit.tokens},
            "meta": {"api_version": {"version": version}, "billed_units": {"search_units": 1}},
        }


class Visit:
    """An encoder for one request: it encodes together with other requests, and within the request's limits. ``tokens``
    counts those that it has encoded.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._encoder = service.encoder
        self._span = service.tracing.current()
        self._future: Future[Vectors] | None = None
        self._cancelled = False
        self.tokens = 0

    def cancel(self) -> None:
        """Drop what has not been encoded, and encode nothing more."""
        self._cancelled = True
        if (future := self._future) is not None:
            future.cancel()

    def resolve_dim(self, dim: int | None) -> int:
        """See :meth:`JinaColbertEncoder.resolve_dim`."""
        return self._service.resolve_dim(dim)

    def tokenized(self, texts: Sequence[str]) -> TokenizedTexts:
        """See :meth:`JinaColbertEncoder.tokenized`. Refuses too many texts."""
        self.check_count(texts)
        return self._encoder.tokenized(texts)

    def check_count(self, texts: Sequence[str]) -> None:
        """Refuse too many texts."""
        most = self._service.settings.max_texts
        if len(texts) > most:
            raise RefusedError(413, "too_large", f"There are {len(texts)} texts, {most} are allowed. Send fewer.")

    def check_tokens(self, tokens: int) -> None:
        """Refuse too many tokens."""
        most = self._service.settings.max_request_tokens
        if tokens > most:
            raise RefusedError(413, "too_large", f"The request has {tokens} tokens, {most} are allowed. Send less.")

    def cut(self, texts: list[str], most: int | None) -> list[str]:
        """Return the first ``most`` tokens of each text, or all of them for None."""
        if most is None:
            return texts
        found = self._encoder.plain_tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            text[: one.offsets[most - 1][1]] if len(one.ids) > most else text
            for text, one in zip(texts, found, strict=True)
        ]

    def split_documents(self, texts: TokenizedTexts, long_documents: LongDocuments) -> tuple[list[str], list[int]]:
        """See :meth:`JinaColbertEncoder.split_documents`. Refuses a document that is too long."""
        try:
            return self._encoder.split_documents(texts, long_documents)
        except DocumentTooLongError as error:
            capacity = self._encoder.content_length
            index = next(position for position, count in enumerate(texts.counts) if count > capacity)
            detail = (
                f"Document {index} has {texts.counts[index]} tokens, {capacity} fit document_length="
                f"{self._encoder.document_length}. Send long_documents='split' or 'truncate', or start the server "
                "with a longer --document-length."
            )
            raise RefusedError(422, "document_too_long", detail, index=index) from error

    def query_vectors(self, texts: Sequence[str] | TokenizedTexts, dim: int) -> Vectors:
        """See :meth:`JinaColbertEncoder.query_vectors`."""
        given = texts if isinstance(texts, TokenizedTexts) else self.tokenized(texts)
        length = self._encoder.query_length
        sizes = [length or count + 3 for count in given.counts]
        return self._encoded(Job("query", given.texts, sizes, dim), sum(given.counts))

    def document_vectors(
        self,
        texts: Sequence[str] | TokenizedTexts,
        dim: int,
        long_documents: LongDocuments = "truncate",
        pool_factor: float = 1.0,
    ) -> list[NDArray[np.float32]]:
        """See :meth:`JinaColbertEncoder.document_vectors`."""
        given = texts if isinstance(texts, TokenizedTexts) else self.tokenized(texts)
        if long_documents == "split":
            self.check_tokens(self.tokens + sum(given.counts))  # first, since splitting megabytes takes long
        windows, owners = self.split_documents(given, long_documents)
        counts = given.counts if len(windows) == len(given) else self._encoder.tokenized(windows).counts
        counts = [min(count, self._encoder.content_length) for count in counts]
        job = Job("document", windows, [count + 3 for count in counts], dim, pool_factor)
        return join_windows(self._encoded(job, sum(counts)), owners)

    def _encoded(self, job: Job, tokens: int) -> Vectors:
        self.tokens += tokens
        self.check_tokens(max(self.tokens, sum(job.sizes)))
        job.span = self._span
        self._future = self._service.batcher.submit(job)
        if self._cancelled:
            self._future.cancel()
        return self._future.result()


def served_name(encoder: JinaColbertEncoder) -> str:
    """Return the name of an encoder for clients: that of a folder is its last part."""
    if encoder.source is None or Path(encoder.name).is_dir():
        return Path(encoder.name).resolve().name
    return encoder.name


def default_budget(encoder: JinaColbertEncoder) -> int:
    """Return how many tokens to encode in one go: a batch for each thread of a CPU, or one on an accelerator."""
    import torch

    return encoder.tokens_per_batch * (torch.get_num_threads() if encoder.device.type == "cpu" else 1)
