"""LlamaIndex's metadata filters, evaluated by both embedded engines."""

from __future__ import annotations

import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

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
    place = ":memory:" if request.param == "memory" else tmp_path_factory.mktemp("filters") / "collection"
    with ColbertCollection.create(place, encoder=mini) as collection:
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


def test_conditions(store):
    hall, two, fox = one("room", "hall"), one("n", 2), one("text", "fox", "text_match")
    assert selected(store, hall, fox) == "a"
    assert selected(store, hall, two, condition="or") == "ab"
    assert selected(store, hall, two, condition="not") == "cd"
    either = MetadataFilters(filters=[hall, two], condition=FilterCondition.OR)
    neither = MetadataFilters(filters=[either], condition=FilterCondition.NOT)
    assert selected(store, either, fox) == "a"
    assert selected(store, neither, fox) == "c"
    assert selected(store, MetadataFilters(filters=[neither, two], condition=FilterCondition.OR)) == "bcd"
    assert selected(store, MetadataFilters(filters=[hall], condition=None)) == "a"
    assert selected(store) == "abcd"
    assert to_qdrant_filter(None) is None


@pytest.mark.parametrize("operator", ["==", "!=", ">", ">=", "<", "<=", "in", "nin", "is_empty"])
def test_numbers_as_llama_index_itself_evaluates_them(store, operator):
    values = [0, 1, 1.0, 2, 2.5, 3] if operator not in {"in", "nin"} else [[1, 2], [3], [1.0, 3.0], []]
    for value in values:
        part = one("n", value, operator)
        reference = build_metadata_filter_fn(NODES.__getitem__, MetadataFilters(filters=[part]))
        assert selected(store, part) == "".join(id for id in NODES if reference(id)), part


@pytest.mark.parametrize(
    "part, message",
    [
        (one("room", ["hall"]), "'room'.*'==' takes a single string or number"),
        (one("room", None), "takes a single string or number, got None"),
        (one("room", "hall", "in"), "'in' takes a list, got 'hall'"),
        (one("room", "hall", ">"), "takes a number, or a date such as .*, got 'hall'"),
        (one("when", "2024-99-01", ">"), "a number or a date in ISO format, got '2024-99-01'"),
        (one("n", 3, "text_match"), "'text_match' takes a string, got 3"),
        (one('ro"om', "hall"), "quotation mark"),
        (one("", "hall"), "must not be empty"),
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
