"""What a collection's name stands for on a server: it is an alias of ``name.1``, after a migration of ``name.2``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from qdrant_client import QdrantClient, models

from jcv2_plugin.engines.failures import failure_of
from jcv2_plugin.engines.schema import METADATA_FIELD
from jcv2_plugin.errors import CollectionError

T = TypeVar("T")


def aliases_of(client: QdrantClient) -> dict[str, str]:
    """All aliases, with the collections that they stand for."""
    return {one.alias_name: one.collection_name for one in client.get_aliases().aliases}


def if_allowed(function: Callable[[QdrantClient], T], client: QdrantClient) -> T | None:
    """None where the key may not do this, as one that is for some collections only may not list them all."""
    try:
        return function(client)
    except Exception as error:
        failure = failure_of(error)
        if failure is None or failure.status != 403:
            raise
        return None


def aliases_if_allowed(client: QdrantClient) -> dict[str, str]:
    """None at all for a key that may not list them; the server finds what a name stands for all the same."""
    return if_allowed(aliases_of, client) or {}


def collection_names(client: QdrantClient) -> dict[str, str]:
    """The collections of a client by the names they are opened by; for each the name it has on the server.

    A collection that an alias stands for is listed under that.
    """
    aliases = aliases_of(client)
    plain = {one.name for one in client.get_collections().collections} - set(aliases.values())
    return {**{name: name for name in plain}, **aliases}


def check_no_generation(name: str, aliases: Mapping[str, str]) -> None:
    """Refuse to replace what another name stands for: that name would be lost."""
    for alias, physical in aliases.items():
        if physical == name:
            raise CollectionError(f"{name!r} is what the name {alias!r} stands for. Replace or migrate {alias!r}.")


def generation_name(name: str, generation: int) -> str:
    """A collection's name on the server."""
    return f"{name}.{generation}"


def generation_of(name: str, physical: str | None) -> int:
    """Which of a name's collections one is: 0 for none, and for a collection without an alias."""
    number = (physical or "").removeprefix(f"{name}.")
    return int(number) if number.isdecimal() else 0


def next_name(client: QdrantClient, name: str, old: str | None) -> tuple[str, Any]:
    """The name for the collection to come after another, and the description of what is left there.

    That is of a creation or migration of ours that did not finish. Collections of others are passed over.
    """
    aliases = aliases_if_allowed(client)
    generation = generation_of(name, old)
    while True:
        generation += 1
        physical = generation_name(name, generation)
        if not client.collection_exists(physical):
            return physical, None
        metadata = client.get_collection(physical).config.metadata or {}
        if METADATA_FIELD in metadata and physical not in {*aliases, *aliases.values()}:
            return physical, metadata[METADATA_FIELD]


def point_alias(client: QdrantClient, name: str, physical: str, old: str | None) -> None:
    """Let a name stand for a collection, in one step where it is an alias already."""
    if old == name and name not in aliases_if_allowed(client):  # tried again, it may be an alias by now
        client.delete_collection(name)
    operations: list[Any] = []
    if old is not None and old != name:
        operations.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name)))
    created = models.CreateAlias(collection_name=physical, alias_name=name)
    operations.append(models.CreateAliasOperation(create_alias=created))
    client.update_collection_aliases(change_aliases_operations=operations)
