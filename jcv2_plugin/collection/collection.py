"""``ColbertCollection``: documents stored as multivectors in Qdrant, under the user's own ids."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

from typing_extensions import Unpack

from jcv2_plugin.checks import as_dims
from jcv2_plugin.collection import ingest, migrate, repair, search, verify
from jcv2_plugin.collection.asynchronous import in_thread, pages_in_thread
from jcv2_plugin.collection.ingest import BATCH_DOCUMENTS, IngestReport
from jcv2_plugin.collection.journal import IngestJournal
from jcv2_plugin.collection.location import DEFAULT_NAME, Location
from jcv2_plugin.collection.migrate import MigrationReport, Target
from jcv2_plugin.collection.sameness import check_encoder
from jcv2_plugin.collection.search import SearchOptions
from jcv2_plugin.collection.snapshot import SnapshotInfo, check_snapshot, read_info, restore_snapshot, write_snapshot
from jcv2_plugin.collection.state import CollectionState, OpenCollection, load_for, own_stages
from jcv2_plugin.collection.verify import VerificationReport
from jcv2_plugin.documents import (
    ID_KEY,
    Document,
    OnBlank,
    SearchHit,
    StoredDocument,
    accepted,
    as_documents,
    id_list,
    point_id,
    warn_of_blank,
)
from jcv2_plugin.encoder.base import Encoder
from jcv2_plugin.encoder.named import load_encoder
from jcv2_plugin.encoder.windows import LongDocuments
from jcv2_plugin.engines.answers import check_documents, wrong_answer
from jcv2_plugin.engines.base import PAYLOAD_INDEXES, Engine, Matrix, NewCollection, PayloadIndex
from jcv2_plugin.engines.first_stage import ChosenStages, FirstStage, FirstStageLike, choose_first_stage
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.engines.storage import Storage
from jcv2_plugin.errors import CollectionMismatchError, InvalidOptionError
from jcv2_plugin.filters import check_filter, check_payload_key

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

    from jcv2_plugin.scoring.explanation import Explanation

__all__ = ["ColbertCollection", "IngestReport"]


def new_schema(
    encoder: Encoder,
    dim: int | None = None,
    storage: Storage = "float16",
    first_stage: FirstStageLike | None = None,
    pool_factor: float = 1.0,
    long_documents: LongDocuments = "split",
) -> tuple[CollectionSchema, Mapping[str, FirstStage]]:
    """Return the schema of a new collection and its own first stages, see :meth:`ColbertCollection.create`."""
    stages = choose_first_stage(first_stage, encoder)
    options: dict[str, Any] = {"first_stage": stages.name, "stage_options": stages.options, "pool_factor": pool_factor}
    return CollectionSchema.describe(encoder, encoder.resolve_dim(dim), long_documents, storage, **options), stages.own


class ColbertCollection:
    """A collection of documents for late-interaction search.

    Use :meth:`create` or :meth:`open`. There are two engines: Qdrant Edge in this process (a folder) and
    ``QdrantClient`` (a server, a cluster or ``":memory:"``). Each document is one point with one multivector. MaxSim
    ranks all documents or, in a large collection, the candidates that a first stage finds. The model and the dimension
    are chosen at creation and stored with the collection.

    Collections can be shared between threads. Use a collection as a context manager to close it on exit. Methods whose
    name has an ``a`` in front (``asearch``) are the async versions. They run in a thread, as do the iterables and
    callbacks given to them.

    Example:
        >>> with ColbertCollection.create(":memory:", encoder="mini", dim=64) as collection:
        ...     _ = collection.add(["Tokens meet tokens.", "Cooking rice."], ids=["a", "b"])
        ...     collection.search("late interaction of tokens", k=1)[0].id
        'a'
    """

    def __init__(
        self,
        engine: Engine,
        schema: CollectionSchema,
        encoder: Encoder | None,
        device: str | None = None,
        own_stages: Mapping[str, FirstStage] | None = None,
    ) -> None:
        self._state = CollectionState(OpenCollection(engine, schema, encoder, device, own_stages))

    def __enter__(self) -> ColbertCollection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        engine, schema = self.current.engine, self.schema
        return f"ColbertCollection({engine.title!r}, model={schema.model!r}, dim={schema.dim})"

    def __len__(self) -> int:
        return self.count()

    @classmethod
    def create(
        cls,
        location: str | os.PathLike[str] | None = None,
        *,
        encoder: Encoder | str | os.PathLike[str],
        dim: int | None = None,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        client: QdrantClient | None = None,
        name: str = DEFAULT_NAME,
        storage: Storage = "float16",
        first_stage: FirstStageLike | None = None,
        pool_factor: float = 1.0,
        long_documents: LongDocuments = "split",
        payload_indexes: Mapping[str, PayloadIndex] | None = None,
        shard_key: str | int | None = None,
        overwrite: bool = False,
        retries: int = NewCollection.retries,
        client_options: Mapping[str, Any] | None = None,
        collection_options: Mapping[str, Any] | None = None,
    ) -> ColbertCollection:
        """Create an empty collection.

        Args:
            location: A folder, ``":memory:"`` or a server's URL. Alternatively, pass ``path``, ``url`` or ``client``.
            encoder: The encoder; the name or path of a model; or ``"https://..."`` or ``"jina-api:..."`` for one on a
                server.
            dim: One of the model's Matryoshka dimensions. Defaults to the model's own default. Another dimension
                requires another collection, since projection heads are not weight-tied.
            path: Folder for Qdrant Edge.
            url: URL of a Qdrant server, or ``":memory:"``.
            client: Your own client. It stays open when the collection is closed.
            name: Name of the collection on a server or client. Ignored for a folder, which holds a single collection.
            storage: Vector storage: ``"float32"``; ``"float16"`` (half the space, scores equal to about 1e-3);
                ``"int8"`` (a quarter of the memory, with the float16 originals on disk); ``"turbo8"`` and
                ``"turbo4"`` (a quarter and an eighth, also on disk). See docs/compression.md for the trade-offs.
            first_stage: How candidates for MaxSim are found: ``"hybrid"`` (``pooled`` and ``bm25``, merged by
                reciprocal rank fusion), ``"pooled"`` (mean of the token vectors), ``"bm25"`` (words) or
                ``"none"`` (MaxSim over all documents). Or a stage of your own, see :class:`~jcv2_plugin.FirstStage`,
                or a list of several. See docs/two-stage.md. None is ``"hybrid"``, or ``"pooled"`` for an encoder on a
                server that returns no tokens.
            pool_factor: Token pooling factor for documents: neighbouring token vectors are merged until about one in
                ``pool_factor`` is left. 1 disables pooling.
            long_documents: How to handle documents longer than the encoder's ``document_length``: ``"split"`` encodes
                them in several windows stored under one id, ``"truncate"`` keeps the first window, as ColBERT does,
                and ``"error"`` refuses them.
            payload_indexes: Payload fields to index for filters, such as ``{"metadata.topic": "keyword"}``.
            shard_key: Shard to write to and search, if ``collection_options`` contains
                ``sharding_method="custom"``. It is created if it does not exist.
            overwrite: Replace an existing collection.
            retries: Maximum number of attempts per request to a server, with increasing waits.
            client_options: Keyword arguments for ``QdrantClient`` with ``url``: ``api_key``, ``prefer_grpc``,
                ``timeout``, ...
            collection_options: Keyword arguments for ``QdrantClient.create_collection``: ``shard_number``, ...

        Raises:
            CollectionExistsError: The collection already exists.
            CollectionLockedError: The folder is open elsewhere.
            UnknownDimError: The model has no projection head for ``dim``.
            ModelNotFoundError: The model does not exist.
            InvalidOptionError: An option is invalid.
        """
        parsed = Location.parse(location, path=path, url=url, client=client, name=name)
        parsed.check_can_create(overwrite=overwrite)
        if first_stage is not None:
            ChosenStages.of(first_stage)  # raises before a model is loaded
        if isinstance(encoder, (str, os.PathLike)):
            encoder = load_encoder(encoder, dims=dim)
        schema, own = new_schema(encoder, dim, storage, first_stage, pool_factor, long_documents)
        options = NewCollection(dict(payload_indexes or {}), shard_key, retries, dict(collection_options or {}))
        engine = parsed.create(schema, overwrite=overwrite, client_options=client_options, options=options)
        return cls(engine, schema, encoder, own_stages=own)

    @classmethod
    def open(
        cls,
        location: str | os.PathLike[str] | None = None,
        *,
        encoder: Encoder | str | os.PathLike[str] | None = None,
        dim: int | None = None,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        client: QdrantClient | None = None,
        name: str = DEFAULT_NAME,
        device: str | None = None,
        first_stage: FirstStageLike | None = None,
        shard_key: str | int | None = None,
        retries: int = NewCollection.retries,
        client_options: Mapping[str, Any] | None = None,
    ) -> ColbertCollection:
        """Open an existing collection. Without ``encoder``, its model is loaded when first needed.

        Args:
            location: Alternatively, pass ``path``, ``url`` or ``client``. These, ``name``, ``retries`` and
                ``client_options`` are as in :meth:`create`.
            encoder: The encoder, or the name or path of a model. It must match the collection's model.
            dim: Expected dimension, raises an error if it differs.
            device: Device for a model that is loaded here.
            first_stage: The first stage of your own that the collection was created with. ``"none"`` opens it without
                the object: searches are exact, and documents can be deleted, but not added.
            shard_key: See :meth:`create`. None searches all shards.

        Raises:
            CollectionNotFoundError: The collection does not exist.
            UnknownDimError: ``dim`` is not a positive integer.
            CollectionMismatchError: The collection was created with another model or dimension, or with a first stage
                of your own that is not given. If an encoder's server reports no fingerprint of the weights, the model
                is compared by encoding a few documents again.
            CollectionCorruptError: The stored schema is unreadable.
            CollectionLockedError: The folder is open elsewhere.
        """
        parsed = Location.parse(location, path=path, url=url, client=client, name=name)
        if dim is not None:
            (dim,) = as_dims(dim)
        engine = parsed.open(client_options=client_options, retries=retries, shard_key=shard_key)
        try:
            schema = CollectionSchema.from_dict(engine.describe(), engine.title)
            if dim is not None and dim != schema.dim:
                raise CollectionMismatchError(
                    f"{engine.title} holds vectors of dim={schema.dim}, not {dim}. Open it without dim, or create "
                    "a new collection: heads are not weight-tied, so stored vectors cannot be cut down."
                )
            own = own_stages(schema, first_stage, engine.title)
            if isinstance(encoder, (str, os.PathLike)):
                encoder = load_for(schema, os.fspath(encoder), device, named_by_user=True)
            if encoder is not None:
                check_encoder(engine, schema, encoder)
            return cls(engine, schema, encoder, device, own)
        except BaseException:
            engine.close()
            raise

    @classmethod
    def restore(
        cls,
        snapshot: str | os.PathLike[str],
        location: str | os.PathLike[str] | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        client: QdrantClient | None = None,
        name: str = DEFAULT_NAME,
        first_stage: FirstStageLike = "none",
        overwrite: bool = False,
        payload_indexes: Mapping[str, PayloadIndex] | None = None,
        shard_key: str | int | None = None,
        retries: int = NewCollection.retries,
        client_options: Mapping[str, Any] | None = None,
        collection_options: Mapping[str, Any] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> ColbertCollection:
        """Restore a collection from a file written by :meth:`snapshot`, on any engine and without encoding.

        The whole file is read and its checksums are verified before anything is created. All documents become visible
        at once, and a collection that is replaced stays available until then.

        Args:
            snapshot: Path of the snapshot file.
            first_stage: See :meth:`open`. By default, a first stage of your own is done without.
            location: As in :meth:`create`, like all arguments that are not described here.
            progress: Called periodically with the number of documents stored since the last call.

        Raises:
            SnapshotError: The file is not a snapshot or is damaged.
            CollectionMismatchError: The snapshot has another first stage. Nothing is created or replaced.
            CollectionExistsError: See :meth:`create`.
        """
        file = Path(snapshot)
        check_snapshot(file)
        own = own_stages(read_info(file).schema, first_stage, f"The snapshot {str(file)!r}")
        parsed = Location.parse(location, path=path, url=url, client=client, name=name)
        options = NewCollection(dict(payload_indexes or {}), shard_key, retries, dict(collection_options or {}))
        engine, schema = restore_snapshot(
            file, parsed, overwrite=overwrite, client_options=client_options, options=options, progress=progress
        )
        return cls(engine, schema, None, own_stages=own)

    @classmethod
    def repair(
        cls, path: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None
    ) -> repair.RepairReport:
        """Repair a folder that cannot be opened because its write-ahead log cannot be read.

        Copies the documents into a new shard without the log, and nothing is encoded. Documents that were added,
        changed or deleted after the folder was last closed may be missing or be as they were: add them again. If the
        folder can be opened, nothing is changed. A repair that was interrupted is repeated by the same call.

        Args:
            path: Folder of the collection.
            progress: Called periodically with the number of documents read since the last call.

        Raises:
            CollectionCorruptError: More than the log is damaged. The log is back in its place.
        """
        return repair.repair(Path(path).expanduser().absolute(), progress)

    def close(self) -> None:
        """Close the collection and release its folder or client. Calling it again has no effect."""
        self._state.close()

    def __copy__(self) -> ColbertCollection:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ColbertCollection:
        # Frameworks copy their components. Copies share the open collection, as they share a client.
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be pickled, since it is open in this process. Pass its location to the other process, "
            "and open it there with ColbertCollection.open."
        )

    # Properties

    @property
    def schema(self) -> CollectionSchema:
        """Collection schema: the model, dimension and preprocessing of the vectors."""
        return self.current.schema

    @property
    def dim(self) -> int:
        """Matryoshka dimension of the vectors."""
        return self.schema.dim

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded on first use.

        Raises:
            ModelNotFoundError: The model that the collection was created with is not available.
            CollectionMismatchError: The model of that name now has other weights.
        """
        return self.current.encoder

    @property
    def engine(self) -> Engine:
        """The engine that stores the points. Writing through it bypasses all checks."""
        return self.current.engine

    @property
    def current(self) -> OpenCollection:
        """Engine, schema and encoder as they are now. A migration replaces them."""
        return self._state.current

    # Writing

    def add(
        self,
        texts: Iterable[str | Document],
        *,
        ids: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        on_blank: OnBlank = "skip",
    ) -> list[str]:
        """Encode and store documents. A document with an existing id replaces the stored one.

        All documents are checked before any is encoded. Documents that are already stored unchanged are not encoded
        again. More than 256 documents are written in batches. Use :meth:`ingest` for streams.

        Args:
            texts: Texts or :class:`Document` objects.
            ids: Id of each text. None generates random ids.
            metadata: Metadata dict of each text.
            on_blank: ``"skip"`` leaves out blank texts, such as empty pages of a PDF, and logs a warning with
                their ids. ``"error"`` refuses the call.

        Returns:
            Ids of the stored documents, in input order.

        Raises:
            InvalidDocumentError: An id is duplicated, metadata is not JSON, ... Nothing was written.
            DocumentTooLongError: A document exceeds a limit of the model or of Qdrant. Nothing was written.
        """
        documents, blank = accepted(as_documents(texts, ids, metadata), on_blank)
        warn_of_blank(blank)
        self._state.write(lambda current: ingest.add(current, documents))
        return [str(document.id) for document in documents]

    def ingest(
        self,
        documents: Iterable[str | Document],
        *,
        batch_documents: int = BATCH_DOCUMENTS,
        progress: Callable[[int], None] | None = None,
        journal: str | os.PathLike[str] | None = None,
        workers: int | Sequence[str] = 0,
        on_blank: OnBlank = "skip",
    ) -> IngestReport:
        """Add documents from an iterable of any length, keeping only a few batches in memory.

        One batch is stored while the next is encoded. Each batch is checked as a whole before it is encoded. After an
        error, the batches before it are stored; after Ctrl-C too, except those that workers are still encoding.
        Documents that are already stored unchanged are not encoded again, so repeating an interrupted or killed run
        resumes it. If several batches contain the same id, the last document is kept.

        Args:
            documents: Texts or :class:`Document` objects.
            batch_documents: Maximum number of documents per batch. Batches of long documents are smaller.
            progress: Called after each stored batch with its number of documents.
            journal: File that records the progress of the run. It is removed when the run succeeds. Documents without
                an id need it to be recognised when a run is repeated: otherwise, they get random ids and are stored
                twice.
            workers: Number of processes to encode in, spread over the GPUs if there are any, or a list of devices
                (``["cuda:0", "cuda:1"]``). 0 encodes in this process.
            on_blank: See :meth:`add`. With ``"error"``, the batches before the blank text are stored.

        Raises:
            InvalidDocumentError: See :meth:`add`. Nothing of the batch was written.
            DocumentTooLongError: See :meth:`add`. Nothing of the batch was written.
            JournalError: The journal file is not a journal or is unreadable.
        """
        with self._state.writing, IngestJournal.open(journal) as opened:
            options = {"progress": progress, "workers": workers, "on_blank": on_blank}
            return ingest.ingest(self._state, documents, batch_documents, opened, **options)

    def delete(self, ids: Iterable[str] | None = None, *, filter: models.Filter | None = None) -> None:
        """Delete documents by id or by filter. Missing ids are ignored.

        Raises:
            ValueError: Neither or both of ``ids`` and ``filter`` are given.
        """
        if (ids is None) == (filter is None):
            raise ValueError("Give either ids or a filter to delete by.")
        check_filter(filter)
        points = None if ids is None else [point_id(one) for one in id_list(ids)]

        def work(current: OpenCollection) -> None:
            if filter is not None:
                current.engine.delete_where(filter)
            elif points is not None:
                current.engine.delete(points)
            current.has_changed()

        self._state.write(work)

    def create_payload_index(self, key: str, kind: PayloadIndex) -> None:
        """Index a payload field for filters, for example ``"metadata.topic"`` as ``"keyword"``.

        Qdrant's strict mode requires this for filtered fields.

        Raises:
            InvalidOptionError: The key or the index type is invalid.
        """
        check_payload_key(key)
        if kind not in PAYLOAD_INDEXES:
            raise InvalidOptionError(f"A payload index is one of {PAYLOAD_INDEXES}, got {kind!r} for {key!r}.")
        self._state.run(lambda current: current.engine.create_payload_index(key, kind))

    def optimize(self) -> None:
        """Merge segments, build the first stage's index and drop deleted documents. This can take a while.

        :meth:`ingest` calls this at the end. A server optimises itself.
        """
        self._state.write(lambda current: current.engine.optimize())

    # Reading

    def get(self, ids: Iterable[str]) -> list[StoredDocument]:
        """Return documents by id, in the given order. Missing ids are skipped."""
        points = [point_id(one) for one in id_list(ids)]
        records = self._state.run(lambda now: now.engine.retrieve(points, with_payload=True, with_vectors=False))
        found = {record.id: StoredDocument.from_payload(record.payload) for record in records}
        return [found[point] for point in points if point in found]

    def count(self, filter: models.Filter | None = None) -> int:
        """Return the number of documents, or of those that match a filter."""
        check_filter(filter)
        return self._state.run(lambda current: current.engine.count(filter))

    def scroll(self, filter: models.Filter | None = None) -> Iterator[StoredDocument]:
        """Iterate over all documents, or those that match a filter, in no particular order."""
        for record in self._state.scroll(filter, with_payload=True):
            check_documents([record], self.engine.title)
            yield StoredDocument.from_payload(record.payload)

    def ids(self, filter: models.Filter | None = None) -> Iterator[str]:
        """Iterate over the ids of all documents, or of those that match a filter."""
        for payload in self.payloads([ID_KEY], filter):
            if not isinstance(payload.get(ID_KEY), str):
                raise wrong_answer(self.engine.title, "A point has no id: it was not written by this package.")
            yield payload[ID_KEY]

    def payloads(self, keys: Sequence[str], filter: models.Filter | None = None) -> Iterator[dict[str, Any]]:
        """Iterate over selected payload keys of all documents, or of those that match a filter.

        Texts are not read unless selected.
        """
        for record in self._state.scroll(filter, with_payload=list(keys)):
            yield record.payload

    # Searching

    def search(self, query: str, k: int = 10, **options: Unpack[SearchOptions]) -> list[SearchHit]:
        """Search by MaxSim and return the top ``k`` documents, best first.

        In a small collection, MaxSim ranks all documents. With a first stage and more than 1,000 documents, it ranks
        only the candidates that the first stage finds. Scores are the same, but a document is occasionally missed.

        Args:
            query: Query text.
            k: Number of documents to return.
            **options: ``filter``, ``score_threshold``, ``candidates``, ``exact``, ``first_stage``, ``rrf_k``,
                ``rrf_weights`` and ``with_explanation``, see :class:`~jcv2_plugin.SearchOptions`.

        Raises:
            InvalidQueryError: The query is empty or not a string, ``k`` or ``candidates`` is not positive, or the
                collection does not have the requested first stage.
        """
        return self.search_many([query], k, **options)[0]

    def search_many(
        self, queries: Iterable[str], k: int = 10, **options: Unpack[SearchOptions]
    ) -> list[list[SearchHit]]:
        """Search for several queries, encoded in batches. Return a list of hits per query, see :meth:`search`."""
        _, work = search.many(queries, k, options)
        return self._state.run(work)

    def search_mmr(
        self,
        query: str,
        k: int = 10,
        *,
        fetch_k: int | None = None,
        lambda_mult: float = 0.5,
        **options: Unpack[SearchOptions],
    ) -> list[SearchHit]:
        """Search with maximal marginal relevance (MMR) and return ``k`` relevant but diverse documents.

        The best hit comes first, followed by hits that are relevant and dissimilar to those before them, see
        :mod:`jcv2_plugin.scoring.mmr`. Scores are as in :meth:`search`, but not in descending order.

        Args:
            query: Query text.
            k: Number of documents to return.
            fetch_k: Number of best hits to select from, at least ``k``. Defaults to ``4 * k``, or 20 if that is larger.
            lambda_mult: Trade-off between 0 (maximum diversity) and 1 (relevance only).
            **options: See :meth:`search`.

        Raises:
            InvalidQueryError: See :meth:`search`. Also raised if ``fetch_k`` is not positive or ``lambda_mult`` is not
                between 0 and 1.
        """
        return self._state.run(search.mmr(query, k, fetch_k, lambda_mult, options))

    def explain(self, query: str, id: str, *, query_vectors: Matrix | None = None) -> Explanation:
        """Explain a score: the token of a stored document that each query token matched, and their similarity.

        With token pooling, a stored vector represents several tokens. The document is then encoded again without
        pooling, and the score of the explanation is slightly higher than that of the search.

        Args:
            query: Query text.
            id: Id of the document.
            query_vectors: Precomputed query vectors, to avoid encoding the query again for each document.

        Raises:
            InvalidDocumentError: There is no document with this id.
        """
        return self._state.run(lambda current: search.explain(current, query, id, query_vectors))

    # Maintenance

    def migrate(
        self,
        *,
        dim: int | None = None,
        encoder: Encoder | str | os.PathLike[str] | None = None,
        storage: Storage | None = None,
        first_stage: FirstStageLike | None = None,
        pool_factor: float | None = None,
        long_documents: LongDocuments | None = None,
        keep_old: bool = False,
        workers: int | Sequence[str] = 0,
        progress: Callable[[int], None] | None = None,
    ) -> MigrationReport:
        """Change settings chosen at creation, such as the dimension or the model, while the collection is in use.

        The new collection is built beside the old one, which stays searchable, and then replaces it in one step: on a
        server an alias moves, in a folder one file is replaced. If the migration is interrupted before that, the old
        collection is unchanged and the same call resumes. Afterwards, this object and, on a server, all others that
        have the name open use the new collection.

        If only ``storage`` or ``first_stage`` changes, vectors are copied, unless the new storage is more precise. All
        other changes encode the texts again: projection heads are not weight-tied, so 64-dimensional vectors are not
        the first half of 128-dimensional ones. If nothing would change, nothing is done, see
        :attr:`MigrationReport.needed`.

        Args:
            dim: New Matryoshka dimension.
            encoder: New encoder, or the name or path of a model.
            storage: See :meth:`create`.
            first_stage: See :meth:`create`.
            pool_factor: See :meth:`create`.
            long_documents: See :meth:`create`.
            keep_old: On a server, keep the old collection for readers that have it open. Its name is
                :attr:`MigrationReport.old`.
            workers: See :meth:`ingest`.
            progress: Called periodically with the number of documents processed since the last call.

        Raises:
            InvalidOptionError: An option is invalid.
            UnknownDimError: The model has no projection head for ``dim``.
            CollectionError: A migration is already running, or other processes write faster than documents are
                encoded.
        """
        target = Target(
            encoder=os.fspath(encoder) if isinstance(encoder, (str, os.PathLike)) else encoder,
            dim=dim,
            storage=storage,
            first_stage=first_stage,
            pool_factor=pool_factor,
            long_documents=long_documents,
        )
        return migrate.migrate(self._state, target, keep_old=keep_old, progress=progress, workers=workers)

    def verify(
        self, *, sample: int = 20, seed: int = 0, progress: Callable[[int], None] | None = None
    ) -> VerificationReport:
        """Verify the collection by reading every document and encoding a random sample again.

        Checks the number of documents, the ids, the payloads (by their hash), the vectors' dimension and values, and
        the first-stage vectors. For the sample, also checks that the stored vectors match the text.

        Args:
            sample: Number of documents to encode again.
            seed: Seed for the sample.
            progress: Called with 1 for each document read.

        Raises:
            InvalidOptionError: ``sample`` or ``seed`` is not an integer of 0 or more.
        """
        return self._state.run(lambda now: verify.verify(now, sample=sample, seed=seed, progress=progress))

    def snapshot(self, file: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None) -> SnapshotInfo:
        """Write a snapshot of the whole collection to a file. Writes wait, reads do not.

        :meth:`ColbertCollection.restore` restores it on any engine, without encoding.

        Args:
            file: Path of the snapshot file. It must not exist.
            progress: Called periodically with the number of documents written since the last call.

        Raises:
            SnapshotError: The file already exists.
        """
        return self._state.write(lambda now: write_snapshot(now.engine, now.schema, Path(file), progress))

    # Async versions

    aadd = in_thread(add)
    """Async version of :meth:`add`."""
    aingest = in_thread(ingest)
    """Async version of :meth:`ingest`."""
    adelete = in_thread(delete)
    """Async version of :meth:`delete`."""
    aget = in_thread(get)
    """Async version of :meth:`get`."""
    acount = in_thread(count)
    """Async version of :meth:`count`."""

    async def asearch(self, query: str, k: int = 10, **options: Unpack[SearchOptions]) -> list[SearchHit]:
        """Async version of :meth:`search`."""
        return (await self.asearch_many([query], k, **options))[0]

    async def asearch_many(
        self, queries: Iterable[str], k: int = 10, **options: Unpack[SearchOptions]
    ) -> list[list[SearchHit]]:
        """Async version of :meth:`search_many`. No thread waits while a server encodes the queries."""
        return await search.run_async(self._state, *search.many(queries, k, options))

    async def asearch_mmr(
        self,
        query: str,
        k: int = 10,
        *,
        fetch_k: int | None = None,
        lambda_mult: float = 0.5,
        **options: Unpack[SearchOptions],
    ) -> list[SearchHit]:
        """Async version of :meth:`search_mmr`. No thread waits while a server encodes the query."""
        return await search.run_async(self._state, [query], search.mmr(query, k, fetch_k, lambda_mult, options))

    aexplain = in_thread(explain)
    """Async version of :meth:`explain`."""

    def ascroll(self, filter: models.Filter | None = None) -> AsyncIterator[StoredDocument]:
        """Async version of :meth:`scroll`."""
        return pages_in_thread(self.scroll(filter))
