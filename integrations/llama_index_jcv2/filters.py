"""Convert LlamaIndex ``MetadataFilters`` to Qdrant filters."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from qdrant_client import models

from jcv2_plugin.documents import METADATA_KEY, point_id
from jcv2_plugin.errors import UnsupportedFilterError
from llama_index_jcv2.nodes import NO_SOURCE, SOURCE_KEY, SOURCE_KEYS

_PLAIN_PATH = re.compile(r"[\w-]+(\[\d*\])*(\.[\w-]+(\[\d*\])*)*")
_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_EXACT_AS_FLOAT = 2**53
_BOUNDS = {
    FilterOperator.GT: "gt",
    FilterOperator.GTE: "gte",
    FilterOperator.LT: "lt",
    FilterOperator.LTE: "lte",
}


def to_qdrant_filter(filters: MetadataFilters | None) -> models.Filter | None:
    """Convert metadata filters to a Qdrant filter. Return None if there are no conditions.

    A key names a metadata entry. Dots address nested dicts, unless an entry with that whole name exists. ``doc_id``,
    ``document_id`` and ``ref_doc_id`` refer to the source document, unless the node has metadata of that name. If an
    entry is a list, any of its elements may match. ``!=`` and ``nin`` also match nodes without the entry.
    ``text_match`` requires all words of the value, case-insensitively.

    Raises:
        UnsupportedFilterError: Qdrant has no equivalent for an operator or its value.
    """
    if filters is None or not filters.filters:
        return None
    parts: list[Any] = [
        (to_qdrant_filter(part) or models.Filter(must=[])) if isinstance(part, MetadataFilters) else _condition(part)
        for part in filters.filters
    ]
    if filters.condition == FilterCondition.OR:
        return models.Filter(should=parts)
    if filters.condition == FilterCondition.NOT:
        return models.Filter(must_not=parts)
    return models.Filter(must=parts)


def query_filter(query: VectorStoreQuery, *further: models.Filter | None) -> models.Filter | None:
    """Combine everything that restricts a query: its filters, source documents and nodes."""
    sources = source_filter(query.doc_ids) if query.doc_ids else None
    return both(to_qdrant_filter(query.filters), sources, node_filter(query.node_ids or None), *further)


def source_filter(ref_doc_ids: Sequence[str]) -> models.Filter:
    """Match the nodes of source documents. A node without a source is its own, as in LlamaIndex's pipelines."""
    match = models.MatchAny(any=list(ref_doc_ids))
    unnamed = models.FieldCondition(key=SOURCE_KEY, match=models.MatchValue(value=NO_SOURCE))
    no_source = models.Filter(should=[unnamed, _is_empty(SOURCE_KEY)])
    own = models.Filter(must=[models.HasIdCondition(has_id=[point_id(one) for one in ref_doc_ids]), no_source])
    return models.Filter(should=[models.FieldCondition(key=SOURCE_KEY, match=match), own])


def node_filter(node_ids: Sequence[str] | None) -> models.Filter | None:
    """Match nodes by id. Return None for None."""
    if node_ids is None:
        return None
    return models.Filter(must=[models.HasIdCondition(has_id=[point_id(one) for one in node_ids])])


def both(*filters: models.Filter | None) -> models.Filter | None:
    """Match what satisfies all of the filters. None is ignored."""
    given: list[Any] = [one for one in filters if one is not None]
    if len(given) < 2:
        return given[0] if given else None
    return models.Filter(must=given)


def _condition(part: MetadataFilter) -> models.Filter:
    translate = _OPERATORS.get(part.operator)
    if translate is None:
        known = ", ".join(sorted(operator.value for operator in _OPERATORS))
        raise UnsupportedFilterError(
            f"Filter on {part.key!r}: there is no counterpart in Qdrant for the operator {part.operator.value!r}. "
            f"Use one of {known}."
        )
    paths = _paths(part.key)
    condition = translate(paths[-1], part)
    for path in reversed(paths[:-1]):  # the first path that has a value decides
        absent = _is_empty(path)
        here = models.Filter(must=[translate(path, part)], must_not=[absent])
        condition = models.Filter(should=[here, models.Filter(must=[absent, condition])])
    return condition


def _paths(key: str) -> list[str]:
    """Return the payload paths where the value may be, in order of precedence."""
    if not key or '"' in key:
        raise UnsupportedFilterError(f"Filter on {key!r}: a key must not be empty nor hold a quotation mark.")
    quoted = f'{METADATA_KEY}."{key}"'
    if key in SOURCE_KEYS:
        return [quoted, key]
    if not _PLAIN_PATH.fullmatch(key):
        return [quoted]
    path = f"{METADATA_KEY}.{key}"
    return [quoted, path] if set(".[") & set(key) else [path]


def _is_empty(path: str) -> models.IsEmptyCondition:
    return models.IsEmptyCondition(is_empty=models.PayloadField(key=path))


def _one(path: str, value: Any) -> models.FieldCondition:
    """Match a value."""
    # Qdrant's match distinguishes 1 from 1.0; its range does not.
    if isinstance(value, float) or (isinstance(value, int) and abs(value) <= _EXACT_AS_FLOAT):
        return models.FieldCondition(key=path, range=models.Range(gte=value, lte=value))
    return models.FieldCondition(key=path, match=models.MatchValue(value=value))


def _values(part: MetadataFilter) -> list[Any]:
    if not isinstance(part.value, list):
        raise _wrong_value(part, "a list")
    return part.value


def _single(part: MetadataFilter) -> Any:
    if part.value is None or isinstance(part.value, list):
        raise _wrong_value(part, "a single string or number")
    return part.value


def _wrong_value(part: MetadataFilter, wanted: str) -> UnsupportedFilterError:
    return UnsupportedFilterError(
        f"Filter on {part.key!r}: the operator {part.operator.value!r} takes {wanted}, got {part.value!r:.100}."
    )


def _equal(path: str, part: MetadataFilter) -> models.Filter:
    return models.Filter(must=[_one(path, _single(part))])


def _not_equal(path: str, part: MetadataFilter) -> models.Filter:
    return models.Filter(must_not=[_one(path, _single(part))])


def _in(path: str, part: MetadataFilter) -> models.Filter:
    conditions: list[Any] = [_one(path, value) for value in _values(part)]
    return models.Filter(should=conditions or [models.HasIdCondition(has_id=[])])  # an empty should matches everything


def _not_in(path: str, part: MetadataFilter) -> models.Filter:
    return models.Filter(must_not=[_one(path, value) for value in _values(part)])


def _all(path: str, part: MetadataFilter) -> models.Filter:
    return models.Filter(must=[_one(path, value) for value in _values(part)])


def _compare(path: str, part: MetadataFilter) -> models.Filter:
    value, bound = _single(part), _BOUNDS[part.operator]
    span: models.Range | models.DatetimeRange
    if isinstance(value, str):
        span = models.DatetimeRange(**{bound: _moment(part, value)})
    else:
        span = models.Range(**{bound: value})
    return models.Filter(must=[models.FieldCondition(key=path, range=span)])


def _moment(part: MetadataFilter, value: str) -> dt.datetime:
    if not _ISO_DATE.match(value):
        raise _wrong_value(part, "a number, or a date such as '2024-05-31' or '2024-05-31T12:00:00Z'")
    try:
        return dt.datetime.fromisoformat(re.sub("[Zz]$", "+00:00", value))
    except ValueError as error:
        raise _wrong_value(part, "a number or a date in ISO format") from error


def _text(path: str, part: MetadataFilter) -> models.Filter:
    if not isinstance(part.value, str):
        raise _wrong_value(part, "a string")
    return models.Filter(must=[models.FieldCondition(key=path, match=models.MatchText(text=part.value))])


def _empty(path: str, part: MetadataFilter) -> models.Filter:
    return models.Filter(must=[_is_empty(path)])


_OPERATORS: dict[FilterOperator, Callable[[str, MetadataFilter], models.Filter]] = {
    FilterOperator.EQ: _equal,
    FilterOperator.NE: _not_equal,
    **dict.fromkeys(_BOUNDS, _compare),
    FilterOperator.IN: _in,
    FilterOperator.NIN: _not_in,
    FilterOperator.ANY: _in,
    FilterOperator.ALL: _all,
    FilterOperator.CONTAINS: _equal,
    FilterOperator.TEXT_MATCH: _text,
    FilterOperator.TEXT_MATCH_INSENSITIVE: _text,
    FilterOperator.IS_EMPTY: _empty,
}
