"""``JinaColbertVectorStore``: what its searches find, their scores, filters and explanations."""

from __future__ import annotations

import json
import warnings

import pytest
from langchain_samples import IDS, TEXTS, documents, ids_of
from qdrant_client import models

from jcv2_plugin import ColbertCollection, Explanation
from jcv2_plugin.errors import InvalidQueryError, UnsupportedFilterError
from langchain_jcv2 import JinaColbertVectorStore

QUESTION = "what do bees make?"


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


def test_searches_agree_with_the_collection(store):
    hits = store.collection.search(QUESTION, 4)
    assert store.similarity_search(QUESTION) == [one for one, _ in store.similarity_search_with_score(QUESTION)]
    assert [(one.id, score) for one, score in store.similarity_search_with_score(QUESTION, k=4)] == [
        (hit.id, hit.score) for hit in hits
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # LangChain warns of what is not in 0..1
        relevant = store.similarity_search_with_relevance_scores(QUESTION, k=4)
    assert [(one.id, relevance) for one, relevance in relevant] == [(hit.id, hit.relevance) for hit in hits]
    assert relevant[0][1] == pytest.approx(
        hits[0].score / len(store.collection.encoder.query_vectors([QUESTION], 64)[0])
    )
    assert store.search(QUESTION, "similarity", k=2) == store.similarity_search(QUESTION, k=2)


def test_thresholds_are_on_maxsim_or_on_relevance(store):
    first, second = store.collection.search(QUESTION, 2)
    maxsim, relevance = (first.score + second.score) / 2, (first.relevance + second.relevance) / 2
    assert ids_of(store.similarity_search(QUESTION, score_threshold=maxsim)) == ["bees"]
    found = store.similarity_search_with_relevance_scores(QUESTION, score_threshold=relevance)
    assert ids_of(one for one, _ in found) == ["bees"]
    retriever = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": relevance}
    )
    assert ids_of(retriever.invoke(QUESTION)) == ["bees"]
    assert retriever.invoke(QUESTION, score_threshold=1.0) == []


def test_marginal_relevance_prefers_what_differs(empty):
    near = [f"Bees make {what} honey from nectar." for what in ("sweet", "golden", "wild")]
    empty.add_texts([*near, TEXTS[1], "Honey is sold in jars."], ids=["0", "1", "2", "far", "jar"])
    question = "what honey do bees make from nectar?"
    similar = ids_of(empty.similarity_search(question, k=3))
    assert set(similar) == {"0", "1", "2"}
    assert ids_of(empty.max_marginal_relevance_search(question, k=3, lambda_mult=1.0)) == similar
    diverse = ids_of(empty.max_marginal_relevance_search(question, k=3, lambda_mult=0.3))
    assert diverse[0] == similar[0]
    assert diverse[1:] != similar[1:]
    assert set(ids_of(empty.max_marginal_relevance_search(question, k=3, fetch_k=3, lambda_mult=0.0))) == set(similar)
    assert len(empty.max_marginal_relevance_search(question, k=3, fetch_k=1)) == 3
    retriever = empty.as_retriever(search_type="mmr", search_kwargs={"k": 3, "lambda_mult": 0.3})
    assert ids_of(retriever.invoke(question)) == diverse
    with pytest.raises(InvalidQueryError, match="lambda_mult"):
        empty.max_marginal_relevance_search(question, lambda_mult=2.0)
    with pytest.raises(InvalidQueryError, match="fetch_k must be a positive integer, got 0"):
        empty.max_marginal_relevance_search(question, fetch_k=0)


def test_explanations(store):
    explained = store.similarity_search_with_explanation(QUESTION, k=2, filter={"year": 2020})
    ((document, explanation),) = explained
    assert document == documents()[2]
    assert isinstance(explanation, Explanation)
    assert explanation.text == TEXTS[2]
    (hit,) = store.collection.search(QUESTION, 1)
    assert explanation.score == pytest.approx(hit.score, abs=0.02)  # float16 is stored
    best = {match.query.token: match.document.token for match in explanation.matches}
    assert best["bees"] == "bees"
    json.dumps(document.metadata)


@pytest.mark.parametrize(
    "filter, expected",
    [
        ({"room": "hall"}, {"violin"}),
        ({"year": 1850}, {"lighthouse", "violin"}),
        ({"year": 1850, "room": "coast"}, {"lighthouse"}),
        ({"year": 1850, "room": "kitchen"}, set()),
        ({"used": True}, {"tea"}),
        ({"used": False}, {"lighthouse"}),
        ({"price": 12.5}, {"tea"}),
        ({"price": 12.4}, set()),
        ({"tags": "drink"}, {"tea"}),
        ({"maker": {"town": "Cremona"}}, {"violin"}),
        ({"maker": {"town": "Cremona", "name": "A. Stradivari"}}, {"violin"}),
        ({"a.b": "dotted"}, {"lighthouse"}),
        ({"a": {"b": "dotted"}}, set()),
        ({}, set(IDS)),
        (None, set(IDS)),
        (
            models.Filter(must=[models.FieldCondition(key="metadata.year", range=models.Range(gte=1999))]),
            {"tea", "bees"},
        ),
    ],
)
async def test_filters(store, filter, expected):
    assert set(ids_of(store.similarity_search("anything", k=4, filter=filter))) == expected
    assert set(ids_of(store.max_marginal_relevance_search("anything", k=4, filter=filter))) == expected
    scored = await store.asimilarity_search_with_relevance_scores("anything", k=4, filter=filter)
    assert set(ids_of(one for one, _ in scored)) == expected
    retriever = store.as_retriever(search_kwargs={"filter": filter})
    assert set(ids_of(retriever.invoke("anything"))) == expected


@pytest.mark.parametrize(
    "filter",
    [
        "room",
        3,
        [("room", "hall")],
        {"room": ["hall"]},
        {"room": None},
        {"year": {"$gte": 3}},
        {"$and": []},
        {3.5: "x"},
        {'a"b': "x"},
        {"": "x"},
        {"price": float("nan")},
        {"maker": {}},
    ],
)
def test_filters_that_would_select_something_else_are_refused(store, filter):
    with pytest.raises(UnsupportedFilterError, match=r"models\.Filter|store it under another key"):
        store.similarity_search("anything", filter=filter)
    with pytest.raises(UnsupportedFilterError):
        store.delete(filter=filter)
    assert store.collection.count() == 4


def test_a_first_stage_and_candidates_for_one_search(store):
    expected = ids_of(store.similarity_search(QUESTION, k=1))
    for options in (
        {"first_stage": "bm25"},
        {"first_stage": "pooled", "candidates": 2},
        {"exact": True},
        {"first_stage": "none"},
        {"candidates": 4},
    ):
        assert ids_of(store.similarity_search(QUESTION, k=1, **options)) == expected
    assert ids_of(store.similarity_search("violin", k=4, first_stage="bm25")) == ["violin"]
    with pytest.raises(InvalidQueryError, match="splade"):
        store.similarity_search(QUESTION, first_stage="splade")
    with pytest.raises(TypeError, match="candidate"):
        store.similarity_search(QUESTION, candidate=3)


async def test_searching_by_an_embedding_says_why_not(store):
    for search in (store.similarity_search_by_vector, store.max_marginal_relevance_search_by_vector):
        with pytest.raises(NotImplementedError, match="one vector for each token"):
            search([0.1] * 64)
    for search in (store.asimilarity_search_by_vector, store.amax_marginal_relevance_search_by_vector):
        with pytest.raises(NotImplementedError, match="one vector for each token"):
            await search([0.1] * 64)
