"""``ColbertCollection``: documents as multivectors in Qdrant, added, found and deleted by the user's ids."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from qdrant_client import QdrantClient, models

from jcv2_plugin import places
from jcv2_plugin.checks import check_lengths, check_vectors, in_batches
from jcv2_plugin.documents import (
    HASH_KEY,
    ID_KEY,
    Document,
    SearchHit,
    StoredDocument,
    as_documents,
    payload_of,
    point_id,
    validate,
)
from jcv2_plugin.engines.base import Engine, Point
from jcv2_plugin.errors import (
    CollectionMismatchError,
    InvalidDocumentError,
    InvalidQueryError,
    InvalidVectorError,
)
from jcv2_plugin.explanation import Explanation, explain
from jcv2_plugin.long_documents import LongDocuments
from jcv2_plugin.schema import CollectionSchema, Storage

if TYPE_CHECKING:
    # Imported when a model is loaded: that takes seconds, and reading or deleting needs none.
    from jcv2_plugin.encoder import JinaColbertEncoder

_BATCH_DOCUMENTS = 256
_QUERIES_PER_SEARCH = 64


@dataclass
class IngestReport:
    """What :meth:`ColbertCollection.ingest` did: documents written, and those found there unchanged."""

    written: int = 0
    unchanged: int = 0

    @property
    def seen(self) -> int:
        """All documents that were given."""
        return self.written + self.unchanged


class ColbertCollection:
    """A collection of documents for late-interaction search.

    Made by :meth:`create` or :meth:`open`, on one of two engines: Qdrant Edge in this process (a folder), or
    a ``QdrantClient`` (a server, a cluster, ``":memory:"``). Each document is one point with one multivector,
    scored by MaxSim, exactly. The dimension and the model are chosen when it is created and stored with it.

    A collection may be shared by threads. It is a context manager; leaving it closes it.

    Example:
        >>> with ColbertCollection.create(":memory:", encoder="mini", dim=64) as collection:
        ...     _ = collection.add(["Tokens meet tokens.", "Cooking rice."], ids=["a", "b"])
        ...     collection.search("late interaction of tokens", k=1)[0].id
        'a'
    """

    def __init__(self, engine: Engine, schema: CollectionSchema, encoder: JinaColbertEncoder | None) -> None:
        self._engine = engine
        self._schema = schema
        self._encoder = encoder
        self._encoder_lock = threading.Lock()

    @classmethod
    def create(
        cls,
        location: str | os.PathLike[str] | None = None,
        *,
        encoder: JinaColbertEncoder | str | os.PathLike[str],
        dim: int | None = None,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        client: QdrantClient | None = None,
        name: str = places.DEFAULT_NAME,
        storage: Storage = "float16",
        long_documents: LongDocuments = "split",
        overwrite: bool = False,
        client_options: Mapping[str, Any] | None = None,
        collection_options: Mapping[str, Any] | None = None,
    ) -> ColbertCollection:
        """Create an empty collection.

        Args:
            location: Where: a folder, ``":memory:"`` or a server's URL; or say it by one of the next three.
            encoder: The model, loaded or by name.
            dim: One of the model's Matryoshka dimensions; None takes its default. Another dimension needs
                another collection: heads are not weight-tied.
            path: A folder, for Qdrant Edge.
            url: A Qdrant server.
            client: A client of your own, which stays open when the collection is closed.
            name: The collection's name on a server or client; a folder holds one and needs none.
            storage: ``"float16"`` (half the space, scores equal to about 1e-3) or ``"float32"``.
            long_documents: What to do with documents over the encoder's ``document_length``: ``"split"``
                encodes them in windows, all kept under their one id; ``"truncate"`` keeps the first window,
                as ColBERT does; ``"error"`` refuses them.
            overwrite: Replace a collection that is there.
            client_options: For ``QdrantClient`` with ``url``: ``api_key``, ``prefer_grpc``, ``timeout``, ...
            collection_options: For ``QdrantClient.create_collection``: ``shard_number``, ...

        Raises:
            CollectionExistsError: There is one already.
            CollectionLockedError: The folder is open elsewhere.
            UnknownDimError: The model has no head for ``dim``.
            ModelNotFoundError: There is no such model.
        """
        place = places.Place.parse(location, path=path, url=url, client=client, name=name)
        place.check_can_create(overwrite=overwrite)
        if isinstance(encoder, (str, os.PathLike)):
            encoder = _from_pretrained(encoder, dims=dim)
        schema = CollectionSchema.describe(encoder, encoder.resolve_dim(dim), long_documents, storage)
        engine = place.create(
            schema, overwrite=overwrite, client_options=client_options, collection_options=collection_options
        )
        return cls(engine, schema, encoder)

    @classmethod
    def open(
        cls,
        location: str | os.PathLike[str] | None = None,
        *,
        encoder: JinaColbertEncoder | str | os.PathLike[str] | None = None,
        dim: int | None = None,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        client: QdrantClient | None = None,
        name: str = places.DEFAULT_NAME,
        client_options: Mapping[str, Any] | None = None,
    ) -> ColbertCollection:
        """Open a collection. Without ``encoder`` the model it was made with is loaded when first needed.

        Args:
            location: As for :meth:`create`.
            encoder: A model to use; it must be the one the collection was made with.
            dim: The dimension you expect; checked.
            path: As for :meth:`create`.
            url: As for :meth:`create`.
            client: As for :meth:`create`.
            name: As for :meth:`create`.
            client_options: As for :meth:`create`.

        Raises:
            CollectionNotFoundError: There is none.
            CollectionMismatchError: It was made with another model or dimension.
            CollectionCorruptError: Its description is unreadable.
            CollectionLockedError: The folder is open elsewhere.
        """
        place = places.Place.parse(location, path=path, url=url, client=client, name=name)
        engine = place.open(client_options=client_options)
        try:
            schema = CollectionSchema.from_dict(engine.describe(), engine.place)
            if dim is not None and dim != schema.dim:
                raise CollectionMismatchError(
                    f"{engine.place} holds vectors of dim={schema.dim}, not {dim}. Open it without dim, or create "
                    "a new collection: heads are not weight-tied, so stored vectors cannot be cut down."
                )
            if isinstance(encoder, (str, os.PathLike)):
                encoder = _load_for(schema, os.fspath(encoder))
            if encoder is not None:
                schema.check_encoder(encoder, engine.place)
            return cls(engine, schema, encoder)
        except BaseException:
            engine.close()
            raise

    # What it is

    @property
    def schema(self) -> CollectionSchema:
        """With which model, dimension and preprocessing the vectors are made."""
        return self._schema

    @property
    def dim(self) -> int:
        """The Matryoshka dimension."""
        return self._schema.dim

    @property
    def encoder(self) -> JinaColbertEncoder:
        """The model, loaded at the first use.

        Raises:
            ModelNotFoundError: The model the collection was made with is not to be had.
            CollectionMismatchError: What now goes by its name has other weights.
        """
        with self._encoder_lock:
            if self._encoder is None:
                encoder = _load_for(self._schema, self._schema.model)
                self._schema.check_encoder(encoder, self._engine.place)
                self._encoder = encoder
            return self._encoder

    def __repr__(self) -> str:
        return f"ColbertCollection({self._engine.place!r}, model={self._schema.model!r}, dim={self.dim})"

    def __len__(self) -> int:
        return self.count()

    def __enter__(self) -> ColbertCollection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder or client; a second call does nothing."""
        self._engine.close()

    # Writing

    def add(
        self,
        texts: Iterable[str | Document],
        *,
        ids: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[str]:
        """Encode and store documents; one whose id is there already replaces it.

        Everything is checked before the first is encoded, and documents that are stored unchanged are not
        encoded again. More than 256 are written in batches; use :meth:`ingest` for streams.

        Args:
            texts: Texts, or :class:`Document` objects.
            ids: An id for each text; None draws random ones.
            metadata: A dict for each text.

        Returns:
            The documents' ids, in order.

        Raises:
            InvalidDocumentError: Empty text, an id twice, metadata that is no JSON, ... Nothing was written.
            DocumentTooLongError: A document exceeds what the model or Qdrant takes. Nothing was written.
        """
        documents = validate(as_documents(texts, ids, metadata))
        check_lengths(documents, self._schema, self.encoder)
        for start in range(0, len(documents), _BATCH_DOCUMENTS):
            self._write(documents[start : start + _BATCH_DOCUMENTS])
        return [str(document.id) for document in documents]

    def ingest(
        self,
        documents: Iterable[str | Document],
        *,
        batch_documents: int = _BATCH_DOCUMENTS,
        progress: Callable[[int], None] | None = None,
    ) -> IngestReport:
        """Add documents from any iterable, batch by batch, holding one batch in memory.

        Each batch is checked as a whole before it is written; an error leaves the batches before it stored.

        Args:
            documents: Texts or :class:`Document` objects.
            batch_documents: Documents a batch.
            progress: Called after each batch with the number of documents in it.
        """
        report = IngestReport()
        for batch in in_batches(documents, batch_documents):
            checked = validate(as_documents(batch))
            check_lengths(checked, self._schema, self.encoder)
            written = self._write(checked)
            report.written += written
            report.unchanged += len(checked) - written
            if progress is not None:
                progress(len(checked))
        if report.written:
            self._engine.optimize()
        return report

    def delete(self, ids: Iterable[str] | None = None, *, filter: models.Filter | None = None) -> None:
        """Remove documents by id, or all that a filter selects. Ids that are not there are no error.

        Raises:
            ValueError: If neither or both of them are given.
        """
        if (ids is None) == (filter is None):
            raise ValueError("Give either ids or a filter to delete by.")
        if filter is not None:
            self._engine.delete_where(filter)
        elif ids is not None:
            self._engine.delete([point_id(one) for one in _id_list(ids)])

    def _write(self, documents: Sequence[Document]) -> int:
        payloads = [payload_of(document) for document in documents]
        point_ids = [point_id(payload[ID_KEY]) for payload in payloads]
        stored = {
            record.id: record.payload.get(HASH_KEY)
            for record in self._engine.retrieve(point_ids, with_payload=[HASH_KEY], with_vectors=False)
        }
        changed = [index for index, payload in enumerate(payloads) if stored.get(point_ids[index]) != payload[HASH_KEY]]
        if not changed:
            return 0
        vectors = self.encoder.document_vectors(
            [documents[index].text for index in changed], self.dim, self._schema.long_documents
        )
        for index, matrix in zip(changed, vectors, strict=True):
            check_vectors(matrix, self.dim, f"Document {payloads[index][ID_KEY]!r}")
        self._engine.upsert(
            [Point(point_ids[index], matrix, payloads[index]) for index, matrix in zip(changed, vectors, strict=True)]
        )
        return len(changed)

    # Reading

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        filter: models.Filter | None = None,
        score_threshold: float | None = None,
    ) -> list[SearchHit]:
        """The ``k`` documents of the largest MaxSim with the query, best first; the scoring is exact.

        Args:
            query: The question.
            k: How many.
            filter: Search only what it selects; metadata is addressed as ``metadata.<key>``.
            score_threshold: Leave out documents scoring less.

        Raises:
            InvalidQueryError: The query is empty or no string, or ``k`` is not positive.
        """
        return self.search_many([query], k, filter=filter, score_threshold=score_threshold)[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        filter: models.Filter | None = None,
        score_threshold: float | None = None,
    ) -> list[list[SearchHit]]:
        """:meth:`search` for several queries at once, encoded in batches; a list of hits for each."""
        if isinstance(queries, str):
            raise InvalidQueryError("Give a list of queries to search_many, or one query to search.")
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InvalidQueryError(f"k must be a positive integer, got {k!r}.")
        for query in queries:
            if not isinstance(query, str) or not query.strip():
                raise InvalidQueryError(f"A query must be a non-empty str, got {query!r:.60}.")
        hits: list[list[SearchHit]] = []
        for start in range(0, len(queries), _QUERIES_PER_SEARCH):
            vectors = self.encoder.query_vectors(queries[start : start + _QUERIES_PER_SEARCH], self.dim)
            for matrix in vectors:
                if not np.isfinite(matrix).all():
                    raise InvalidVectorError("The model gave query vectors that are not finite; check its weights.")
            found = self._engine.search(vectors, k, filter=filter, score_threshold=score_threshold, with_vectors=False)
            hits.extend([_hit(record.payload, record.score) for record in records] for records in found)
        return hits

    def get(self, ids: Iterable[str]) -> list[StoredDocument]:
        """The documents of these ids that exist, in the order asked."""
        wanted = _id_list(ids)
        records = self._engine.retrieve([point_id(one) for one in wanted], with_payload=True, with_vectors=False)
        found = {record.id: StoredDocument.from_payload(record.payload) for record in records}
        return [found[point_id(one)] for one in wanted if point_id(one) in found]

    def count(self, filter: models.Filter | None = None) -> int:
        """How many documents there are, or how many a filter selects."""
        return self._engine.count(filter)

    def scroll(self, filter: models.Filter | None = None) -> Iterator[StoredDocument]:
        """All documents, or all that a filter selects, in no particular order."""
        for record in self._engine.scroll(filter, with_payload=True):
            yield StoredDocument.from_payload(record.payload)

    def ids(self, filter: models.Filter | None = None) -> Iterator[str]:
        """The ids of all documents, or of all that a filter selects."""
        for record in self._engine.scroll(filter, with_payload=[ID_KEY]):
            yield str(record.payload[ID_KEY])

    def explain(self, query: str, id: str) -> Explanation:
        """Which token of a stored document each query token matched, and how well.

        Raises:
            InvalidDocumentError: There is no such document.
        """
        found = self._engine.retrieve([point_id(id)], with_payload=True, with_vectors=True)
        if not found or found[0].vectors is None:
            raise InvalidDocumentError(f"{self._engine.place} has no document {id!r}.")
        text = StoredDocument.from_payload(found[0].payload).text
        return explain(
            self.encoder,
            query,
            text,
            dim=self.dim,
            long_documents=self._schema.long_documents,
            document_vectors=found[0].vectors,
        )


def _hit(payload: dict[str, Any], score: float) -> SearchHit:
    stored = StoredDocument.from_payload(payload)
    return SearchHit(stored.id, stored.text, stored.metadata, stored.payload, score=score)


def _from_pretrained(name: str | os.PathLike[str], **options: Any) -> JinaColbertEncoder:
    from jcv2_plugin.encoder import JinaColbertEncoder

    return JinaColbertEncoder.from_pretrained(name, **options)


def _load_for(schema: CollectionSchema, model: str) -> JinaColbertEncoder:
    same = model == schema.model
    skiplist: Any = schema.skiplist if schema.skiplist != "custom" else "default"
    return _from_pretrained(
        model,
        dims=schema.dim,
        revision=schema.revision if same else None,
        document_length=schema.document_length,
        skiplist=skiplist,
    )


def _id_list(ids: Iterable[str]) -> list[str]:
    if isinstance(ids, str):
        raise InvalidDocumentError(f"Give a list of ids, not the single string {ids!r}.")
    return list(ids)
