"""What LangChain, LlamaIndex and the core must store, find and refuse alike."""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
import decimal
import enum
import logging
import pathlib
import pickle
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from langchain_core.documents import Document as LangChainDocument
from langchain_core.indexing import InMemoryRecordManager, index
from llama_index.core import Document as LlamaIndexDocument
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from qdrant_client import models

import langchain_jcv2
import llama_index_jcv2
from jcv2_plugin import ColbertCollection, Document
from jcv2_plugin.documents import MAX_DEPTH, accepted
from jcv2_plugin.errors import InvalidDocumentError, InvalidQueryError, UnsupportedFilterError
from jcv2_plugin.filters import check_filter, metadata_paths

T = 1_790_000_000_000_000_000


@pytest.fixture(scope="module", params=["memory", "folder"])
def opened(mini: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    location = ":memory:" if request.param == "memory" else tmp_path_factory.mktemp("both") / "collection"
    with ColbertCollection.create(location, encoder=mini, dim=32) as collection:
        yield collection


@pytest.fixture
def collection(opened: ColbertCollection) -> ColbertCollection:
    opened.delete(filter=models.Filter())
    return opened


def by_core(collection: ColbertCollection, text: str, metadata: dict[str, Any], **options: Any) -> list[str]:
    return collection.add([Document(text, "a", metadata)], **options)


def by_langchain(collection: ColbertCollection, text: str, metadata: dict[str, Any], **options: Any) -> list[str]:
    store = langchain_jcv2.JinaColbertVectorStore(collection)
    return store.add_documents([LangChainDocument(id="a", page_content=text, metadata=metadata)], **options)


def by_llama_index(collection: ColbertCollection, text: str, metadata: dict[str, Any], **options: Any) -> list[str]:
    node = TextNode(id_="a", text=text, metadata=metadata)
    return llama_index_jcv2.JinaColbertVectorStore(collection).add([node], **options)


ADDS = (by_core, by_langchain, by_llama_index)
every_way = pytest.mark.parametrize("add", ADDS)
Add = Callable[..., list[str]]


def in_langchain(collection: ColbertCollection, **metadata: Any) -> list[str]:
    found = langchain_jcv2.JinaColbertVectorStore(collection).similarity_search("a text", k=9, filter=metadata)
    return sorted(str(one.id) for one in found)


def in_llama_index(collection: ColbertCollection, operator: str = "==", **metadata: Any) -> list[str]:
    parts: list[Any] = [MetadataFilter(key=key, value=value, operator=operator) for key, value in metadata.items()]  # type: ignore[arg-type]
    store = llama_index_jcv2.JinaColbertVectorStore(collection)
    return sorted(node.node_id for node in store.get_nodes(filters=MetadataFilters(filters=parts)))


@every_way
def test_what_json_has_no_type_for_is_stored_as_qdrants_client_does(collection: ColbertCollection, add: Add) -> None:
    given = {
        "int": np.int64(3),
        "float": np.float64(2024.0),
        "single": np.float32(0.5),
        "bool": np.bool_(True),
        "array": np.array([1, 2]),
        "day": dt.date(2024, 5, 31),
        "moment": dt.datetime(2024, 5, 31, 12, tzinfo=dt.timezone.utc),
        "numpy": np.datetime64("2024-05-31"),
        "times": np.array(["2024-05-31T12:00", "2024-05-31T12:00:00.000000001"], "M8[ns]"),
        "lasted": [np.timedelta64(5, "s"), np.timedelta64(5, "s").astype("m8[ns]"), np.timedelta64(5, "Y")],
        "pandas": [
            pd.Timestamp("2024-05-31T12:00:00.000000001Z"),
            pd.Timedelta(1500, "ns"),
            np.timedelta64(1500, "ns"),
        ],
        "torch": [torch.tensor(3), torch.tensor([0.5])],
        "keys": {np.int64(3): "x"},
        "uuid": uuid.UUID(int=3),
        "price": decimal.Decimal("1.50"),
        "set": {"b", "a"},
        "deep": [(1, {3: pathlib.PurePosixPath("a/b")})],
    }
    before = copy.deepcopy(given)
    add(collection, "a text", given)
    (stored,) = collection.get(["a"])
    assert stored.metadata == {
        "int": 3,
        "float": 2024.0,
        "single": 0.5,
        "bool": True,
        "array": [1, 2],
        "day": "2024-05-31",
        "moment": "2024-05-31T12:00:00Z",
        "numpy": "2024-05-31",
        "times": ["2024-05-31T12:00:00", "2024-05-31T12:00:00.000000001"],
        "lasted": ["PT5S", "PT5S", "5 years"],
        "pandas": ["2024-05-31T12:00:00.000000001Z", "P0DT0H0M0.0000015S", "PT0.000001500S"],
        "torch": [3, [0.5]],
        "keys": {"3": "x"},
        "uuid": "00000000-0000-0000-0000-000000000003",
        "price": "1.50",
        "set": ["a", "b"],
        "deep": [[1, {"3": "a/b"}]],
    }
    assert [type(stored.metadata[key]) for key in ("int", "single", "bool")] == [int, float, bool]
    assert given.keys() == before.keys()
    assert type(given["int"]) is np.int64
    assert in_langchain(collection, day=dt.date(2024, 5, 31), int=np.int64(3)) == ["a"]


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"end": 1}
    for _ in range(levels - 1):
        value = {"in": value}
    return value


@every_way
@pytest.mark.parametrize(
    "value, said",
    [
        (float("nan"), r"metadata\['n'\] is nan.*set it to None"),
        ([1, {"x": float("-inf")}], r"metadata\['n'\]\[1\]\['x'\] is -inf"),
        (np.datetime64("NaT"), r"metadata\['n'\] is .*Convert it to a str"),
        (b"abc", r"metadata\['n'\] is b'abc' of type bytes.*decode\(\)"),
        (np.bytes_(b"abc"), r"metadata\['n'\] is .*b'abc'"),
        (bytearray(b"abc"), r"metadata\['n'\] is .*of type bytearray"),
        ([1 + 2j], r"metadata\['n'\]\[0\] is \(1\+2j\) of type complex"),
        (iter([1]), r"metadata\['n'\] is .*Convert it to a str.*a list"),
        (object(), r"metadata\['n'\] is .*of type object.*Convert it to a str"),
        (2**70, r"metadata\['n'\]: 1180591620717411303424 does not fit 64 bits. Store it as a str"),
        ({None: "x"}, r"metadata\['n'\]: key None is NoneType, not str"),
        ({3: "x", "3": "y"}, r"metadata\['n'\]: key '3' comes twice"),
        ("\ud800", "lone surrogates"),
        (nested(MAX_DEPTH), "nested more than 32 levels deep"),
        (nested(500), "nested more than 32 levels deep"),
    ],
)
def test_what_cannot_be_stored_names_key_and_remedy(
    collection: ColbertCollection, add: Add, value: Any, said: str
) -> None:
    with pytest.raises(InvalidDocumentError, match=said):
        add(collection, "a text", {"n": value})
    assert collection.count() == 0


@every_way
def test_metadata_may_have_32_levels(collection: ColbertCollection, add: Add) -> None:
    add(collection, "a text", nested(MAX_DEPTH))
    assert collection.get(["a"])[0].metadata == nested(MAX_DEPTH)


@every_way
def test_blank_texts_are_left_out_or_refused(
    collection: ColbertCollection, add: Add, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert add(collection, " \n\u200b\ufeff\x00", {"page": 3}) == []
    (record,) = caplog.records
    assert record.getMessage() == "Left out 1 document without text: a. on_blank='error' refuses them."
    with pytest.raises(InvalidDocumentError, match="the text is empty"):
        add(collection, " \n", {"page": 3}, on_blank="error")
    with pytest.raises(ValueError, match="on_blank must be one of"):
        add(collection, "a text", {}, on_blank="drop")
    assert collection.count() == 0


def test_blank_texts_in_whatever_makes_a_collection(mini: Any, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["a text", "", " "]
    options: dict[str, Any] = {"encoder": mini, "dim": 32}
    whole = {"transformations": [llama_index_jcv2.EncodedByStore()]}
    numbered = enumerate(texts)
    pages = [LlamaIndexDocument(text=text, id_=str(number), metadata={"page": number}) for number, text in numbered]
    makers: list[Callable[..., Any]] = [
        lambda **more: langchain_jcv2.JinaColbertVectorStore.from_texts(texts, ids=["0", "1", "2"], **options, **more),
        lambda **more: langchain_jcv2.JinaColbertRetriever.from_texts(texts, ids=["0", "1", "2"], **options, **more),
        lambda **more: llama_index_jcv2.JinaColbertIndex.from_documents(pages, **whole, **options, **more),
    ]
    for make in makers:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert list(make().collection.ids()) == ["0"]
        assert ["Left out 2 documents without text: 1, 2" in one.getMessage() for one in caplog.records] == [True]
        with pytest.raises(InvalidDocumentError, match=r"Document 1.*the text is empty"):
            make(on_blank="error")
    store = langchain_jcv2.JinaColbertVectorStore.from_texts(["first"], **options)
    records = InMemoryRecordManager(namespace="pages")
    records.create_schema()
    documents = [LangChainDocument(page_content=text) for text in texts]
    index(documents, records, store, key_encoder="sha256")
    assert store.collection.count() == 2


@pytest.fixture
def numbered(collection: ColbertCollection) -> ColbertCollection:
    numbers: dict[str, dict[str, Any]] = {"float": {"year": 2024.0}, "int": {"year": 2024}, "t": {"at": T}}
    numbers |= {"t+100": {"at": T + 100}, "t+1e9": {"at": T + 10**9}, "dot": {"a.b": 1, "a b": 2}}
    numbers["in"] = {"a": {"b": 1}}
    collection.add([Document("a text", id, metadata) for id, metadata in numbers.items()])
    return collection


def test_numbers_are_found_whatever_their_type(numbered: ColbertCollection) -> None:
    for year in (2024, 2024.0, np.int64(2024), np.float32(2024)):
        assert in_langchain(numbered, year=year) == ["float", "int"]
    for year in (2024, 2024.0):
        assert in_llama_index(numbered, year=year) == ["float", "int"]
    store = langchain_jcv2.JinaColbertVectorStore(numbered)
    assert store.delete(filter={"year": 2024})
    assert in_llama_index(numbered, year=2024) == []


def test_integers_beyond_float64_are_exact_or_refused(numbered: ColbertCollection) -> None:
    for find in (in_langchain, in_llama_index):
        assert find(numbered, at=T + 100) == ["t+100"]
        assert find(numbered, at=T + 1) == []
        with pytest.raises(UnsupportedFilterError, match=r"metadata\.at.*not exact for 1\.79e\+18.*models\.Filter"):
            find(numbered, at=float(T))
    for operator in ("<", "<=", ">", ">="):
        with pytest.raises(UnsupportedFilterError, match=r"metadata\.at.*not exact.*seconds instead of nanoseconds"):
            in_llama_index(numbered, operator, at=T + 100)
    assert in_llama_index(numbered, ">", at=2**53 - 1) == ["t", "t+100", "t+1e9"]


def test_keys_are_literal_before_they_are_paths(numbered: ColbertCollection) -> None:
    assert in_langchain(numbered, **{"a.b": 1}) == ["dot"]
    assert in_langchain(numbered, a={"b": 1}) == ["in"]
    assert in_llama_index(numbered, **{"a.b": 1}) == ["dot", "in"]
    assert in_langchain(numbered, **{"a b": 2}) == in_llama_index(numbered, **{"a b": 2}) == ["dot"]
    numbered.add([Document("a text", "odd", {"a": {"b c": 3, "rdfs:label": {"d": 4}}})])
    assert in_langchain(numbered, a={"b c": 3}) == in_llama_index(numbered, **{"a.b c": 3}) == ["odd"]
    assert in_llama_index(numbered, **{"a.rdfs:label.d": 4}) == ["odd"]
    assert metadata_paths("a.b c") == ['metadata."a.b c"', 'metadata.a."b c"']
    assert metadata_paths("see. b") == ['metadata."see. b"', 'metadata.see." b"']
    assert metadata_paths("..a b") == ['metadata."..a b"']
    assert metadata_paths("a.b") == ['metadata."a.b"', "metadata.a.b"]
    assert (metadata_paths("year"), metadata_paths("a b")) == (["metadata.year"], ['metadata."a b"'])


@pytest.mark.parametrize("key", ['a"b', "a\\b"])
def test_keys_that_qdrant_cannot_write_are_stored_and_refused_in_filters(
    collection: ColbertCollection, key: str
) -> None:
    for add in ADDS:
        add(collection, "a text", {key: "x"})
        assert collection.get(["a"])[0].metadata == {key: "x"}
        collection.delete(filter=models.Filter())
    raw = models.Filter(must_not=[models.FieldCondition(key=f'metadata."{key}"', match=models.MatchValue(value="x"))])
    empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=f'metadata."{key}"'))
    store = langchain_jcv2.JinaColbertVectorStore(collection)
    for refused in (
        lambda: in_langchain(collection, **{key: "x"}),
        lambda: in_llama_index(collection, **{key: "x"}),
    ):
        with pytest.raises(UnsupportedFilterError, match="store it under another key"):
            refused()
    for refused in (
        lambda: collection.search("a", filter=raw),
        lambda: collection.count(models.Filter(should=[models.Filter(must=empty)])),
        lambda: store.similarity_search("a", filter=raw),
    ):
        with pytest.raises(UnsupportedFilterError, match="is not a payload key"):
            refused()


def test_filters_nested_too_deeply_are_refused(collection: ColbertCollection) -> None:
    deep, groups = models.Filter(), MetadataFilters(filters=[MetadataFilter(key="a", value=1)])
    for _ in range(MAX_DEPTH):
        deep = models.Filter(should=[models.Filter(must=[]), deep])
        groups = MetadataFilters(filters=[groups])
    store = llama_index_jcv2.JinaColbertVectorStore(collection)
    for refused in (
        lambda: check_filter(deep),
        lambda: langchain_jcv2.JinaColbertVectorStore(collection).similarity_search("a", filter=deep),
        lambda: in_langchain(collection, **nested(MAX_DEPTH + 1)),
        lambda: store.get_nodes(filters=groups),
        lambda: llama_index_jcv2.JinaColbertRetriever(store, vector_store_kwargs={"qdrant_filters": deep}).retrieve(
            "a"
        ),
    ):
        with pytest.raises(UnsupportedFilterError, match="nested more than 32 levels deep"):
            refused()
    check_filter(deep.should[1])  # type: ignore[index,arg-type]


def holders(collection: ColbertCollection) -> list[Any]:
    langchain, llama_index = langchain_jcv2.JinaColbertVectorStore(collection), llama_index_jcv2.JinaColbertIndex
    of_nodes = llama_index.from_collection(collection)
    retriever = langchain_jcv2.JinaColbertRetriever(collection=collection, filter={"year": 1})
    of_store = [langchain, retriever, langchain.as_retriever()]
    return [collection, *of_store, of_nodes, of_nodes.vector_store, of_nodes.as_retriever()]


def test_deep_copies_share_the_open_collection_and_pickling_is_refused(collection: ColbertCollection) -> None:
    collection.add(["a text"])
    for one in holders(collection):
        copies = [copy.copy(one), copy.deepcopy(one)]
        copies += [one.model_copy(deep=True)] if hasattr(one, "model_copy") else []
        for twin in copies:
            inner = getattr(twin, "vectorstore", twin)
            assert getattr(inner, "collection", inner) is collection
            if hasattr(twin, "invoke"):
                assert len(twin.invoke("text", filter={})) == 1
        with pytest.raises(TypeError, match=r"cannot be pickled.*open"):
            pickle.dumps(one)


def test_queries_say_what_is_wrong(collection: ColbertCollection) -> None:
    store = langchain_jcv2.JinaColbertVectorStore(collection)
    index = llama_index_jcv2.JinaColbertIndex.from_collection(collection)
    collection.add([f"text {number}" for number in range(6)])
    searches: list[Any] = [collection.search, store.similarity_search, index.as_retriever().retrieve]
    for search in [*searches, store.max_marginal_relevance_search]:
        with pytest.raises(InvalidQueryError, match=r"lone surrogates.*'half \\ud800'"):
            search("half \ud800")
        with pytest.raises(InvalidQueryError, match="non-empty str, got ''"):
            search("")
    assert len(store.max_marginal_relevance_search("text", k=None, fetch_k=None)) == 4
    assert len(store.similarity_search("text", k=None)) == 4


def test_numbers_of_numpy_are_numbers(collection: ColbertCollection) -> None:
    store = langchain_jcv2.JinaColbertVectorStore(collection)
    collection.add(["a text", "another text"])
    two, low, half = np.int64(2), np.float32(0.1), np.float32(0.5)
    assert len(store.similarity_search("text", k=two, score_threshold=low)) == 2
    assert len(store.max_marginal_relevance_search("text", k=two, fetch_k=two, lambda_mult=half)) == 2
    retriever = langchain_jcv2.JinaColbertRetriever(collection=collection, k=np.int64(1), candidates=two)
    assert len(retriever.invoke("text")) == 1
    index = llama_index_jcv2.JinaColbertIndex.from_collection(collection)
    assert len(index.as_retriever(similarity_top_k=two, score_threshold=low).retrieve("text")) == 2
    mmr = index.as_retriever(similarity_top_k=two, vector_store_query_mode="mmr", mmr_threshold=half)
    assert len(mmr.retrieve("text")) == 2
    assert llama_index_jcv2.JinaColbertRerank(np.int64(2), collection.encoder).top_n == 2


@pytest.mark.parametrize("value", ["3", True, 1.0, np.float64(2), 0, np.bool_(True), b"3", 2**31])
def test_what_is_no_positive_integer_is_refused_everywhere(collection: ColbertCollection, value: Any) -> None:
    collection.add(["a text", "another text"])
    store = langchain_jcv2.JinaColbertVectorStore(collection)
    nodes = llama_index_jcv2.JinaColbertIndex.from_collection(collection)
    retriever = langchain_jcv2.JinaColbertRetriever(collection=collection)
    reranker = llama_index_jcv2.JinaColbertRerank(1, collection.encoder)
    for ask in (
        lambda: collection.search("text", value),
        lambda: collection.search("text", candidates=value),
        lambda: collection.search_mmr("text", 1, fetch_k=value),
        lambda: store.similarity_search("text", k=value),
        lambda: store.max_marginal_relevance_search("text", fetch_k=value),
        lambda: store.as_retriever(search_kwargs={"k": value}).invoke("text"),
        lambda: langchain_jcv2.JinaColbertRetriever(collection=collection, k=value),
        lambda: langchain_jcv2.JinaColbertRetriever(collection=collection, candidates=value),
        lambda: retriever.invoke("text", k=value),
        lambda: setattr(retriever, "k", value),
        lambda: langchain_jcv2.JinaColbertReranker(encoder="mini", top_n=value),
        lambda: langchain_jcv2.JinaColbertReranker(encoder="mini", dim=value),
        lambda: nodes.as_retriever(similarity_top_k=value).retrieve("text"),
        lambda: nodes.as_retriever(candidates=value).retrieve("text"),
        lambda: llama_index_jcv2.JinaColbertRerank(value, collection.encoder),
        lambda: setattr(reranker, "top_n", value),
    ):
        with pytest.raises(ValueError, match=r"must be (a positive integer|below 2\*\*31), got"):
            ask()


@pytest.mark.parametrize("value", ["0.5", True, float("nan"), 1j])
def test_what_is_no_number_is_refused_everywhere(collection: ColbertCollection, value: Any) -> None:
    collection.add(["a text", "another text"])
    store = langchain_jcv2.JinaColbertVectorStore(collection)
    nodes = llama_index_jcv2.JinaColbertIndex.from_collection(collection)
    mmr: dict[str, Any] = {"vector_store_query_mode": "mmr"}
    factor = {"mmr_prefetch_factor": value}
    for ask in (
        lambda: collection.search("text", score_threshold=value),
        lambda: store.similarity_search("text", score_threshold=value),
        lambda: store.similarity_search_with_relevance_scores("text", score_threshold=value),
        lambda: store.max_marginal_relevance_search("text", lambda_mult=value),
        lambda: nodes.as_retriever(score_threshold=value).retrieve("text"),
        lambda: nodes.as_retriever(mmr_threshold=value, **mmr).retrieve("text"),
        lambda: nodes.as_retriever(vector_store_kwargs=factor, **mmr).retrieve("text"),
    ):
        with pytest.raises(InvalidQueryError, match=r"must be a number, got"):
            ask()
    for name in () if value is True else ("exact", "with_explanation"):
        with pytest.raises(InvalidQueryError, match=f"{name} must be True or False"):
            collection.search("text", **{name: value})  # type: ignore[misc]


def test_positions_in_errors_are_those_of_the_callers_list(collection: ColbertCollection) -> None:
    texts = ["a text", "", "\u200b", "another", Document("x", metadata={"n": object()})]
    with pytest.raises(InvalidDocumentError, match=r"^Document 4( \(id .*\))?: metadata"):
        collection.add(texts)
    with pytest.raises(InvalidDocumentError, match=r"^Document 4( \(id .*\))?: metadata"):
        collection.ingest(texts, batch_documents=2)


def test_decimals_are_found_as_texts(collection: ColbertCollection) -> None:
    by_core(collection, "a text", {"price": decimal.Decimal("1.50")})
    assert in_langchain(collection, price=decimal.Decimal("1.50")) == in_llama_index(collection, price="1.50") == ["a"]


def test_times_are_not_compared_beyond_microseconds(collection: ColbertCollection) -> None:
    with pytest.raises(UnsupportedFilterError, match="to the microsecond"):
        in_llama_index(collection, "<", at="2024-05-31T12:00:00.000000001Z")


def test_similarity_cutoff_works_on_llama_indexs_score(collection: ColbertCollection) -> None:
    collection.add(["Bees make honey from nectar.", "A violin has four strings."], ids=["bees", "violin"])
    question, index = "bees make honey", llama_index_jcv2.JinaColbertIndex.from_collection(collection)
    hits = collection.search(question)
    found = index.as_retriever(similarity_top_k=2).retrieve(question)
    assert [(one.node_id, one.score, one.maxsim) for one in found] == [
        (hit.id, hit.relevance, hit.score) for hit in hits
    ]
    cutoff = (hits[0].relevance + hits[1].relevance) / 2
    reranker = llama_index_jcv2.JinaColbertRerank(2, collection.encoder, dim=32)
    cut = SimilarityPostprocessor(similarity_cutoff=cutoff)
    for nodes in (found, reranker.postprocess_nodes(found, query_str=question)):
        assert [one.node_id for one in cut.postprocess_nodes(nodes)] == ["bees"]


class Colour(str, enum.Enum):
    RED = "dark red"


def test_enums_of_str_are_their_values(collection: ColbertCollection) -> None:
    """As in JSON, where they are ids, keys or values. ``str`` gives the names of their members."""
    metadata: dict[Any, Any] = {Colour.RED: Colour.RED, 3: {Colour.RED: 4}}
    assert collection.add([Colour.RED], ids=[Colour.RED], metadata=[metadata]) == ["dark red"]
    langchain_jcv2.JinaColbertVectorStore(collection).add_texts([Colour.RED], [metadata], ids=[Colour.RED])
    assert collection.count() == 1
    for id in ("dark red", Colour.RED):
        (stored,) = collection.get([id])
        assert (stored.id, stored.text, type(stored.id)) == ("dark red", "dark red", str)
    assert stored.metadata == {"dark red": "dark red", "3": {"dark red": 4}}
    filters: list[dict[Any, Any]] = [
        metadata,
        {"dark red": "dark red"},
        {"3": {"dark red": 4}},
        {np.int64(3): metadata[3]},
    ]
    store = langchain_jcv2.JinaColbertVectorStore(collection)
    for chosen in filters:
        assert [one.id for one in store.similarity_search("a text", filter=chosen)] == ["dark red"]
    assert in_llama_index(collection, **{Colour.RED: "dark red"}) == ["dark red"]
    collection.delete([Colour.RED])
    assert collection.count() == 0


def test_ids_of_a_retriever_are_kept_for_all_searches(collection: ColbertCollection) -> None:
    store = llama_index_jcv2.JinaColbertVectorStore(collection)
    # Different texts: LlamaIndex keeps one of several nodes with the same.
    store.add([TextNode(id_=id, text=f"a text {id}") for id in "abc"])
    given: list[Any] = [["a", "b"], np.array(["a", "b"]), pd.Series(["a", "b"]), ("a", "b")]
    for name in ("node_ids", "doc_ids"):
        for ids in [*given, (id for id in "ab")]:
            retriever = llama_index_jcv2.JinaColbertRetriever(store, similarity_top_k=3, **{name: ids})  # type: ignore[arg-type]
            for _ in range(2):
                assert sorted(one.node_id for one in retriever.retrieve("text")) == ["a", "b"]
        other = llama_index_jcv2.JinaColbertRetriever(store).with_options(**{name: (id for id in "c")})
        assert [[one.node_id for one in other.retrieve("text")] for _ in range(2)] == [["c"], ["c"]]


def test_generators_are_read_once(collection: ColbertCollection) -> None:
    def nodes(first: int) -> Iterator[TextNode]:
        return (TextNode(id_=str(n), text=f"text {n}") for n in range(first, first + 2))

    langchain = langchain_jcv2.JinaColbertVectorStore(collection)
    index = llama_index_jcv2.JinaColbertIndex.from_collection(collection)
    langchain.add_documents(LangChainDocument(page_content=f"text {n}", id=f"l{n}") for n in range(2))
    index.vector_store.add(nodes(0))  # type: ignore[arg-type]
    index.insert_nodes(nodes(2))  # type: ignore[arg-type]
    asyncio.run(index.ainsert_nodes(nodes(4)))  # type: ignore[arg-type]
    given = [LlamaIndexDocument(id_=f"d{n}", text=f"text {n}") for n in range(2)]
    assert index.refresh_ref_docs(one for one in given) == [True, True]  # type: ignore[arg-type]
    assert index.refresh_ref_docs(one for one in given) == [False, False]  # type: ignore[arg-type]
    assert collection.count() == 10
    assert len(collection.search_many(query for query in ("text", "a text"))) == 2
    options: dict[str, Any] = {"encoder": collection.encoder, "dim": 32}
    whole = llama_index_jcv2.JinaColbertIndex.from_documents((one for one in given), **options)  # type: ignore[arg-type]
    assert whole.refresh_ref_docs(given) == [False, False]
    reranker = langchain_jcv2.JinaColbertReranker(encoder=collection.encoder)
    pages = (LangChainDocument(page_content=text) for text in ("text", ""))
    assert len(reranker.compress_documents(pages, "text")) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, 5, "a text", b"text", {"a text": 1}, ["a text"], [None], [("a text", {})]])
def test_what_is_no_document_is_refused_with_a_sentence(collection: ColbertCollection, wrong: Any) -> None:
    langchain = langchain_jcv2.JinaColbertVectorStore(collection)
    index = llama_index_jcv2.JinaColbertIndex.from_collection(collection)
    reranker = langchain_jcv2.JinaColbertReranker(encoder=collection.encoder)
    options: dict[str, Any] = {"encoder": collection.encoder, "dim": 32}
    for add in (
        langchain.add_documents,
        lambda given: langchain_jcv2.JinaColbertVectorStore.from_documents(given, **options),
        lambda given: reranker.compress_documents(given, "text"),
        index.vector_store.add,
        index.insert_nodes,
        index.refresh_ref_docs,
        lambda given: llama_index_jcv2.JinaColbertIndex.from_documents(given, **options),
    ):
        with pytest.raises(
            InvalidDocumentError, match=r"Give a list of|must be a (LangChain Document|LlamaIndex node)"
        ):
            add(wrong)  # type: ignore[operator]
    single = LangChainDocument(page_content="a text")
    for call in (langchain.add_documents, langchain.add_texts, collection.add):
        with pytest.raises(InvalidDocumentError, match="Give a list of"):
            call(single)  # type: ignore[operator]
    assert collection.count() == 0


def test_documents_are_validated_into_new_ones() -> None:
    given = Document("a text", "a", {"n": np.int64(1)}, {"top": (1, 2)})
    ((checked,), _) = accepted([given])
    assert (checked.metadata, checked.payload) == ({"n": 1}, {"top": [1, 2]})
    assert type(given.metadata["n"]) is np.int64
