"""LlamaIndex's metadata filters, evaluated by both embedded engines."""

from __future__ import annotations

import os
import random

import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from jcv2_plugin import ColbertCollection
from jcv2_plugin.errors import Jcv2Error
from llama_index_jcv2 import JinaColbertVectorStore
from llama_index_jcv2.filters import to_qdrant_filter

NODES = {
    "a": {
        "n": 1,
        "x": 1.5,
        "room": "hall",
        "tags": ["red", "blue"],
        "counts": [1, 2],
        "when": "2024-05-01",
        "text": "The Quick brown fox",
        "file name": "one.txt",
        "größe": "klein",
    },
    "b": {
        "n": 2,
        "x": 2.0,
        "room": "kitchen",
        "tags": ["blue"],
        "when": "2024-06-01T12:00:00+00:00",
        "author": {"name": "Ann"},
    },
    "c": {"n": 3.0, "room": "attic", "tags": [], "author.name": "Ann", "text": "a slow fox", "doc_id": "own"},
    "d": {"n": 2**60 + 1, "room": None, "when": "2023-01-01"},
}


@pytest.fixture(scope="module", params=["memory", "folder"])
def store(request, mini, tmp_path_factory):
    location = ":memory:" if request.param == "memory" else tmp_path_factory.mktemp("filters") / "collection"
    with ColbertCollection.create(location, encoder=mini) as collection:
        made = JinaColbertVectorStore(collection)
        nodes = [TextNode(text=f"Node {id}.", id_=id, metadata=metadata) for id, metadata in NODES.items()]
        nodes[0].relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="book")
        made.add(nodes)
        yield made


def one(key, value=None, operator="=="):
    return MetadataFilter(key=key, value=value, operator=FilterOperator(operator))


def selected(store, *parts, condition="and"):
    filters = MetadataFilters(filters=list(parts), condition=FilterCondition(condition))
    return "".join(sorted(node.node_id for node in store.get_nodes(filters=filters)))


@pytest.mark.parametrize(
    "key, operator, value, expected",
    [
        ("room", "==", "hall", "a"),
        ("room", "==", "Hall", ""),
        ("n", "==", 1, "a"),
        ("n", "==", 1.0, "a"),
        ("n", "==", 3, "c"),
        ("n", "==", 2**60 + 1, "d"),
        ("n", "==", 2**60, ""),
        ("x", "==", 2, "b"),
        ("room", "!=", "hall", "bcd"),
        ("x", "!=", 1.5, "bcd"),
        ("n", ">", 2, "cd"),
        ("n", ">=", 2, "bcd"),
        ("n", "<", 2, "a"),
        ("x", "<=", 1.5, "a"),
        ("when", ">", "2024-05-01", "b"),
        ("when", ">=", "2024-05-01T00:00:00Z", "ab"),
        ("when", "<", "2024-01-01", "d"),
        ("room", "in", ["hall", "attic"], "ac"),
        ("n", "in", [1, 2], "ab"),
        ("x", "in", [1.5, 7.0], "a"),
        ("room", "in", [], ""),
        ("room", "nin", ["hall", "attic"], "bd"),
        ("n", "nin", [1, 2, 3], "d"),
        ("room", "nin", [], "abcd"),
        ("text", "text_match", "quick fox", "a"),
        ("text", "text_match", "fox", "ac"),
        ("text", "text_match_insensitive", "QUICK", "a"),
        ("room", "is_empty", None, "d"),
        ("tags", "is_empty", None, "cd"),
        ("tags", "any", ["red", "green"], "a"),
        ("tags", "any", ["blue"], "ab"),
        ("counts", "any", [2, 9], "a"),
        ("tags", "all", ["red", "blue"], "a"),
        ("tags", "all", ["blue"], "ab"),
        ("tags", "contains", "blue", "ab"),
        ("counts", "contains", 2, "a"),
        ("file name", "==", "one.txt", "a"),
        ("größe", "==", "klein", "a"),
        ("counts[]", "==", 2, "a"),
        ("author.name", "==", "Ann", "bc"),
        ("author.name", "!=", "Ann", "ad"),
        ("author.name", "is_empty", None, "ad"),
        ("doc_id", "==", "book", "a"),
        ("doc_id", "==", "own", "c"),
        ("doc_id", "!=", "own", "abd"),
        ("ref_doc_id", "in", ["book"], "a"),
    ],
)
def test_operators(store, key, operator, value, expected):
    assert selected(store, one(key, value, operator)) == expected


@pytest.mark.parametrize(
    "part, message",
    [
        (one("room", ["hall"]), "'room'.*'==' takes a single string or number"),
        (one("room", None), "takes a single string or number, got None"),
        (one("room", "hall", "in"), "'in' takes a list, got 'hall'"),
        (one("room", "hall", ">"), "take a number, or a date .*, got 'hall'"),
        (one("when", "2024-99-01", ">"), "a date in ISO format .*, got '2024-99-01'"),
        (one("n", 3, "text_match"), "'text_match' takes a string, got 3"),
        (one('ro"om', "hall"), "quotation mark"),
        (one("", "hall"), "non-empty"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(store, part, message):
    with pytest.raises(Jcv2Error, match=message):
        selected(store, part)


def test_filters_restrict_searches_and_deletions(store):
    only = MetadataFilters(filters=[one("room", ["hall", "attic"], "in")])
    query = VectorStoreQuery(query_str="node", similarity_top_k=4, filters=only)
    assert sorted(store.query(query).ids) == ["a", "c"]
    assert store.query(VectorStoreQuery(query_str="node", filters=only, node_ids=["c", "b"])).ids == ["c"]
    assert store.query(VectorStoreQuery(query_str="node", filters=only, doc_ids=["book"])).ids == ["a"]
    further = to_qdrant_filter(MetadataFilters(filters=[one("n", 3)]))
    assert store.query(query, qdrant_filters=further).ids == ["c"]
    assert [node.node_id for node in store.get_nodes(["a", "b"], only)] == ["a"]
    store.add([TextNode(text="Gone soon.", id_="e", metadata={"room": "cellar"})])
    store.delete_nodes(filters=MetadataFilters(filters=[one("room", "cellar")]))
    assert selected(store) == "abcd"


ORACLE_NODES = {
    f"n{number}": metadata
    for number, metadata in enumerate(
        [
            {"n": 1, "room": "hall", "tags": ["red", "blue"], "counts": [1, 2], "text": "one red fox"},
            {"n": 2, "room": "attic", "tags": ["blue"], "counts": [2], "x": -0.5},
            {"n": 2.5, "room": "hall", "tags": [], "x": 2.0, "text": "a red hen and a fox"},
            {"n": -1, "tags": ["red", "green", "blue"], "counts": [], "x": 0.0, "text": "hen"},
            {"room": "cellar", "tags": ["green"], "counts": [1, 3], "x": 2.5, "text": None},
            {"n": 0, "room": None, "x": 1e9},
            {},
            {"n": 7, "room": "Hall", "tags": "red", "counts": 1, "text": "RED FOX"},
        ]
    )
}
_COMPARED = {">": lambda a, b: a > b, ">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b}


def holds(part, metadata):
    """What a filter means, in plain Python: of a list any element may satisfy it."""
    if isinstance(part, MetadataFilters):
        each = [holds(one, metadata) for one in part.filters]
        if not each or part.condition in (FilterCondition.AND, None):
            return all(each)
        return any(each) if part.condition == FilterCondition.OR else not any(each)
    found = metadata.get(part.key)
    values = found if isinstance(found, list) else [] if found is None else [found]
    operator = part.operator.value
    if operator == "is_empty":
        return not values
    if operator in _COMPARED:
        return any(_COMPARED[operator](one, part.value) for one in values if not isinstance(one, str))
    if operator in ("text_match", "text_match_insensitive"):
        words = part.value.lower().split()
        return any(set(words) <= set(one.lower().split()) for one in values)
    if operator in ("!=", "nin"):
        refused = part.value if operator == "nin" else [part.value]
        return not any(one in refused for one in values)
    if operator == "all":
        return all(one in values for one in part.value)
    wanted = part.value if operator in ("in", "any") else [part.value]
    return any(one in wanted for one in values)


def random_filter(chooser, depth=0):
    if depth < 3 and chooser.random() < 0.4:
        parts = [random_filter(chooser, depth + 1) for _ in range(chooser.randint(0, 3))]
        return MetadataFilters(filters=parts, condition=chooser.choice([*FilterCondition, None]))
    key, values = chooser.choice(
        [
            ("n", [-1, 0, 1, 2, 2.5, 7]),
            ("x", [-0.5, 0.0, 2.0, 2.5]),
            ("room", ["hall", "attic", "Hall", "none"]),
            ("tags", ["red", "blue", "green"]),
            ("counts", [1, 2, 3]),
            ("text", ["red", "fox", "red fox", "hen"]),
        ]
    )
    some = [one for one in values if type(one) is type(values[0])]
    several = chooser.sample(some, chooser.randint(0, 3))
    operators = ["is_empty", "==", "!=", "in", "nin", "any", "all", "contains"]
    if key in ("n", "x", "counts"):
        operators += list(_COMPARED)
    elif key == "text":
        operators = ["text_match", "text_match_insensitive", "is_empty"]
    operator = chooser.choice(operators)
    if operator == "is_empty":
        return one(key, None, operator)
    return one(key, several if operator in ("in", "nin", "any", "all") else chooser.choice(values), operator)


@pytest.fixture(scope="module", params=["memory", "folder"])
def oracle_store(request, mini, tmp_path_factory):
    location = ":memory:" if request.param == "memory" else tmp_path_factory.mktemp("oracle") / "collection"
    with ColbertCollection.create(location, encoder=mini, dim=32) as collection:
        made = JinaColbertVectorStore(collection)
        made.add([TextNode(text=f"Node {id}.", id_=id, metadata=data) for id, data in ORACLE_NODES.items()])
        yield made


def test_every_operator_and_condition_means_what_plain_python_says(oracle_store):
    chooser = random.Random(5)
    used, some, operators = 0, 0, set()
    for _ in range(400 if os.environ.get("JCV2_TEST_ALL") else 200):
        filters = MetadataFilters(filters=[random_filter(chooser)])
        expected = {id for id, metadata in ORACLE_NODES.items() if holds(filters, metadata)}
        found = {node.node_id for node in oracle_store.get_nodes(filters=filters)}
        assert found == expected, filters
        used, some = used + 1, some + (0 < len(expected) < len(ORACLE_NODES))
        operators |= {part.operator for part in filters.filters if isinstance(part, MetadataFilter)}
    assert operators == set(FilterOperator)
    assert some > used / 3  # most choose neither all nor nothing, so they tell something
    query = VectorStoreQuery(query_str="node", similarity_top_k=8, filters=filters)
    assert set(oracle_store.query(query).ids) == expected
