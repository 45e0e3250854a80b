"""qdrant-client engine: a Qdrant server or cluster, or the client's local mode (``":memory:"``).

On the server, a collection's name is an alias of ``name.1``, so that a migration can fill ``name.2`` and switch to it
in one step while reads continue. Collections without an alias can be opened as well.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from qdrant_client import QdrantClient, models
from qdrant_client.local.qdrant_local import QdrantLocal

from jcv2_plugin.engines.aliases import (
    aliases_if_allowed,
    aliases_of,
    check_no_generation,
    collection_names,
    generation_of,
    if_allowed,
    next_name,
    point_alias,
)
from jcv2_plugin.engines.answers import check_documents, hits_of, records_of, wrong_answer
from jcv2_plugin.engines.base import (
    Engine,
    NewCollection,
    PayloadIndex,
    Point,
    Record,
    SearchRequest,
    by_bytes,
)
from jcv2_plugin.engines.failures import failure_of, status_of
from jcv2_plugin.engines.qdrant_config import point_struct, query_request, sparse_vectors_config, vectors_config
from jcv2_plugin.engines.retries import Retry, completed, translated_errors
from jcv2_plugin.engines.schema import METADATA_FIELD, REPLACES_FIELD, CollectionSchema
from jcv2_plugin.engines.storage import check_server, oversampling_of, storage_profile, version_of
from jcv2_plugin.errors import (
    CollectionError,
    CollectionExistsError,
    CollectionNotFoundError,
    InvalidOptionError,
    Jcv2Error,
)
from jcv2_plugin.transport import TOO_LARGE

_SCROLL_PAGE = 1000
_VECTORS_PAGE = 64
_IDS_PAGE = 10_000
_MOST_REPLACED = 100
# A server accepts 32 MiB per request. In JSON, a float32 takes up to 21 bytes, rounded to 6 decimals up to 10.
_BYTES_PER_REQUEST = 24 * 1024 * 1024
_BYTES_PER_FLOAT = 21
_BYTES_PER_ROUNDED_FLOAT = 11

_FUSION_OPTIONS_SINCE = (1, 17)

_LOG = logging.getLogger("jcv2_plugin")
_GUARDS: WeakKeyDictionary[QdrantClient, threading.RLock] = WeakKeyDictionary()
"""Locks for local mode, which has none of its own: one per client, shared by all its collections."""

S = TypeVar("S")
T = TypeVar("T")


def address(client: QdrantClient) -> str:
    """Return a client's address without credentials: ``"local mode"`` or the server's scheme, host and port."""
    if isinstance(client._client, QdrantLocal):
        return "local mode"
    parts = urlsplit(str(getattr(client._client, "rest_uri", "") or ""))
    return f"{parts.scheme or 'http'}://{parts.netloc.rpartition('@')[2] or 'a server'}"


class ClientEngine:
    """A collection of a ``QdrantClient``. Use :meth:`create` or :meth:`open`.

    It keeps using the collection that the name pointed to when it was opened, even if the alias moves.
    """

    def __init__(
        self,
        client: QdrantClient,
        name: str,
        physical: str,
        *,
        storage: str,
        owns_client: bool,
        retries: int,
        shard_key: str | int | None = None,
        described: Any = None,
    ) -> None:
        self.client = client
        self.name = name
        self.physical = physical
        self.is_local = isinstance(client._client, QdrantLocal)
        self.first_stage_pays = not self.is_local
        self.address = address(client)
        self.title = f"The collection {name!r} {'in' if self.is_local else 'at'} {self.address}"
        self._storage = storage
        self._dim, self._sizes = _sizes_of(described)
        self._fuses: bool | None = True if self.is_local else None  # not known before it is asked
        self._shard_key = shard_key
        self._shard_is_there = False
        self._owns_client = owns_client
        self._closed = False
        self._retry = Retry(attempts=1 if self.is_local else retries)
        # Limits of strict mode by their names, read after a refused request.
        self._limits: dict[str, int] = {}
        self._unaliased = physical == name
        self._guard: AbstractContextManager[Any] = nullcontext()
        if self.is_local:
            self._guard = _GUARDS.setdefault(client, threading.RLock())

    @classmethod
    def create(
        cls,
        client: QdrantClient,
        name: str,
        schema: CollectionSchema,
        *,
        overwrite: bool = False,
        owns_client: bool = False,
        options: NewCollection | None = None,
    ) -> ClientEngine:
        """Create a collection under an alias. Raises CollectionExistsError unless ``overwrite`` is set."""
        options = options or NewCollection()
        retry = Retry(attempts=options.retries)
        _check_options(client, options.engine_options)
        with translated_errors(address(client)):
            there = retry.contact(client.collection_exists, name)
            aliases = retry.call(aliases_of, client) if there else {}
            old = aliases.get(name, name) if there else None
            if old is not None and not overwrite:
                raise CollectionExistsError(
                    f"There is already a collection {name!r}. Open it, choose another name, or set overwrite to "
                    "replace it."
                )
            check_no_generation(name, aliases)
            _check_version(client, schema.storage, retry)
            physical, leftover = retry.call(next_name, client, name, old)
            if leftover is not None:
                if not overwrite and retry.call(client.count, physical, exact=False).count:
                    raise CollectionExistsError(
                        f"There is no collection {name!r}, but {physical!r} has documents that were its own: a "
                        "migration was interrupted in its last step, or kept them. Open it by that name, or set "
                        "overwrite to replace it."
                    )
                retry.call(client.delete_collection, physical)
        made = cls(
            client,
            name,
            physical,
            storage=schema.storage,
            described=schema.to_dict(),
            owns_client=owns_client,
            retries=options.retries,
            shard_key=options.shard_key,
        )
        made._create_physical(schema, options, replaces=old)
        made._call(point_alias, client, name, physical, old)
        if old is not None and old != name:
            made._drop(old)
        return made

    @classmethod
    def open(
        cls,
        client: QdrantClient,
        name: str,
        *,
        owns_client: bool = False,
        retries: int = Retry.attempts,
        shard_key: str | int | None = None,
    ) -> ClientEngine:
        """Open an existing collection. Raises CollectionNotFoundError if there is none of this name."""
        retry = Retry(attempts=retries)
        with translated_errors(address(client)):
            if not retry.contact(client.collection_exists, name):
                known = sorted(if_allowed(collection_names, client) or {})
                there = f"; there are {known}" if known else ""
                raise CollectionNotFoundError(f"There is no collection {name!r}{there}. Create it first.")
            physical = retry.call(aliases_if_allowed, client).get(name, name)
        engine = cls(
            client,
            name,
            physical,
            storage="",
            owns_client=owns_client,
            retries=retries,
            shard_key=shard_key,
        )
        described = engine.describe()
        if isinstance(described, dict):
            engine._storage = str(described.get("storage"))
            engine._dim, engine._sizes = _sizes_of(described)
        return engine

    def describe(self) -> Any:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        metadata = self._call(self.client.get_collection, self.physical).config.metadata or {}
        return metadata.get(METADATA_FIELD)

    def begin_writing(self) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`. Creates the shard key on first use."""
        if self._shard_key is not None and not self._shard_is_there and not self.is_local:
            self._create_shard_key(self._shard_key)

    def upsert(self, points: Sequence[Point]) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`. Keeps requests below the server's limit of 32 MiB."""
        self._check_name()
        per_float = _BYTES_PER_FLOAT if self._storage == "float32" else _BYTES_PER_ROUNDED_FLOAT

        def send(part: Sequence[Point]) -> None:
            structs = [point_struct(point, self._storage, local=self.is_local) for point in part]
            self._in_shard(completed(self.client.upsert), structs, wait=True)

        for batch in by_bytes(points, most=_BYTES_PER_REQUEST, per_float=per_float):
            self._in_parts("upsert_max_batchsize", batch, send)

    def search(
        self,
        requests: Sequence[SearchRequest],
        limit: int,
        *,
        filter: models.Filter | None,
        score_threshold: float | None,
    ) -> list[list[Record]]:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        self._check_name()
        if any(one.candidates is not None and one.candidates.fusion is not None for one in requests):
            self._check_fusion()
        oversampling = None if self.is_local else oversampling_of(self._storage)
        found: list[list[Record]] = []

        def send(part: Sequence[SearchRequest]) -> None:
            batch = [
                query_request(
                    request, limit, filter, score_threshold, oversampling=oversampling, shard_key=self._shard_key
                )
                for request in part
            ]
            responses = self._call(self.client.query_batch_points, self.physical, batch)
            if len(responses) != len(part):
                raise wrong_answer(self.title, f"{len(responses)} of {len(part)} searches were answered.")
            found.extend(hits_of(response.points, self.title, limit) for response in responses)

        self._in_parts("search_max_batchsize", requests, send)
        return found

    def retrieve(
        self, ids: Sequence[str], *, with_payload: bool | list[str], with_vectors: bool | list[str]
    ) -> list[Record]:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        found: list[Record] = []
        wanted = list(dict.fromkeys(ids))
        for start in range(0, len(wanted), _IDS_PAGE):
            page = wanted[start : start + _IDS_PAGE]
            points = self._in_shard(self.client.retrieve, page, with_payload=with_payload, with_vectors=with_vectors)
            found.extend(records_of(points, self.title, self._dim, page, self._sizes))
        if with_payload is True:
            check_documents(found, self.title)
        return found

    def scroll(
        self, filter: models.Filter | None, *, with_payload: bool | list[str], with_vectors: bool = False
    ) -> Iterator[Record]:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        offset: Any = None
        seen: set[Any] = set()
        while True:
            size = min(
                _VECTORS_PAGE if with_vectors else _SCROLL_PAGE, self._limits.get("max_query_limit", _SCROLL_PAGE)
            )
            try:
                points, offset = self._in_shard(
                    self.client.scroll,
                    scroll_filter=filter,
                    limit=size,
                    offset=offset,
                    with_payload=with_payload,
                    with_vectors=with_vectors,
                )
            except CollectionError as error:
                self._learn("max_query_limit", size, error)
                continue
            yield from records_of(points, self.title, self._dim, sizes=self._sizes)
            if offset is None:
                return
            if offset in seen or not 0 < len(points) <= size:
                raise wrong_answer(self.title, f"A page has {len(points)} points, and the next begins at {offset!r}.")
            seen.add(offset)

    def delete(self, ids: Sequence[str]) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        for start in range(0, len(ids), _IDS_PAGE):
            selector = models.PointIdsList(points=list(ids[start : start + _IDS_PAGE]))
            self._in_shard(completed(self.client.delete), selector, wait=True)

    def delete_where(self, filter: models.Filter) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        self._in_shard(completed(self.client.delete), models.FilterSelector(filter=filter), wait=True)

    def count(self, filter: models.Filter | None) -> int:
        """See :class:`~jcv2_plugin.engines.base.Engine`. Scrolls to count if strict mode forbids exact counts."""
        try:
            return self._count(filter, exact=True)
        except CollectionError as error:
            if self._strict_mode("search_allow_exact", error) is not False:
                raise
            return sum(1 for _ in self.scroll(filter, with_payload=False))

    def size(self) -> int:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        return self._count(None, exact=False)

    def create_payload_index(self, key: str, kind: PayloadIndex) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`. Does nothing in local mode, which has no indexes."""
        if not self.is_local:
            schema = models.PayloadSchemaType(kind)
            create = completed(self.client.create_payload_index)
            self._call(create, self.physical, key, field_schema=schema, wait=True)

    def moved(self) -> Engine | None:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        physical = self._call(lambda: aliases_if_allowed(self.client).get(self.name))
        if physical is None or physical == self.physical:
            return None
        moved = ClientEngine.open(
            self.client,
            self.name,
            owns_client=self._owns_client,
            retries=self._retry.attempts,
            shard_key=self._shard_key,
        )
        self._owns_client = False
        return moved

    def optimize(self) -> None:
        """Do nothing: a server optimises itself, and local mode has nothing to optimise."""

    def close(self) -> None:
        """Close the client if it was created for this collection. A client passed in by the user stays open."""
        if not self._closed and self._owns_client:
            self.client.close()
        self._closed = True

    def successor(self, schema: CollectionSchema, *, keep_old: bool = False) -> Engine:
        """See :class:`~jcv2_plugin.engines.base.Engine`. The successor of ``name.1`` is ``name.2``, and so on.

        It gets the same shards, replicas, strict mode and payload indexes.
        """
        aliases = self._call(aliases_if_allowed, self.client)
        check_no_generation(self.name, aliases)
        if aliases.get(self.name, self.physical) != self.physical:
            raise CollectionError(f"{self.title} has been migrated since it was opened. Open it again.")
        if self._shard_key is not None and self._call(self.client.count, self.physical).count != self.count(None):
            raise CollectionError(
                f"{self.title} has documents in other shards than {self._shard_key!r}, which would be lost. Create "
                "another collection and add the documents to it."
            )
        with translated_errors(self.address):
            _check_version(self.client, schema.storage, self._retry)
        physical, leftover = self._call(next_name, self.client, self.name, self.physical)
        made = ClientEngine(
            self.client,
            self.name,
            physical,
            storage=schema.storage,
            described=schema.to_dict(),
            owns_client=False,
            retries=self._retry.attempts,
            shard_key=self._shard_key,
        )
        replaces = None if keep_old else self.physical
        if leftover is not None:
            if leftover[METADATA_FIELD] == schema.to_dict() and leftover.get(REPLACES_FIELD) in (None, replaces):
                return made
            self._call(self.client.delete_collection, physical)
        made._create_physical(schema, self._as_created(), replaces=replaces)
        return made

    def adopt(self, successor: Engine, *, keep_old: bool) -> str | None:
        """See :class:`~jcv2_plugin.engines.base.Engine`. The alias moves in one step.

        A collection without an alias is dropped first, since an alias cannot have the name of a collection. Readers
        find nothing between these two requests.
        """
        if not isinstance(successor, ClientEngine) or successor.client is not self.client:
            raise CollectionError(f"{self.title} can only adopt what its own successor() created.")
        plain = self.physical == self.name
        self._call(point_alias, self.client, self.name, successor.physical, self.physical)
        if not plain and not keep_old:
            self._drop(self.physical)
        successor._owns_client, self._owns_client = self._owns_client, False
        self.close()
        return self.physical if keep_old and not plain else None

    def drop_replaced(self) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        if (old := self._replaced_by(self.physical)) is not None:
            self._drop(old)

    def _create_physical(
        self, schema: CollectionSchema, options: NewCollection, *, replaces: str | None = None
    ) -> None:
        attempts = 0
        engine_options = dict(options.engine_options)
        if engine_options.get("sharding_method") == "custom":  # over gRPC the client does not accept a plain string
            engine_options["sharding_method"] = models.ShardingMethod.CUSTOM

        def create() -> None:
            nonlocal attempts
            attempts += 1
            try:
                self.client.create_collection(
                    self.physical,
                    vectors_config=vectors_config(schema),
                    sparse_vectors_config=sparse_vectors_config(schema),
                    metadata={METADATA_FIELD: schema.to_dict(), **({REPLACES_FIELD: replaces} if replaces else {})},
                    **engine_options,
                )
            except Exception as error:
                failure = failure_of(error)
                if failure is None and isinstance(error, (TypeError, ValueError)):
                    raise InvalidOptionError(f"collection_options={engine_options} are invalid: {error}") from error
                # 409 on a retry: the first attempt succeeded and only its response was lost.
                if attempts == 1 or failure is None or failure.status != 409:
                    raise

        self._call(create)
        try:
            if self.describe() != schema.to_dict():
                raise CollectionError(
                    f"Qdrant at {self.address} does not keep a collection's metadata, in which the model and dim are "
                    "stored. Upgrade the server, or use a folder."
                )
            if self._shard_key is not None:
                self._create_shard_key(self._shard_key)
            for key, kind in options.payload_indexes.items():
                self.create_payload_index(key, kind)
        except BaseException:
            with suppress(CollectionError):  # report the original error
                self._call(self.client.delete_collection, self.physical)
            raise

    def _create_shard_key(self, key: str | int) -> None:
        if not self._has_shard_key(key):
            try:
                self._call(self.client.create_shard_key, self.physical, key)
            except CollectionError:
                # Another process created it, or only the response to an earlier attempt was lost.
                if not self._has_shard_key(key):
                    raise
        self._shard_is_there = True

    def _has_shard_key(self, key: str | int) -> bool:
        there = self._call(self.client.list_shard_keys, self.physical).shard_keys or []
        return key in [one.key for one in there]

    def _drop(self, old: str) -> None:
        """Delete a replaced collection, and those that it replaced itself if a crash came before they were deleted.

        If that fails, log a warning and leave them.
        """
        chain = [old]
        try:
            while len(chain) < _MOST_REPLACED and (older := self._replaced_by(chain[-1])) is not None:
                chain.append(older)
            for one in reversed(chain):
                self._call(self.client.delete_collection, one)
        except CollectionError as error:
            _LOG.warning(
                "%s has been replaced, but %r could not be deleted from the server: %s", self.title, old, error
            )

    def _replaced_by(self, physical: str) -> str | None:
        """Return the generation of this collection that another one has replaced, if it is still there."""
        old = (self._call(self.client.get_collection, physical).config.metadata or {}).get(REPLACES_FIELD)
        if not 0 < generation_of(str(old), self.name) < generation_of(physical, self.name):
            return None
        if (
            not self._call(self.client.collection_exists, old)
            or old in self._call(aliases_if_allowed, self.client).values()
        ):
            return None
        metadata = self._call(self.client.get_collection, old).config.metadata or {}
        return old if METADATA_FIELD in metadata else None

    def _as_created(self) -> NewCollection:
        """Return the creation options that a successor takes over from this collection."""
        if self.is_local:
            return NewCollection()
        found = self._call(self.client.get_collection, self.physical)
        params = found.config.params
        names = ("shard_number", "sharding_method", "replication_factor", "write_consistency_factor", "on_disk_payload")
        layout = {name: value for name in names if (value := getattr(params, name, None)) is not None}
        if (strict := found.config.strict_mode_config) is not None:
            layout["strict_mode_config"] = models.StrictModeConfig(**strict.model_dump(exclude_none=True))
        indexes: dict[str, Any] = {key: info.data_type.value for key, info in (found.payload_schema or {}).items()}
        return NewCollection(payload_indexes=indexes, shard_key=self._shard_key, engine_options=layout)

    def _count(self, filter: models.Filter | None, *, exact: bool) -> int:
        number = int(self._in_shard(self.client.count, count_filter=filter, exact=exact).count)
        if number < 0:
            raise wrong_answer(self.title, f"It has {number} points.")
        return number

    def _in_parts(self, setting: str, items: Sequence[S], send: Callable[[Sequence[S]], None]) -> None:
        """Send items in batches as large as the server accepts. ``setting`` is that limit's name in strict mode."""
        rest, most = items, len(items)
        while rest:
            part = rest[: min(most, self._limits.get(setting, most))]
            try:
                send(part)
                rest = rest[len(part) :]
            except CollectionError as error:
                if status_of(error) == TOO_LARGE and len(part) > 1:
                    most = len(part) // 2
                else:
                    self._learn(setting, len(part), error)

    def _learn(self, setting: str, tried: int, error: CollectionError) -> None:
        """Remember the limit that a request exceeded. Re-raise the error if a smaller request does not help."""
        limit = self._strict_mode(setting, error)
        if limit is None or not 0 < limit < tried:
            raise error
        self._limits[setting] = limit

    def _strict_mode(self, setting: str, error: CollectionError) -> Any:
        """Return a setting of the collection's strict mode if that may be why a request was refused, else None."""
        if status_of(error) != 400:
            return None
        config = self._call(self.client.get_collection, self.physical).config.strict_mode_config
        return getattr(config, setting, None)

    def _call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        if self._closed:
            raise CollectionError(f"{self.title} is closed. Open it again with ColbertCollection.open(...).")
        with self._guard, translated_errors(self.address):
            try:
                return self._retry.call(function, *args, **kwargs)
            except ValueError as error:
                if self.is_local and not self.client.collection_exists(self.physical):
                    raise CollectionNotFoundError(f"{self.title} was not found. Create it first.") from error
                if self.is_local or isinstance(error, Jcv2Error) or failure_of(error) is not None:
                    raise
                raise self._unreadable(error) from error
            except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
                if self.is_local:
                    raise
                raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> CollectionError:
        """Return the error for an answer that the client could not convert to its models."""
        return wrong_answer(self.title, f"It could not be read ({error!r:.200}).")

    def _in_shard(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Read or write points, in the collection's shard if it was opened for one."""
        shard = {} if self.is_local else {"shard_key_selector": self._shard_key}
        return self._call(function, self.physical, *args, **kwargs, **shard)

    def _check_fusion(self) -> None:
        """Raise if the server is too old for k and weights of the fusion, which it would ignore."""
        if self._fuses is None:
            found = version_of(str(self._call(self.client.info).version))
            self._fuses = found is None or found >= _FUSION_OPTIONS_SINCE
        if not self._fuses:
            raise InvalidOptionError(
                f"rrf_k and rrf_weights need Qdrant {'.'.join(map(str, _FUSION_OPTIONS_SINCE))} or later, and the "
                f"server at {self.address} is older. Leave them out, or upgrade the server."
            )

    def _check_name(self) -> None:
        """Raise if a migration has made the name of this collection, which had no alias, an alias of another."""
        if self._unaliased:
            aliases = self._call(if_allowed, aliases_of, self.client)
            self._unaliased = aliases is not None
            if aliases is not None and self.name in aliases:
                raise CollectionNotFoundError(f"{self.title} has been migrated. Open it again.")


def _sizes_of(described: Any) -> tuple[int | None, dict[str, int]]:
    """Return the dimension of a collection's token vectors and those of its own stages, from its unchecked schema."""
    if not isinstance(described, dict):
        return None, {}
    dim, options = described.get("dim"), described.get("stage_options")
    found = options.items() if isinstance(options, dict) else ()
    sizes = {name: one["size"] for name, one in found if isinstance(one, dict) and isinstance(one.get("size"), int)}
    return dim if isinstance(dim, int) else None, sizes


def _check_options(client: QdrantClient, options: Mapping[str, Any]) -> None:
    """Check ``collection_options`` first, so that a misspelt option does not cost an existing collection."""
    known = set(inspect.signature(client.create_collection).parameters) - {"kwargs"}
    ours = {"collection_name", "vectors_config", "sparse_vectors_config", "metadata"}
    if wrong := sorted(set(options) - (known - ours)):
        raise InvalidOptionError(
            f"collection_options {wrong} cannot be set. The options are {sorted(known - ours)}, see "
            "QdrantClient.create_collection."
        )


def _check_version(client: QdrantClient, storage: str, retry: Retry) -> None:
    """Check that the server has a storage's datatype, before anything is created or replaced."""
    if not isinstance(client._client, QdrantLocal) and storage_profile(storage).server > (0, 0):
        check_server(storage, str(retry.call(client.info).version), address(client))
