"""``ColbertCollection``: documents as multivectors in Qdrant, added, found and deleted by the user's ids."""

from __future__ import annotations

import operator
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
    is_unicode,
    payload_of,
    point_id,
    validate,
)
from jcv2_plugin.engines.base import Engine, Matrix, Point
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


@dataclass(frozen=True)
class _NewDocument:
    point_id: str
    document: Document
    payload: dict[str, Any]


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
        self._device: str | None = None

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
        device: str | None = None,
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
            device: Where to put a model that is loaded here.
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
                encoder = _load_for(schema, os.fspath(encoder), device)
            if encoder is not None:
                schema.check_encoder(encoder, engine.place)
            collection = cls(engine, schema, encoder)
            collection._device = device
            return collection
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
                encoder = _load_for(self._schema, self._schema.model, self._device)
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
        changed = [one for batch in in_batches(documents, _BATCH_DOCUMENTS) for one in self._changed(batch)]
        self._check_lengths(changed)
        for batch in in_batches(changed, _BATCH_DOCUMENTS):
            self._store(batch)
        return [str(document.id) for document in documents]

    def ingest(
        self,
        documents: Iterable[str | Document],
        *,
        batch_documents: int = _BATCH_DOCUMENTS,
        progress: Callable[[int], None] | None = None,
    ) -> IngestReport:
        """Add documents from any iterable, batch by batch, holding one batch in memory.

        Each batch is checked as a whole before it is written; an error leaves the batches before it stored. Of
        documents with the same id in different batches the last one stays.

        Args:
            documents: Texts or :class:`Document` objects.
            batch_documents: Documents a batch.
            progress: Called after each batch with the number of documents in it.
        """
        report = IngestReport()
        for batch in in_batches(documents, batch_documents):
            changed = self._changed(validate(as_documents(batch)))
            self._check_lengths(changed)
            self._store(changed)
            report.written += len(changed)
            report.unchanged += len(batch) - len(changed)
            if progress is not None:
                progress(len(batch))
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

    def _changed(self, documents: Sequence[Document]) -> list[_NewDocument]:
        """Those that are not stored just so already."""
        new = [_NewDocument(point_id(str(one.id)), one, payload_of(one)) for one in documents]
        stored = {
            record.id: record.payload.get(HASH_KEY)
            for record in self._engine.retrieve(
                [one.point_id for one in new], with_payload=[HASH_KEY], with_vectors=False
            )
        }
        return [one for one in new if stored.get(one.point_id) != one.payload[HASH_KEY]]

    def _check_lengths(self, new: Sequence[_NewDocument]) -> None:
        if new:
            check_lengths([one.document for one in new], self._schema, self.encoder)

    def _store(self, new: Sequence[_NewDocument]) -> None:
        if not new:
            return
        vectors = self.encoder.document_vectors(
            [one.document.text for one in new], self.dim, self._schema.long_documents
        )
        for one, matrix in zip(new, vectors, strict=True):
            check_vectors(matrix, self.dim, f"Document {one.document.id!r}")
        self._engine.upsert(
            [Point(one.point_id, matrix, one.payload) for one, matrix in zip(new, vectors, strict=True)]
        )

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
        k = _positive(k)
        if filter is not None and not isinstance(filter, models.Filter):
            raise InvalidQueryError(f"filter must be a qdrant_client.models.Filter, got {type(filter).__name__}.")
        for query in queries:
            if not isinstance(query, str) or not query.strip() or not is_unicode(query):
                raise InvalidQueryError(f"A query must be a non-empty str, got {query!a:.60}.")
        hits: list[list[SearchHit]] = []
        for start in range(0, len(queries), _QUERIES_PER_SEARCH):
            vectors = self.encoder.query_vectors(queries[start : start + _QUERIES_PER_SEARCH], self.dim)
            for matrix in vectors:
                if not np.isfinite(matrix).all():
                    raise InvalidVectorError("The model gave query vectors that are not finite; check its weights.")
            found = self._engine.search(vectors, k, filter=filter, score_threshold=score_threshold)
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
        for payload in self.payloads([ID_KEY], filter):
            yield str(payload[ID_KEY])

    def payloads(self, keys: Sequence[str], filter: models.Filter | None = None) -> Iterator[dict[str, Any]]:
        """Chosen payload keys of all documents, or of all that a filter selects, without reading their texts."""
        for record in self._engine.scroll(filter, with_payload=list(keys)):
            yield record.payload

    def explain(self, query: str, id: str, *, query_vectors: Matrix | None = None) -> Explanation:
        """Which token of a stored document each query token matched, and how well.

        Args:
            query: The query.
            id: The document's id.
            query_vectors: The query's vectors where they are known, which saves encoding it for each document.

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
            query_vectors=query_vectors,
        )


def _hit(payload: dict[str, Any], score: float) -> SearchHit:
    stored = StoredDocument.from_payload(payload)
    return SearchHit(stored.id, stored.text, stored.metadata, stored.payload, score=score)


def _from_pretrained(name: str | os.PathLike[str], **options: Any) -> JinaColbertEncoder:
    from jcv2_plugin.encoder import JinaColbertEncoder

    return JinaColbertEncoder.from_pretrained(name, **options)


def _load_for(schema: CollectionSchema, model: str, device: str | None) -> JinaColbertEncoder:
    same = model == schema.model
    skiplist: Any = schema.skiplist if schema.skiplist != "custom" else "default"
    return _from_pretrained(
        model,
        dims=schema.dim,
        device=device,
        revision=schema.revision if same else None,
        document_length=schema.document_length,
        skiplist=skiplist,
    )


def _id_list(ids: Iterable[str]) -> list[str]:
    if isinstance(ids, str):
        raise InvalidDocumentError(f"Give a list of ids, not the single string {ids!r}.")
    listed = list(ids)
    for one in listed:
        if not isinstance(one, str) or not is_unicode(one):
            raise InvalidDocumentError(f"Ids are str, got {type(one).__name__}: {one!a:.60}.")
    return listed


def _positive(k: int) -> int:
    try:
        number = -1 if isinstance(k, bool) else operator.index(k)
    except TypeError:
        number = -1
    if number < 1:
        raise InvalidQueryError(f"k must be a positive integer, got {k!r}.")
    return number
