"""``ColbertCollection``: documents as multivectors in Qdrant, added, found and deleted by the user's ids."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdrant_client import QdrantClient, models

from jcv2_plugin.collection.asynchronous import AsyncMethods
from jcv2_plugin.collection.ingest import IngestReport
from jcv2_plugin.collection.location import DEFAULT_NAME, Location
from jcv2_plugin.collection.maintenance import Maintenance
from jcv2_plugin.collection.read import Reading
from jcv2_plugin.collection.search import Searching
from jcv2_plugin.collection.snapshot import check_snapshot, read_info, read_points
from jcv2_plugin.collection.state import load_encoder, load_for
from jcv2_plugin.collection.write import Writing
from jcv2_plugin.encoder.windows import LongDocuments
from jcv2_plugin.engines.base import NewCollection, PayloadIndex
from jcv2_plugin.engines.first_stage import FirstStage
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.engines.storage import Storage
from jcv2_plugin.errors import CollectionCorruptError, CollectionMismatchError, CollectionNotFoundError

if TYPE_CHECKING:
    # Imported when a model is loaded: that takes seconds, and reading or deleting needs none.
    from jcv2_plugin.encoder.model import JinaColbertEncoder

__all__ = ["ColbertCollection", "IngestReport"]


class ColbertCollection(AsyncMethods, Maintenance, Writing, Searching, Reading):
    """A collection of documents for late-interaction search.

    Made by :meth:`create` or :meth:`open`, on one of two engines: Qdrant Edge in this process (a folder), or
    a ``QdrantClient`` (a server, a cluster, ``":memory:"``). Each document is one point with one multivector,
    ranked by MaxSim: of all documents, or, in a large collection, of those that a first stage finds. The dimension
    and the model are chosen when it is created and stored with it.

    A collection may be shared by threads. It is a context manager; leaving it closes it.

    Example:
        >>> with ColbertCollection.create(":memory:", encoder="mini", dim=64) as collection:
        ...     _ = collection.add(["Tokens meet tokens.", "Cooking rice."], ids=["a", "b"])
        ...     collection.search("late interaction of tokens", k=1)[0].id
        'a'
    """

    def __enter__(self) -> ColbertCollection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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
        name: str = DEFAULT_NAME,
        storage: Storage = "float16",
        first_stage: FirstStage = "hybrid",
        stage_options: Mapping[str, Any] | None = None,
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
            location: Where: a folder, ``":memory:"`` or a server's URL; or say it by one of the next three.
            encoder: The model, loaded or by name.
            dim: One of the model's Matryoshka dimensions; None takes its default. Another dimension needs
                another collection: heads are not weight-tied.
            path: A folder, for Qdrant Edge.
            url: A Qdrant server.
            client: A client of your own, which stays open when the collection is closed.
            name: The collection's name on a server or client; a folder holds one and needs none.
            storage: How vectors are kept: ``"float32"``; ``"float16"`` (half the space, scores equal to about 1e-3);
                ``"int8"`` (a quarter in memory, the float16 originals on disk); ``"turbo8"`` and ``"turbo4"`` (a
                quarter and an eighth, on disk too). See docs/compression.md for what each costs.
            first_stage: What finds the candidates that MaxSim ranks: ``"hybrid"`` (``pooled`` and ``bm25``, by
                reciprocal rank), ``"pooled"`` (the mean of the token vectors), ``"bm25"`` (the words), ``"muvera"``
                (fixed dimensional encodings), or ``"none"`` (MaxSim over everything). See docs/two-stage.md.
            stage_options: For ``"muvera"``: ``planes``, ``projected``, ``repetitions``, ``seed``.
            pool_factor: Token pooling of documents: neighbouring token vectors are merged until about one in so many
                is left. 1 merges none.
            long_documents: What to do with documents over the encoder's ``document_length``: ``"split"``
                encodes them in windows, all kept under their one id; ``"truncate"`` keeps the first window,
                as ColBERT does; ``"error"`` refuses them.
            payload_indexes: Fields to index for filters, such as ``{"metadata.topic": "keyword"}``.
            shard_key: The shard to write to and search, where ``collection_options`` has
                ``sharding_method="custom"``; it is made if need be.
            overwrite: Replace a collection that is there.
            retries: Attempts at each request to a server, with growing waits between them.
            client_options: For ``QdrantClient`` with ``url``: ``api_key``, ``prefer_grpc``, ``timeout``, ...
            collection_options: For ``QdrantClient.create_collection``: ``shard_number``, ...

        Raises:
            CollectionExistsError: There is one already.
            CollectionLockedError: The folder is open elsewhere.
            UnknownDimError: The model has no head for ``dim``.
            ModelNotFoundError: There is no such model.
            InvalidOptionError: An option is out of range.
        """
        parsed = Location.parse(location, path=path, url=url, client=client, name=name)
        parsed.check_can_create(overwrite=overwrite)
        if isinstance(encoder, (str, os.PathLike)):
            encoder = load_encoder(encoder, dims=dim)
        schema = CollectionSchema.describe(
            encoder,
            encoder.resolve_dim(dim),
            long_documents,
            storage,
            first_stage=first_stage,
            stage_options=stage_options,
            pool_factor=pool_factor,
        )
        options = NewCollection(dict(payload_indexes or {}), shard_key, retries, dict(collection_options or {}))
        engine = parsed.create(schema, overwrite=overwrite, client_options=client_options, options=options)
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
        name: str = DEFAULT_NAME,
        device: str | None = None,
        shard_key: str | int | None = None,
        retries: int = NewCollection.retries,
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
            shard_key: As for :meth:`create`; without one all shards are searched.
            retries: As for :meth:`create`.
            client_options: As for :meth:`create`.

        Raises:
            CollectionNotFoundError: There is none.
            CollectionMismatchError: It was made with another model or dimension.
            CollectionCorruptError: Its description is unreadable.
            CollectionLockedError: The folder is open elsewhere.
        """
        parsed = Location.parse(location, path=path, url=url, client=client, name=name)
        engine = parsed.open(client_options=client_options, retries=retries, shard_key=shard_key)
        try:
            schema = CollectionSchema.from_dict(engine.describe(), engine.title)
            if dim is not None and dim != schema.dim:
                raise CollectionMismatchError(
                    f"{engine.title} holds vectors of dim={schema.dim}, not {dim}. Open it without dim, or create "
                    "a new collection: heads are not weight-tied, so stored vectors cannot be cut down."
                )
            if isinstance(encoder, (str, os.PathLike)):
                encoder = load_for(schema, os.fspath(encoder), device)
            if encoder is not None:
                schema.check_encoder(encoder, engine.title)
            return cls(engine, schema, encoder, device)
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
        overwrite: bool = False,
        payload_indexes: Mapping[str, PayloadIndex] | None = None,
        shard_key: str | int | None = None,
        retries: int = NewCollection.retries,
        client_options: Mapping[str, Any] | None = None,
        collection_options: Mapping[str, Any] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> ColbertCollection:
        """Make a collection of what :meth:`snapshot` wrote, here or on another engine; nothing is encoded.

        The file is read to its end and its checksums are compared before anything is created. The documents become
        visible all at once, and what is replaced is there until then.

        Args:
            snapshot: The file.
            location: As for :meth:`create`, as are all that follow.
            path: See :meth:`create`.
            url: See :meth:`create`.
            client: See :meth:`create`.
            name: See :meth:`create`.
            overwrite: See :meth:`create`.
            payload_indexes: See :meth:`create`.
            shard_key: See :meth:`create`.
            retries: See :meth:`create`.
            client_options: See :meth:`create`.
            collection_options: See :meth:`create`.
            progress: Called now and then with the number of documents stored since.

        Raises:
            SnapshotError: The file is no snapshot, or is damaged.
            CollectionExistsError: As :meth:`create`.
        """
        file = Path(snapshot)
        check_snapshot(file)
        parsed = Location.parse(location, path=path, url=url, client=client, name=name)
        schema = read_info(file).schema
        options = NewCollection(dict(payload_indexes or {}), shard_key, retries, dict(collection_options or {}))
        engine = None
        if overwrite and shard_key is None and not options.engine_options:
            with suppress(CollectionNotFoundError, CollectionCorruptError):
                engine = parsed.open(client_options=client_options, retries=retries)
        if engine is None:
            engine = parsed.create(schema, overwrite=overwrite, client_options=client_options, options=options)
        # Filled beside what is there, then swapped in: a restoration that is stopped leaves nothing half done.
        successor = None
        try:
            successor = engine.successor(schema)
            successor.delete_where(models.Filter(must_not=[models.HasIdCondition(has_id=[])]))
            for points in read_points(file):
                successor.upsert(points)
                if progress is not None:
                    progress(len(points))
            for key, kind in options.payload_indexes.items():
                successor.create_payload_index(key, kind)
            successor.optimize()
            engine.adopt(successor, keep_old=False)
            return cls(successor, schema, None)
        except BaseException:
            if successor is not None:
                successor.close()
            engine.close()
            raise
