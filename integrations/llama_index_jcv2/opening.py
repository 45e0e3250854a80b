"""Collections for indexes: opened, or created as LlamaIndex needs them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from jcv2_plugin import ColbertCollection
from jcv2_plugin.errors import CollectionNotFoundError
from llama_index_jcv2.nodes import SOURCE_KEY

DEFAULT_ENCODER = "mini"
_PLACES = ("location", "path", "url", "client")


def open_collection(collection: ColbertCollection | str | os.PathLike[str] | None, **options: Any) -> ColbertCollection:
    """A collection, opened if it is not.

    Raises:
        CollectionNotFoundError: There is none.
        TypeError: Options are given with an open collection.
    """
    if not isinstance(collection, ColbertCollection):
        return ColbertCollection.open(collection, **options)
    if options:
        raise TypeError(f"The collection is open: {sorted(options)} can no longer be chosen. Leave them out.")
    return collection


def create_collection(**options: Any) -> ColbertCollection:
    """A new collection, in memory if no place is named.

    Args:
        **options: Those of ``ColbertCollection.create``, ``location`` included.
    """
    if not _is_placed(options):
        options["location"] = ":memory:"
    # Source documents are looked up whenever one is deleted, updated or refreshed.
    options["payload_indexes"] = {SOURCE_KEY: "keyword", **(options.get("payload_indexes") or {})}
    return ColbertCollection.create(**options)


def open_or_create_collection(**options: Any) -> ColbertCollection:
    """The collection that is there, or else a new one.

    Args:
        **options: As for :func:`create_collection`; None stands for what is not said.

    Raises:
        CollectionMismatchError: The one that is there was made with another model or dimension.
    """
    if _is_placed(options):
        known = inspect.signature(ColbertCollection.open).parameters
        try:
            return ColbertCollection.open(**{name: value for name, value in options.items() if name in known})
        except CollectionNotFoundError:
            pass
    if options.get("encoder") is None:
        options["encoder"] = DEFAULT_ENCODER
    return create_collection(**options)


def _is_placed(options: Mapping[str, Any]) -> bool:
    return any(options.get(place) is not None for place in _PLACES)
