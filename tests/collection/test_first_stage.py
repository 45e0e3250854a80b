"""Searching in two stages: what the first one finds, how MaxSim ranks it, and when there is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import official_checkpoint
import pytest
from collection_samples import DIM, QUERIES, documents, encoded, group, okapi, store
from qdrant_client import models

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.collection import search as searching
from jcv2_plugin.engines.base import Matrix, SearchRequest
from jcv2_plugin.engines.first_stage import BM25_B, BM25_K1, BM25_LENGTH, Bm25Stage, SparseVector
from jcv2_plugin.errors import CollectionCorruptError, InvalidOptionError, InvalidQueryError

DOCUMENTS = documents(300)
STAGES = ("pooled", "bm25", "hybrid")
REACHING_ALL = ("pooled", "hybrid")
ENGINES = ("edge", "memory")

Get = Callable[[str, str], ColbertCollection]


@pytest.fixture(scope="module")
def vectors(mini: JinaColbertEncoder) -> list[Matrix]:
    return encoded(mini, DOCUMENTS)


@pytest.fixture(scope="module")
def get(mini: JinaColbertEncoder, vectors: list[Matrix], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    """A collection of all documents by engine and first stage; each is filled once, and only read."""
    made: dict[tuple[str, str], ColbertCollection] = {}

    def collection(engine: str, stage: Any) -> ColbertCollection:
        if (engine, stage) not in made:
            location = ":memory:" if engine == "memory" else tmp_path_factory.mktemp("edge") / "collection"
            made[engine, stage] = ColbertCollection.create(
                location, encoder=mini, dim=DIM, first_stage=stage, storage="float32"
            )
            store(made[engine, stage], DOCUMENTS, vectors)
            made[engine, stage].optimize()
        return made[engine, stage]

    yield collection
    for one in made.values():
        one.close()


def ids(hits: list[Any]) -> list[str]:
    return [hit.id for hit in hits]


@pytest.mark.parametrize("engine", ENGINES)
class TestTwoStages:
    @pytest.mark.parametrize("stage", STAGES)
    def test_hits_have_their_exact_scores(self, get: Get, engine: str, stage: str) -> None:
        collection = get(engine, stage)
        exact = collection.search_many(QUERIES, k=300, exact=True)
        for all_hits, hits in zip(exact, collection.search_many(QUERIES, k=10, candidates=30), strict=True):
            scores = {hit.id: hit.score for hit in all_hits}
            assert len(hits) == 10
            assert {hit.id: hit.score for hit in hits} == pytest.approx({hit.id: scores[hit.id] for hit in hits})
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            assert hits[0].metadata == {"n": int(hits[0].id[1:]), "group": f"g{int(hits[0].id[1:]) % 50}"}

    @pytest.mark.parametrize("stage", REACHING_ALL)
    def test_as_many_candidates_as_documents_miss_none(self, get: Get, engine: str, stage: str) -> None:
        collection = get(engine, stage)
        exact = collection.search_many(QUERIES, k=300, exact=True)
        found = collection.search_many(QUERIES, k=300, candidates=300)
        assert [ids(hits) for hits in found] == [ids(hits) for hits in exact]
        assert ids(collection.search(QUERIES[0], k=7, candidates=1000)) == ids(exact[0][:7])
        assert len(collection.search(QUERIES[1], k=40, candidates=3)) == 40

    @pytest.mark.parametrize("stage", REACHING_ALL)
    def test_a_filter_leaves_room_among_the_candidates_for_what_it_selects(
        self, get: Get, engine: str, stage: str
    ) -> None:
        collection = get(engine, stage)
        for query in QUERIES:
            exact = collection.search(query, k=6, exact=True, filter=group("g7"))
            assert len(exact) == 6
            assert ids(collection.search(query, k=6, candidates=6, filter=group("g7"))) == ids(exact)

    def test_a_filter_applies_to_the_words_too(self, get: Get, engine: str) -> None:
        found = get(engine, "bm25").search("as page tells", k=6, candidates=6, filter=group("g7"))
        assert sorted(ids(found)) == sorted(f"d{n}" for n in range(7, 300, 50))

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_score_threshold_holds_for_maxsim(self, get: Get, engine: str, stage: str) -> None:
        collection = get(engine, stage)
        scores = [hit.score for hit in collection.search(QUERIES[0], k=8, candidates=20)]
        between = (scores[3] + scores[4]) / 2
        kept = collection.search(QUERIES[0], k=8, candidates=20, score_threshold=between)
        assert [hit.score for hit in kept] == pytest.approx([one for one in scores if one > between])
        assert 0 < len(kept) < 8

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_query_without_any_piece_of_text(self, get: Get, engine: str, stage: str) -> None:
        # The tokenizer drops characters for private use: nothing is left but special tokens.
        hits = get(engine, stage).search("\ue000", k=3, candidates=3)
        assert len(hits) == (0 if stage == "bm25" else 3)


@pytest.mark.parametrize("engine", ENGINES)
class TestWhatTheFirstStageFinds:
    """Against a plain computation over all documents: the best by its own measure, and no others."""

    def test_pooled_finds_the_nearest_means(
        self, get: Get, engine: str, mini: JinaColbertEncoder, vectors: list[Matrix]
    ) -> None:
        def pooled(matrix: Matrix) -> Any:
            mean = matrix.mean(axis=0)
            return mean / np.linalg.norm(mean)

        means = np.stack([pooled(one) for one in vectors])
        for query in QUERIES:
            scores = means @ pooled(mini.query_vectors([query], DIM)[0])
            found = get(engine, "pooled").search(query, k=20, candidates=20)
            assert_best(ids(found), scores.tolist(), 20, slack=1e-5)

    def test_bm25_finds_the_largest_okapi_scores(self, get: Get, engine: str, mini: JinaColbertEncoder) -> None:
        def pieces(text: str) -> list[int]:
            return list(mini.tokenizer(text, add_special_tokens=False)["input_ids"])

        texts = [pieces(one.text) for one in DOCUMENTS]
        for query in QUERIES:
            scores = okapi(texts, pieces(query), BM25_K1, BM25_B, BM25_LENGTH)
            found = get(engine, "bm25").search(query, k=20, candidates=20)
            assert_best(ids(found), scores, 20, slack=1e-4)

    def test_hybrid_finds_what_either_ranks_first(self, get: Get, engine: str) -> None:
        for query in QUERIES:
            found = ids(get(engine, "hybrid").search(query, k=20, candidates=20))
            for stage in ("pooled", "bm25"):
                best = get(engine, stage).search(query, k=1, candidates=1)
                assert best[0].id in found


def assert_best(found: list[str], scores: list[float], number: int, *, slack: float) -> None:
    """Those found are the best by their scores; which of equal ones come is left open."""
    assert len(found) == len(set(found)) == number
    own = {str(one.id): score for one, score in zip(DOCUMENTS, scores, strict=True)}
    cut = sorted(scores, reverse=True)[number - 1]
    assert min(own[one] for one in found) >= cut - slack
    assert {one for one, score in own.items() if score > cut + slack} <= set(found)
    assert min(scores) < cut - slack


def test_the_engines_find_the_same(get: Get) -> None:
    shared = 0
    for query in QUERIES:
        pooled = [get(engine, "pooled").search(query, k=15, candidates=15) for engine in ENGINES]
        assert {hit.id: hit.score for hit in pooled[0]} == pytest.approx({hit.id: hit.score for hit in pooled[1]})
        # Which of equal words' scores comes first is the engine's choice, so the last candidates may differ.
        hybrid = [ids(get(engine, "hybrid").search(query, k=15, candidates=40)) for engine in ENGINES]
        assert hybrid[0][:3] == hybrid[1][:3]
        shared += len(set(hybrid[0]) & set(hybrid[1]))
    assert shared >= 0.9 * 15 * len(QUERIES)


class TestTheChoice:
    """Between all documents and candidates, where a search does not say."""

    @pytest.mark.parametrize(
        ("engine", "stage", "exact_up_to", "options", "limit"),
        [
            ("edge", "hybrid", 1000, {}, None),
            ("edge", "hybrid", 300, {}, None),  # the limit itself is still small
            ("edge", "hybrid", 299, {}, 300),
            ("edge", "hybrid", 299, {"k": 100}, 400),
            ("edge", "hybrid", 299, {"exact": True}, None),
            ("edge", "hybrid", 299, {"candidates": 50, "exact": True}, None),
            ("edge", "hybrid", 299, {"candidates": 12}, 12),
            ("memory", "hybrid", 10, {}, None),  # local mode gains nothing
            ("memory", "hybrid", 10, {"exact": False}, 300),
            ("edge", "none", 10, {}, None),
            ("edge", "none", 10, {"exact": True}, None),
        ],
    )
    def test_between_all_documents_and_candidates(
        self,
        get: Get,
        monkeypatch: pytest.MonkeyPatch,
        engine: str,
        stage: str,
        exact_up_to: int,
        options: dict[str, Any],
        limit: int | None,
    ) -> None:
        seen: list[SearchRequest] = []
        collection = get(engine, stage)
        original = collection.engine.search

        def search(requests: Any, *rest: Any, **more: Any) -> Any:
            seen.extend(requests)
            return original(requests, *rest, **more)

        monkeypatch.setattr(collection.engine, "search", search)
        monkeypatch.setattr(searching, "EXACT_UP_TO", exact_up_to)
        collection.search(QUERIES[0], **options)
        (candidates,) = (one.candidates for one in seen)
        assert (None if candidates is None else candidates.limit) == limit
        assert candidates is None or sorted(candidates.stages) == ["bm25", "pooled"]

    def test_what_is_added_counts_at_once(
        self, mini: JinaColbertEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(searching, "EXACT_UP_TO", 2)
        with ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM) as collection:
            collection.add(["Rice is cooked in water.", "The ferry sails at noon."])
            assert searching._candidates(collection.current, 10, searching.CheckedOptions()) is None
            collection.add(["A piano has many keys."], ids=["piano"])
            assert searching._candidates(collection.current, 10, searching.CheckedOptions()) == searching.CANDIDATES
            collection.delete(["piano"])
            assert searching._candidates(collection.current, 10, searching.CheckedOptions()) is None


@pytest.mark.parametrize("engine", ENGINES)
class TestBadRequests:
    @pytest.mark.parametrize("options", [{"exact": False}, {"candidates": 10}, {"candidates": 10, "exact": False}])
    def test_no_first_stage_to_be_used(self, get: Get, engine: str, options: dict[str, Any]) -> None:
        with pytest.raises(
            InvalidQueryError, match=r"no first stage.*migrate the collection to a first stage such as hybrid"
        ):
            get(engine, "none").search(QUERIES[0], **options)

    @pytest.mark.parametrize("candidates", [0, -5, 2.5, True, "many"])
    def test_candidates_that_are_no_number(self, get: Get, engine: str, candidates: Any) -> None:
        with pytest.raises(InvalidQueryError, match="candidates must be a positive integer"):
            get(engine, "hybrid").search(QUERIES[0], candidates=candidates)


class TestCreating:
    @pytest.mark.parametrize("stage", ["colbert", "muvera", 3])
    def test_an_unknown_stage_is_refused_before_anything_is_made(
        self, mini: JinaColbertEncoder, tmp_path: Path, stage: Any
    ) -> None:
        for location in (tmp_path / "c", ":memory:"):
            with pytest.raises(InvalidOptionError, match="first_stage must be one of"):
                ColbertCollection.create(location, encoder=mini, dim=DIM, first_stage=stage)
        assert list(tmp_path.iterdir()) == []

    def test_a_stage_of_an_earlier_version_is_refused_with_a_way_out(
        self, mini: JinaColbertEncoder, tmp_path: Path
    ) -> None:
        ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM).close()
        file = tmp_path / "c" / "jcv2.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "first_stage": "muvera"}))
        with pytest.raises(CollectionCorruptError, match=r"'muvera'.*jcv2-plugin 0\.1, and migrate it with.*'hybrid'"):
            ColbertCollection.open(tmp_path / "c")

    def test_each_stage_stores_what_it_needs_and_no_more(self, get: Get) -> None:
        stored = {"none": set(), "pooled": {"pooled"}, "bm25": {"bm25"}, "hybrid": {"pooled", "bm25"}}
        for engine in ENGINES:
            for stage, names in stored.items():
                records = get(engine, stage).engine.scroll(None, with_payload=False, with_vectors=True)
                assert set(next(records).stages) == names


class TestFormat1:
    """Collections of the version before, which knew no first stage and no pooling."""

    @pytest.fixture
    def folder(self, mini: JinaColbertEncoder, tmp_path: Path) -> Path:
        with ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM, first_stage="none") as collection:
            collection.add([one.text for one in DOCUMENTS[:20]], ids=[one.id for one in DOCUMENTS[:20]])
        file = tmp_path / "c" / "jcv2.json"
        described = json.loads(file.read_text())
        for name in ("first_stage", "stage_options", "pool_factor", "shard"):
            del described[name]
        file.write_text(json.dumps({**described, "format": 1}))
        return tmp_path / "c"

    def test_they_are_read_and_added_to(self, folder: Path, mini: JinaColbertEncoder) -> None:
        with ColbertCollection.open(folder, encoder=mini) as collection:
            assert (collection.schema.first_stage, collection.schema.pool_factor) == ("none", 1.0)
            assert ids(collection.search(DOCUMENTS[3].text, k=1)) == ["d3"]
            collection.add(["The ferry sails at noon."], ids=["ferry"])
            assert ids(collection.search("when does the ferry sail?", k=1)) == ["ferry"]
            assert collection.verify().ok
            with pytest.raises(InvalidQueryError, match="no first stage"):
                collection.search("anything", exact=False)

    def test_they_get_a_first_stage_by_migrating(self, folder: Path, mini: JinaColbertEncoder) -> None:
        with ColbertCollection.open(folder, encoder=mini) as collection:
            report = collection.migrate(first_stage="hybrid")
            assert (report.documents, report.copied, report.encoded) == (20, 20, 0)
            assert ids(collection.search(DOCUMENTS[3].text, k=1, candidates=1)) == ["d3"]
        with ColbertCollection.open(folder, encoder=mini) as collection:
            assert (collection.schema.format, collection.schema.first_stage) == (2, "hybrid")
            assert collection.verify().ok

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": 2}, "missing.*first_stage"),
            ({"first_stage": None}, "unreadable.*first_stage"),
            ({"pool_factor": "2"}, "unreadable.*pool_factor"),
        ],
    )
    def test_damaged_descriptions(self, folder: Path, change: dict[str, Any], message: str) -> None:
        described = json.loads((folder / "jcv2.json").read_text())
        (folder / "jcv2.json").write_text(json.dumps({**described, **change}))
        with pytest.raises(CollectionCorruptError, match=message):
            ColbertCollection.open(folder)


class TestBm25:
    def test_weights_are_okapis(self, mini: JinaColbertEncoder) -> None:
        stage = Bm25Stage(mini.tokenized)
        texts = ["rice rice rice and water", "water " * 400, "the ferry sails", "Rice, cooked in WATER."]
        tokens = [mini.tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"] for text in texts]
        none = np.empty((0, DIM), dtype=np.float32)
        for text, pieces in zip(texts, tokens, strict=True):
            vector = stage.document(text, none)
            assert isinstance(vector, SparseVector)
            assert vector.indices == sorted(set(pieces))
            assert stage.document(text, none, pieces) == vector
            weights = dict(zip(vector.indices, vector.values, strict=True))
            for term in set(pieces):
                tf = pieces.count(term)
                held_back = BM25_K1 * (1 - BM25_B + BM25_B * len(pieces) / BM25_LENGTH)
                assert weights[term] == pytest.approx(tf * (BM25_K1 + 1) / (tf + held_back))
        query = stage.query("water and water", none)
        assert isinstance(query, SparseVector)
        assert query.values == [1.0, 1.0]

    def test_what_the_window_cuts_off_is_found(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        long_text = "The tide comes in. " * 150 + "A rhinoceros."
        with ColbertCollection.create(
            tmp_path / "c", encoder=mini, dim=DIM, first_stage="bm25", long_documents="truncate"
        ) as collection:
            collection.add([long_text, "The tide comes in."], ids=["long", "short"])
            assert ids(collection.search("rhinoceros", candidates=5)) == ["long"]

    def test_text_without_spaces_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        words = ("米饭 用 水 煮 熟 渡轮 中午 开 船 什么 时候", "ข้าว หุง ด้วย น้ำ เรือ ออก ตอน เที่ยง เมื่อ ไร")
        monkeypatch.setattr(official_checkpoint, "SENTENCES", (*official_checkpoint.SENTENCES, *words))
        model = official_checkpoint.write_checkpoint(tmp_path / "model", dim=DIM)
        texts = {"饭": "米饭用水煮熟", "船": "渡轮中午开船", "ข้าว": "ข้าวหุงด้วยน้ำ", "เรือ": "เรือออกตอนเที่ยง"}
        with ColbertCollection.create(
            tmp_path / "c", encoder=model, dim=DIM, first_stage="bm25", storage="float32"
        ) as collection:
            collection.add(texts.values(), ids=list(texts))
            for query, expected in {
                "渡轮什么时候开船": "船",
                "煮熟米饭": "饭",
                "เรือออกเมื่อไร": "เรือ",
                "หุงข้าว": "ข้าว",
            }.items():
                assert ids(collection.search(query, k=1, candidates=1)) == [expected]


def test_a_filter_that_selects_nothing_finds_nothing(get: Get) -> None:
    nothing = models.Filter(must=[models.FieldCondition(key="metadata.group", match=models.MatchValue(value="none"))])
    for engine in ENGINES:
        for stage in STAGES:
            assert get(engine, stage).search(QUERIES[0], filter=nothing, candidates=10) == []
