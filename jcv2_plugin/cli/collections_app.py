"""``jcv2 collections`` and its options: list, info, drop."""

from __future__ import annotations

from typing import Annotated

import typer

from jcv2_plugin.cli.options import ApiKey, Collection, Grpc, Json, Name, Timeout

collections_app = typer.Typer(help="List, describe and drop collections.", no_args_is_help=True)


@collections_app.command("list")
def list_(
    location: Annotated[str, typer.Argument(help="A Qdrant server's URL, or a folder: itself and those in it.")],
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
    as_json: Json = False,
) -> None:
    """List the collections of a server or in a folder, and what they were made with."""
    from jcv2_plugin.cli.connection import Connection
    from jcv2_plugin.cli.listing import run_list

    run_list(Connection(location, api_key=api_key, timeout=timeout, grpc=grpc), as_json=as_json)


@collections_app.command()
def info(
    collection: Collection,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
    as_json: Json = False,
) -> None:
    """Print what a collection was made with, and how many documents it has; as jcv2 info."""
    from jcv2_plugin.cli.connection import Connection
    from jcv2_plugin.cli.searching import run_info

    run_info(Connection(collection, name, api_key, timeout, grpc), as_json=as_json)


@collections_app.command()
def drop(
    collection: Collection,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. Needed where nobody can be asked.")] = False,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
) -> None:
    """Remove a collection with all its documents."""
    from jcv2_plugin.cli.connection import Connection
    from jcv2_plugin.cli.dropping import run_drop

    run_drop(Connection(collection, name, api_key, timeout, grpc), yes=yes)
