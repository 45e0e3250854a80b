"""``jcv2 collections drop``: delete a collection."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer
from qdrant_client import models

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.folders import locked, remove
from jcv2_plugin.cli.listing import of_folder, on_server
from jcv2_plugin.console import err, remark
from jcv2_plugin.engines.aliases import collection_names
from jcv2_plugin.errors import CollectionError, CollectionMismatchError, CollectionNotFoundError

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from jcv2_plugin.cli.listing import Listed


def run_drop(connection: Connection, *, yes: bool) -> None:
    """Delete a collection after confirmation."""
    if not connection.is_server:
        _drop_folder(connection, yes=yes)
        return
    with connection.client() as client:
        _drop_on_server(client, connection, yes=yes)


def _drop_folder(connection: Connection, *, yes: bool) -> None:
    folder = connection.folder
    with locked(folder):
        pass  # do not ask for confirmation if it cannot be dropped
    _confirm(connection, next(of_folder(connection.location)), yes=yes)
    with locked(folder) as lock:
        others = remove(folder, lock)
    _say(connection)
    if others:
        named = ", ".join(others)
        remark(f"The folder stays: it also holds {named}.")


def _drop_on_server(client: QdrantClient, connection: Connection, *, yes: bool) -> None:
    name = connection.name
    names = collection_names(client)
    physical = names.get(name)
    standing = sorted(other for other, target in names.items() if target == (physical or name) and other != name)
    if physical is None and standing:
        raise CollectionError(
            f"{name!r} is what the name {standing[0]!r} stands for. Drop it by that name: --name {standing[0]}."
        )
    if physical is None:
        raise CollectionNotFoundError(f"There is no collection {name!r}; there are {sorted(names)}. Check --name.")
    if standing:
        raise CollectionError(
            f"{standing} also stand for the collection of {name!r}, and would be lost with it. Remove those aliases "
            "first."
        )
    found = on_server(client, name, names)
    if found is None:
        raise CollectionMismatchError(
            f"The collection {name!r} was not made by jcv2-plugin. Remove it with the software that made it."
        )
    _confirm(connection, found, yes=yes)
    if physical != name:
        # Delete the alias first, so that nobody opens the collection meanwhile.
        alias = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name))
        client.update_collection_aliases(change_aliases_operations=[alias])
    client.delete_collection(physical)
    _say(connection)
    generations = [other for other in sorted(collection_names(client)) if _is_generation(other, name)]
    if generations:
        remark(f"Still there, of its migrations: {', '.join(generations)}. Drop each by its own name, with --name.")


def _is_generation(other: str, name: str) -> bool:
    return other.startswith(f"{name}.") and other.removeprefix(f"{name}.").isdecimal()


def _confirm(connection: Connection, found: Listed, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            f"Dropping {connection.title} cannot be undone, and nobody can be asked here. Add --yes.",
            param_hint="--yes",
        )
    count = "an unknown number of" if found.documents is None else f"{found.documents:,}"
    answer = err.input(f"Drop {connection.title} with {count} documents? [y/N]: ", markup=False)
    if answer.strip().lower() not in ("y", "yes"):
        raise typer.Abort


def _say(connection: Connection) -> None:
    title = connection.title
    remark(f"{title[0].upper()}{title[1:]} is dropped.")
