"""The collections of the loopback server: local mode, and beside it all that a server keeps and local mode loses.

Every shard key has a local collection of its own, since on a server the same id may be in two of them.
"""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeVar

from loopback_limits import Refused, StrictMode, invalid, kind_of_index
from pydantic import BaseModel
from qdrant_client import QdrantClient, models

M = TypeVar("M", bound=BaseModel)
ShardKey = int | str


@dataclass
class Held:
    """A collection: what it was created with, its payload indexes, and the local collection of each shard key."""

    name: str
    config: models.CreateCollection
    shards: dict[ShardKey | None, str]
    indexes: dict[str, Any] = field(default_factory=dict)
    estimate: int = 0
    """How many points there were before the last write: strict mode compares with a count that is behind."""
    created_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    @property
    def is_custom(self) -> bool:
        return self.config.sharding_method == models.ShardingMethod.CUSTOM

    @property
    def strict(self) -> StrictMode:
        return StrictMode(self.config, self.indexes)


def merged(old: M | None, new: BaseModel | None, kind: type[M]) -> M | None:
    """Settings after an update that names only those it changes."""
    if old is None and new is None:
        return None
    parts = [{} if one is None else one.model_dump(exclude_none=True) for one in (old, new)]
    return kind(**{**parts[0], **parts[1]})


class Collections:
    """Collections, their aliases, shard keys and payload indexes. The caller holds ``lock``."""

    def __init__(self, strict_mode: models.StrictModeConfig | None = None) -> None:
        self.lock = threading.RLock()
        self.local = QdrantClient(":memory:")
        self._strict_mode = strict_mode
        self._collections: dict[str, Held] = {}
        self._aliases: dict[str, str] = {}
        self._operations = itertools.count()

    def close(self) -> None:
        self.local.close()

    # Collections ------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Held:
        held = self._collections.get(self._aliases.get(name, name))
        if held is None:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return held

    def names(self) -> list[str]:
        return list(self._collections)

    def exists(self, name: str) -> bool:
        return self._aliases.get(name, name) in self._collections

    def create(self, name: str, config: models.CreateCollection) -> bool:
        if name in self._collections:
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        if name in self._aliases:
            problem = "Alias with the same name already exists"
            raise Refused(400, f"Wrong input: Can't create collection with name {name}. {problem}")
        for setting in ("shard_number", "replication_factor", "write_consistency_factor"):
            if (number := getattr(config, setting)) is not None and number < 1:
                raise invalid(setting, f"value {number} invalid, must be 1 or larger")
        config.strict_mode_config = merged(self._strict_mode, config.strict_mode_config, models.StrictModeConfig)
        held = Held(name, config, {})
        if not held.is_custom:
            self._add_shard(held, None)
        self._collections[name] = held
        return True

    def update(self, name: str, change: models.UpdateCollection) -> bool:
        config = self.get(name).config
        for setting, value in change.strict_mode_config or ():
            if setting.startswith("max_") and value is not None and value < 1:
                raise invalid(f"strict_mode_config.{setting}", f"value {value} invalid, must be 1 or larger")
        config.strict_mode_config = merged(
            config.strict_mode_config, change.strict_mode_config, models.StrictModeConfig
        )
        return True

    def delete(self, name: str) -> bool:
        """Delete a collection and its aliases. An alias leads nowhere here: nothing is deleted, and it says so."""
        held = self._collections.pop(name, None)
        if held is None:
            return False
        self._aliases = {alias: target for alias, target in self._aliases.items() if target != name}
        for shard in held.shards.values():
            self.local.delete_collection(shard)
        return True

    def info(self, name: str) -> models.CollectionInfo:
        """A collection as a server describes it, from what it was created with."""
        held = self.get(name)
        config = held.config
        strict = config.strict_mode_config
        return models.CollectionInfo(
            status=models.CollectionStatus.GREEN,
            optimizer_status=models.OptimizersStatusOneOf.OK,
            indexed_vectors_count=0,
            points_count=self._points(held),
            segments_count=2 * len(held.shards),
            config=models.CollectionConfig(
                params=models.CollectionParams(
                    vectors=config.vectors,
                    sparse_vectors=config.sparse_vectors,
                    shard_number=config.shard_number or 1,
                    sharding_method=config.sharding_method,
                    replication_factor=config.replication_factor or 1,
                    write_consistency_factor=config.write_consistency_factor or 1,
                    on_disk_payload=config.on_disk_payload is not False,
                ),
                hnsw_config=models.HnswConfig(m=16, ef_construct=100, full_scan_threshold=10000),
                optimizer_config=models.OptimizersConfig(
                    deleted_threshold=0.2, vacuum_min_vector_number=1000, default_segment_number=0, flush_interval_sec=5
                ),
                wal_config=models.WalConfig(wal_capacity_mb=32, wal_segments_ahead=0),
                quantization_config=config.quantization_config,
                strict_mode_config=None if strict is None else models.StrictModeConfigOutput(**strict.model_dump()),
                metadata=config.metadata,
            ),
            payload_schema={
                key: models.PayloadIndexInfo(
                    data_type=models.PayloadSchemaType(kind_of_index(schema)),
                    params=None if isinstance(schema, models.PayloadSchemaType) else schema,
                    points=self._points(held),
                )
                for key, schema in held.indexes.items()
            },
            created_at=held.created_at,
        )

    # Aliases ----------------------------------------------------------------------------------------------------

    def aliases(self) -> models.CollectionsAliasesResponse:
        return models.CollectionsAliasesResponse(
            aliases=[
                models.AliasDescription(alias_name=alias, collection_name=target)
                for alias, target in self._aliases.items()
            ]
        )

    def change_aliases(self, change: models.ChangeAliasesOperation) -> bool:
        aliases = dict(self._aliases)
        for action in change.actions:
            if isinstance(action, models.CreateAliasOperation):
                target, alias = action.create_alias.collection_name, action.create_alias.alias_name
                if target not in self._collections:
                    raise Refused(404, f"Not found: Collection `{target}` doesn't exist!")
                if alias in self._collections:
                    raise Refused(409, f"Wrong input: Collection `{alias}` already exists!")
                aliases[alias] = target
            else:
                aliases.pop(action.delete_alias.alias_name, None)
        self._aliases = aliases
        return True

    # Shard keys -------------------------------------------------------------------------------------------------

    def shard_keys(self, name: str) -> models.ShardKeysResponse:
        keys = [key for key in self.get(name).shards if key is not None]
        return models.ShardKeysResponse(shard_keys=[models.ShardKeyDescription(key=key) for key in keys])

    def create_shard_key(self, name: str, request: models.CreateShardingKey) -> bool:
        held, shown = self.get(name), _shown(request.shard_key)
        if not held.is_custom:
            raise Refused(400, f"Bad request: Shard Key {shown} cannot be created with Auto sharding method")
        if request.shard_key in held.shards:
            raise Refused(400, f"Bad request: Sharding key {shown} already exists for collection {held.name}")
        self._add_shard(held, request.shard_key)
        return True

    def _add_shard(self, held: Held, key: ShardKey | None) -> None:
        shard = uuid.uuid4().hex
        vectors, sparse = held.config.vectors, held.config.sparse_vectors
        with wrong_input():
            self.local.create_collection(shard, vectors_config=vectors, sparse_vectors_config=sparse)
        held.shards[key] = shard

    def _to_write(self, held: Held, selector: Any) -> list[str]:
        """The shards of a change: without custom sharding the one there is, with it those named, at least one."""
        keys = _keys(selector)
        if not keys and held.is_custom:
            raise Refused(400, "Wrong input: Shard key not specified")
        return _shards(held, keys or [None], "Wrong input")

    def _to_read(self, held: Held, selector: Any) -> list[tuple[ShardKey | None, str]]:
        keys = _keys(selector) or list(held.shards)
        return list(zip(keys, _shards(held, keys, "Bad request"), strict=True))

    # Payload indexes --------------------------------------------------------------------------------------------

    def create_index(self, name: str, request: models.CreateFieldIndex) -> models.UpdateResult:
        held = self.get(name)
        held.indexes[request.field_name] = request.field_schema
        return self._done()

    # For those who change and read points -----------------------------------------------------------------------

    def _done(self) -> models.UpdateResult:
        return models.UpdateResult(operation_id=next(self._operations), status=models.UpdateStatus.COMPLETED)

    def _points(self, held: Held) -> int:
        return sum(self.local.count(shard).count for shard in held.shards.values())


@contextmanager
def wrong_input() -> Iterator[None]:
    """What local mode refuses itself, in the server's form."""
    try:
        yield
    except (ValueError, TypeError) as error:
        reason = str(error)
        raise Refused(400, reason if reason.startswith("Wrong input: ") else f"Wrong input: {reason}") from error


def _shown(key: ShardKey | None) -> str:
    return f'"{key}"' if isinstance(key, str) else str(key)


def _keys(selector: Any) -> list[ShardKey | None]:
    return [] if selector is None else selector if isinstance(selector, list) else [selector]


def _shards(held: Held, keys: list[ShardKey | None], kind: str) -> list[str]:
    for key in keys:
        if key not in held.shards:
            raise Refused(400, f"{kind}: Shard key {_shown(key)} not found")
    return [held.shards[key] for key in keys]
