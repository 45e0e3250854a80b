"""``jcv2 snapshot`` and ``jcv2 restore``: write a collection to one file, and restore it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.folders import journal_of
from jcv2_plugin.cli.options import ApiKey, Collection, Grpc, Name, Retries, Timeout
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.snapshot import read_info
from jcv2_plugin.console import progress_bar, remark


def snapshot(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not be there yet.")],
    collection: Collection,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
) -> None:
    """Write a whole collection to one file, from which it can be restored anywhere without encoding."""
    with (
        Connection(collection, name, api_key, timeout, grpc).open() as opened,
        progress_bar("Writing", opened.count()) as advance,
    ):
        info = opened.snapshot(file, progress=advance)
    size = file.stat().st_size / 1e6
    remark(f"{file}: {info.documents} documents, {size:,.1f} MB.")


def restore(
    file: Annotated[Path, typer.Argument(help="A snapshot.")],
    collection: Collection,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a collection that is there.")] = False,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
    retries: Retries = None,
) -> None:
    """Make a collection of a snapshot, in a folder or on a server; nothing is encoded."""
    connection = Connection(collection, name, api_key, timeout, grpc, retries)
    info = read_info(file)
    begun = False
    try:
        with progress_bar("Restoring", info.documents) as advance:

            def stored(documents: int) -> None:
                nonlocal begun
                begun = True
                advance(documents)

            ColbertCollection.restore(
                file, connection.location, overwrite=overwrite, progress=stored, **connection.arguments
            ).close()
    except BaseException as error:
        if begun or isinstance(error, KeyboardInterrupt):
            complete = "is not" if begun else "may not be"
            remark(f"Stopped: {connection.title} {complete} complete. Run the command again with --overwrite.")
        raise
    if not connection.is_server:
        # A journal left here belongs to the collection that was replaced.
        journal_of(connection.folder).unlink(missing_ok=True)
    schema = info.schema
    title = connection.title
    remark(f"{title[0].upper()}{title[1:]}: {info.documents} documents at {schema.dim} dims of {schema.model}.")
