"""What a search may be asked for beside its hits: relevance, explanations, a first stage of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import server_site
from collection_samples import DIM, QUERIES, documents, encoded, store
from numpy.typing import NDArray

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder, SearchHit
from jcv2_plugin.collection import search as searching
from jcv2_plugin.documents import point_id
from jcv2_plugin.engines.base import SearchRequest
from jcv2_plugin.errors import InvalidQueryError

ITEMS = documents(60)
LONG = Document("The tide comes in, and the ferry waits in the harbour. " * 60, "long")
ENGINES = ("edge", "memory")


@pytest.fixture(scope="module")
def vectors(mini: JinaColbertEncoder) -> list[NDArray[np.float32]]:
    return encoded(mini, ITEMS)


def location(engine: str, folder: Path) -> Any:
    return ":memory:" if engine == "memory" else folder / "collection"


@pytest.fixture(params=ENGINES)
def collection(
    request: pytest.FixtureRequest, mini: JinaColbertEncoder, vectors: list[NDArray[np.float32]], tmp_path: Path
) -> Iterator[ColbertCollection]:
    with ColbertCollection.create(location(request.param, tmp_path), encoder=mini, dim=DIM) as made:
        store(made, ITEMS, vectors)
        yield made


class Calls:
    """What the engine and the encoder were asked, written down on its way."""

    def __init__(self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[SearchRequest] = []
        self.retrieved: list[list[str]] = []
        self.documents: list[list[str]] = []
        self.queries: list[list[str]] = []
        engine = collection.engine
        search, retrieve = engine.search, engine.retrieve
        encode, encode_queries = JinaColbertEncoder.document_vectors, JinaColbertEncoder.query_vectors

        def searched(requests: Any, *rest: Any, **options: Any) -> Any:
            self.requests.extend(requests)
            return search(requests, *rest, **options)

        def retrieved(ids: Any, **options: Any) -> Any:
            self.retrieved.append(list(ids))
            return retrieve(ids, **options)

        def document_vectors(encoder: JinaColbertEncoder, texts: Any, *rest: Any) -> Any:
            self.documents.append(list(texts))
            return encode(encoder, texts, *rest)

        def query_vectors(encoder: JinaColbertEncoder, texts: Any, *rest: Any) -> Any:
            self.queries.append(list(texts))
            return encode_queries(encoder, texts, *rest)

        monkeypatch.setattr(engine, "search", searched)
        monkeypatch.setattr(engine, "retrieve", retrieved)
        monkeypatch.setattr(JinaColbertEncoder, "document_vectors", document_vectors)
        monkeypatch.setattr(JinaColbertEncoder, "query_vectors", query_vectors)


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

    @pytest.mark.parametrize(
        "score, vectors, relevance", [(8.0, 32, 0.25), (32.01, 32, 1.0), (-3.0, 32, 0.0), (0.0, 0, 0.0), (5.0, 0, 0.0)]
    )
    def test_it_is_within_0_and_1(self, score: float, vectors: int, relevance: float) -> None:
        assert SearchHit("a", "text", {}, score=score, query_vectors=vectors).relevance == relevance

    def test_a_document_found_by_itself(self, mini: JinaColbertEncoder) -> None:
        text = "A farmer mends a red boat."
        with ColbertCollection.create(":memory:", encoder=mini, dim=DIM, storage="float32") as collection:
            collection.add([text, "Something else."])
            hits = collection.search(text, 2)
        assert hits[0].relevance > 0.9
        assert hits[0].relevance > hits[1].relevance

    def test_an_explanation_is_neither_compared_nor_shown(self, collection: ColbertCollection) -> None:
        explained = collection.search(QUERIES[0], 2, with_explanation=True)
        assert explained == collection.search(QUERIES[0], 2)
        assert "xplanation" not in repr(explained[0])
        assert [one.name for one in fields(SearchHit)][-2:] == ["query_vectors", "explanation"]


class TestWithExplanation:
    def test_each_hit_has_its_own(self, collection: ColbertCollection) -> None:
        found = collection.search_many(QUERIES, 7, with_explanation=True)
        for query, hits, plain in zip(QUERIES, found, collection.search_many(QUERIES, 7), strict=True):
            assert [(hit.id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in plain]
            assert {hit.explanation for hit in plain} == {None}
            for hit in hits:
                assert hit.explanation is not None
                assert (hit.explanation.query, hit.explanation.text) == (query, hit.text)
                assert hit.explanation.score == pytest.approx(hit.score, abs=1e-3)
                alone = collection.explain(query, hit.id)
                np.testing.assert_allclose(hit.explanation.similarities, alone.similarities, atol=1e-5)
                matched = [(match.query, match.document) for match in hit.explanation.matches]
                assert matched == [(match.query, match.document) for match in alone.matches]

    def test_the_query_is_encoded_once_and_vectors_are_read_together(
        self, collection: ColbertCollection, calls: Calls
    ) -> None:
        found = collection.search_many(QUERIES, 3, with_explanation=True)
        assert calls.queries == [list(QUERIES)]
        assert calls.documents == []
        assert [set(one) for one in calls.retrieved] == [{point_id(hit.id) for hits in found for hit in hits}]

    def test_what_several_queries_found_is_read_once(self, collection: ColbertCollection, calls: Calls) -> None:
        found = collection.search_many(QUERIES, 20, with_explanation=True)
        different = {hit.id for hits in found for hit in hits}
        assert len(different) < sum(map(len, found)) == 100
        assert sorted(itertools.chain(*calls.retrieved)) == sorted(map(point_id, different))
        assert all(hit.explanation.text == hit.text for hits in found for hit in hits if hit.explanation)

    def test_many_hits_are_read_in_parts(
        self, collection: ColbertCollection, calls: Calls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(searching, "_DOCUMENTS_AT_A_TIME", 8)
        hits = collection.search(QUERIES[0], 20, with_explanation=True)
        assert all(hit.explanation is not None for hit in hits)
        assert list(map(len, calls.retrieved)) == [8, 8, 4]

    def test_without_it_nothing_is_read(self, collection: ColbertCollection, calls: Calls) -> None:
        collection.search(QUERIES[0], 5)
        assert calls.retrieved == []

    @pytest.mark.parametrize("engine", ENGINES)
    def test_pooled_documents_are_encoded_anew_in_one_batch(
        self, engine: str, mini: JinaColbertEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with ColbertCollection.create(location(engine, tmp_path), encoder=mini, dim=DIM, pool_factor=2) as collection:
            collection.add([*ITEMS[:12], LONG])
            calls = Calls(collection, monkeypatch)
            hits = collection.search("when does the ferry wait?", 6, with_explanation=True)
            assert calls.documents == [[hit.text for hit in hits]]
            assert calls.retrieved == []
            assert "long" in [hit.id for hit in hits]
            for hit in hits:
                assert hit.explanation is not None
                assert hit.explanation.score >= hit.score - 1e-3

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("storage", ["float32", "float16", "int8", "turbo4"])
    def test_windows_and_storages(self, engine: str, storage: Any, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        with ColbertCollection.create(location(engine, tmp_path), encoder=mini, dim=DIM, storage=storage) as collection:
            collection.add([LONG, *ITEMS[:5]])
            hit = collection.search("the ferry waits for the tide", 1, with_explanation=True)[0]
        assert hit.id == "long"
        assert hit.explanation is not None
        assert hit.explanation.document_tokens[-2].end == len(LONG.text.rstrip())
        assert hit.explanation.score == pytest.approx(hit.score, abs=0.2 if storage == "turbo4" else 1e-2)

    @pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "deleted"])
    def test_a_document_that_went_after_it_was_found(
        self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch, replaced: bool
    ) -> None:
        """It is explained by the text that was found, not by the vectors of another."""
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
        assert hit.explanation is not None
        assert before[1].explanation is not None
        np.testing.assert_allclose(hit.explanation.similarities, before[1].explanation.similarities, atol=2e-3)

    def test_no_hits(self, collection: ColbertCollection, calls: Calls) -> None:
        assert collection.search(QUERIES[0], 5, score_threshold=1e6, with_explanation=True) == []
        assert collection.search_many([], 5, with_explanation=True) == []
        assert calls.retrieved == []


@pytest.fixture(scope="module")
def by_stage(
    mini: JinaColbertEncoder, vectors: list[NDArray[np.float32]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], ColbertCollection]]:
    made: dict[tuple[str, str], ColbertCollection] = {}
    for engine in ENGINES:
        for stage in ("none", "pooled", "muvera", "bm25", "hybrid"):
            folder = tmp_path_factory.mktemp(stage)
            name: Any = stage
            one = ColbertCollection.create(location(engine, folder), encoder=mini, dim=DIM, first_stage=name)
            store(one, ITEMS, vectors)
            made[engine, stage] = one
    yield made
    for one in made.values():
        one.close()


@pytest.mark.parametrize("engine", ENGINES)
class TestFirstStage:
    @pytest.mark.parametrize("stage", ["pooled", "bm25", "hybrid"])
    def test_a_hybrid_collection_has_its_parts(self, by_stage: Any, engine: str, stage: str) -> None:
        hybrid, alone = by_stage[engine, "hybrid"], by_stage[engine, stage]
        shared = 0
        for query in QUERIES:
            found = {hit.id for hit in hybrid.search(query, 8, candidates=8, first_stage=stage)}
            shared += len(found & {hit.id for hit in alone.search(query, 8, candidates=8)})
        # Which of equal words' scores comes first is the engine's choice.
        assert shared == 40 if stage == "pooled" else shared >= 35

    @pytest.mark.parametrize(
        "stage, names",
        [(None, ["bm25", "pooled"]), ("hybrid", ["bm25", "pooled"]), ("pooled", ["pooled"]), ("bm25", ["bm25"])],
    )
    def test_what_the_engine_is_asked(
        self, by_stage: Any, engine: str, stage: Any, names: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collection = by_stage[engine, "hybrid"]
        calls = Calls(collection, monkeypatch)
        collection.search(QUERIES[0], candidates=9, first_stage=stage)
        collection.search(QUERIES[0], exact=False, first_stage=stage)
        collection.search_mmr(QUERIES[0], 3, candidates=25, first_stage=stage)
        asked = [request.candidates for request in calls.requests]
        assert [sorted(one.stages) for one in asked if one is not None] == [names] * 3
        assert [one.limit for one in asked if one is not None] == [10, 300, 25]

    def test_one_that_is_named_is_used_however_few_there_are(
        self, by_stage: Any, engine: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collection = by_stage[engine, "hybrid"]
        calls = Calls(collection, monkeypatch)
        collection.search_many(QUERIES, 3, first_stage="bm25")
        assert [request.candidates is not None for request in calls.requests] == [True] * len(QUERIES)
        calls.requests.clear()
        collection.search(QUERIES[0], first_stage="none")
        collection.search(QUERIES[0], first_stage="none", exact=True)
        by_stage[engine, "none"].search(QUERIES[0], first_stage="none")
        assert [request.candidates for request in calls.requests] == [None, None]

    def test_scores_stay_exact(self, by_stage: Any, engine: str) -> None:
        collection = by_stage[engine, "hybrid"]
        exact = {hit.id: hit.score for hit in collection.search(QUERIES[2], 60, first_stage="none")}
        assert len(exact) == 60
        for stage in ("pooled", "bm25", "hybrid"):
            for hit in collection.search(QUERIES[2], 5, first_stage=stage):
                assert hit.score == pytest.approx(exact[hit.id])

    @pytest.mark.parametrize(
        "stored, asked, has",
        [
            ("none", "pooled", r"\['none'\]"),
            ("pooled", "hybrid", r"\['none', 'pooled'\]"),
            ("bm25", "pooled", r"\['none', 'bm25'\]"),
            ("muvera", "bm25", r"\['none', 'muvera'\]"),
            ("hybrid", "muvera", r"\['none', 'pooled', 'bm25', 'hybrid'\]"),
            ("hybrid", "colbert", r"\['none', 'pooled', 'bm25', 'hybrid'\]"),
        ],
    )
    def test_what_is_not_stored(self, by_stage: Any, engine: str, stored: str, asked: Any, has: str) -> None:
        message = rf"first_stage='{stored}', so a search may use {has}, not '{asked}'.*migrate\("
        for options in ({}, {"candidates": 5}, {"exact": True}):
            with pytest.raises(InvalidQueryError, match=message):
                by_stage[engine, stored].search(QUERIES[0], first_stage=asked, **options)

    @pytest.mark.parametrize("options", [{"candidates": 5}, {"exact": False}])
    def test_none_finds_no_candidates(self, by_stage: Any, engine: str, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidQueryError, match="first_stage='none' ranks all documents"):
            by_stage[engine, "hybrid"].search(QUERIES[0], first_stage="none", **options)

    def test_exact_takes_none(self, by_stage: Any, engine: str) -> None:
        with pytest.raises(InvalidQueryError, match="exact=True ranks all documents, so first_stage='pooled'"):
            by_stage[engine, "hybrid"].search(QUERIES[0], first_stage="pooled", exact=True)


def test_on_a_server(mini: JinaColbertEncoder, loopback: server_site.Site) -> None:
    with loopback.create(mini, first_stage="hybrid") as collection:
        collection.add(ITEMS[:20])
        for hit in collection.search(QUERIES[0], 4, first_stage="pooled", with_explanation=True):
            assert hit.explanation is not None
            assert hit.explanation.score == pytest.approx(hit.score, abs=1e-2)
        assert len(collection.search_mmr(QUERIES[0], 4, lambda_mult=0.2)) == 4


@pytest.mark.parametrize(
    "wrong",
    [{"score_threshold": float("nan")}, {"score_threshold": "a"}, {"k": 10**30}, {"candidates": 10**30}, {"k": True}],
)
def test_numbers_that_are_none_are_refused_on_every_engine(mini, tmp_path, wrong):
    for location in (":memory:", tmp_path / "folder"):
        with ColbertCollection.create(location, encoder=mini, dim=32) as collection:
            collection.add(["a text"])
            with pytest.raises(InvalidQueryError, match=next(iter(wrong))):
                collection.search("a question", **wrong)
