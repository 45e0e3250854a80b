"""``jcv2 collections list``: list the collections on a server or in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.folders import is_described, read_schema
from jcv2_plugin.console import out, print_table
from jcv2_plugin.engines.aliases import collection_names
from jcv2_plugin.engines.edge import EdgeEngine
from jcv2_plugin.engines.schema import METADATA_FIELD, CollectionSchema
from jcv2_plugin.errors import CollectionCorruptError, CollectionError, CollectionLockedError, CollectionNotFoundError

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

IN_USE = "in use"
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Listed:
    """An entry in the list of collections.

    Attributes:
        name: Name on a server, or path of a folder.
        schema: The collection's schema; None if its description is unreadable.
        documents: Number of documents; None if they cannot be counted now.
        state: Remark on the collection; empty if it is fine.
    """

    name: str
    schema: CollectionSchema | None
    documents: int | None
    state: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as a dict for ``--json``."""
        schema = self.schema
        return {
            "name": self.name,
            "model": None if schema is None else schema.model,
            "dim": None if schema is None else schema.dim,
            "storage": None if schema is None else schema.storage,
            "first_stage": None if schema is None else schema.first_stage,
            "documents": self.documents,
            "state": self.state or None,
        }


def run_list(connection: Connection, *, as_json: bool) -> None:
    """Print the collections on a server or in a folder."""
    if connection.is_server:
        with connection.client() as client:
            found = list(of_server(client))
    else:
        found = list(of_folder(connection.location))
    if as_json:
        typer.echo(json.dumps([one.to_dict() for one in found]))
        return
    if not found:
        out.print(f"There is no collection in {connection.shown}.", markup=False, soft_wrap=True)
        return
    table = Table("name", "model", "dim", "storage", "first stage", "documents", "", box=None)
    for one in found:
        *values, state = ("" if value is None else str(value) for value in one.to_dict().values())
        table.add_row(*map(Text, values), Text(state, "yellow"))
    print_table(table)


def of_server(client: QdrantClient) -> Iterator[Listed]:
    """Yield our collections on a server, by the names under which they can be opened."""
    names = collection_names(client)
    for name in sorted(names):
        if (found := on_server(client, name, names)) is not None:
            yield found


def on_server(client: QdrantClient, name: str, names: Mapping[str, str]) -> Listed | None:
    """Return a collection on a server, or None if it is not ours. ``names`` comes from :func:`collection_names`."""
    physical = names[name]
    metadata = client.get_collection(physical).config.metadata or {}
    if METADATA_FIELD not in metadata:
        return None
    documents = client.count(physical, exact=True).count
    try:
        schema = CollectionSchema.from_dict(metadata[METADATA_FIELD], f"The collection {name!r}")
    except CollectionCorruptError:
        return Listed(name, None, documents, UNREADABLE)
    return Listed(name, schema, documents, _generation(name, names) if name == physical else "")


def _generation(physical: str, names: Mapping[str, str]) -> str:
    """Return which migration a collection without an alias belongs to, or an empty string."""
    name, _, number = physical.rpartition(".")
    now = names.get(name, name)
    if now == name or not number.isdecimal() or not now.removeprefix(f"{name}.").isdecimal():
        return ""
    older = int(number) < int(now.removeprefix(f"{name}."))
    return f"kept by a migration of {name}" if older else f"of an unfinished migration of {name}"


def of_folder(location: str) -> Iterator[Listed]:
    """Yield the collections in a folder: the folder itself and one level below.

    Raises:
        CollectionNotFoundError: If there is no such folder.
    """
    root = Path(location).expanduser()
    if not root.is_dir():
        raise CollectionNotFoundError(f"There is no folder {str(root)!r}. Check the path.")
    if is_described(root):
        yield _of_path(location, root)
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and is_described(folder):
            yield _of_path(str(Path(location) / folder.name), folder)


def _of_path(name: str, folder: Path) -> Listed:
    try:
        schema = read_schema(folder)
    except CollectionCorruptError:
        return Listed(name, None, None, UNREADABLE)
    try:
        # Counting requires opening the collection, which fails if it is already open elsewhere.
        engine = EdgeEngine.open(folder)
    except CollectionLockedError:
        return Listed(name, schema, None, IN_USE)
    except (CollectionError, OSError):
        return Listed(name, schema, None, UNREADABLE)
    try:
        return Listed(name, schema, engine.count(None))
    finally:
        engine.close()
