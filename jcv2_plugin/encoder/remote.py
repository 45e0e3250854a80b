"""``RemoteEncoder``: an encoder behind HTTP, such as ``jcv2 serve`` or Jina's API. Imports no torch."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.checks import as_dims, check_number, check_pool_factor, check_positive
from jcv2_plugin.documents import as_list, is_unicode
from jcv2_plugin.encoder.base import UNKNOWN_WEIGHTS
from jcv2_plugin.encoder.protocol import (
    KEY_VARIABLE,
    MODELS,
    MULTI_VECTOR,
    TOKENIZE,
    EmbeddingType,
    InputType,
    ModelEntry,
)
from jcv2_plugin.encoder.remote_answers import (
    WrongAnswer,
    ids_of,
    items_of,
    models_of,
    rows_of,
    tokens_of,
)
from jcv2_plugin.encoder.remote_client import EncoderClient, RequestError
from jcv2_plugin.encoder.scored_tokens import ScoredToken
from jcv2_plugin.encoder.windows import LONG_DOCUMENTS, LongDocuments, TokenizedTexts, window_by_characters
from jcv2_plugin.errors import (
    DocumentTooLongError,
    EncoderAnswerError,
    InvalidOptionError,
    InvalidQueryError,
    Jcv2Error,
    ModelNotFoundError,
    TokensUnknownError,
    UnknownDimError,
)
from jcv2_plugin.transport import TOO_LARGE, UNREADABLE, Backoff, Failure

Matrix = NDArray[np.float32]
T = TypeVar("T")

SERVER_VARIABLE = "JCV2_ENCODER_URL"
"""Environment variable with the address that this key is for."""
JINA = "jina-api:"
JINA_URL = "https://api.jina.ai"
JINA_KEY_VARIABLE = "JINA_API_KEY"
_JINA_MODELS = {"jina-colbert-v2": ModelEntry(id="jina-colbert-v2", dims=[128, 96, 64])}
DEFAULT_LENGTH = 8000
"""Window of a server that does not report its own. jina-colbert-v2 takes up to 8,190 tokens."""
BYTES_PER_TOKEN = 4
"""Bytes of text for each token, for the estimates of :meth:`RemoteEncoder.token_counter`."""
_BATCH_CHARACTERS = 200_000
_REMEMBERED = 512
_MOST_OF_A_LIST = 8 * 2**20
_DECIDED_THERE = ("device", "dtype", "attn_implementation", "tokens_per_batch", "token", "cache_folder")


class RemoteEncoder:
    """An encoder on another machine, over HTTP. It can be used wherever a :class:`JinaColbertEncoder` can.

    The protocol is that of Jina's API, and what ``jcv2 serve`` adds to it, see :mod:`jcv2_plugin.encoder.protocol`. All
    answers are checked before anything is stored. A server's facts are asked for when they are first needed.

    A server that returns no tokens, such as Jina's, serves the first stages ``"pooled"`` and ``"none"`` only, and no
    explanations. Long documents are split by characters for it, at ``document_length`` of them: a text has at most
    about one token for each character, so a window loses nothing.

    Args:
        url: Address of the server.
        model: Name of the model. It may be left out if the server has one only.
        dim: Default dimension. If None, the model's own. Needed if the server does not report its dimensions.
        api_key: Key. If None, that in ``JCV2_API_KEY`` (for Jina's API ``JINA_API_KEY``), unless ``JCV2_ENCODER_URL``
            is set to another address. It is sent to ``url`` only, and kept out of messages, logs, saved state and
            pickles: a copy in another process takes that of its environment.
        document_length: Window for documents. If None, that of the server, or 8,000 if it reports none.
        embedding_type: How vectors are sent: ``"base64"`` (float16, a fifth of the size) or ``"float"`` (float32 in
            decimals). If None, base64 where the server offers it.
        timeout: Seconds for the whole answer to a request.
        retries: Maximum number of attempts for each request.
        batch_texts: Maximum number of texts in a request. A server that takes less is sent less.
        parallel: Maximum number of requests at a time.

    Raises:
        InvalidOptionError: An option is invalid.

    Example:
        >>> encoder = RemoteEncoder("https://encoder.example:8080", model="mini", dim=64)
        >>> encoder
        RemoteEncoder('https://encoder.example:8080#mini', dim=64)
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        dim: int | None = None,
        api_key: str | None = None,
        document_length: int | None = None,
        embedding_type: EmbeddingType | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        batch_texts: int = 32,
        parallel: int = 4,
    ) -> None:
        address, fragment = check_address(url)
        if fragment and model not in (None, fragment):
            raise InvalidOptionError(f"The address names the model {fragment!r}, and model= {model!r}. Give one.")
        if embedding_type not in (None, "float", "base64"):
            raise InvalidOptionError(f"embedding_type must be 'float' or 'base64', got {embedding_type!r}.")
        limits = {"retries": retries, "batch_texts": batch_texts, "parallel": parallel}
        sizes = {"dim": dim, "document_length": document_length}
        limits |= {name: size for name, size in sizes.items() if size is not None}
        numbers = {name: check_positive(number, name, InvalidOptionError) for name, number in limits.items()}
        timeout = check_number(timeout, "timeout", InvalidOptionError)
        if not 0 < timeout < float("inf"):
            raise InvalidOptionError(f"timeout must be a positive number of seconds, got {timeout!r}.")
        self.url = address
        self.is_jina = address == JINA_URL
        self._options: dict[str, Any] = {
            "model": model or fragment or None,
            "embedding_type": embedding_type,
            "timeout": timeout,
            **sizes,
            **numbers,
        }
        key = (self._key_of_environment() if api_key is None else api_key).strip() or None
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InvalidOptionError("The API key has characters that no key has, such as a line break. Copy it again.")
        if key is not None and address.startswith("http:") and not _is_loopback(urlsplit(address).hostname or ""):
            warnings.warn(
                f"The API key is sent to {address} unencrypted, and so are the texts. Use https.", stacklevel=2
            )
        self._client = EncoderClient(
            address, key, timeout=timeout, parallel=numbers["parallel"], backoff=Backoff(attempts=numbers["retries"])
        )
        self._facts: ModelEntry | None = None
        self._lock = threading.Lock()
        self._memory = threading.Lock()
        self._remembered: OrderedDict[str, list[int]] = OrderedDict()

    @classmethod
    def from_reference(
        cls,
        reference: str,
        *,
        dims: int | Sequence[int] | None = None,
        document_length: int | None = None,
        revision: str | None = None,
        skiplist: str | None = None,
        named_by_user: bool = True,
        **decided_there: Any,
    ) -> RemoteEncoder:
        """Connect to the encoder of a string.

        Args:
            reference: ``"https://host:8080"``, ``"https://host:8080#model"`` or ``"jina-api:model"``.
            dims: Dimensions; the first is the default.
            document_length: See the class.
            revision: Ignored: a collection compares the weights or the vectors.
            skiplist: Ignored, likewise.
            named_by_user: False if the reference comes from a collection. The key in ``JCV2_API_KEY`` is then sent only
                if ``JCV2_ENCODER_URL`` is this address, since others may have made the collection.
            **decided_there: Options that the server decides. They must be None.

        Raises:
            InvalidOptionError: The reference or an option is invalid.
            UnknownDimError: The model has no head for one of ``dims``.
        """
        for name, value in decided_there.items():
            if name not in _DECIDED_THERE or value is not None:
                raise InvalidOptionError(f"{reference.partition('#')[0]} decides about {name} itself. Leave it out.")
        wanted = () if dims is None else as_dims(dims)
        options: dict[str, Any] = {"dim": wanted[0] if wanted else None, "document_length": document_length}
        if reference.startswith(JINA):
            return cls(JINA_URL, model=reference.removeprefix(JINA) or None, **options)
        trusted = named_by_user or bool(os.environ.get(SERVER_VARIABLE))
        encoder = cls(reference, api_key=None if trusted else "", **options)
        for dim in wanted:
            encoder.resolve_dim(dim)
        return encoder

    def __repr__(self) -> str:
        model = self._options["model"]
        name = self.url if model is None else f"{self.url}#{model}"
        return f"RemoteEncoder({name!r}, dim={self._options['dim']})"

    def __copy__(self) -> RemoteEncoder:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteEncoder:
        return self  # copies share the connections, as they share the weights of a local model

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.url, self._options)

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        self._client.close()

    # The model

    @property
    def _key_variable(self) -> str:
        return JINA_KEY_VARIABLE if self.is_jina else KEY_VARIABLE

    @property
    def _where_to_put_the_key(self) -> str:
        if not self.is_jina and not self._client.has_key and os.environ.get(KEY_VARIABLE):
            return f"{SERVER_VARIABLE}={self.url} if this server is yours: without it, {KEY_VARIABLE} is not sent there"
        return self._key_variable

    def _key_of_environment(self) -> str:
        owner = os.environ.get(SERVER_VARIABLE, "").rstrip("/")
        if not self.is_jina and owner not in ("", self.url):
            return ""
        return os.environ.get(self._key_variable, "")

    @property
    def facts(self) -> ModelEntry:
        """What the server says about the model, asked for on first use.

        Raises:
            ModelNotFoundError: It has no such model, or several and none was named.
            EncoderServerError: It cannot be reached, or its answer is unusable.
        """
        with self._lock:
            if self._facts is None:
                self._facts = self._asked()
            return self._facts

    def _asked(self) -> ModelEntry:
        wanted, dim = self._options["model"], self._options["dim"]
        if self.is_jina:
            if wanted not in _JINA_MODELS:
                raise ModelNotFoundError(f"Jina's multi-vector models are {sorted(_JINA_MODELS)}, not {wanted!r}.")
            facts = _JINA_MODELS[wanted]
        else:
            facts = self._of_server(wanted)
        dims = facts.dims or ([dim] if dim is not None else [])
        if not dims:
            raise InvalidOptionError(f"{self.url} does not report which dimensions {facts.id!r} has. Give dim=.")
        if dim is not None and dim not in dims:
            raise UnknownDimError(f"{facts.id!r} at {self.url} has no head for dim={dim!r}; it has {dims}.")
        length = self._options["document_length"]
        if None not in (length, facts.document_length) and length != facts.document_length:
            raise InvalidOptionError(
                f"{self.url} serves {facts.id!r} with document_length={facts.document_length}, not {length}. Leave it "
                "out, or start the server with that length."
            )
        return facts.model_copy(update={"dims": sorted(dims, key=lambda one: one != dim)})

    def _of_server(self, wanted: str | None) -> ModelEntry:
        try:
            there = models_of(self._run(self._client.call("GET", MODELS, most=_MOST_OF_A_LIST, first=True)))
        except WrongAnswer as error:
            raise self._wrong(error) from error
        except EncoderAnswerError as error:
            # A server of the plain protocol may have no list.
            cause = error.__cause__
            if wanted is None or not (isinstance(cause, RequestError) and cause.failure.status == 404):
                raise
            return ModelEntry(id=wanted)
        names = f"{[one.id for one in there]!s:.600}"
        if wanted is None and len(there) != 1:
            raise ModelNotFoundError(f"{self.url} has the models {names}. Say which: model=, or {self.url}#NAME.")
        found = next((one for one in there if wanted in (None, one.id)), None)
        if found is None:
            raise ModelNotFoundError(f"{self.url} has no model {wanted!r}. It has {names}.")
        return found

    @property
    def name(self) -> str:
        """Name of the model on its server."""
        return self.facts.id

    @property
    def reference(self) -> str:
        """String that :meth:`from_reference` takes: address and model. Contains no key."""
        return f"{JINA}{self.name}" if self.is_jina else f"{self.url}#{self.name}"

    @property
    def revision(self) -> str | None:
        """Revision of the model, if the server reports it."""
        return self.facts.revision

    @property
    def dims(self) -> tuple[int, ...]:
        """Matryoshka dimensions; the first is the default."""
        return tuple(self.facts.dims or ())

    def resolve_dim(self, dim: int | None) -> int:
        """Return ``dim``, or the default dimension for None.

        Raises:
            UnknownDimError: The model has no head for it.
        """
        chosen = self.dims[:1] if dim is None else as_dims(dim)
        if len(chosen) != 1 or chosen[0] not in self.dims:
            raise UnknownDimError(f"{self.name!r} at {self.url} has no head for dim={dim!r}; it has {list(self.dims)}.")
        return chosen[0]

    def head_fingerprint(self, dim: int) -> str:
        """Return the fingerprint of the weights for ``dim``, or the server's and model's name if it reports none."""
        return (self.facts.fingerprints or {}).get(str(dim)) or f"{UNKNOWN_WEIGHTS}{self.reference}"

    @property
    def document_length(self) -> int:
        """Window for documents: in tokens, or in characters if the server does not report its own."""
        return self.facts.document_length or self._options["document_length"] or DEFAULT_LENGTH

    @property
    def content_length(self) -> int:
        """What of a text fits in a window, in the unit of :attr:`document_length`."""
        return self.facts.content_length or self.document_length

    @property
    def query_length(self) -> int | None:
        """Number of vectors of each query, or None if it varies or is not known."""
        return self.facts.query_length

    @property
    def skiplist(self) -> str | None:
        """Name of the skip list, or None if there is none or it is not known."""
        return self.facts.skiplist

    @property
    def gives_tokens(self) -> bool:
        """Whether the server returns the tokens of texts."""
        return "tokens" in self._features

    @property
    def _features(self) -> list[str]:
        return self.facts.features or []

    @property
    def _kind(self) -> EmbeddingType:
        return self._options["embedding_type"] or ("base64" if "base64" in self._features else "float")

    # Encoding

    def query_vectors(self, texts: Sequence[str], dim: int) -> list[Matrix]:
        """Encode queries into float32 arrays of shape ``(query tokens, dim)``.

        Raises:
            EncoderServerError: The server cannot be reached, refuses, or answers wrongly.
            UnknownDimError: The model has no head for ``dim``.
        """
        return self._run(self._queries(as_list(texts, "texts"), self.resolve_dim(dim)))

    async def aquery_vectors(self, texts: Sequence[str], dim: int) -> list[Matrix]:
        """Async version of :meth:`query_vectors`: no thread waits for the answer."""
        if self._facts is None:
            await asyncio.to_thread(lambda: self.facts)
        return await self._arun(self._queries(as_list(texts, "texts"), self.resolve_dim(dim)))

    def document_vectors(
        self,
        texts: Sequence[str] | TokenizedTexts,
        dim: int,
        long_documents: LongDocuments = "truncate",
        pool_factor: float = 1.0,
    ) -> list[Matrix]:
        """Encode documents into float32 arrays of shape ``(document tokens, dim)``; pooling leaves fewer rows.

        Raises:
            DocumentTooLongError: A document is too long and ``long_documents`` is ``"error"``.
            EncoderServerError: The server cannot be reached, refuses, or answers wrongly.
            InvalidOptionError: The server has no token pooling.
            UnknownDimError: The model has no head for ``dim``.
        """
        return self._run(self._documents(as_list(texts, "texts"), self.resolve_dim(dim), long_documents, pool_factor))

    async def adocument_vectors(
        self,
        texts: Sequence[str] | TokenizedTexts,
        dim: int,
        long_documents: LongDocuments = "truncate",
        pool_factor: float = 1.0,
    ) -> list[Matrix]:
        """Async version of :meth:`document_vectors`."""
        if self._facts is None:
            await asyncio.to_thread(lambda: self.facts)
        given = as_list(texts, "texts")
        return await self._arun(self._documents(given, self.resolve_dim(dim), long_documents, pool_factor))

    async def _queries(self, texts: list[str], dim: int) -> list[Matrix]:
        extra = {"return_tokens": True} if self.gives_tokens else {}
        items = await self._encoded(texts, "query", dim, extra)
        vectors = [rows for _, rows in items]
        if any(not len(rows) for rows in vectors):
            raise WrongAnswer("a query has no vectors")
        if self.gives_tokens:
            self._remember(texts, [ids_of(item) for item, _ in items])
        return vectors

    async def _documents(
        self, texts: list[str], dim: int, long_documents: LongDocuments, pool_factor: float
    ) -> list[Matrix]:
        if long_documents not in LONG_DOCUMENTS:
            raise InvalidOptionError(f"long_documents must be one of {LONG_DOCUMENTS}, got {long_documents!r}.")
        extra: dict[str, Any] = {}
        if (pool_factor := check_pool_factor(pool_factor)) > 1:
            if "pool_factor" not in self._features:
                raise InvalidOptionError(f"{self.url} has no token pooling. Use pool_factor=1.")
            extra["pool_factor"] = pool_factor
        if "long_documents" in self._features:
            extra |= {"long_documents": long_documents, "document_length": self.document_length}
            return [rows for _, rows in await self._encoded(texts, "document", dim, extra)]
        if long_documents == "error":
            self._check_characters(texts)
        # The server may cut long texts itself, so it is given windows.
        split = [window_by_characters(text, self.document_length) for text in texts]
        kept = [windows if long_documents == "split" else windows[:1] for windows in split]
        items = await self._encoded([one for windows in kept for one in windows], "document", dim, extra)
        rows = iter([rows for _, rows in items])
        return [np.concatenate([next(rows) for _ in windows]) for windows in kept]

    async def _encoded(
        self, texts: list[str], task: InputType, dim: int, extra: dict[str, Any]
    ) -> list[tuple[dict[str, Any], Matrix]]:
        """Return the item and vectors of each text."""
        kind = self._kind
        body = {"model": self.name, "input_type": task, "dimensions": dim, "embedding_type": kind, **extra}
        row_bytes = (3 * dim if kind == "base64" else 28 * dim) + 200

        def read(answer: Any, part: list[str]) -> list[tuple[dict[str, Any], Matrix]]:
            weights = answer.get("fingerprint") if isinstance(answer, dict) else None
            if weights is not None and weights != self.head_fingerprint(dim):
                raise WrongAnswer(
                    f"it serves other weights ({weights!r:.40}) under the name {self.name!r} than when it was first "
                    "asked. Open the encoder again, and the collection with it"
                )
            items = items_of(answer, len(part))
            return [(one, rows_of(one, dim, kind, pooled="pool_factor" in extra)) for one in items]

        return await self._in_parts(MULTI_VECTOR, texts, body, row_bytes, read)

    async def _in_parts(
        self,
        path: str,
        texts: list[str],
        body: dict[str, Any],
        row_bytes: int,
        read: Callable[[Any, list[str]], list[T]],
    ) -> list[T]:
        """Send texts in several requests at a time, and return what ``read`` makes of the answers, in order."""
        for position, text in enumerate(texts):
            if not is_unicode(text):
                raise InvalidQueryError(f"Text {position} has lone surrogates, so it is not Unicode. Decode it again.")

        async def send(start: int, part: list[str]) -> list[T]:
            # A row for each byte of text is more than any model makes; 1024 are for padding and markers.
            most = 2**20 + sum(len(text.encode()) + 1024 for text in part) * row_bytes
            try:
                answer = await self._client.call("POST", path, {**body, "input": part}, most=most)
            except RequestError as error:
                if error.failure.status == TOO_LARGE and len(part) > 1:
                    half = len(part) // 2
                    return [*await send(start, part[:half]), *await send(start + half, part[half:])]
                if error.index is not None and error.index < len(part):
                    error.failure = Failure(
                        error.failure.status,
                        f"text {start + error.index} ({part[error.index]!r:.60}): {error.failure.reason}",
                        error.failure.retry_after,
                    )
                raise
            try:
                return read(answer, part)
            except WrongAnswer as error:
                raise RequestError(Failure(UNREADABLE, str(error))) from error

        tasks = [asyncio.create_task(send(start, part)) for start, part in self._parts(texts)]
        try:
            return [one for found in await asyncio.gather(*tasks) for one in found]
        finally:
            for task in tasks:
                task.cancel()

    def _parts(self, texts: list[str]) -> Iterator[tuple[int, list[str]]]:
        most, start, characters = self._options["batch_texts"], 0, 0
        for position, text in enumerate(texts):
            if position > start and (position - start == most or characters + len(text) > _BATCH_CHARACTERS):
                yield start, texts[start:position]
                start, characters = position, 0
            characters += len(text)
        if texts:
            yield start, texts[start:]

    # Tokens

    def tokenized(self, texts: Iterable[str]) -> TokenizedTexts:
        """Return texts with the ids of all their tokens. Those of the last queries are known from their answers.

        Raises:
            TokensUnknownError: The server does not return tokens.
            EncoderServerError: The server cannot be reached, refuses, or answers wrongly.
        """
        given = as_list(texts, "texts")
        self._need_tokens("the tokens of texts")
        with self._memory:
            known = {text: self._remembered[text] for text in given if text in self._remembered}
        missing = [text for text in dict.fromkeys(given) if text not in known]
        if missing:
            read: Callable[[Any, list[str]], list[list[int]]] = lambda answer, part: [  # noqa: E731
                ids_of(item) for item in items_of(answer, len(part))
            ]
            found = self._run(self._in_parts(TOKENIZE, missing, {"model": self.name}, 24, read))
            known.update(zip(missing, found, strict=True))
        return TokenizedTexts(given, [known[text] for text in given])

    def _remember(self, texts: list[str], ids: list[list[int]]) -> None:
        with self._memory:
            self._remembered.update(zip(texts, ids, strict=True))
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)

    def check_lengths(self, texts: Sequence[str]) -> None:
        """Raise DocumentTooLongError for the first text that does not fit the window."""
        if not self.gives_tokens:
            self._check_characters(texts)
            return
        for position, tokens in enumerate(self.tokenized(texts).counts):
            if tokens > self.content_length:
                raise DocumentTooLongError(
                    f"Document {position} has {tokens} tokens, {self.content_length} fit document_length="
                    f"{self.document_length}: {texts[position]!r:.60}. Pass long_documents='split' or 'truncate', or "
                    "start the server with a longer document_length."
                )

    def _check_characters(self, texts: Sequence[str]) -> None:
        for position, text in enumerate(texts):
            if len(text) > self.document_length:
                raise DocumentTooLongError(
                    f"Document {position} has {len(text)} characters, and windows of {self.document_length} are sure "
                    f"to fit: {text!r:.60}. Pass long_documents='split' or 'truncate', or a longer document_length."
                )

    def scored_tokens(
        self, text: str, task: Literal["query", "document"], long_documents: LongDocuments = "truncate"
    ) -> list[ScoredToken]:
        """Return the tokens of a text, one for each row of its multivector.

        Raises:
            TokensUnknownError: The server does not return tokens.
            EncoderServerError: The server cannot be reached, refuses, or answers wrongly.
        """
        self._need_tokens("explanations")
        body = {"model": self.name, "input_type": task, "long_documents": long_documents, "return_tokens": True}
        read: Callable[[Any, list[str]], list[list[ScoredToken]]] = lambda answer, part: [  # noqa: E731
            tokens_of(item, one) for item, one in zip(items_of(answer, len(part)), part, strict=True)
        ]
        return self._run(self._in_parts(TOKENIZE, [text], body, 400, read))[0]

    def token_counter(self) -> Callable[[str], int]:
        """Return an estimate of a text's tokens: one for every four bytes of UTF-8. A request each would take long."""
        return lambda text: -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)

    def _need_tokens(self, what: str) -> None:
        if not self.gives_tokens:
            raise TokensUnknownError(
                f"{self.url} does not return tokens, which {what} need. Search with first_stage='pooled' or 'none' and "
                "without explanations, or use a server that does, such as jcv2 serve."
            )

    # Requests

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._translating():
            return self._client.run(work)

    async def _arun(self, work: Coroutine[Any, Any, T]) -> T:
        with self._translating():
            return await self._client.arun(work)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """Raise what a user gets for the errors of requests and of answers."""
        try:
            yield
        except RequestError as error:
            raise self._client.translated(error, self._where_to_put_the_key) from error
        except WrongAnswer as error:
            raise self._wrong(error) from error

    def _wrong(self, error: WrongAnswer) -> Jcv2Error:
        return self._client.translated(RequestError(Failure(UNREADABLE, str(error))), self._where_to_put_the_key)


def is_remote(name: str | os.PathLike[str]) -> bool:
    """Return whether the name of an encoder is that of one on a server."""
    return isinstance(name, str) and name.lower().startswith(("http://", "https://", JINA))


def same_reference(asked: str, stored: str) -> bool:
    """Return whether a user's string is for the encoder of a collection. The model may be left out."""
    if is_remote(asked) and not asked.startswith(JINA):
        address, model = check_address(asked)
        return stored == f"{address}#{model}" if model else stored.partition("#")[0] == address
    return asked == stored


def check_address(url: str) -> tuple[str, str]:
    """Return the address of a server without a slash at its end, and the model after ``#``, or an empty string.

    Raises InvalidOptionError if it is invalid, without showing a password.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or any(character.isspace() for character in url):
        shown = f"{url.partition('://')[0]}://{url.partition('://')[2].rpartition('@')[2]}" if "://" in url else url
        raise InvalidOptionError(f"{shown!r:.200} is not the address of a server. Write it as https://host:8080.")
    if parts.username is not None or parts.password is not None:
        raise InvalidOptionError(f"The address of {parts.hostname} has a user or password. Pass api_key= instead.")
    if parts.query:
        raise InvalidOptionError(f"The address of {parts.hostname} has a '?' in it. Leave out what follows.")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", parts.fragment


def _again(url: str, options: dict[str, Any]) -> RemoteEncoder:
    return RemoteEncoder(url, **options)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
