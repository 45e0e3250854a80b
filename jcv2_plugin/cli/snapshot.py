"""``jcv2 snapshot`` and ``jcv2 restore``: write a collection to one file, and restore it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jcv2_plugin.cli.connection import Connection, WritingConnection
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.snapshot import read_info
from jcv2_plugin.console import progress_bar, remark
from jcv2_plugin.engines.edge import JOURNAL


def snapshot(
    file: Annotated[Path, typer.Argument(help="File to write. It must not exist.")], connection: Connection
) -> None:
    """Write a collection to one file, which can be restored without encoding."""
    with connection.open() as opened, progress_bar("Writing", opened.count()) as advance:
        info = opened.snapshot(file, progress=advance)
    size = file.stat().st_size / 1e6
    remark(f"{file}: {info.documents} documents, {size:,.1f} MB.")


def restore(
    file: Annotated[Path, typer.Argument(help="Snapshot to restore.")],
    connection: WritingConnection,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing collection.")] = False,
) -> None:
    """Restore a collection from a snapshot, in a folder or on a server."""
    info = read_info(file)
    title = connection.title
    try:
        with progress_bar("Restoring", info.documents) as advance:
            ColbertCollection.restore(
                file, connection.location, overwrite=overwrite, progress=advance, **connection.arguments
            ).close()
    except KeyboardInterrupt:
        remark(f"Stopped. Run the command again to restore {title}.")
        raise
    if not connection.is_server:
        # A journal left here belongs to the collection that was replaced.
        (connection.folder / JOURNAL).unlink(missing_ok=True)
    remark(
        f"{title[0].upper()}{title[1:]}: {info.documents} documents at {info.schema.dim} dims of {info.schema.model}."
    )
