"""Convert metadata dicts to Qdrant filters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from qdrant_client import models

from jcv2_plugin.documents import METADATA_KEY
from jcv2_plugin.errors import UnsupportedFilterError

MetadataFilter = models.Filter | Mapping[str, Any]
"""A Qdrant filter on ``metadata.<key>``, or a dict of metadata that documents must match."""

_PLAIN_KEY = re.compile(r"[\w-]+")
_WAY_OUT = "Write it as a qdrant_client.models.Filter on the key 'metadata.<key>'."


def as_qdrant_filter(filter: MetadataFilter | None) -> models.Filter | None:
    """Convert a filter to a Qdrant filter.

    Args:
        filter: A Qdrant filter, which is returned unchanged, or a dict of metadata entries. A document must match all
            of them, as in ``{"room": "hall", "year": 1999}``. A nested dict matches nested metadata. A list in the
            metadata matches if one of its elements is equal. A dot in a key is literal, not a path separator.

    Returns:
        The Qdrant filter, or None for None or an empty dict.

    Raises:
        UnsupportedFilterError: The filter is of another type, or a value cannot be compared for equality.
    """
    if filter is None or isinstance(filter, models.Filter):
        return filter
    if not isinstance(filter, Mapping):
        raise UnsupportedFilterError(
            f"filter must be a qdrant_client.models.Filter or a dict of metadata, got {type(filter).__name__}."
        )
    conditions: list[Any] = list(_conditions(METADATA_KEY, filter))
    return models.Filter(must=conditions) if conditions else None


def _conditions(path: str, entries: Mapping[str, Any]) -> Iterator[models.FieldCondition]:
    for key, value in entries.items():
        if not isinstance(key, str) or not key or '"' in key:
            raise UnsupportedFilterError(
                f"Filter on {key!r}: a key must be a non-empty str without quotation marks. {_WAY_OUT}"
            )
        if key.startswith("$"):
            raise UnsupportedFilterError(
                f"Filter on {key!r}: a dict asks for equality and has no operators. {_WAY_OUT}"
            )
        own = f"{path}.{key}" if _PLAIN_KEY.fullmatch(key) else f'{path}."{key}"'
        if isinstance(value, Mapping) and value:
            yield from _conditions(own, value)
        elif isinstance(value, (str, int)):  # a bool is an int
            yield models.FieldCondition(key=own, match=models.MatchValue(value=value))
        elif isinstance(value, float) and math.isfinite(value):
            yield models.FieldCondition(key=own, range=models.Range(gte=value, lte=value))
        else:
            raise UnsupportedFilterError(
                f"Filter on {key!r}: a dict compares with str, int, float and bool, not with {value!r:.60}. {_WAY_OUT}"
            )
