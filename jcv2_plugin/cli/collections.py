"""``jcv2 collections``: list, describe and drop collections."""

from __future__ import annotations

from typing import Annotated

import typer

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.dropping import run_drop
from jcv2_plugin.cli.info import info
from jcv2_plugin.cli.listing import run_list
from jcv2_plugin.cli.options import ApiKey, Collection, Grpc, Json, Name, Timeout

collections_app = typer.Typer(help="List, describe and drop collections.", no_args_is_help=True, add_completion=False)


@collections_app.command("list")
def list_(
    location: Annotated[str, typer.Argument(help="A Qdrant server's URL, or a folder: itself and those in it.")],
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
    as_json: Json = False,
) -> None:
    """List the collections on a server or in a folder, with their settings."""
    run_list(Connection(location, api_key=api_key, timeout=timeout, grpc=grpc), as_json=as_json)


collections_app.command()(info)


@collections_app.command()
def drop(
    collection: Collection,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. Needed where nobody can be asked.")] = False,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
) -> None:
    """Delete a collection with all its documents."""
    run_drop(Connection(collection, name, api_key, timeout, grpc), yes=yes)
