"""``JinaColbertRetriever``: LangChain's standard tests, and what they leave out."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumpd, dumps
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_samples import IDS, METADATA, TEXTS, documents, ids_of
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError
from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection, CollectionSchema
from jcv2_plugin.engines.qdrant import ClientEngine
from jcv2_plugin.errors import (
    CollectionExistsError,
    CollectionNotFoundError,
    InvalidDocumentError,
    InvalidQueryError,
    UnsupportedFilterError,
)
from langchain_jcv2 import JinaColbertRetriever, JinaColbertVectorStore


def room(name: str) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="metadata.room", match=models.MatchValue(value=name))])


@pytest.fixture(scope="module")
def retriever(mini):
    found = JinaColbertRetriever.from_texts(TEXTS, ids=IDS, metadatas=METADATA, encoder=mini, k=2)
    yield found
    found.collection.close()


class _Standard(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _collection(self, mini, location):
        with ColbertCollection.create(location, encoder=mini) as self.collection:
            self.collection.add(TEXTS, ids=IDS, metadata=METADATA)
            yield

    @property
    def retriever_constructor(self):
        return JinaColbertRetriever

    @property
    def retriever_constructor_params(self):
        return {"collection": self.collection}

    @property
    def retriever_query_example(self):
        return "what do bees make?"


class TestStandardInMemory(_Standard):
    @pytest.fixture
    def location(self):
        return ":memory:"


class TestStandardInFolder(_Standard):
    @pytest.fixture
    def location(self, tmp_path):
        return tmp_path / "collection"


def test_documents_come_back_as_they_were_added(retriever):
    (found,) = retriever.invoke("Who plays four strings?", k=1)
    assert found == Document(id="violin", page_content=TEXTS[3], metadata=METADATA[3])


def test_k_filter_and_threshold_are_honoured_for_one_call(retriever):
    question = "what do bees make?"
    assert [len(retriever.invoke(question, k=k)) for k in (1, 3, 4)] == [1, 3, 4]
    assert len(retriever.invoke(question)) == 2
    assert [one.id for one in retriever.invoke(question, filter=room("coast"))] == ["lighthouse"]
    best, second = retriever.collection.search(question, k=2)
    between = (best.score + second.score) / 2
    assert [one.id for one in retriever.invoke(question, score_threshold=between)] == ["bees"]
    assert retriever.bind(k=1).invoke(question) == retriever.invoke(question, k=1)


def test_own_filter_and_search_kwargs(retriever):
    own = JinaColbertRetriever(
        collection=retriever.collection, filter=room("hall"), search_kwargs={"score_threshold": -100.0}
    )
    assert [one.id for one in own.invoke("bees")] == ["violin"]
    assert [one.id for one in own.invoke("bees", filter=None)] == ["violin"]
    assert [one.id for one in own.invoke("bees", filter=room("coast"))] == ["lighthouse"]
    assert own.invoke("bees", score_threshold=1000.0) == []


@pytest.mark.parametrize(
    "wrong",
    [{"k": 0}, {"k": -1}, {"search_kwargs": {"k": 2}}, {"kk": 2}, {"filter": "room"}, {"collection": "folder"}],
)
def test_wrong_fields_are_refused(retriever, wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        JinaColbertRetriever(**{"collection": retriever.collection, **wrong})


@pytest.mark.parametrize("wrong", [{"candidates": 0}, {"first_stage": "dense"}, {"search_kwargs": {"candidates": 9}}])
def test_wrong_search_fields_are_refused(retriever, wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        JinaColbertRetriever(collection=retriever.collection, **wrong)


def test_wrong_calls_are_refused(retriever):
    with pytest.raises(InvalidQueryError, match="k must be a positive integer, got 0"):
        retriever.invoke("bees", k=0)
    with pytest.raises(InvalidQueryError, match="non-empty"):
        retriever.invoke(" ")
    with pytest.raises(TypeError, match="score_treshold"):
        retriever.invoke("bees", score_treshold=1.0)


def test_a_field_can_be_changed_and_configured(retriever):
    own = JinaColbertRetriever(collection=retriever.collection)
    own.k = 3
    assert len(own.invoke("bees")) == 3
    with pytest.raises(ValidationError):
        own.k = 0
    configurable = own.configurable_fields(k=ConfigurableField(id="results"))
    assert len(configurable.invoke("bees", config={"configurable": {"results": 1}})) == 1


def test_the_score_is_offered(retriever):
    scored = JinaColbertRetriever(collection=retriever.collection, add_score=True)
    hits = retriever.collection.search("honey", k=4)
    found = scored.invoke("honey")
    assert [one.metadata["maxsim"] for one in found] == [hit.score for hit in hits]
    assert [one.metadata["relevance_score"] for one in found] == [hit.relevance for hit in hits]
    assert all(0 < one.metadata["relevance_score"] < 1 for one in found)
    assert found[0].metadata == {**METADATA[2], "maxsim": hits[0].score, "relevance_score": hits[0].relevance}


def test_a_filter_may_be_a_dict(retriever):
    own = JinaColbertRetriever(collection=retriever.collection, filter={"year": 1850})
    assert set(ids_of(own.invoke("anything"))) == {"lighthouse", "violin"}
    assert ids_of(own.invoke("anything", filter={"room": "garden"})) == ["bees"]
    assert isinstance(own.filter, models.Filter)
    with pytest.raises(UnsupportedFilterError, match="room"):
        own.invoke("anything", filter={"room": ["garden"]})


def test_the_first_stage_and_its_candidates_are_set_for_a_retriever_or_a_call(retriever, monkeypatch):
    own = JinaColbertRetriever(collection=retriever.collection, k=4, first_stage="bm25", candidates=3)
    assert ids_of(own.invoke("violin")) == ["violin"]  # nothing else has the word
    assert len(own.invoke("violin", first_stage="none")) == len(own.invoke("violin", exact=True)) == 4
    assert len(retriever.invoke("violin", k=4, first_stage="bm25")) == 1
    seen = []
    search = retriever.collection.search
    monkeypatch.setattr(
        retriever.collection, "search", lambda *args, **options: seen.append(options) or search(*args, **options)
    )
    own.invoke("violin", candidates=2)
    assert (seen[0]["first_stage"], seen[0]["candidates"]) == ("bm25", 2)
    with pytest.raises(InvalidQueryError, match="muvera"):
        own.invoke("violin", first_stage="muvera")


def test_token_matches_are_offered(retriever):
    own = JinaColbertRetriever(collection=retriever.collection, k=1, with_explanation=True)
    (found,) = own.invoke("what do bees make?")
    matches = found.metadata.pop("token_matches")
    assert found == documents()[2]
    assert json.loads(json.dumps(matches)) == matches
    bees = next(match for match in matches if match["query_token"] == "bees")
    assert bees["document_token"] == "bees"
    assert TEXTS[2][bees["start"] : bees["end"]] == "Bees"
    assert 0.3 < bees["similarity"] <= 1.001
    assert "token_matches" not in retriever.collection.get(["bees"])[0].metadata
    assert "token_matches" in retriever.invoke("bees", with_explanation=True)[0].metadata
    assert "token_matches" not in own.invoke("bees", with_explanation=False)[0].metadata


async def test_async_finds_the_same(retriever):
    question = "what warns a ship?"
    assert await retriever.ainvoke(question) == retriever.invoke(question)
    assert [one.id for one in await retriever.ainvoke(question, k=1)] == ["lighthouse"]
    assert [one.id for one in await retriever.ainvoke(question, filter=room("hall"))] == ["violin"]


async def test_the_event_loop_runs_while_a_search_does(retriever, monkeypatch):
    loop_ran = threading.Event()
    search = retriever.collection.search

    def waiting(*args, **kwargs):
        assert loop_ran.wait(timeout=20), "the search kept the event loop from running"
        return search(*args, **kwargs)

    monkeypatch.setattr(retriever.collection, "search", waiting)
    task = asyncio.create_task(retriever.ainvoke("honey", k=1))
    await asyncio.sleep(0.01)
    loop_ran.set()
    assert [one.id for one in await task] == ["bees"]


async def test_batches(retriever):
    questions = ["what do bees make?", "what warns ships?", "how many strings?"]
    expected = ["bees", "lighthouse", "violin"]
    assert [found[0].id for found in retriever.batch(questions)] == expected
    assert [found[0].id for found in await retriever.abatch(questions, k=1)] == expected


def test_in_a_chain(retriever):
    prompt = ChatPromptTemplate.from_template("Answer from {context}\nQuestion: {question}")
    context = retriever | (lambda found: " ".join(one.page_content for one in found))
    seen = []
    chain = (
        {"context": context, "question": RunnablePassthrough()}
        | prompt
        | (lambda value: seen.append(value.to_string()) or value)
        | FakeListChatModel(responses=["Honey."])
        | StrOutputParser()
    )
    assert chain.invoke("what do bees make?") == "Honey."
    assert "Bees make honey" in seen[0]


def test_inputs_and_stored_documents_stay_as_they_are(mini, location):
    given = copy.deepcopy(documents())
    retriever = JinaColbertRetriever.from_documents(given, encoder=mini, location=location, add_score=True)
    found = retriever.invoke("tea", k=1)[0]
    assert given == documents()
    found.metadata["tags"].append("mine")
    given[0].metadata["tags"].append("mine")
    assert retriever.invoke("tea", k=1)[0].metadata["tags"] == ["hot", "drink"]
    retriever.collection.close()


def test_ids_may_be_left_out(mini):
    documents = [Document(page_content=TEXTS[0]), Document(page_content=TEXTS[2], id="bees")]
    retriever = JinaColbertRetriever.from_documents(documents, encoder=mini)
    ids = {one.page_content: one.id for one in retriever.invoke("honey")}
    assert ids[TEXTS[2]] == "bees"
    assert ids[TEXTS[0]]
    assert [one.id for one in documents] == [None, "bees"]


def test_from_collection(mini, tmp_path):
    folder = tmp_path / "collection"
    made = JinaColbertRetriever.from_texts(TEXTS, ids=IDS, encoder=mini, location=folder, storage="float32")
    with pytest.raises(TypeError, match="encoder"):
        JinaColbertRetriever.from_collection(made.collection, encoder=mini)
    shared = JinaColbertRetriever.from_collection(made.collection, k=1, add_score=True, tags=["kitchen"])
    assert shared.invoke("tea")[0].metadata["relevance_score"] > 0
    assert shared.tags == ["kitchen"]
    made.collection.close()
    opened = JinaColbertRetriever.from_collection(folder, k=1, encoder=mini)
    assert opened.invoke("tea")[0].id == "tea"
    opened.collection.close()
    with pytest.raises(ValidationError):
        JinaColbertRetriever.from_collection(folder, k=0)
    with pytest.raises(CollectionExistsError):
        JinaColbertRetriever.from_texts(TEXTS, encoder=mini, location=folder)
    with pytest.raises(CollectionNotFoundError):
        JinaColbertRetriever.from_collection(tmp_path / "elsewhere")
    JinaColbertRetriever.from_collection(folder, encoder=mini).collection.close()


def test_from_a_vector_store(retriever):
    store = JinaColbertVectorStore(retriever.collection)
    own = JinaColbertRetriever.from_vectorstore(store, k=1, add_score=True)
    assert own.collection is store.collection
    assert own.invoke("honey")[0].metadata["maxsim"] > 0
    with pytest.raises(ValidationError, match="kk"):
        JinaColbertRetriever.from_vectorstore(store, kk=1)
    with pytest.raises(TypeError, match="not a InMemoryVectorStore: that has as_retriever"):
        JinaColbertRetriever.from_vectorstore(InMemoryVectorStore(DeterministicFakeEmbedding(size=4)))


def test_nothing_is_created_or_opened_for_fields_that_are_refused(mini, tmp_path: Path):
    folder = tmp_path / "collection"
    for wrong in ({"k": 0}, {"filter": "room"}, {"candidates": -1}, {"search_kwargs": {"k": 1}}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            JinaColbertRetriever.from_texts(TEXTS, encoder=mini, location=folder, **wrong)
    assert not folder.exists()


def test_nothing_is_created_for_documents_that_are_refused(mini, tmp_path: Path):
    folder = tmp_path / "collection"
    with pytest.raises(InvalidDocumentError, match="the text is empty"):
        JinaColbertRetriever.from_texts(["tea", ""], encoder=mini, location=folder)
    with pytest.raises(InvalidDocumentError, match="2 texts but 1 ids"):
        JinaColbertRetriever.from_texts(["tea", "rice"], ids=["a"], encoder=mini, location=folder)
    assert not folder.exists()


def test_clients_and_keys_stay_out_of_dumps(mini):
    client = QdrantClient("https://localhost:1", api_key="sk-very-secret", check_compatibility=False)
    schema = CollectionSchema.describe(mini, 64, "split", "float16")
    engine = ClientEngine(client, "rooms", "rooms.1", storage="float16", owns_client=True, retries=1)
    retriever = JinaColbertRetriever(collection=ColbertCollection(engine, schema, mini))
    shown = [repr(retriever), str(retriever), repr(dumpd(retriever)), dumps(retriever), repr(retriever.to_json())]
    shown += [retriever.model_dump_json(), repr(retriever.model_dump()), repr(retriever | (lambda found: found))]
    for text in shown:
        assert "Client" not in text
        assert "sk-very-secret" not in text
        assert "collection" not in text.lower()
    retriever.collection.close()


def test_a_client_of_ones_own(mini):
    client = QdrantClient(":memory:")
    retriever = JinaColbertRetriever.from_texts(TEXTS, encoder=mini, client=client, name="rooms")
    assert client.count("rooms").count == len(TEXTS)
    assert "Client" not in repr(retriever) + dumps(retriever)
    retriever.collection.close()
    opened = JinaColbertRetriever.from_collection(client=client, name="rooms", encoder=mini, k=1)
    assert opened.invoke("honey")[0].page_content == TEXTS[2]


def test_tracing_names_the_model(retriever):
    params = retriever._get_ls_params()
    assert params["ls_retriever_name"] == "jinacolbert"
    assert params["ls_vector_store_provider"] == "Qdrant"
    assert params["ls_embedding_model"] == "mini"


def test_a_url_given_for_a_collection_is_not_repeated():
    with pytest.raises(ValidationError) as caught:
        JinaColbertRetriever(collection="http://user:hunter2pw@host:6333")
    assert "hunter2pw" not in str(caught.value)
