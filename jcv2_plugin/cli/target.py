"""The collection that ``jcv2 index`` and ``jcv2 import-qdrant`` write to: opened if it exists, else created."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from qdrant_client import models

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.options import Device, Settings
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.sources import FILE_KEY
from jcv2_plugin.console import quiet_libraries
from jcv2_plugin.documents import ID_KEY, TEXT_KEY
from jcv2_plugin.encoder import DEFAULT_MODEL
from jcv2_plugin.encoder.named import load_encoder
from jcv2_plugin.encoder.remote import is_remote, same_reference
from jcv2_plugin.engines.base import PAYLOAD_INDEXES, PayloadIndex
from jcv2_plugin.engines.edge import unfinished
from jcv2_plugin.engines.qdrant import ClientEngine
from jcv2_plugin.errors import (
    CollectionMismatchError,
    CollectionNotFoundError,
    CollectionUnfinishedError,
    InvalidOptionError,
)
from jcv2_plugin.filters import check_payload_key, metadata_paths

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder

_METADATA = "metadata."
_FIELDS = (TEXT_KEY, ID_KEY, FILE_KEY)


@dataclass(frozen=True)
class Wanted(Settings):
    """Settings of the collection: a new one is created with them, an existing one must have them."""

    document_length: Annotated[int | None, typer.Option(help="The model's window, in tokens.")] = None
    payload_indexes: Annotated[
        list[str] | None,
        typer.Option(
            "--payload-index",
            metavar="KEY=TYPE",
            help="Create a payload index on metadata for filters, such as topic=keyword. Repeatable.",
        ),
    ] = None
    device: Device = None
    shard_key: str | None = None  # these three are options of WantedForFiles
    shards: int | None = None
    replicas: int | None = None
    by_file: bool = False
    """Whether the documents come from files and must be found by file name later."""

    @property
    def shard(self) -> str | int | None:
        """The shard key for Qdrant: an integer if it is written as one."""
        return int(self.shard_key) if self.shard_key is not None and self.shard_key.isdecimal() else self.shard_key

    def indexes(self) -> dict[str, PayloadIndex]:
        """Return the types of payload indexes by key. File names are indexed first, to find stale documents."""
        indexes: dict[str, PayloadIndex] = {FILE_KEY: "keyword"} if self.by_file else {}
        for given in self.payload_indexes or ():
            key, separator, kind = given.rpartition("=")
            if not separator or not key or kind not in PAYLOAD_INDEXES:
                raise typer.BadParameter(
                    f"{given!r} is not of the form KEY=TYPE with one of the types {', '.join(PAYLOAD_INDEXES)}.",
                    param_hint="--payload-index",
                )
            # As with --where, keys refer to metadata.
            known = key in _FIELDS or key.startswith(_METADATA)
            path = key if known else metadata_paths(key)[-1]
            try:
                check_payload_key(path)
            except InvalidOptionError as error:
                raise typer.BadParameter(str(error), param_hint="--payload-index") from error
            indexes[path] = kind
        return indexes

    def server_options(self) -> dict[str, Any]:
        """Return keyword arguments for ``QdrantClient.create_collection``."""
        sharding = None if self.shard_key is None else models.ShardingMethod.CUSTOM
        options = {"shard_number": self.shards, "replication_factor": self.replicas, "sharding_method": sharding}
        return {key: value for key, value in options.items() if value is not None}

    def check(self, connection: Connection) -> None:
        """Reject invalid options before a model is loaded."""
        self.indexes()
        self.check_names()
        given = {"--shard-key": self.shard_key, "--shards": self.shards, "--replicas": self.replicas}
        for option, value in given.items():
            if value is not None and not connection.is_server:
                raise typer.BadParameter(
                    f"{connection.location!r} is a folder. Only a Qdrant server has shards (-c http://host:6333).",
                    param_hint=option,
                )


@dataclass(frozen=True)
class WantedForFiles(Wanted):
    """Settings of a collection of files' documents."""

    shard_key: Annotated[
        str | None, typer.Option(help="Shard key to write to. Creates the collection with custom sharding.")
    ] = None
    shards: Annotated[int | None, typer.Option(min=1, help="Number of shards on the server.")] = None
    replicas: Annotated[int | None, typer.Option(min=1, help="Number of copies of each shard.")] = None
    by_file: bool = True


def open_target(
    connection: Connection, wanted: Wanted, check: Callable[[Encoder], object] = lambda encoder: None
) -> ColbertCollection:
    """Open the collection, or create it if it does not exist or its creation was interrupted.

    ``check`` is called with the encoder of a new collection, and raises if it must not be created.

    Raises:
        CollectionMismatchError: If it exists, but does not match the options.
    """
    wanted.check(connection)
    try:
        collection = connection.open(device=wanted.device, shard_key=wanted.shard)
    except CollectionNotFoundError:
        return _create(connection, wanted, check)
    except CollectionUnfinishedError:
        if connection.is_server or unfinished(connection.folder) != "creation":
            raise
        return _create(connection, wanted, check)
    try:
        _check_same(collection, connection, wanted)
        for key, kind in wanted.indexes().items():
            collection.create_payload_index(key, kind)
    except BaseException:
        collection.close()
        raise
    return collection


def _create(connection: Connection, wanted: Wanted, check: Callable[[Encoder], object]) -> ColbertCollection:
    quiet_libraries()
    encoder = load_encoder(
        wanted.model or DEFAULT_MODEL,
        dims=wanted.dim,
        device=wanted.device,
        document_length=wanted.document_length,
    )
    check(encoder)
    # Options that are not given use the defaults of create().
    given: dict[str, Any] = {name: getattr(wanted, name) for name in ("storage", "first_stage", "pool_factor")}
    return ColbertCollection.create(
        connection.location,
        encoder=encoder,
        dim=wanted.dim,
        payload_indexes=wanted.indexes(),
        shard_key=wanted.shard,
        collection_options=wanted.server_options(),
        **{option: value for option, value in given.items() if value is not None},
        **connection.arguments,
    )


def _check_same(collection: ColbertCollection, connection: Connection, wanted: Wanted) -> None:
    model = wanted.model
    if model is not None and Path(model).is_dir():
        model = str(Path(model).resolve())
    elif model is not None and is_remote(model) and same_reference(model, collection.schema.model):
        model = collection.schema.model
    found: dict[str, Any] = {**collection.schema.to_dict(), **_shards_of(collection)}
    asked = {**vars(wanted), "model": model, "shard_key": None if wanted.shard_key is None else "custom"}
    for name, value in found.items():
        if asked.get(name) not in (None, value):
            option = f"--{name.replace('_', '-')}"
            made = f"without {option}" if value is None else f"with {option} {value}"
            raise CollectionMismatchError(
                f"{connection.shown!r} was created {made}, not with {getattr(wanted, name)}. Leave out {option}, or "
                "choose another collection."
            )


def _shards_of(collection: ColbertCollection) -> dict[str, Any]:
    """Return the number of shards and replicas on a server, and whether the collection uses custom sharding."""
    engine = collection.engine
    if not isinstance(engine, ClientEngine) or engine.is_local:
        return {}
    params = engine.client.get_collection(engine.physical).config.params
    custom = "custom" if params.sharding_method == models.ShardingMethod.CUSTOM else None
    return {"shards": params.shard_number, "replicas": params.replication_factor, "shard_key": custom}
