"""Translate Qdrant filters to Qdrant Edge.

Callers use ``qdrant_client.models.Filter`` with every engine. A Qdrant server and local mode (``":memory:"``) accept
it directly; Edge has its own classes. The translation follows the semantics of local mode and raises an error where
it cannot: a filter that silently selects other documents is worse.
"""

from __future__ import annotations

import datetime as dt
import math
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import qdrant_edge
from qdrant_client import models

from jcv2_plugin.errors import UnsupportedFilterError

if TYPE_CHECKING:
    from qdrant_edge import ConditionType, MatchType, RangeType

_CLAUSES = frozenset({"must", "should", "must_not", "min_should"})
_EDGE_ERRORS = (TypeError, ValueError, OverflowError)  # raised by Edge for values it does not accept


def to_edge_filter(filter: models.Filter | None) -> qdrant_edge.Filter | None:
    """Convert a filter to Edge's classes. Raises UnsupportedFilterError for what Edge cannot evaluate.

    The conversion follows local mode in two cases where Edge behaves differently. If a ``FieldCondition`` has several
    predicates, only the first counts, in the order of ``_PREDICATES``; Edge would match any of them. Ids in a
    ``HasIdCondition`` that no point can have, such as ``"1"`` or ``-1``, match nothing; Edge would refuse them.
    """
    return None if filter is None else _filter(filter)


def _unsupported(what: object, reason: object) -> UnsupportedFilterError:
    """Return the error for an unsupported condition or part of one."""
    fields = {name: value for name, value in getattr(what, "__dict__", {}).items() if value is not None}
    shown = f"{type(what).__name__} {fields}" if fields else repr(what)
    shown = textwrap.shorten(shown, 300, placeholder=" ...")
    return UnsupportedFilterError(
        f"Qdrant Edge cannot evaluate {shown}: {textwrap.shorten(str(reason), 300)}. "
        'Change the filter, or use a Qdrant server or ":memory:" for this collection.'
    )


def _refuse_unknown_fields(model: object, known: frozenset[str]) -> None:
    """Raise if a newer qdrant-client sets a field that the translation would lose."""
    unknown = [name for name, value in vars(model).items() if value is not None and name not in known]
    if unknown:
        raise _unsupported(model, f"unknown field {', '.join(unknown)}")


def _filter(filter: models.Filter) -> qdrant_edge.Filter:
    _refuse_unknown_fields(filter, _CLAUSES)
    return qdrant_edge.Filter(
        must=_clause(filter.must),
        should=_clause(filter.should),
        must_not=_clause(filter.must_not),
        min_should=None if filter.min_should is None else _min_should(filter.min_should),
    )


def _clause(clause: object) -> list[ConditionType] | None:
    """Convert one or several conditions. An empty list is None: in a ``NestedCondition``, it matches nothing."""
    if clause is None or clause == []:
        return None
    return [_translate(condition) for condition in (clause if isinstance(clause, list) else [clause])]


def _min_should(min_should: models.MinShould) -> qdrant_edge.MinShould:
    if min_should.min_count < 1:  # a server and local mode refuse this; Edge would match everything
        raise _unsupported(min_should, "min_count must be 1 or larger")
    conditions = [_translate(condition) for condition in min_should.conditions]
    if min_should.min_count > len(conditions):  # never true, but Edge would ignore it next to a has_id condition
        return qdrant_edge.MinShould([qdrant_edge.HasIdCondition(set())], 1)
    return qdrant_edge.MinShould(conditions, min_should.min_count)


def _translate(condition: object) -> ConditionType:
    """Convert a condition, turning Edge's own errors (for a key, id or number) into errors of this package."""
    try:
        return _condition(condition)
    except UnsupportedFilterError:
        raise
    except _EDGE_ERRORS as error:
        raise _unsupported(condition, error) from error


def _condition(condition: object) -> ConditionType:
    translate = _CONDITIONS.get(type(condition))
    if translate is None and isinstance(condition, (models.Filter, models.FieldCondition)):  # of a newer client
        translate = _filter if isinstance(condition, models.Filter) else _field
    if translate is None:
        raise TypeError(f"there is no translation for a {type(condition).__name__}")
    return translate(condition)


def _field(condition: models.FieldCondition) -> ConditionType:
    _refuse_unknown_fields(condition, frozenset({"key", *_PREDICATES}))
    for name, translate in _PREDICATES.items():
        predicate = getattr(condition, name)
        if predicate is not None:
            return translate(condition.key, predicate)
    return qdrant_edge.FieldCondition(condition.key)  # no predicate: never true


def _is_point_id(point_id: models.ExtendedPointId) -> bool:
    """Return whether Edge accepts this point id: an unsigned 64-bit integer or a UUID."""
    try:
        qdrant_edge.HasIdCondition({point_id})
    except _EDGE_ERRORS:
        return False
    return True


def _is(wanted: bool, condition: ConditionType) -> ConditionType:
    """Express ``is_empty`` or ``is_null`` by that condition. ``FieldCondition`` differs for keys in ``[]``."""
    return condition if wanted else qdrant_edge.Filter(must_not=[condition])


def _match(match: object) -> MatchType:
    translate = _MATCHES.get(type(match))
    if translate is None:
        raise TypeError(f"there is no translation for a {type(match).__name__}")
    return translate(match)


def _int64(value: Any) -> Any:
    """Return the value to match. Raise if it is an integer that does not fit in 64 bits."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("an integer to match must fit in 64 bits")
    return value


class _Bool:
    """A bool that Edge reads as one.

    Edge reads a Python bool as the integer 0 or 1, which matches no bool, but what is named like numpy's bool as a
    bool. numpy's own has an ``__index__`` before numpy 2.3, and is read as an integer too.
    """

    def __init__(self, value: bool) -> None:
        self._value = value

    def __bool__(self) -> bool:
        return self._value


_Bool.__module__, _Bool.__name__, _Bool.__qualname__ = "numpy", "bool_", "bool_"


def _match_value(match: models.MatchValue) -> MatchType:
    if not isinstance(match.value, bool):
        return qdrant_edge.MatchValue(_int64(match.value))
    return qdrant_edge.MatchValue(_Bool(match.value))  # type: ignore[arg-type]


def _range(range_: object) -> RangeType:
    if isinstance(range_, models.Range):
        if any(value is not None and math.isnan(value) for value in vars(range_).values()):
            return qdrant_edge.RangeFloat(gt=math.inf)  # matches nothing: Edge would treat NaN as the largest number
        return qdrant_edge.RangeFloat(gte=range_.gte, gt=range_.gt, lte=range_.lte, lt=range_.lt)
    if isinstance(range_, models.DatetimeRange):
        return qdrant_edge.RangeDateTime(**{name: _timestamp(moment) for name, moment in vars(range_).items()})
    raise TypeError(f"there is no translation for a {type(range_).__name__}")


def _timestamp(moment: dt.datetime | dt.date | None) -> str | None:
    """Format as RFC 3339. A date means midnight, and a time without a zone is UTC, as in the other engines."""
    if moment is None:
        return None
    if not isinstance(moment, dt.datetime):
        moment = dt.datetime.combine(moment, dt.time())
    offset = moment.utcoffset()
    if offset is None:
        return moment.replace(tzinfo=dt.timezone.utc).isoformat()
    if offset % dt.timedelta(minutes=1):  # RFC 3339 has no seconds in offsets, unlike local mean times
        moment = moment.astimezone(dt.timezone.utc)
    return moment.isoformat()


def _point(point: models.GeoPoint) -> qdrant_edge.GeoPoint:
    return qdrant_edge.GeoPoint(lon=point.lon, lat=point.lat)


def _ring(line: models.GeoLineString) -> list[qdrant_edge.GeoPoint]:
    """Close the ring if it is open, as local mode does. Edge refuses open rings."""
    points = list(line.points)
    if points and points[0] != points[-1]:
        points.append(points[0])
    return [_point(point) for point in points]


def _polygon(polygon: models.GeoPolygon) -> qdrant_edge.GeoPolygon:
    holes = [_ring(interior) for interior in polygon.interiors or []]
    return qdrant_edge.GeoPolygon(_ring(polygon.exterior), holes)


_MATCHES: dict[type, Callable[[Any], MatchType]] = {
    models.MatchValue: _match_value,
    models.MatchText: lambda match: qdrant_edge.MatchText(match.text),
    models.MatchTextAny: lambda match: qdrant_edge.MatchTextAny(match.text_any),
    models.MatchPhrase: lambda match: qdrant_edge.MatchPhrase(match.phrase),
    models.MatchPrefix: lambda match: qdrant_edge.MatchPrefix(match.prefix),
    models.MatchSubstring: lambda match: qdrant_edge.MatchSubstring(match.substring),
    models.MatchAny: lambda match: qdrant_edge.MatchAny([_int64(value) for value in match.any]),
    models.MatchExcept: lambda match: qdrant_edge.MatchExcept([_int64(value) for value in match.except_]),
}

# In the order in which local mode checks predicates.
_PREDICATES: dict[str, Callable[[str, Any], ConditionType]] = {
    "values_count": lambda key, value: qdrant_edge.FieldCondition(
        key, values_count=qdrant_edge.ValuesCount(**vars(value))
    ),
    "is_empty": lambda key, value: _is(value, qdrant_edge.IsEmptyCondition(key)),
    "is_null": lambda key, value: _is(value, qdrant_edge.IsNullCondition(key)),
    "match": lambda key, value: qdrant_edge.FieldCondition(key, match=_match(value)),
    "range": lambda key, value: qdrant_edge.FieldCondition(key, range=_range(value)),
    "geo_bounding_box": lambda key, value: qdrant_edge.FieldCondition(
        key, geo_bounding_box=qdrant_edge.GeoBoundingBox(_point(value.top_left), _point(value.bottom_right))
    ),
    "geo_radius": lambda key, value: qdrant_edge.FieldCondition(
        key, geo_radius=qdrant_edge.GeoRadius(_point(value.center), value.radius)
    ),
    "geo_polygon": lambda key, value: qdrant_edge.FieldCondition(key, geo_polygon=_polygon(value)),
}
_CONDITIONS: dict[type, Callable[[Any], ConditionType]] = {
    models.Filter: _filter,
    models.FieldCondition: _field,
    models.IsEmptyCondition: lambda one: qdrant_edge.IsEmptyCondition(one.is_empty.key),
    models.IsNullCondition: lambda one: qdrant_edge.IsNullCondition(one.is_null.key),
    models.HasIdCondition: lambda one: qdrant_edge.HasIdCondition(set(filter(_is_point_id, one.has_id))),
    models.HasVectorCondition: lambda one: qdrant_edge.HasVectorCondition(one.has_vector),
    models.NestedCondition: lambda one: qdrant_edge.NestedCondition(one.nested.key, _filter(one.nested.filter)),
    # Exists in the extension but not in its type stubs.
    models.SliceCondition: lambda one: qdrant_edge.SliceCondition(one.slice.total, one.slice.index),  # type: ignore[attr-defined]
}
