"""``jcv2 info``: print a collection's settings and its number of documents."""

from __future__ import annotations

import json

import typer
from rich.table import Table
from rich.text import Text

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.options import ApiKey, Collection, Grpc, Json, Name, Timeout
from jcv2_plugin.console import print_table


def info(
    collection: Collection,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
    as_json: Json = False,
) -> None:
    """Print what a collection was made with, and how many documents it has."""
    with Connection(collection, name, api_key, timeout, grpc).open() as opened:
        described = {**opened.schema.to_dict(), "documents": opened.count()}
    if as_json:
        typer.echo(json.dumps(described))
        return
    table = Table.grid(padding=(0, 2))
    for key, value in described.items():
        table.add_row(key, Text(str(value)))
    print_table(table)
