"""``ColbertCollection``: documents stored as multivectors in Qdrant, under the user's own ids."""

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
    # Imported when a model is loaded: the import takes seconds, and reading or deleting needs no model.
    from jcv2_plugin.encoder.model import JinaColbertEncoder

__all__ = ["ColbertCollection", "IngestReport"]


class ColbertCollection(AsyncMethods, Maintenance, Writing, Searching, Reading):
    """A collection of documents for late-interaction search.

    Use :meth:`create` or :meth:`open`. There are two engines: Qdrant Edge in this process (a folder) and
    ``QdrantClient`` (a server, a cluster or ``":memory:"``). Each document is one point with one multivector. MaxSim
    ranks all documents or, in a large collection, the candidates that a first stage finds. The model and the dimension
    are chosen at creation and stored with the collection.

    Collections can be shared between threads. Use a collection as a context manager to close it on exit.

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
            location: A folder, ``":memory:"`` or a server's URL. Alternatively, pass ``path``, ``url`` or ``client``.
            encoder: The encoder, or the name or path of a model.
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
                reciprocal rank fusion), ``"pooled"`` (mean of the token vectors), ``"bm25"`` (words), ``"muvera"``
                (fixed dimensional encodings) or ``"none"`` (MaxSim over all documents). See docs/two-stage.md.
            stage_options: Options for ``"muvera"``: ``planes``, ``projected``, ``repetitions``, ``seed``.
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
        """Open an existing collection. Without ``encoder``, its model is loaded when first needed.

        Args:
            location: See :meth:`create`.
            encoder: The encoder, or the name or path of a model. It must match the collection's model.
            dim: Expected dimension, raises an error if it differs.
            path: See :meth:`create`.
            url: See :meth:`create`.
            client: See :meth:`create`.
            name: See :meth:`create`.
            device: Device for a model that is loaded here.
            shard_key: See :meth:`create`. None searches all shards.
            retries: See :meth:`create`.
            client_options: See :meth:`create`.

        Raises:
            CollectionNotFoundError: The collection does not exist.
            CollectionMismatchError: The collection was created with another model or dimension.
            CollectionCorruptError: The stored schema is unreadable.
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
        """Restore a collection from a file written by :meth:`snapshot`, on any engine and without encoding.

        The whole file is read and its checksums are verified before anything is created. All documents become visible
        at once, and a collection that is replaced stays available until then.

        Args:
            snapshot: Path of the snapshot file.
            location: See :meth:`create`.
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
            progress: Called periodically with the number of documents stored since the last call.

        Raises:
            SnapshotError: The file is not a snapshot or is damaged.
            CollectionExistsError: See :meth:`create`.
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
        # Fill a successor and swap it in, so that an interrupted restore leaves the existing collection unchanged.
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
