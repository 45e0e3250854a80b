"""Convert metadata dicts to Qdrant filters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qdrant_client import models

from jcv2_plugin.errors import UnsupportedFilterError
from jcv2_plugin.filters import check_filter, equals, metadata_path

MetadataFilter = models.Filter | Mapping[str, Any]
"""A Qdrant filter on ``metadata.<key>``, or a dict of metadata that documents must match."""


def as_qdrant_filter(filter: MetadataFilter | None) -> models.Filter | None:
    """Convert a filter to a Qdrant filter, or to None for None or an empty dict.

    A Qdrant filter is returned unchanged. A document must match all entries of a dict, as in ``{"room": "hall", "year":
    1999}``. A nested dict matches nested metadata. A list in the metadata matches if one of its elements is equal. A
    dot in a key is literal, not a path separator. Raises UnsupportedFilterError for anything else.
    """
    if isinstance(filter, models.Filter):
        check_filter(filter)
        return filter
    if filter is not None and not isinstance(filter, Mapping):
        raise UnsupportedFilterError(
            f"filter must be a qdrant_client.models.Filter or a dict of metadata, got {type(filter).__name__}."
        )
    conditions: list[Any] = list(_conditions((), filter or {}))
    return models.Filter(must=conditions) if conditions else None


def _conditions(outer: tuple[Any, ...], entries: Mapping[str, Any]) -> Iterator[models.FieldCondition]:
    for key, value in entries.items():
        path = metadata_path([*outer, key])
        if isinstance(key, str) and key.startswith("$"):
            raise UnsupportedFilterError(
                f"Filter on {key!r}: a dict asks for equality and has no operators. Write it as a "
                "qdrant_client.models.Filter on the key 'metadata.<key>'."
            )
        if isinstance(value, Mapping) and value:
            yield from _conditions((*outer, key), value)
        else:
            yield equals(path, value)
