"""``jcv2 migrate``: change the dimension, model, storage or first stage of a collection in use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, cast

import typer

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.options import (
    FIRST_STAGES_HELP,
    POOL_HELP,
    STORAGES_HELP,
    ApiKey,
    Collection,
    Device,
    Grpc,
    Name,
    Retries,
    Timeout,
    Workers,
)
from jcv2_plugin.console import progress_bar, quiet_libraries, remark
from jcv2_plugin.engines.first_stage import FIRST_STAGES
from jcv2_plugin.engines.storage import storage_profile
from jcv2_plugin.errors import InvalidOptionError

if TYPE_CHECKING:
    from jcv2_plugin.engines.storage import Storage


def migrate(
    collection: Collection,
    dim: Annotated[int | None, typer.Option(help="Another Matryoshka dimension.")] = None,
    model: Annotated[str | None, typer.Option(help="Another model, by name or folder.")] = None,
    storage: Annotated[str | None, typer.Option(help=f"{STORAGES_HELP}.")] = None,
    first_stage: Annotated[str | None, typer.Option(help=f"{FIRST_STAGES_HELP}.")] = None,
    pool_factor: Annotated[float | None, typer.Option(help=f"{POOL_HELP}.")] = None,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="On a server: keep the old collection, under a name of its own.")
    ] = False,
    workers: Workers = 0,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
    retries: Retries = None,
    device: Device = None,
) -> None:
    """Change a collection's dimension, model, storage or first stage while it is in use.

    The new collection is built beside the old one, which stays searchable until it is replaced. If the command is
    interrupted before that, nothing has changed, and the same command continues where it stopped.
    """
    changes = (dim, model, storage, first_stage, pool_factor)
    if all(change is None for change in changes):
        raise InvalidOptionError("Say what is to change: --dim, --model, --storage, --first-stage or --pool-factor.")
    if storage is not None:
        storage_profile(storage)
    if first_stage is not None and first_stage not in FIRST_STAGES:
        raise InvalidOptionError(f"first_stage must be one of {FIRST_STAGES}, got {first_stage!r}.")
    connection = Connection(collection, name, api_key, timeout, grpc, retries)
    if keep_old and not connection.is_server:
        raise typer.BadParameter(
            f"{collection!r} is a folder, which holds one collection. Keep the old one by a snapshot first: "
            "jcv2 snapshot.",
            param_hint="--keep-old",
        )
    with connection.open(device=device) as opened:
        quiet_libraries()
        start = time.perf_counter()
        try:
            with progress_bar("Migrating", opened.count()) as advance:
                report = opened.migrate(
                    dim=dim,
                    encoder=model,
                    storage=cast("Storage | None", storage),
                    first_stage=first_stage,
                    pool_factor=pool_factor,
                    keep_old=keep_old,
                    workers=workers,
                    progress=advance,
                )
        except KeyboardInterrupt:
            remark("Stopped: the collection is as it was. Run the command again to go on.")
            raise
        schema = opened.schema
        kept = "" if report.old is None else f" The old collection is kept as {report.old}."
        remark(
            f"{report.documents} documents are now at {schema.dim} dims of {schema.model}, storage {schema.storage}, "
            f"first stage {schema.first_stage}: {report.encoded} encoded, {report.copied} copied, in "
            f"{time.perf_counter() - start:.1f} s.{kept}"
        )
