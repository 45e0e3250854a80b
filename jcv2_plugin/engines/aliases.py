"""Collection aliases on a server: ``name`` points to ``name.1``, after a migration to ``name.2``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from qdrant_client import QdrantClient, models

from jcv2_plugin.engines.failures import failure_of
from jcv2_plugin.engines.retries import completed
from jcv2_plugin.engines.schema import METADATA_FIELD
from jcv2_plugin.errors import CollectionError

T = TypeVar("T")

_MOST_TAKEN = 1000


def aliases_of(client: QdrantClient) -> dict[str, str]:
    """Return all aliases and the collections they point to."""
    return {one.alias_name: one.collection_name for one in client.get_aliases().aliases}


def if_allowed(function: Callable[[QdrantClient], T], client: QdrantClient) -> T | None:
    """Call a function; return None if the API key lacks permission, as one for some collections cannot list all."""
    try:
        return function(client)
    except Exception as error:
        failure = failure_of(error)
        if failure is None or failure.status != 403:
            raise
        return None


def aliases_if_allowed(client: QdrantClient) -> dict[str, str]:
    """Return all aliases, or an empty dict if the API key may not list them. The server still resolves them."""
    return if_allowed(aliases_of, client) or {}


def collection_names(client: QdrantClient) -> dict[str, str]:
    """Map the names that collections are opened by, aliases where they have some, to their names on the server."""
    aliases = aliases_of(client)
    plain = {one.name for one in client.get_collections().collections} - set(aliases.values())
    return {**{name: name for name in plain}, **aliases}


def check_no_generation(name: str, aliases: Mapping[str, str]) -> None:
    """Refuse to replace a collection that an alias points to, since the alias would be lost."""
    for alias, physical in aliases.items():
        if physical == name:
            raise CollectionError(f"{name!r} has the alias {alias!r}. Replace or migrate {alias!r} instead.")


def generation_of(physical: str, name: str) -> int:
    """Return the number of a collection that the alias ``name`` points to or pointed to, or 0 for another's name."""
    number = physical.removeprefix(f"{name}.")
    return int(number) if number.isdecimal() and len(number) < 19 else 0


def next_name(client: QdrantClient, name: str, old: str | None) -> tuple[str, Any]:
    """Return the name for the next generation, and the metadata of any leftover collection of that name.

    A leftover is of an unfinished creation or migration by this package. Names of other collections are skipped.
    """
    aliases = aliases_if_allowed(client)
    first = generation_of(old or "", name) + 1
    for generation in range(first, first + _MOST_TAKEN):
        physical = f"{name}.{generation}"
        if not client.collection_exists(physical):
            return physical, None
        metadata = client.get_collection(physical).config.metadata or {}
        if METADATA_FIELD in metadata and physical not in {*aliases, *aliases.values()}:
            return physical, metadata
    raise CollectionError(
        f"All names from {name}.{first} to {physical} are taken on the server, as it says. Check the server and what "
        "stands before it, or choose another name."
    )


def point_alias(client: QdrantClient, name: str, physical: str, old: str | None) -> None:
    """Point an alias to a collection. This is atomic if the name is already an alias."""
    if old == name and name not in aliases_if_allowed(client):  # on a retry it may already be an alias
        client.delete_collection(name)
    operations: list[Any] = []
    if old is not None and old != name:
        operations.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name)))
    created = models.CreateAlias(collection_name=physical, alias_name=name)
    operations.append(models.CreateAliasOperation(create_alias=created))
    completed(client.update_collection_aliases)(change_aliases_operations=operations)
