"""``jcv2 collections``: list, describe and drop collections; ``jcv2 info``."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from filelock import FileLock, Timeout
from qdrant_client import models
from rich.table import Table
from rich.text import Text

from jcv2_plugin.cli.connection import Connection, OptionalConnection
from jcv2_plugin.cli.lazy import with_shared_options
from jcv2_plugin.cli.options import Json
from jcv2_plugin.console import err, out, print_table, remark, to_json
from jcv2_plugin.console import name as shown_name
from jcv2_plugin.engines.aliases import aliases_of, collection_names, generation_of
from jcv2_plugin.engines.edge import DELETION, DESCRIPTION, EdgeEngine, is_edge_collection, is_ours
from jcv2_plugin.engines.schema import METADATA_FIELD, CollectionSchema
from jcv2_plugin.errors import (
    CollectionCorruptError,
    CollectionError,
    CollectionLockedError,
    CollectionMismatchError,
    CollectionNotFoundError,
    CollectionUnfinishedError,
    Jcv2Error,
)
from jcv2_plugin.files import read_json, write_atomically

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

IN_USE = "in use"
UNREADABLE = "unreadable"
UNFINISHED = "unfinished"
_LOCK = "lock"
_SHARD = re.compile(r"shard(-\d+)?(\.dropped)?")  # .dropped: of a deletion by version 0.1 that was interrupted

collections_app = typer.Typer(help="List, describe and drop collections.", no_args_is_help=True, add_completion=False)


def list_collections(
    connection: OptionalConnection,
    place: Annotated[
        str | None, typer.Argument(metavar="[LOCATION]", help="The same as --collection.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the collections on a server, or in a folder and one level below, with their settings."""
    if bool(place) == bool(connection.location):
        raise typer.BadParameter("Give a folder or a Qdrant server's URL, once.", param_hint="--collection")
    if place:
        connection = OptionalConnection(**{**vars(connection), "location": place})
    if connection.is_server:
        with connection.client() as client:
            found = list(_of_server(client))
    else:
        found = list(_of_folder(connection.location))
    if as_json:
        typer.echo(to_json([one.to_dict() for one in found]))
        return
    if not found:
        out.print(f"There is no collection in {connection.shown}.", markup=False, soft_wrap=True)
        return
    table = Table("name", "model", "dim", "storage", "first stage", "documents", "", box=None)
    for one in found:
        *values, state = ("" if value is None else str(value) for value in one.to_dict().values())
        table.add_row(*map(shown_name, values), Text(state, "yellow"))
    print_table(table)


def info(connection: Connection, as_json: Json = False) -> None:
    """Print a collection's settings and its number of documents.

    With the dtype that its model gets on this machine's CPU.
    """
    from jcv2_plugin.encoder.dtypes import cpu_dtype_of

    with connection.open() as opened:
        schema = opened.schema
        described = {
            **schema.to_dict(),
            "documents": opened.count(),
            "dtype_on_this_cpu": cpu_dtype_of(schema.model, schema.revision),
        }
    if as_json:
        typer.echo(to_json(described))
        return
    table = Table.grid(padding=(0, 2))
    for key, value in described.items():
        table.add_row(key, shown_name(str(value)))
    print_table(table)


def drop(
    connection: Connection,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask for confirmation. Required if there is no terminal.")
    ] = False,
) -> None:
    """Delete a collection with all its documents."""
    if connection.is_server:
        with connection.client() as client:
            _drop_on_server(client, connection, yes=yes)
    else:
        _drop_folder(connection, yes=yes)


collections_app.command("list")(with_shared_options(list_collections))
collections_app.command("info")(with_shared_options(info))
collections_app.command("drop")(with_shared_options(drop))


@dataclass(frozen=True)
class _Listed:
    """An entry in the list of collections. ``name`` is a path for a folder; the rest is None where it is unknown."""

    name: str
    schema: CollectionSchema | None
    documents: int | None
    state: str | None = None

    def to_dict(self) -> dict[str, Any]:
        settings = {key: getattr(self.schema, key, None) for key in ("model", "dim", "storage", "first_stage")}
        return {"name": self.name, **settings, "documents": self.documents, "state": self.state}


def _of_server(client: QdrantClient) -> Iterator[_Listed]:
    names = collection_names(client)
    for name in sorted(names):
        if (found := _on_server(client, name, names)) is not None:
            yield found


def _on_server(client: QdrantClient, name: str, names: Mapping[str, str]) -> _Listed | None:
    """Return a collection on a server, or None if it is not ours. ``names`` comes from :func:`collection_names`."""
    physical = names[name]
    metadata = client.get_collection(physical).config.metadata or {}
    if METADATA_FIELD not in metadata:
        return None
    documents = client.count(physical, exact=True).count
    try:
        schema = CollectionSchema.from_dict(metadata[METADATA_FIELD], f"The collection {name!r}")
    except CollectionCorruptError as error:
        return _Listed(name, None, documents, _state_of(error))
    return _Listed(name, schema, documents, _generation(name, names) if name == physical else None)


def _state_of(error: Exception) -> str:
    return UNFINISHED if isinstance(error, CollectionUnfinishedError) else UNREADABLE


def _generation(physical: str, names: Mapping[str, str]) -> str | None:
    """Return which migration a collection without an alias belongs to, or None."""
    name = physical.rpartition(".")[0]
    own, now = generation_of(physical, name), generation_of(names.get(name, name), name)
    if not own or not now:
        return None
    return f"kept by a migration of {name}" if own < now else f"of an unfinished migration of {name}"


def _of_folder(location: str) -> Iterator[_Listed]:
    """Yield the collections in a folder: the folder itself and one level below."""
    root = Path(location).expanduser()
    if not root.is_dir():
        raise CollectionNotFoundError(f"There is no folder {str(root)!r}. Check the path.")
    if _is_collection(root):
        yield _of_path(location, root)
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and _is_collection(folder):
            yield _of_path(str(Path(location) / folder.name), folder)


def _is_collection(folder: Path) -> bool:
    try:
        return is_edge_collection(folder)
    except OSError:  # the folder cannot be read
        return False


def _of_path(name: str, folder: Path) -> _Listed:
    try:
        raw = read_json(folder / DESCRIPTION)
        schema = CollectionSchema.from_dict(raw, name)
    except (OSError, ValueError, CollectionCorruptError) as error:
        return _Listed(name, None, None, _state_of(error))
    try:
        # Counting requires opening the collection, which fails if it is already open elsewhere.
        engine = EdgeEngine.open(folder)
    except CollectionLockedError:
        return _Listed(name, schema, None, IN_USE)
    except (Jcv2Error, OSError):
        return _Listed(name, schema, None, UNREADABLE)
    try:
        return _Listed(name, schema, engine.count(None))
    except Jcv2Error:
        return _Listed(name, schema, None, UNREADABLE)
    finally:
        engine.close()


def _drop_folder(connection: Connection, *, yes: bool) -> None:
    folder = connection.folder
    with _locked(folder):
        pass  # do not ask for confirmation if it cannot be dropped
    _confirm(connection, next(_of_folder(connection.location)), yes=yes)
    with _locked(folder) as lock:
        others = _remove(folder, lock)
    remark(f"Dropped {connection.title}.")
    if others:
        remark(f"The folder is kept, because it also contains {', '.join(map(shown_name, others))}.")


def _drop_on_server(client: QdrantClient, connection: Connection, *, yes: bool) -> None:
    name = connection.name
    names = collection_names(client)
    physical = names.get(name)
    standing = sorted(other for other, target in names.items() if target == (physical or name) and other != name)
    if physical is None and standing:
        raise CollectionError(
            f"The collection {name!r} has the alias {standing[0]!r}. Drop it by its alias: --name {standing[0]}."
        )
    if physical is None:
        raise CollectionNotFoundError(f"There is no collection {name!r}. There are: {sorted(names)}. Check --name.")
    if standing:
        raise CollectionError(
            f"The collection {name!r} has other aliases, which would be lost with it: {standing}. Remove them first."
        )
    found = _on_server(client, name, names)
    if found is None:
        raise CollectionMismatchError(
            f"The collection {name!r} was not created by jcv2-plugin. Drop it with the software that created it."
        )
    _confirm(connection, found, yes=yes)
    # This deletes its alias too. With the alias deleted first, a crash would leave documents without a name.
    client.delete_collection(physical)
    if physical != name and name in aliases_of(client):
        alias = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name))
        client.update_collection_aliases(change_aliases_operations=[alias])
    remark(f"Dropped {connection.title}.")
    kept = [
        other
        for other in sorted(collection_names(client))
        if other.startswith(f"{name}.") and other.removeprefix(f"{name}.").isdecimal()
    ]
    if kept:
        remark(f"Its migrations have left {', '.join(kept)}. Drop each of them by its own name, with --name.")


def _confirm(connection: Connection, found: _Listed, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            f"Dropping {connection.title} cannot be undone, and there is no terminal to ask for confirmation. "
            "Add --yes.",
            param_hint="--yes",
        )
    count = "an unknown number of" if found.documents is None else f"{found.documents:,}"
    answer = err.input(f"Drop {connection.title} with {count} documents? [y/N]: ", markup=False)
    if answer.strip().lower() not in ("y", "yes"):
        raise typer.Abort


@contextmanager
def _locked(folder: Path) -> Iterator[FileLock]:
    if not _is_collection(folder):
        raise CollectionNotFoundError(
            f"There is no collection in {str(folder)!r}: it has no file {DESCRIPTION}. Check the path."
        )
    lock = FileLock(str(folder / _LOCK), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CollectionLockedError(
            f"The collection in {str(folder)!r} is in use, by this process or another. Close it there first."
        ) from error
    try:
        yield lock
    finally:
        lock.release()


def _remove(folder: Path, lock: FileLock) -> list[str]:
    """Delete a collection whose lock is held, and its folder if it is empty then. Return the names of other files.

    If the process is killed, the rest says that its deletion is unfinished, and the deletion can be repeated: the
    description says so first, and is deleted last.
    """
    write_atomically(folder / DESCRIPTION, json.dumps({"unfinished": DELETION}) + "\n")
    for entry in list(folder.iterdir()):
        if _SHARD.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif is_ours(entry.name) and not entry.is_dir():
            entry.unlink()
    (folder / DESCRIPTION).unlink()
    try:
        (folder / _LOCK).unlink(missing_ok=True)
    except PermissionError:  # Windows cannot delete an open file
        lock.release()
        (folder / _LOCK).unlink(missing_ok=True)
    others = sorted(entry.name for entry in folder.iterdir())
    if not others:
        # Keep the folder if it is a link, or another process has just written to it.
        with suppress(OSError):
            folder.rmdir()
    return others
