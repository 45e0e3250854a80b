"""What a search may be asked for beside its hits: relevance, explanations, a first stage of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import server_site
from collection_samples import DIM, QUERIES, Create, both_engines, documents, first, store

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder, SearchHit
from jcv2_plugin.collection import search as searching
from jcv2_plugin.documents import point_id
from jcv2_plugin.engines.base import Matrix, SearchRequest
from jcv2_plugin.errors import InvalidDocumentError, InvalidQueryError

ITEMS = documents(60)
LONG = Document("The tide comes in, and the ferry waits in the harbour. " * 60, "long")
STAGES: tuple[Any, ...] = ("none", "pooled", "bm25", "hybrid")


@pytest.fixture(scope="module")
def collections(
    mini: JinaColbertEncoder, vectors: list[Matrix], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], ColbertCollection]]:
    """By engine and first stage, only read."""
    made: dict[tuple[str, str], ColbertCollection] = {}
    with ExitStack() as stack:
        for engine, stage in itertools.product(("edge", "memory"), STAGES):
            location = ":memory:" if engine == "memory" else tmp_path_factory.mktemp(stage) / "collection"
            one = ColbertCollection.create(location, encoder=mini, dim=DIM, first_stage=stage)
            made[engine, stage] = stack.enter_context(one)
            store(one, ITEMS, vectors[:60])
        yield made


@pytest.fixture
def collection(collections: dict[tuple[str, str], ColbertCollection], engine: str) -> ColbertCollection:
    return collections[engine, "hybrid"]


class Calls:
    """What the engine and the encoder were asked, written down on its way."""

    def __init__(self, collection: ColbertCollection, patch: pytest.MonkeyPatch) -> None:
        self.requests: list[SearchRequest] = []
        self.retrieved: list[list[str]] = []
        self.documents: list[list[str]] = []
        self.queries: list[list[str]] = []
        for owner, name, noted in (
            (collection.engine, "retrieve", lambda ids, **rest: self.retrieved.append(list(ids))),
            (collection.engine, "search", lambda requests, *rest, **options: self.requests.extend(requests)),
            (JinaColbertEncoder, "document_vectors", lambda _, texts, *rest: self.documents.append(list(texts))),
            (JinaColbertEncoder, "query_vectors", lambda _, texts, *rest: self.queries.append(list(texts))),
        ):
            first(patch, owner, name, noted)


@pytest.fixture
def calls(collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(collection, monkeypatch)


class TestRelevance:
    def test_it_is_the_mean_over_the_query_vectors(
        self, collection: ColbertCollection, mini: JinaColbertEncoder
    ) -> None:
        for query, hits in zip(QUERIES, collection.search_many(QUERIES, 20), strict=True):
            number = len(mini.query_vectors([query], DIM)[0])
            assert {hit.query_vectors for hit in hits} == {number}
            assert [hit.relevance for hit in hits] == pytest.approx([hit.score / number for hit in hits])
            assert all(0 < hit.relevance < 1 for hit in hits)
        itself = collection.search(ITEMS[3].text, 2)
        assert itself[0].relevance > max(0.9, itself[1].relevance)

    @pytest.mark.parametrize(
        "score, vectors, relevance", [(8.0, 32, 0.25), (32.01, 32, 1.0), (-3.0, 32, 0.0), (0.0, 0, 0.0), (5.0, 0, 0.0)]
    )
    def test_it_is_within_0_and_1(self, score: float, vectors: int, relevance: float) -> None:
        assert SearchHit("a", "text", {}, score=score, query_vectors=vectors).relevance == relevance


class TestWithExplanation:
    @both_engines
    def test_each_hit_has_its_own(
        self, collection: ColbertCollection, calls: Calls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The queries are encoded once, and what several of them found is read once, in parts."""
        monkeypatch.setattr(searching, "_DOCUMENTS_AT_A_TIME", 8)
        found = collection.search_many(QUERIES, 7, with_explanation=True)
        different = {hit.id for hits in found for hit in hits}
        assert len(different) < sum(map(len, found)) == 35
        assert (calls.queries, calls.documents) == ([list(QUERIES)], [])
        assert sorted(itertools.chain(*calls.retrieved)) == sorted(map(point_id, different))
        assert max(map(len, calls.retrieved)) == 8
        calls.retrieved.clear()
        plain = collection.search_many(QUERIES, 7)
        assert collection.search(QUERIES[0], 5, score_threshold=1e6, with_explanation=True) == []
        assert collection.search_many([], 5, with_explanation=True) == []
        assert calls.retrieved == []
        assert plain == found  # an explanation is neither compared nor shown
        assert "xplanation" not in repr(found[0][0])
        assert [one.name for one in fields(SearchHit)][-2:] == ["query_vectors", "explanation"]
        for query, hit in ((query, hit) for query, hits in zip(QUERIES, found, strict=True) for hit in hits):
            assert (hit.explanation.query, hit.explanation.text) == (query, hit.text)
            assert hit.explanation.score == pytest.approx(hit.score, abs=1e-3)
            alone = collection.explain(query, hit.id)
            np.testing.assert_allclose(hit.explanation.similarities, alone.similarities, atol=1e-5)
            matched = [(match.query, match.document) for match in hit.explanation.matches]
            assert matched == [(match.query, match.document) for match in alone.matches]

    def test_pooled_documents_are_encoded_anew_in_one_batch(
        self, create: Create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collection = create(pool_factor=2)
        collection.add([*ITEMS[:12], LONG])
        calls = Calls(collection, monkeypatch)
        hits = collection.search("when does the ferry wait?", 6, with_explanation=True)
        assert calls.documents == [[hit.text for hit in hits]]
        assert calls.retrieved == []
        assert "long" in [hit.id for hit in hits]
        assert all(hit.explanation is not None and hit.explanation.score >= hit.score - 1e-3 for hit in hits)

    @pytest.mark.parametrize(
        "engine, storage", [("edge", "float32"), ("memory", "float16"), ("edge", "int8"), ("edge", "turbo4")]
    )
    def test_windows_and_storages(self, create: Create, storage: str) -> None:
        collection = create(storage=storage)
        collection.add([LONG, *ITEMS[:5]])
        hit = collection.search("the ferry waits for the tide", 1, with_explanation=True)[0]
        assert hit.id == "long"
        assert hit.explanation.document_tokens[-2].end == len(LONG.text.rstrip())
        assert hit.explanation.score == pytest.approx(hit.score, abs=0.2 if storage == "turbo4" else 1e-2)

    def test_queries_and_ids_are_checked_as_elsewhere(self, create: Create) -> None:
        collection = create(5)
        for query in ("", " ", None, "\ud800"):
            with pytest.raises(InvalidQueryError, match=r"non-empty|lone surrogates"):
                collection.explain(query, "d1")  # type: ignore[arg-type]
        for id in (None, 5, "\ud800"):
            with pytest.raises(InvalidDocumentError, match=r"Ids are str, got|lone surrogates"):
                collection.explain(QUERIES[0], id)  # type: ignore[arg-type]

    @both_engines
    @pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "deleted"])
    def test_a_document_that_went_after_it_was_found(
        self, create: Create, monkeypatch: pytest.MonkeyPatch, replaced: bool
    ) -> None:
        """It is explained by the text that was found, not by the vectors of another."""
        collection = create(20)
        before = collection.search(QUERIES[0], 3, with_explanation=True)
        search = collection.engine.search

        def then_changed(*arguments: Any, **options: Any) -> Any:
            found = search(*arguments, **options)
            if replaced:
                collection.add(["Another text, and a longer one than it was before by far."], ids=[before[1].id])
            else:
                collection.delete([before[1].id])
            return found

        monkeypatch.setattr(collection.engine, "search", then_changed)
        hit = collection.search(QUERIES[0], 3, with_explanation=True)[1]
        assert hit == before[1]
        np.testing.assert_allclose(hit.explanation.similarities, before[1].explanation.similarities, atol=2e-3)


class TestFirstStage:
    @both_engines
    @pytest.mark.parametrize("stage", ["pooled", "bm25", "hybrid"])
    def test_a_hybrid_collection_has_its_parts(
        self, collections: Any, collection: ColbertCollection, engine: str, stage: Any
    ) -> None:
        """And scores stay exact."""
        shared = 0
        for query in QUERIES:
            hits = collection.search(query, 8, candidates=8, first_stage=stage)
            alone = collections[engine, stage].search(query, 8, candidates=8)
            shared += len({hit.id for hit in hits} & {hit.id for hit in alone})
            exact = {hit.id: hit.score for hit in collection.search(query, 60, first_stage="none")}
            assert len(exact) == 60
            assert all(hit.score == pytest.approx(exact[hit.id]) for hit in hits)
        # Which of equal words' scores comes first is the engine's choice.
        assert shared == 40 if stage == "pooled" else shared >= 35

    @pytest.mark.parametrize(
        "stage, names",
        [(None, ["bm25", "pooled"]), ("hybrid", ["bm25", "pooled"]), ("pooled", ["pooled"]), ("bm25", ["bm25"])],
    )
    def test_what_the_engine_is_asked(
        self, collection: ColbertCollection, calls: Calls, stage: Any, names: list[str]
    ) -> None:
        collection.search(QUERIES[0], candidates=9, first_stage=stage)
        collection.search(QUERIES[0], exact=False, first_stage=stage)
        collection.search_mmr(QUERIES[0], 3, candidates=25, first_stage=stage)
        asked = [request.candidates for request in calls.requests]
        assert [sorted(one.stages) for one in asked if one is not None] == [names] * 3
        assert [one.limit for one in asked if one is not None] == [10, 300, 25]
        # One that is named is used however few documents there are.
        collection.search_many(QUERIES, 3, first_stage=stage)
        assert {one.candidates is not None for one in calls.requests[3:]} == {stage is not None}

    def test_none_ranks_all(self, collections: Any, collection: ColbertCollection, calls: Calls) -> None:
        collection.search(QUERIES[0], first_stage="none")
        collection.search(QUERIES[0], first_stage="none", exact=True)
        assert [request.candidates for request in calls.requests] == [None, None]
        assert len(collections["edge", "none"].search(QUERIES[0], first_stage="none")) == 10

    @pytest.mark.parametrize(
        "stored, options, message",
        [
            ("none", {"first_stage": "pooled"}, r"\['none'\], not 'pooled'"),
            ("pooled", {"first_stage": "hybrid", "candidates": 5}, r"\['none', 'pooled'\], not 'hybrid'"),
            ("bm25", {"first_stage": "pooled", "exact": True}, r"\['none', 'bm25'\], not 'pooled'"),
            ("hybrid", {"first_stage": "colbert"}, r"\['none', 'pooled', 'bm25', 'hybrid'\], not 'colbert'"),
            ("hybrid", {"first_stage": "none", "candidates": 5}, "first_stage='none' ranks all documents"),
            ("hybrid", {"first_stage": "none", "exact": False}, "first_stage='none' ranks all documents"),
            ("hybrid", {"first_stage": "pooled", "exact": True}, "exact=True ranks all .* first_stage='pooled'"),
        ],
    )
    def test_what_cannot_be(self, collections: Any, stored: str, options: Any, message: str) -> None:
        with pytest.raises(InvalidQueryError, match=message) as caught:
            collections["edge", stored].search(QUERIES[0], **options)
        if "not '" in message:
            assert f"has the first stage '{stored}'" in str(caught.value)
            assert "migrate" in str(caught.value)


def test_on_a_server(mini: JinaColbertEncoder, loopback: server_site.Site) -> None:
    with loopback.create(mini, first_stage="hybrid") as collection:
        collection.add(ITEMS[:20])
        for hit in collection.search(QUERIES[0], 4, first_stage="pooled", with_explanation=True):
            assert hit.explanation.score == pytest.approx(hit.score, abs=1e-2)
        assert len(collection.search_mmr(QUERIES[0], 4, lambda_mult=0.2)) == 4


@both_engines
def test_numbers_that_are_none_are_refused(collection: ColbertCollection) -> None:
    wrong: list[Any] = [{"score_threshold": float("nan")}, {"score_threshold": "a"}, {"k": 10**30}, {"k": True}]
    for options in [*wrong, {"candidates": 10**30}]:
        with pytest.raises(InvalidQueryError, match=next(iter(options))):
            collection.search("a question", **options)
