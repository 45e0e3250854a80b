"""``JinaColbertVectorStore``: LangChain's standard tests, and what they leave out."""

from __future__ import annotations

import re

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.load import dumpd, dumps
from langchain_core.vectorstores import VectorStoreRetriever
from langchain_samples import IDS, METADATA, TEXTS, documents, ids_of
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests
from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection, CollectionSchema
from jcv2_plugin.engines.qdrant import ClientEngine
from jcv2_plugin.errors import (
    CollectionExistsError,
    CollectionMismatchError,
    CollectionNotFoundError,
    DocumentTooLongError,
    InvalidDocumentError,
)
from langchain_jcv2 import JinaColbertRetriever, JinaColbertVectorStore

QUESTION = "what do bees make?"


class TestStandard(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, mini, location):
        with ColbertCollection.create(location, encoder=mini, dim=64) as collection:
            yield JinaColbertVectorStore(collection)


@pytest.mark.parametrize(
    "search",
    [
        {"search_type": "similarity"},
        {"search_type": "mmr"},
        {"search_type": "similarity_score_threshold", "search_kwargs": {"score_threshold": 0.0}},
    ],
    ids=lambda search: search["search_type"],
)
class TestStandardAsRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _store(self, mini, search):
        with ColbertCollection.create(":memory:", encoder=mini, dim=64) as collection:
            self.search = search
            self.vectorstore = JinaColbertVectorStore(collection)
            self.vectorstore.add_documents(documents())
            yield

    @property
    def retriever_constructor(self):
        def construct(k: int = 4, **fields):
            search_kwargs = {**self.search.get("search_kwargs", {}), "k": k}
            return self.vectorstore.as_retriever(**{**self.search, "search_kwargs": search_kwargs, **fields})

        return construct

    @property
    def retriever_constructor_params(self):
        return {}

    @property
    def retriever_query_example(self):
        return QUESTION


@pytest.fixture(scope="module", params=["memory", "folder"])
def store(mini, request, tmp_path_factory):
    location = ":memory:" if request.param == "memory" else tmp_path_factory.mktemp("store") / "collection"
    with ColbertCollection.create(location, encoder=mini, dim=64) as collection:
        made = JinaColbertVectorStore(collection)
        made.add_documents(documents())
        yield made


@pytest.fixture
def empty(mini, location):
    with ColbertCollection.create(location, encoder=mini, dim=64) as collection:
        yield JinaColbertVectorStore(collection)


# Making one


def test_documents_come_back_as_they_were_added(mini, location):
    given = documents()
    store = JinaColbertVectorStore.from_documents(given, encoder=mini, dim=64, location=location)
    assert given == documents()
    assert store.get_by_ids(IDS) == given
    (found,) = store.similarity_search(QUESTION, k=1)
    assert found == given[2]
    found.metadata["room"] = given[2].metadata["room"] = "changed"
    assert store.get_by_ids(["bees"]) == [documents()[2]]
    store.collection.close()


def test_a_dense_embedding_and_two_models_are_refused(mini):
    dense = DeterministicFakeEmbedding(size=4)
    with pytest.raises(TypeError, match=r"one vector of a text.* instead of embedding=DeterministicFakeEmbedding"):
        JinaColbertVectorStore.from_texts(TEXTS, dense)
    with pytest.raises(TypeError, match="embedding and encoder both name the model"):
        JinaColbertVectorStore.from_documents(documents(), mini, encoder="mini")
    with pytest.raises(TypeError, match="needs a ColbertCollection, got str"):
        JinaColbertVectorStore("folder")


def test_a_collection_that_is_there_is_opened_and_never_added_to_by_mistake(mini, tmp_path):
    folder = tmp_path / "collection"
    JinaColbertVectorStore.from_documents(documents(), encoder=mini, dim=64, location=folder).collection.close()
    with pytest.raises(CollectionExistsError):
        JinaColbertVectorStore.from_documents(documents(), encoder=mini, location=folder)
    opened = JinaColbertVectorStore.from_existing_collection(folder)
    assert ids_of(opened.similarity_search(QUESTION, k=1)) == ["bees"]
    with pytest.raises(TypeError, match="The collection is open: \\['dim'\\]"):
        JinaColbertVectorStore.from_existing_collection(opened.collection, dim=64)
    assert JinaColbertVectorStore.from_existing_collection(opened.collection).get_by_ids(["tea"])
    opened.collection.close()
    with pytest.raises(CollectionMismatchError, match="dim=64, not 128"):
        JinaColbertVectorStore.from_existing_collection(folder, dim=128)
    with pytest.raises(CollectionNotFoundError):
        JinaColbertVectorStore.from_existing_collection(tmp_path / "elsewhere")


def test_nothing_is_created_for_texts_that_are_refused(mini, tmp_path):
    folder = tmp_path / "collection"
    for wrong in (
        {"texts": ["tea"], "ids": ["a", "b"]},
        {"texts": ["tea", "rice"], "ids": ["a", "a"]},
        {"texts": ["tea"], "metadatas": [{"when": object()}]},
    ):
        with pytest.raises(InvalidDocumentError):
            JinaColbertVectorStore.from_texts(encoder=mini, location=folder, **wrong)
    assert not folder.exists()


# Writing


def test_ids_are_given_taken_from_documents_or_drawn(empty):
    given = [Document(page_content=text, id=id) for text, id in zip(TEXTS, ["a", None, "c", None], strict=True)]
    ids = empty.add_documents(given, ids=[None, None, "see", "dee"])
    assert ids[0] == "a"
    assert ids[2:] == ["see", "dee"]
    assert ids[1] not in (None, "", "a")
    assert [one.page_content for one in empty.get_by_ids(ids)] == TEXTS
    assert ids_of(given) == ["a", None, "c", None]
    assert len(set(empty.add_texts(TEXTS))) == 4
    assert empty.collection.count() == 8
    assert empty.add_texts([]) == empty.add_documents([]) == []


def test_any_string_is_an_id_and_the_last_write_stays(empty):
    ids = ["1", "2", "foo", "ü/ 🐝", "a" * 128]
    assert empty.add_texts([f"Number {n}." for n in range(5)], [{"n": n} for n in range(5)], ids=ids) == ids
    assert ids_of(empty.get_by_ids(ids[::-1])) == ids[::-1]
    empty.add_texts(["Another."], [{"new": True}], ids=["foo"])
    assert empty.get_by_ids(["foo"]) == [Document(id="foo", page_content="Another.", metadata={"new": True})]
    assert empty.collection.count() == 5
    assert empty.delete(["1", "missing"]) is True
    assert ids_of(empty.get_by_ids(ids)) == ids[1:]


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"texts": ["tea", ""], "on_blank": "error"}, InvalidDocumentError, "the text is empty"),
        ({"texts": ["tea", "rice"], "ids": ["a"]}, InvalidDocumentError, "2 texts but 1 ids"),
        ({"texts": ["tea", "rice"], "ids": ["a", "a"]}, InvalidDocumentError, "twice"),
        ({"texts": ["tea"], "metadatas": [{}, {}]}, InvalidDocumentError, "1 texts but 2 metadata"),
        ({"texts": "tea"}, InvalidDocumentError, "list of texts"),
        ({"texts": ["tea"], "batchsize": 2}, TypeError, "batchsize"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_written(empty, wrong, error, message):
    with pytest.raises(error, match=message):
        empty.add_texts(**wrong)
    assert empty.collection.count() == 0


def test_deleting_asks_for_ids_or_a_filter(empty):
    empty.add_documents(documents())
    for nothing in ({}, {"ids": None}, {"filter": None}, {"filter": {}}, {"ids": ["tea"], "filter": {"year": 1999}}):
        with pytest.raises(ValueError, match="either ids or a filter"):
            empty.delete(**nothing)
    with pytest.raises(TypeError, match="where"):
        empty.delete(["tea"], where={})
    assert empty.delete([]) is True
    assert empty.collection.count() == 4
    assert empty.delete(filter={"year": 1850}) is True
    assert sorted(empty.collection.ids()) == ["bees", "tea"]
    assert empty.delete(filter=models.Filter()) is True
    assert empty.collection.count() == 0


def test_the_payload_is_langchain_qdrants(mini):
    client = QdrantClient(":memory:")
    JinaColbertVectorStore.from_documents(documents(), encoder=mini, client=client, name="rooms")
    points, _ = client.scroll("rooms", limit=10, with_payload=True)
    read = {point.payload["page_content"]: point.payload["metadata"] for point in points}
    assert read == dict(zip(TEXTS, METADATA, strict=True))


# Async twins


async def test_every_async_twin_does_the_same(empty, mini):
    of_texts = await JinaColbertVectorStore.afrom_texts(TEXTS, mini, METADATA, ids=IDS, dim=64)
    of_documents = await JinaColbertVectorStore.afrom_documents(documents(), encoder=mini, dim=64)
    assert of_texts.get_by_ids(IDS) == of_documents.get_by_ids(IDS) == documents()
    assert await empty.aadd_documents(documents(), batch_size=2) == IDS
    assert await empty.aadd_texts(["A lamp."], [{"room": "hall"}], ids=["lamp"]) == ["lamp"]
    assert await empty.aget_by_ids(["lamp", "tea"]) == empty.get_by_ids(["lamp", "tea"])
    assert await empty.asimilarity_search(QUESTION, k=2) == empty.similarity_search(QUESTION, k=2)
    assert await empty.asimilarity_search_with_score(QUESTION) == empty.similarity_search_with_score(QUESTION)
    assert await empty.asimilarity_search_with_relevance_scores(
        QUESTION, score_threshold=0.1
    ) == empty.similarity_search_with_relevance_scores(QUESTION, score_threshold=0.1)
    assert await empty.amax_marginal_relevance_search(QUESTION, k=2) == empty.max_marginal_relevance_search(
        QUESTION, k=2
    )
    explained = await empty.asimilarity_search_with_explanation(QUESTION, k=1)
    ((document, explanation),) = empty.similarity_search_with_explanation(QUESTION, k=1)
    assert explained[0][0] == document
    np.testing.assert_allclose(explained[0][1].similarities, explanation.similarities, atol=1e-5)
    for search_type in ("similarity", "mmr"):
        assert await empty.asearch(QUESTION, search_type, k=2) == empty.search(QUESTION, search_type, k=2)
    assert await empty.adelete(["lamp"]) is True
    assert await empty.adelete(filter={"year": 1850}) is True
    assert sorted(empty.collection.ids()) == ["bees", "tea"]


# What is shown


def test_clients_and_keys_stay_out_of_what_is_shown(mini):
    client = QdrantClient(
        "https://user:sk-very-secret@localhost:1", api_key="sk-very-secret", check_compatibility=False
    )
    schema = CollectionSchema.describe(mini, 64, "split", "float16")
    engine = ClientEngine(client, "rooms", "rooms.1", storage="float16", owns_client=True, retries=1)
    store = JinaColbertVectorStore(ColbertCollection(engine, schema, mini))
    retriever = store.as_retriever(search_type="mmr")
    assert isinstance(retriever, VectorStoreRetriever)
    shown = [repr(store), str(store), repr(retriever), dumps(retriever), repr(dumpd(retriever)), dumps({"a": store})]
    shown += [repr(retriever | (lambda found: found)), repr(retriever.to_json()), repr(retriever._get_ls_params())]
    own = JinaColbertRetriever(collection=store.collection)
    shown += [repr(own), dumps(own), repr(own.to_json()), own.model_dump_json(), repr(own.model_dump())]
    for text in shown:
        assert "Client" not in text
        assert "secret" not in text
    assert repr(store) == "JinaColbertVectorStore(model='mini', dim=64)"
    store.collection.close()


@pytest.mark.parametrize("options", [{}, {"long_documents": "error"}])
def test_a_refused_document_replaces_and_creates_nothing(mini, location, options):
    """Lengths too are known before a collection is touched."""
    if location == ":memory:":
        pytest.skip("nothing is there before")
    too_long = "word " * (40_000 if not options else 1000)
    with pytest.raises(DocumentTooLongError, match="word word"):
        JinaColbertVectorStore.from_texts(["fine", too_long], mini, dim=64, location=location, **options)
    store = JinaColbertVectorStore.from_texts(["precious"], mini, ids=["kept"], dim=64, location=location)
    store.collection.close()
    with pytest.raises(DocumentTooLongError):
        JinaColbertVectorStore.from_texts(
            ["fine", too_long], mini, dim=64, location=location, overwrite=True, **options
        )
    store = JinaColbertVectorStore.from_existing_collection(location)
    assert [one.page_content for one in store.get_by_ids(["kept"])] == ["precious"]
    store.collection.close()


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: JinaColbertVectorStore.from_existing_collection(collection_name="house"), "Write name="),
        (lambda: JinaColbertVectorStore.from_existing_collection("house", url="http://x:1"), "write name='house'"),
        (lambda: JinaColbertVectorStore.from_texts(["a"], force_recreate=True), "Write overwrite=True"),
        (lambda: JinaColbertVectorStore.from_texts(["a"], api_key="k"), "client_options={'api_key': ...}"),
    ],
)
def test_what_other_stores_call_it_is_answered_with_what_to_write(call, said):
    with pytest.raises(TypeError, match=re.escape(said)):
        call()
