"""Convert LlamaIndex ``MetadataFilters`` to Qdrant filters."""

from __future__ import annotations

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

from jcv2_plugin.documents import MAX_DEPTH, id_list, point_id
from jcv2_plugin.errors import UnsupportedFilterError
from jcv2_plugin.filters import Bound, check_filter, compares, equals, metadata_paths
from llama_index_jcv2.nodes import NO_SOURCE, SOURCE_KEY, SOURCE_KEYS


def to_qdrant_filter(filters: MetadataFilters | None, depth: int = MAX_DEPTH) -> models.Filter | None:
    """Convert metadata filters to a Qdrant filter. Return None if there are no conditions.

    A key names a metadata entry. Dots address nested dicts, unless an entry with that whole name exists. ``doc_id``,
    ``document_id`` and ``ref_doc_id`` refer to the source document, unless the node has metadata of that name. If an
    entry is a list, any of its elements may match. ``!=`` and ``nin`` also match nodes without the entry.
    ``text_match`` requires all words of the value, case-insensitively. Raises UnsupportedFilterError for what Qdrant
    lacks.
    """
    if filters is None or not filters.filters:
        return None
    if not depth:
        raise UnsupportedFilterError(f"The filters are nested more than {MAX_DEPTH} levels deep. Flatten them.")
    parts: list[Any] = [
        (to_qdrant_filter(part, depth - 1) or models.Filter(must=[]))
        if isinstance(part, MetadataFilters)
        else _condition(part)
        for part in filters.filters
    ]
    if filters.condition == FilterCondition.OR:
        return models.Filter(should=parts)
    if filters.condition == FilterCondition.NOT:
        return models.Filter(must_not=parts)
    return models.Filter(must=parts)


def query_filter(query: VectorStoreQuery, further: models.Filter | None = None) -> models.Filter | None:
    """Combine everything that restricts a query: its filters, source documents and nodes."""
    if further is not None:
        check_filter(further)
    doc_ids, node_ids = (id_list(ids) if ids is not None else [] for ids in (query.doc_ids, query.node_ids))
    sources = source_filter(doc_ids) if doc_ids else None
    return both(to_qdrant_filter(query.filters), sources, node_filter(node_ids or None), further)


def source_filter(ref_doc_ids: Sequence[str]) -> models.Filter:
    """Match the nodes of source documents. A node without a source is its own, as in LlamaIndex's pipelines."""
    match = models.MatchAny(any=id_list(ref_doc_ids))
    unnamed = models.FieldCondition(key=SOURCE_KEY, match=models.MatchValue(value=NO_SOURCE))
    own: list[Any] = [node_filter(ref_doc_ids), models.Filter(should=[unnamed, _is_empty(SOURCE_KEY)])]
    return models.Filter(should=[models.FieldCondition(key=SOURCE_KEY, match=match), models.Filter(must=own)])


def node_filter(node_ids: Sequence[str] | None) -> models.Filter | None:
    """Match nodes by id. Return None for None."""
    if node_ids is None:
        return None
    return models.Filter(must=[models.HasIdCondition(has_id=[point_id(one) for one in id_list(node_ids)])])


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
            f"Filter on {part.key!r}: Qdrant has no equivalent of the operator {part.operator.value!r}. Use one of "
            f"{known}."
        )
    paths = metadata_paths(part.key)
    if part.key in SOURCE_KEYS:
        paths.append(part.key)
    condition = translate(paths[-1], part)
    for path in reversed(paths[:-1]):  # the first path that has a value decides
        absent = _is_empty(path)
        here = models.Filter(must=[translate(path, part)], must_not=[absent])
        condition = models.Filter(should=[here, models.Filter(must=[absent, condition])])
    return condition


def _is_empty(path: str) -> models.IsEmptyCondition:
    return models.IsEmptyCondition(is_empty=models.PayloadField(key=path))


def _wrong_value(part: MetadataFilter, wanted: str) -> UnsupportedFilterError:
    return UnsupportedFilterError(
        f"Filter on {part.key!r}: the operator {part.operator.value!r} takes {wanted}, got {part.value!r:.100}."
    )


def _single(part: MetadataFilter) -> Any:
    if part.value is None or isinstance(part.value, list):
        raise _wrong_value(part, "a single string or number")
    return part.value


def _each(path: str, part: MetadataFilter) -> list[Any]:
    if not isinstance(part.value, list):
        raise _wrong_value(part, "a list")
    return [equals(path, value) for value in part.value]


def _in(path: str, part: MetadataFilter) -> models.Filter:
    return models.Filter(should=_each(path, part) or [models.HasIdCondition(has_id=[])])  # an empty should matches all


def _text(path: str, part: MetadataFilter) -> models.Filter:
    if not isinstance(part.value, str):
        raise _wrong_value(part, "a string")
    return models.Filter(must=[models.FieldCondition(key=path, match=models.MatchText(text=part.value))])


def _equal(path: str, part: MetadataFilter) -> models.Filter:
    return models.Filter(must=[equals(path, _single(part))])


def _compared(bound: Bound) -> Callable[[str, MetadataFilter], models.Filter]:
    return lambda path, part: models.Filter(must=[compares(path, bound, _single(part))])


_OPERATORS: dict[FilterOperator, Callable[[str, MetadataFilter], models.Filter]] = {
    FilterOperator.EQ: _equal,
    FilterOperator.NE: lambda path, part: models.Filter(must_not=[equals(path, _single(part))]),
    FilterOperator.GT: _compared("gt"),
    FilterOperator.GTE: _compared("gte"),
    FilterOperator.LT: _compared("lt"),
    FilterOperator.LTE: _compared("lte"),
    FilterOperator.IN: _in,
    FilterOperator.NIN: lambda path, part: models.Filter(must_not=_each(path, part)),
    FilterOperator.ANY: _in,
    FilterOperator.ALL: lambda path, part: models.Filter(must=_each(path, part)),
    FilterOperator.CONTAINS: _equal,
    FilterOperator.TEXT_MATCH: _text,
    FilterOperator.TEXT_MATCH_INSENSITIVE: _text,
    FilterOperator.IS_EMPTY: lambda path, part: models.Filter(must=[_is_empty(path)]),
}
