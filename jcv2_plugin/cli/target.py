"""Open or create the collection to index into, and check that it matches the options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from qdrant_client import models

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.sources import FILE_KEY
from jcv2_plugin.console import quiet_libraries
from jcv2_plugin.documents import ID_KEY, TEXT_KEY
from jcv2_plugin.encoder import DEFAULT_MODEL
from jcv2_plugin.engines.base import PAYLOAD_INDEXES, PayloadIndex
from jcv2_plugin.engines.first_stage import FIRST_STAGES
from jcv2_plugin.engines.qdrant import ClientEngine
from jcv2_plugin.engines.storage import storage_profile
from jcv2_plugin.errors import CollectionMismatchError, CollectionNotFoundError, InvalidOptionError

_METADATA = "metadata."
_FIELDS = (TEXT_KEY, ID_KEY, FILE_KEY)


@dataclass(frozen=True)
class Wanted:
    """Requested settings of a collection; None for options that were not given.

    Attributes:
        device: Device of the model.
        by_file: Whether the documents come from files and must be found by file name later.
    """

    model: str | None
    dim: int | None
    storage: str | None
    first_stage: str | None
    pool_factor: float | None
    document_length: int | None
    payload_indexes: tuple[str, ...]
    shard_key: str | None
    shards: int | None
    replicas: int | None
    device: str | None
    by_file: bool = True

    @property
    def shard(self) -> str | int | None:
        """The shard key for Qdrant: an integer if it is written as one."""
        return int(self.shard_key) if self.shard_key is not None and self.shard_key.isdecimal() else self.shard_key

    def indexes(self) -> dict[str, PayloadIndex]:
        """Return the kinds of payload indexes by key. File names are indexed first, to find stale documents.

        Raises:
            typer.BadParameter: If one is not of the form KEY=KIND, or its kind is unknown.
        """
        indexes: dict[str, PayloadIndex] = {FILE_KEY: "keyword"} if self.by_file else {}
        for given in self.payload_indexes:
            key, separator, kind = given.rpartition("=")
            if not separator or not key or kind not in PAYLOAD_INDEXES:
                raise typer.BadParameter(
                    f"{given!r} is not of the form KEY=KIND, KIND being one of {', '.join(PAYLOAD_INDEXES)}.",
                    param_hint="--payload-index",
                )
            # As with --where, keys refer to metadata.
            known = key in _FIELDS or key.startswith(_METADATA)
            indexes[key if known else f"{_METADATA}{key}"] = kind
        return indexes

    def server_options(self) -> dict[str, Any]:
        """Return keyword arguments for ``QdrantClient.create_collection``."""
        options: dict[str, Any] = {}
        if self.shards is not None:
            options["shard_number"] = self.shards
        if self.replicas is not None:
            options["replication_factor"] = self.replicas
        if self.shard_key is not None:
            options["sharding_method"] = models.ShardingMethod.CUSTOM
        return options

    def check(self, connection: Connection) -> None:
        """Reject invalid options before a model is loaded.

        Raises:
            typer.BadParameter: If options for shards are given for a folder, or a payload index is invalid.
            InvalidOptionError: If the storage or first stage is unknown.
        """
        self.indexes()
        if self.storage is not None:
            storage_profile(self.storage)
        if self.first_stage is not None and self.first_stage not in FIRST_STAGES:
            raise InvalidOptionError(f"first_stage must be one of {FIRST_STAGES}, got {self.first_stage!r}.")
        for option, value in (
            ("--shard-key", self.shard_key),
            ("--shards", self.shards),
            ("--replicas", self.replicas),
        ):
            if value is not None and not connection.is_server:
                raise typer.BadParameter(
                    f"{connection.location!r} is a folder; shards are for a Qdrant server (-c http://host:6333).",
                    param_hint=option,
                )


def open_target(connection: Connection, wanted: Wanted) -> ColbertCollection:
    """Open the collection, or create it if it does not exist.

    Raises:
        CollectionMismatchError: If it exists, but does not match the options.
    """
    wanted.check(connection)
    try:
        collection = connection.open(device=wanted.device, shard_key=wanted.shard)
    except CollectionNotFoundError:
        collection = _create(connection, wanted)
    try:
        check_same(collection, connection, wanted)
        for key, kind in wanted.indexes().items():
            collection.create_payload_index(key, kind)
    except BaseException:
        collection.close()
        raise
    return collection


def _create(connection: Connection, wanted: Wanted) -> ColbertCollection:
    quiet_libraries()
    from jcv2_plugin.encoder.model import JinaColbertEncoder

    encoder = JinaColbertEncoder.from_pretrained(
        wanted.model or DEFAULT_MODEL,
        dims=wanted.dim,
        device=wanted.device,
        document_length=wanted.document_length,
    )
    # Options that are not given use the defaults of create().
    given: dict[str, Any] = {
        "storage": wanted.storage,
        "first_stage": wanted.first_stage,
        "pool_factor": wanted.pool_factor,
    }
    return ColbertCollection.create(
        connection.location,
        encoder=encoder,
        dim=wanted.dim,
        shard_key=wanted.shard,
        collection_options=wanted.server_options(),
        **{option: value for option, value in given.items() if value is not None},
        **connection.arguments,
    )


def check_same(collection: ColbertCollection, connection: Connection, wanted: Wanted) -> None:
    """Check that a collection matches the options.

    Raises:
        CollectionMismatchError: If it does not. The message says what differs and how to fix it.
    """
    schema = collection.schema
    model = wanted.model
    if model is not None and Path(model).is_dir():
        model = str(Path(model).resolve())
    shards, replicas, custom = _layout(collection)
    for option, asked, found in (
        ("--model", model, schema.model),
        ("--dim", wanted.dim, schema.dim),
        ("--document-length", wanted.document_length, schema.document_length),
        ("--storage", wanted.storage, schema.storage),
        ("--first-stage", wanted.first_stage, schema.first_stage),
        ("--pool-factor", wanted.pool_factor, schema.pool_factor),
        ("--shards", wanted.shards, shards),
        ("--replicas", wanted.replicas, replicas),
    ):
        if asked is not None and asked != found:
            raise CollectionMismatchError(
                f"{connection.shown!r} was made with {option} {found}, not {asked}. Leave {option} out, or "
                "name a collection that is not there yet."
            )
    if wanted.shard_key is not None and not custom:
        raise CollectionMismatchError(
            f"{connection.shown!r} was made without --shard-key, so it has no shards by key. Leave it out, or "
            "name a collection that is not there yet."
        )


def _layout(collection: ColbertCollection) -> tuple[int | None, int | None, bool]:
    """Return the number of shards and replicas on a server, and whether the collection uses custom sharding."""
    engine = collection.engine
    if not isinstance(engine, ClientEngine) or engine.is_local:
        return None, None, False
    params = engine.client.get_collection(engine.physical).config.params
    custom = params.sharding_method == models.ShardingMethod.CUSTOM
    return params.shard_number, params.replication_factor, custom
