"""``jcv2 migrate``: change the dimension, model, storage or first stage of a collection in use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, cast

import typer

from jcv2_plugin.cli.connection import WritingConnection
from jcv2_plugin.cli.options import Device, Settings, Workers
from jcv2_plugin.console import progress_bar, quiet_libraries, remark
from jcv2_plugin.errors import InvalidOptionError

if TYPE_CHECKING:
    from jcv2_plugin.engines.first_stage import FirstStageName
    from jcv2_plugin.engines.storage import Storage


def migrate(
    connection: WritingConnection,
    new: Settings,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="On a server: keep the old collection, under another name.")
    ] = False,
    workers: Workers = 0,
    device: Device = None,
) -> None:
    """Change a collection's dimension, model, storage or first stage while in use.

    The new collection is built beside the old one, which stays searchable until it is replaced. If the command is
    interrupted before that, nothing has changed, and the same command continues where it stopped.
    """
    if new == Settings():
        raise InvalidOptionError("Give what to change: --dim, --model, --storage, --first-stage or --pool-factor.")
    new.check_names()
    if keep_old and not connection.is_server:
        raise typer.BadParameter(
            f"{connection.location!r} is a folder, which holds one collection. To keep the old one, write it to a "
            "file first: jcv2 snapshot.",
            param_hint="--keep-old",
        )
    with connection.open(device=device) as opened:
        quiet_libraries()
        start = time.perf_counter()
        try:
            with progress_bar("Migrating", opened.count()) as advance:
                report = opened.migrate(
                    dim=new.dim,
                    encoder=new.model,
                    storage=cast("Storage | None", new.storage),
                    first_stage=cast("FirstStageName | None", new.first_stage),
                    pool_factor=new.pool_factor,
                    keep_old=keep_old,
                    workers=workers,
                    progress=advance,
                )
        except KeyboardInterrupt:
            remark("Stopped. The collection is unchanged. Run the command again to continue.")
            raise
        schema = opened.schema
        if not report.needed:
            remark(
                f"There is nothing to do: {report.documents} documents are already at {schema.dim} dims of "
                f"{schema.model}, storage {schema.storage}, first stage {schema.first_stage}."
            )
            return
        kept = "" if report.old is None else f" The old collection is kept as {report.old}."
        remark(
            f"{report.documents} documents are now at {schema.dim} dims of {schema.model}, storage {schema.storage}, "
            f"first stage {schema.first_stage}: {report.encoded} encoded, {report.copied} copied, in "
            f"{time.perf_counter() - start:.1f} s.{kept}"
        )
