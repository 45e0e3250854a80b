"""Filters select the same points in Qdrant Edge, through `to_edge_filter`, as in Qdrant's local mode."""

from __future__ import annotations

import datetime as dt
import math
import os
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import qdrant_edge
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import create_model
from qdrant_client import QdrantClient, models

from jcv2_plugin.engines.edge_filters import to_edge_filter
from jcv2_plugin.errors import Jcv2Error, UnsupportedFilterError

ALL = bool(os.environ.get("JCV2_TEST_ALL"))
Field, Filter = models.FieldCondition, models.Filter

BERLIN, PARIS = {"lat": 52.52, "lon": 13.405}, {"lat": 48.8566, "lon": 2.3522}
FIJI, SAMOA = {"lat": -17.7134, "lon": 178.065}, {"lat": -13.759, "lon": -172.1046, "name": "an extra key"}
UV = [{"x": 1, "y": "u"}, {"x": 2, "y": "v"}]
MISSING = object()

# fmt: off
COLUMNS: dict[str, list[Any]] = {  # the values of the points 1 to 8, point 5 is all null and point 6 is empty
    "kw": ["red", "green", ["red", "blue"], 1, None, MISSING, "", "redwood"],
    "num": [1, 2.5, [3, 10], "1", None, MISSING, 0, 1.0],
    "flag": [True, False, [True, False], 1, None, MISSING, "true", []],
    "when": ["2024-01-01", "2024-01-01T12:00:00Z",
             ["2024-06-15 08:30:00+02:00", "1999-12-31T23:59:59.999999"], "not a date",
             None, MISSING, "2024-06-15T06:30:00.5Z", "2023-12-31T23:30:00-01:00"],
    "text": ["The quick brown fox", "the lazy dog", ["brown bread", "quick fox"], 7,
             None, MISSING, "", "A BROWN-quick, fox!"],
    "geo": [BERLIN, PARIS, [BERLIN, FIJI], {"lat": 1.0}, None, MISSING, [], SAMOA],
    "tags": [["a", "b"], [], ["c"], "a", None, MISSING, [["a"], []], ["b", None]],
    "objs": [UV, [{"x": 1, "y": "v"}, {"x": 3, "tags": ["a", None]}], {"x": 1, "y": "u"}, [],
             None, MISSING, [1, {"x": 2, "y": "u"}, None, UV], [{"x": None, "y": []}]],
    "nil": [None, [None], [1, None], 0, None, MISSING, [], "null"],
}
# fmt: on
HAND: dict[int, dict[str, Any]] = {
    i + 1: {key: column[i] for key, column in COLUMNS.items() if column[i] is not MISSING} for i in range(8)
}
HAND_IDS = set(map(str, HAND))
# Values in which the engines differ, for point 9; no other test looks at them.
ODD: dict[str, Any] = {
    "text": "हिन्दी भाषा",
    "num": 2**53 + 1,
    "when": ["0000-01-01", "2024-01-01T10:00:60Z"],
    "geo": [{"lat": 2.5, "lon": 2.5}, PARIS],
    "objs": UV,
}


def _payloads() -> dict[str, dict[str, Any]]:
    """HAND, once more under `metadata`, and 52 points that mix its values at random, half of them with UUIDs."""
    rng = random.Random(7)

    def mixed() -> dict[str, Any]:
        donors = {key: rng.choice(list(HAND.values())) for key in HAND[1]}
        return {key: donor[key] for key, donor in donors.items() if key in donor}

    payloads = {str(i): {**payload, "metadata": payload} for i, payload in HAND.items()}
    for i in range(9, 61):
        point_id = str(i) if i % 2 else str(uuid.UUID(int=rng.getrandbits(128), version=4))
        payloads[point_id] = {**mixed(), "metadata": mixed() if i % 5 else None}
    payloads["9"]["odd"] = ODD
    return payloads


PAYLOADS = _payloads()


def _point_id(point_id: str) -> int | str:
    return int(point_id) if point_id.isdigit() else point_id


def _vectors(point_id: str) -> dict[str, list[float]]:
    names = ["first", "second"] if sum(map(ord, point_id)) % 3 else ["first"]
    return {name: [1.0, 0.5] for name in names}


@dataclass
class Engines:
    """The same points in both engines."""

    local: QdrantClient
    edge: qdrant_edge.EdgeShard

    def in_local(self, filter: models.Filter) -> set[str]:
        points, _ = self.local.scroll("points", scroll_filter=filter, limit=100, with_payload=False)
        return {str(point.id) for point in points}

    def in_edge(self, filter: models.Filter) -> set[str]:
        edge_filter = to_edge_filter(filter)
        points, _ = self.edge.scroll(qdrant_edge.ScrollRequest(filter=edge_filter, limit=100))
        assert self.edge.count(qdrant_edge.CountRequest(filter=edge_filter)) == len(points)
        return {str(point.id) for point in points}

    def select(self, filter: models.Filter) -> set[str]:
        """The ids that both engines select."""
        selected = self.in_edge(filter)
        assert selected == self.in_local(filter)
        return selected

    def select_by_hand(self, **clauses: Any) -> set[int]:
        """Those of the points that are spelled out above."""
        return {int(point_id) for point_id in self.select(Filter(**clauses)) & HAND_IDS}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    local = QdrantClient(":memory:")
    size = models.VectorParams(size=2, distance=models.Distance.DOT)
    local.create_collection("points", vectors_config={"first": size, "second": size})
    params = qdrant_edge.EdgeVectorParams(size=2, distance=qdrant_edge.Distance.Dot)
    config = qdrant_edge.EdgeConfig(vectors={"first": params, "second": params})
    edge = qdrant_edge.EdgeShard.create(str(tmp_path_factory.mktemp("filters")), config)
    rows = [(_point_id(point_id), _vectors(point_id), payload) for point_id, payload in PAYLOADS.items()]
    local.upsert("points", [models.PointStruct(id=i, vector=v, payload=p) for i, v, p in rows])
    edge.update(qdrant_edge.UpdateOperation.upsert_points([qdrant_edge.Point(*row) for row in rows]))
    yield Engines(local, edge)
    edge.close()
    local.close()


def _except(*values: Any) -> models.MatchExcept:
    return models.MatchExcept(**{"except": list(values)})


def _geo(lat: float, lon: float) -> models.GeoPoint:
    return models.GeoPoint(lat=lat, lon=lon)


def _line(*points: tuple[float, float]) -> models.GeoLineString:
    return models.GeoLineString(points=[_geo(*point) for point in points])


def _utc(*moment: int, **offset: int) -> dt.datetime:
    return dt.datetime(*moment, tzinfo=dt.timezone(dt.timedelta(**offset)))


EUROPE = _line((60, 0), (60, 20), (45, 20), (45, 0))  # open; the engines close it
AROUND_BERLIN = _line((53, 13), (53, 14), (52, 14), (52, 13), (53, 13))

PREDICATES = [
    ("kw", {"match": models.MatchValue(value="red")}, {1, 3}),
    ("num", {"match": models.MatchValue(value=1)}, {1}),
    ("num", {"match": models.MatchValue(value="1")}, {4}),
    ("flag", {"match": models.MatchValue(value=True)}, {1, 3}),
    ("flag", {"match": models.MatchValue(value=False)}, {2, 3}),
    ("flag", {"match": models.MatchValue(value=1)}, {4}),
    ("text", {"match": models.MatchText(text="FOX quick")}, {1, 3, 8}),
    ("text", {"match": models.MatchTextAny(text_any="lazy bread")}, {2, 3}),
    ("text", {"match": models.MatchPhrase(phrase="brown quick")}, {8}),
    ("kw", {"match": models.MatchPrefix(prefix="red")}, {1, 3, 8}),
    ("kw", {"match": models.MatchSubstring(substring="ree")}, {2}),
    ("kw", {"match": models.MatchAny(any=["red", "green"])}, {1, 2, 3}),
    ("num", {"match": models.MatchAny(any=[1, 10])}, {1, 3}),
    ("kw", {"match": models.MatchAny(any=[])}, set()),
    ("kw", {"match": _except("red")}, {2, 3, 4, 7, 8}),
    ("kw", {"match": _except()}, {1, 2, 3, 4, 7, 8}),
    ("num", {"range": models.Range(gte=1, lt=3)}, {1, 2, 8}),
    ("num", {"range": models.Range(gt=1, lte=3)}, {2, 3}),
    ("num", {"range": models.Range(lte=math.nan)}, set()),
    ("when", {"range": models.DatetimeRange(gte=dt.date(2024, 1, 1), lt=dt.date(2024, 1, 2))}, {1, 2, 8}),
    ("when", {"range": models.DatetimeRange(gt=dt.datetime(2024, 1, 1), lte=dt.datetime(2024, 1, 1, 12))}, {2, 8}),
    ("when", {"range": models.DatetimeRange(gt=_utc(2024, 6, 15, 8, 30, hours=2))}, {7}),
    ("when", {"range": models.DatetimeRange(gte=_utc(2024, 6, 15, 12, hours=5, minutes=30))}, {3, 7}),
    ("when", {"range": models.DatetimeRange(lt=_utc(2000, 1, 1, 1, 0, 1, hours=1, seconds=1))}, {3}),
    ("when", {"range": models.DatetimeRange(gt=dt.datetime.min, lt=dt.datetime.max)}, {1, 2, 3, 7, 8}),
    ("geo", {"geo_bounding_box": models.GeoBoundingBox(top_left=_geo(60, 0), bottom_right=_geo(45, 20))}, {1, 2, 3}),
    ("geo", {"geo_bounding_box": models.GeoBoundingBox(top_left=_geo(0, 170), bottom_right=_geo(-20, -170))}, {3, 8}),
    ("geo", {"geo_radius": models.GeoRadius(center=_geo(52.5, 13.4), radius=5000)}, {1, 3}),
    ("geo", {"geo_polygon": models.GeoPolygon(exterior=EUROPE)}, {1, 2, 3}),
    ("geo", {"geo_polygon": models.GeoPolygon(exterior=EUROPE, interiors=[AROUND_BERLIN])}, {2}),
    ("tags", {"values_count": models.ValuesCount(gte=2)}, {1, 7, 8}),
    ("tags", {"values_count": models.ValuesCount(gt=0, lt=2)}, {3, 4}),
    ("tags", {"values_count": models.ValuesCount(lte=0)}, {2, 5, 6}),
    ("tags", {"is_empty": True}, {2, 5, 6}),
    ("tags", {"is_empty": False}, {1, 3, 4, 7, 8}),
    ("nil", {"is_null": True}, {1, 2, 3, 5}),
    ("nil", {"is_null": False}, {4, 6, 7, 8}),
    ("nil[]", {"is_empty": True}, {1, 2, 4, 5, 6, 7, 8}),
    ("nil[]", {"is_null": False}, {1, 4, 5, 6, 7, 8}),
    ("objs[].y", {"match": models.MatchValue(value="v")}, {1, 2}),
    ("objs[1].x", {"match": models.MatchValue(value=2)}, {1, 7}),
    ("num", {}, set()),
    # Of several predicates the first counts, in an order that is local mode's, not that of the arguments.
    ("num", {"range": models.Range(gte=3), "match": models.MatchValue(value=1)}, {1}),
    ("num", {"range": models.Range(gte=3), "match": models.MatchValue(value=1), "is_null": True}, {5}),
]


@pytest.mark.parametrize("key, predicates, expected", PREDICATES)
def test_predicates_of_a_field(engines, key, predicates, expected):
    condition = Field(key=f"metadata.{key}", **predicates)
    assert engines.select_by_hand(must=[condition]) == expected
    assert engines.select_by_hand(must_not=[condition]) == set(HAND) - expected


def _field(key: str, value: Any) -> models.FieldCondition:
    return Field(key=key, match=models.MatchValue(value=value))


def _nested(key: str, **clauses: Any) -> models.NestedCondition:
    return models.NestedCondition(nested=models.Nested(key=key, filter=Filter(**clauses)))


RED, ONE, TRUE = _field("kw", "red"), _field("num", 1), _field("flag", True)
NOBODY, NEVER = models.HasIdCondition(has_id=[]), models.MinShould(conditions=[], min_count=1)


@pytest.mark.parametrize(
    "condition, expected",
    [
        (models.IsEmptyCondition(is_empty=models.PayloadField(key="metadata.nil")), {1, 5, 6, 7}),
        (models.IsNullCondition(is_null=models.PayloadField(key="nil")), {1, 2, 3, 5}),
        (models.HasIdCondition(has_id=[1, 8, 99]), {1, 8}),
        (models.HasIdCondition(has_id=[2, "2", "no id", -1, 2**64, uuid.UUID(int=0)]), {2}),
        (NOBODY, set()),
        (models.HasVectorCondition(has_vector="second"), {i for i in HAND if "second" in _vectors(str(i))}),
        (models.SliceCondition(slice=models.Slice(total=1, index=0)), set(HAND)),
        (_nested("objs", must=[_field("x", 1), _field("y", "u")]), {1}),
        (_nested("metadata.objs[]", must=[_field("x", 1), _field("y", "v")]), {2}),
        (_nested("objs", must_not=_field("x", 1)), {1, 2, 7, 8}),
        (_nested("objs", should=[], must=[], must_not=[]), {1, 2, 7, 8}),
        (_nested("objs", must=[models.HasIdCondition(has_id=[1])]), set()),
        (Filter(should=[RED, ONE], must_not=TRUE), set()),
        (Filter(), set(HAND)),
    ],
)
def test_conditions(engines, condition, expected):
    assert engines.select_by_hand(must=condition) == expected
    assert engines.select_by_hand(must_not=[condition]) == set(HAND) - expected


@pytest.mark.parametrize(
    "clauses, expected",
    [
        ({"must": [RED, ONE]}, {1}),
        ({"should": [RED, ONE, _field("kw", "green")]}, {1, 2, 3}),
        ({"should": RED, "must_not": ONE}, {3}),
        ({"min_should": models.MinShould(conditions=[RED, ONE, TRUE], min_count=2)}, {1, 3}),
        ({"min_should": models.MinShould(conditions=[RED], min_count=2)}, set()),
        # Edge on its own leaves out a min_should that cannot be met, next to ids.
        ({"min_should": NEVER, "must": models.HasIdCondition(has_id=[1])}, set()),
        ({"must": [], "should": [], "must_not": []}, set(HAND)),
        ({"must": [Filter(should=[Filter(must_not=[RED]), ONE])], "must_not": [NOBODY]}, {1, 2, 4, 5, 6, 7, 8}),
    ],
)
def test_clauses(engines, clauses, expected):
    assert engines.select_by_hand(**clauses) == expected


NEWER_FIELD = create_model("NewerField", __base__=Field, like=(str, None))
NEWER_FILTER = create_model("NewerFilter", __base__=Filter, most=(list, None))
TWO_CORNERS = models.GeoPolygon(exterior=_line((0, 0), (1, 1)))
UNSUPPORTED = {
    "HasIdCondition": models.HasIdCondition(has_id=[1]),
    "min_count must be 1": Filter(min_should=models.MinShould(conditions=[RED], min_count=0)),
    "object": Filter.model_construct(must=[object()]),
    "Nested ": Filter.model_construct(must_not=models.Nested(key="objs", filter=Filter())),
    "PayloadField": Filter(must=Field.model_construct(**{**dict(RED), "match": models.PayloadField(key="kw")})),
    "ValuesCount": Filter(must=Field.model_construct(**{**dict(RED), "match": None, "range": models.ValuesCount()})),
    "unknown field like": Filter(must=[NEWER_FIELD(key="kw", like="re%")]),
    "unknown field most": NEWER_FILTER(most=[RED]),
    "fit in 64 bits": Filter(must=_field("num", 2**63)),
    "MatchAny": Filter(must=Field(key="num", match=models.MatchAny(any=[1, 2**64]))),
    "a b": Filter(must=_nested("objs", must_not=[_field("a b", 1)])),
    "gte=-1": Filter(must=Field(key="tags", values_count=models.ValuesCount(gte=-1))),
    "lat=91": Filter(must=Field(key="geo", geo_radius=models.GeoRadius(center=_geo(91, 0), radius=1))),
    "GeoPolygon": Filter(must=Field(key="geo", geo_polygon=TWO_CORNERS)),
    "SliceCondition": Filter(must=models.SliceCondition(slice=models.Slice(total=2, index=2))),
}


@pytest.mark.parametrize("named", UNSUPPORTED)
def test_what_edge_cannot_do_is_an_error_that_names_it_and_the_way_out(named):
    with pytest.raises(UnsupportedFilterError) as raised:
        to_edge_filter(UNSUPPORTED[named])
    assert isinstance(raised.value, Jcv2Error)
    assert isinstance(raised.value, ValueError)
    assert named in str(raised.value)
    assert 'a Qdrant server or ":memory:"' in str(raised.value)


TWICE_ROUND = _line(*[(0, 0), (0, 5), (5, 5), (5, 0)] * 2, (0, 0))
PARIS_ON_ITS_EDGE = _line((48.8566, 13.405), (73, 2.3522), (-53, 2.3522))


@pytest.mark.parametrize(
    "condition, in_edge, in_local",
    [
        # A vowel sign is part of a word in Edge, and splits it in local mode.
        (Field(key="odd.text", match=models.MatchText(text="ह")), False, True),
        # Edge compares numbers as doubles, local mode exactly.
        (Field(key="odd.num", range=models.Range(gt=2**53)), False, True),
        # Years before 1 and leap seconds in a payload are no date in local mode.
        (Field(key="odd.when", range=models.DatetimeRange(lt=dt.datetime.min)), True, False),
        (Field(key="odd.when", range=models.DatetimeRange(gte=dt.date(2024, 1, 1))), True, False),
        # In a polygon whose line crosses itself: by winding number in Edge, even-odd in local mode.
        (Field(key="odd.geo[0]", geo_polygon=models.GeoPolygon(exterior=TWICE_ROUND)), True, False),
        # On the line of a polygon is outside; local mode may miss it, by rounding.
        (Field(key="odd.geo[1]", geo_polygon=models.GeoPolygon(exterior=PARIS_ON_ITS_EDGE)), False, True),
        # Local mode takes -1 for the id of every nested object.
        (_nested("odd.objs", must=models.HasIdCondition(has_id=[-1])), False, True),
    ],
)
def test_where_the_engines_differ(engines, condition, in_edge, in_local):
    filter = Filter(must=[models.HasIdCondition(has_id=[9]), condition])
    assert (engines.in_edge(filter), engines.in_local(filter)) == (
        {"9"} if in_edge else set(),
        {"9"} if in_local else set(),
    )


# --- generated filters: none of the values that the test above pins ---

Strategy = st.SearchStrategy[Any]
some = st.sampled_from
WORDS = some(["red", "blue", "a", "u", "v", "", "redwood", "Red", "true", "null"])
INTS = some([-1, 0, 1, 1, 2, 3, 10, 2**63 - 1])
VALUES = st.lists(WORDS, max_size=3) | st.lists(INTS, max_size=3)
TEXTS = some(["quick", "fox quick", "brown quick", "THE", "lazy cat", "", "!!", "brown-quick", "ro", "fox?"])
PARTS = some(["r", "red", "", "R", "e", "own", "The"])
ZONES = some([None, *(dt.timezone(dt.timedelta(seconds=seconds)) for seconds in (0, -3600, 3601))])
# Whole degrees do not meet the points of the payloads, and triangles cannot cross themselves.
POINTS = st.builds(_geo, some([-90, -50, -15, 0, 47, 50, 55, 90]), some([-180, -170, -5, 0, 10, 16, 170, 180]))
TRIANGLES = st.lists(POINTS, min_size=3, max_size=3, unique_by=str).map(
    lambda points: models.GeoLineString(points=points)
)


def _moments(*hours: float) -> Strategy:
    day = dt.datetime(2024, 1, 1)
    return st.builds(lambda hour, zone: (day + dt.timedelta(hours=hour)).replace(tzinfo=zone), some(hours), ZONES)


def _bounds(model: type, low: Strategy, high: Strategy) -> Strategy:
    bounds = st.fixed_dictionaries({}, optional={"gt": low, "gte": low, "lt": high, "lte": high})
    return bounds.map(lambda chosen: model(**chosen))


LOW_MOMENTS = _moments(-220_000, -0.5, 0, 0.5, 12) | some([dt.date(2024, 1, 1), dt.datetime.min])
HIGH_MOMENTS = _moments(0, 0.5, 12, 12.5, 24 * 166 + 6.5) | some([dt.date(2024, 6, 15), dt.datetime.max])
PREDICATES_OF: dict[str, tuple[str, Strategy, list[str]]] = {  # kind: predicate, values, keys it may be true of
    "value": ("match", st.builds(models.MatchValue, value=WORDS | INTS | st.booleans()), ["kw", "num", "flag"]),
    "text": ("match", st.builds(models.MatchText, text=TEXTS), ["text"]),
    "text any": ("match", st.builds(models.MatchTextAny, text_any=TEXTS), ["text"]),
    "phrase": ("match", st.builds(models.MatchPhrase, phrase=TEXTS), ["text"]),
    "prefix": ("match", st.builds(models.MatchPrefix, prefix=PARTS), ["kw", "text"]),
    "substring": ("match", st.builds(models.MatchSubstring, substring=PARTS), ["kw", "text"]),
    "any": ("match", st.builds(models.MatchAny, any=VALUES), ["kw", "num", "tags", "objs[].x"]),
    "except": ("match", VALUES.map(lambda values: _except(*values)), ["kw", "num", "flag"]),
    "range": (
        "range",
        _bounds(models.Range, some([-1.0, 0, 1, 2.5, math.nan]), some([1.0, 2, 3, 10, math.inf, math.nan])),
        ["num", "objs[].x"],
    ),
    "time": ("range", _bounds(models.DatetimeRange, LOW_MOMENTS, HIGH_MOMENTS), ["when"]),
    "box": ("geo_bounding_box", st.builds(models.GeoBoundingBox, top_left=POINTS, bottom_right=POINTS), ["geo"]),
    "circle": ("geo_radius", st.builds(models.GeoRadius, center=POINTS, radius=some([0, 1e6, 5e6, 2.1e7])), ["geo"]),
    "polygon": (
        "geo_polygon",
        st.builds(models.GeoPolygon, exterior=TRIANGLES, interiors=st.none() | st.lists(TRIANGLES, max_size=1)),
        ["geo"],
    ),
    "count": ("values_count", _bounds(models.ValuesCount, some([0, 1]), some([1, 2, 3])), ["tags", "objs", "objs[].y"]),
    "empty": ("is_empty", st.booleans(), ["tags", "nil", "objs[].y"]),
    "null": ("is_null", st.booleans(), ["tags[]", "nil", "objs[].x"]),
}
SUFFIXES = ["", "", "[]", "[0]", "[1]", "[].x", "[].y", "[].tags", "[].tags[]", ".x", ".lat", "[3][]", "[][]"]
ANY_KEYS = st.builds("{}{}".format, some([*COLUMNS, "missing"]), some(SUFFIXES))
IDS = some([*map(_point_id, PAYLOADS), 99, "1", "no id", 2**64, uuid.UUID(int=9)])
SLICES = some([models.Slice(total=total, index=index) for total in (1, 2, 3) for index in range(total)])
INNER_KEYS = some(["x", "x", "y", "y", "tags", "tags[]", "missing", "lat"])


def _evenly(*strategies: Strategy) -> Strategy:
    """Like ``one_of``, which draws from some of many strategies far more often than from others."""
    return some(strategies).flatmap(lambda strategy: strategy)


def _leaves(inner: bool) -> Strategy:
    """Conditions of every kind, each as often, on keys of a payload or of an object nested in one."""

    def keys(fitting: list[str]) -> Strategy:
        prefixes = some(["", "metadata."])
        return INNER_KEYS if inner else st.builds("{}{}".format, prefixes, some(fitting) | ANY_KEYS)

    kinds = [st.builds(Field, key=keys(fitting), **{name: values}) for name, values, fitting in PREDICATES_OF.values()]
    several = {name: values for name, values, _ in PREDICATES_OF.values()}
    kinds.append(st.fixed_dictionaries({"key": keys(["num"])}, optional=several).map(lambda made: Field(**made)))
    field = st.builds(models.PayloadField, key=keys(["nil", "tags"]))
    kinds.append(st.builds(models.IsEmptyCondition, is_empty=field))
    kinds.append(st.builds(models.IsNullCondition, is_null=field))
    kinds.append(st.builds(models.HasIdCondition, has_id=st.lists(IDS, max_size=8)))
    kinds.append(st.builds(models.HasVectorCondition, has_vector=some(["first", "second", "third", ""])))
    kinds.append(st.builds(models.SliceCondition, slice=SLICES))
    return _evenly(*kinds)


def _filters(conditions: Strategy) -> Strategy:
    """Filters of one clause, so that many select some of the points and not others, or of several."""
    several = st.lists(conditions, max_size=3)
    clauses: dict[str, Strategy] = dict.fromkeys(["must", "should", "must_not"], several | conditions)
    clauses["min_should"] = st.builds(models.MinShould, conditions=several, min_count=st.integers(1, 3))
    one = [st.fixed_dictionaries({name: clause}) for name, clause in clauses.items()]
    return st.one_of(*one, st.fixed_dictionaries({}, optional=clauses)).map(lambda chosen: Filter(**chosen))


LEAVES, INNER_LEAVES = _leaves(inner=False), _leaves(inner=True)
NESTED = st.builds(
    lambda key, filter: models.NestedCondition(nested=models.Nested(key=key, filter=filter)),
    some(["objs", "objs", "metadata.objs[]", "objs[3]", "objs[3][]", "kw", "tags[]", "geo", "missing"]),
    _filters(_evenly(INNER_LEAVES, INNER_LEAVES, _filters(INNER_LEAVES))),
)
CONDITIONS = _evenly(LEAVES, LEAVES, LEAVES, NESTED)
SHALLOW = _filters(CONDITIONS)
DEEP = _filters(_evenly(CONDITIONS, SHALLOW))


@settings(max_examples=400 if ALL else 60, deadline=None, derandomize=True)
@given(condition=CONDITIONS)
def test_generated_conditions_select_the_same_points(engines, condition):
    engines.select(Filter(must=[condition]))


@settings(max_examples=600 if ALL else 90, deadline=None, derandomize=True)
@given(filter=_evenly(SHALLOW, DEEP))
def test_generated_filters_select_the_same_points(engines, filter):
    engines.select(filter)
