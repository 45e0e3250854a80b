"""``jcv2 migrate``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import typer

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.console import progress_bar, quiet_libraries, remark
from jcv2_plugin.engines.first_stage import FIRST_STAGES
from jcv2_plugin.engines.storage import storage_profile
from jcv2_plugin.errors import InvalidOptionError

if TYPE_CHECKING:
    from jcv2_plugin.engines.first_stage import FirstStage
    from jcv2_plugin.engines.storage import Storage


@dataclass(frozen=True)
class MigrateOptions:
    """What the collection is to become; None leaves a thing as it is."""

    dim: int | None
    model: str | None
    storage: str | None
    first_stage: str | None
    pool_factor: float | None
    keep_old: bool
    workers: int
    device: str | None


def run_migrate(connection: Connection, options: MigrateOptions) -> None:
    """Migrate a collection, and say in a line what was done."""
    _check(connection, options)
    with connection.open(device=options.device) as collection:
        quiet_libraries()
        start = time.perf_counter()
        try:
            with progress_bar("Migrating", collection.count()) as advance:
                report = collection.migrate(
                    dim=options.dim,
                    encoder=options.model,
                    storage=cast("Storage | None", options.storage),
                    first_stage=cast("FirstStage | None", options.first_stage),
                    pool_factor=options.pool_factor,
                    keep_old=options.keep_old,
                    workers=options.workers,
                    progress=advance,
                )
        except KeyboardInterrupt:
            remark("Stopped: the collection is as it was. Run the command again to go on.")
            raise
        schema = collection.schema
        kept = "" if report.old is None else f" The old collection is kept as {report.old}."
        remark(
            f"{report.documents} documents are now at {schema.dim} dims of {schema.model}, storage {schema.storage}, "
            f"first stage {schema.first_stage}: {report.encoded} encoded, {report.copied} copied, in "
            f"{time.perf_counter() - start:.1f} s.{kept}"
        )


def _check(connection: Connection, options: MigrateOptions) -> None:
    changes: tuple[Any, ...] = (
        options.dim, options.model, options.storage, options.first_stage, options.pool_factor
    )  # fmt: skip
    if all(change is None for change in changes):
        raise InvalidOptionError("Say what is to change: --dim, --model, --storage, --first-stage or --pool-factor.")
    if options.storage is not None:
        storage_profile(options.storage)
    if options.first_stage is not None and options.first_stage not in FIRST_STAGES:
        raise InvalidOptionError(f"first_stage must be one of {FIRST_STAGES}, got {options.first_stage!r}.")
    if options.keep_old and not connection.is_server:
        raise typer.BadParameter(
            f"{connection.location!r} is a folder, which holds one collection. Keep the old one by a snapshot first: "
            "jcv2 snapshot.",
            param_hint="--keep-old",
        )
