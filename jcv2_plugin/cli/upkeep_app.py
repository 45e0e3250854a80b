"""The subcommands that keep a collection in order, and their options: migrate, verify, snapshot, restore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jcv2_plugin.cli.options import (
    FIRST_STAGES_HELP,
    POOL_HELP,
    STORAGES_HELP,
    ApiKey,
    Collection,
    Device,
    Grpc,
    Json,
    Name,
    Retries,
    Timeout,
    Workers,
)


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

    The new collection is built beside the old one, which is searched until the new one takes its place. Stopped
    before that, nothing has changed, and the same command goes on where it stopped.
    """
    from jcv2_plugin.cli.connection import Connection
    from jcv2_plugin.cli.migrating import MigrateOptions, run_migrate

    run_migrate(
        Connection(collection, name, api_key, timeout, grpc, retries),
        MigrateOptions(
            dim=dim,
            model=model,
            storage=storage,
            first_stage=first_stage,
            pool_factor=pool_factor,
            keep_old=keep_old,
            workers=workers,
            device=device,
        ),
    )


def verify(
    collection: Collection,
    sample: Annotated[int, typer.Option(min=0, help="How many documents to encode anew and compare.")] = 20,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Read every document of a collection, and encode some anew; exit status 1 if anything is wrong."""
    from jcv2_plugin.cli.connection import Connection
    from jcv2_plugin.cli.upkeep import run_verify

    run_verify(Connection(collection, name, api_key, timeout, grpc), sample=sample, device=device, as_json=as_json)


def snapshot(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not be there yet.")],
    collection: Collection,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
) -> None:
    """Write a whole collection to one file, from which it can be restored anywhere without encoding."""
    from jcv2_plugin.cli.connection import Connection
    from jcv2_plugin.cli.upkeep import run_snapshot

    run_snapshot(file, Connection(collection, name, api_key, timeout, grpc))


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
    from jcv2_plugin.cli.connection import Connection
    from jcv2_plugin.cli.upkeep import run_restore

    run_restore(file, Connection(collection, name, api_key, timeout, grpc, retries), overwrite=overwrite)
