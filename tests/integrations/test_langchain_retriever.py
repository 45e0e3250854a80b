"""``JinaColbertRetriever``: LangChain's standard tests, and what they leave out."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.runnables import ConfigurableField
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_samples import IDS, METADATA, TEXTS, documents, ids_of
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError
from qdrant_client import models

from jcv2_plugin import ColbertCollection
from jcv2_plugin.errors import (
    CollectionExistsError,
    CollectionNotFoundError,
    InvalidQueryError,
)
from langchain_jcv2 import JinaColbertRetriever, JinaColbertVectorStore


def room(name: str) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="metadata.room", match=models.MatchValue(value=name))])


@pytest.fixture(scope="module")
def retriever(mini):
    found = JinaColbertRetriever.from_texts(TEXTS, ids=IDS, metadatas=METADATA, encoder=mini, k=2)
    yield found
    found.collection.close()


class TestStandard(RetrieversIntegrationTests):
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 0},
        {"search_kwargs": {"candidates": 9}},
        {"kk": 2},
        {"filter": "room"},
        {"collection": "folder"},
        {"candidates": 0},
        {"first_stage": "dense"},
    ],
)
def test_wrong_fields_are_refused(retriever, wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        JinaColbertRetriever(**{"collection": retriever.collection, **wrong})


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
    with pytest.raises(InvalidQueryError, match="splade"):
        own.invoke("violin", first_stage="splade")


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
    with pytest.raises(TypeError, match=r"not a InMemoryVectorStore\. Use its as_retriever"):
        JinaColbertRetriever.from_vectorstore(InMemoryVectorStore(DeterministicFakeEmbedding(size=4)))


def test_nothing_is_created_or_opened_for_fields_that_are_refused(mini, tmp_path: Path):
    folder = tmp_path / "collection"
    for wrong in ({"k": 0}, {"filter": "room"}, {"candidates": -1}, {"search_kwargs": {"k": 1}}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            JinaColbertRetriever.from_texts(TEXTS, encoder=mini, location=folder, **wrong)
    assert not folder.exists()


def test_a_url_given_for_a_collection_is_not_repeated():
    with pytest.raises(ValidationError) as caught:
        JinaColbertRetriever(collection="http://user:hunter2pw@host:6333")
    assert "hunter2pw" not in str(caught.value)
