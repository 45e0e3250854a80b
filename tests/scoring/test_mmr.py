"""Maximal marginal relevance against its definition, and the likeness of documents it is given."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_samples import DIM, QUERIES, documents, encoded, group, store
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.errors import InvalidQueryError
from jcv2_plugin.scoring.mmr import DocumentSimilarities, maximal_marginal_relevance, shortened

ITEMS = documents(120)


def by_definition(relevance: list[float], similarity: list[list[float]], k: int, lambda_mult: float) -> list[int]:
    """Carbonell and Goldstein's rule, an item at a time, in plain Python."""
    chosen: list[int] = []
    rest = list(range(len(relevance)))
    while rest and len(chosen) < k:
        best = rest[0]
        best_value = float("-inf")
        for item in rest:
            value = relevance[item]
            if chosen:
                value = lambda_mult * value - (1 - lambda_mult) * max(similarity[one][item] for one in chosen)
            if value > best_value:
                best, best_value = item, value
        chosen.append(best)
        rest.remove(best)
    return chosen


class Watched:
    """A matrix that says which of its rows were asked for."""

    def __init__(self, matrix: NDArray[Any]) -> None:
        self.matrix = matrix
        self.asked: list[int] = []

    def __getitem__(self, position: int) -> NDArray[Any]:
        self.asked.append(position)
        row: NDArray[Any] = self.matrix[position]
        return row


class TestTheRule:
    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_it_is_the_definition(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(1, 9))
        # Few different values, so that there are many ties.
        values = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
        relevance = data.draw(st.lists(values, min_size=size, max_size=size))
        rows = st.lists(values, min_size=size, max_size=size)
        similarity = data.draw(st.lists(rows, min_size=size, max_size=size))
        k = data.draw(st.integers(0, size + 2))
        lambda_mult = data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
        found = maximal_marginal_relevance(relevance, np.asarray(similarity), k, lambda_mult)
        assert found == by_definition(relevance, similarity, k, lambda_mult)

    def test_only_rows_of_chosen_items_are_asked_for(self) -> None:
        watched = Watched(np.random.default_rng(1).random((30, 30)))
        chosen = maximal_marginal_relevance(np.linspace(1, 0, 30), watched, 5, 0.5)
        assert watched.asked == chosen[:4]

    def test_nothing_to_choose_from(self) -> None:
        assert maximal_marginal_relevance([], np.empty((0, 0)), 3, 0.5) == []
        assert maximal_marginal_relevance([0.5], np.ones((1, 1)), 0, 0.5) == []

    @pytest.mark.parametrize("k, lambda_mult", [(-1, 0.5), (1, -0.1), (1, 1.1), (1, float("nan"))])
    def test_what_cannot_be(self, k: int, lambda_mult: float) -> None:
        with pytest.raises(ValueError, match="lambda_mult between 0 and 1"):
            maximal_marginal_relevance([0.5], np.ones((1, 1)), k, lambda_mult)


def random_documents(lengths: list[int], dim: int = 16) -> list[NDArray[np.float32]]:
    generator = np.random.default_rng(7)
    made = [generator.standard_normal((length, dim)).astype(np.float32) for length in lengths]
    return [one / np.linalg.norm(one, axis=1, keepdims=True) for one in made]


def likeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The mean best product of the vectors of one with those of the other, from both sides, in plain Python."""
    forth = [max(float(a @ b) for b in other) for a in one]
    back = [max(float(a @ b) for a in one) for b in other]
    return (sum(forth) / len(forth) + sum(back) / len(back)) / 2


class TestLikeness:
    def test_it_is_the_mean_of_the_best_matches_from_both_sides(self) -> None:
        made = random_documents([1, 3, 20, 7, 12])
        similarities = DocumentSimilarities(made)
        for row, one in enumerate(made):
            np.testing.assert_allclose(similarities[row], [likeness(one, other) for other in made], atol=1e-6)
        assert similarities[2][2] == pytest.approx(1.0, abs=1e-6)

    def test_many_documents_are_compared_in_parts(self) -> None:
        made = random_documents([2 + n % 3 for n in range(150)])
        whole = DocumentSimilarities(made)[70]
        assert whole.shape == (150,)
        np.testing.assert_allclose(
            whole[[0, 63, 64, 149]], [likeness(made[70], made[n]) for n in (0, 63, 64, 149)], atol=1e-6
        )

    @pytest.mark.parametrize("length", [10, 11, 20, 1001])
    def test_a_long_one_becomes_the_means_of_its_runs(self, length: int) -> None:
        (made,) = random_documents([length])
        found = shortened(made, 10)
        edges = [position * length // 10 for position in range(11)]
        means = np.stack([made[start:end].mean(axis=0) for start, end in itertools.pairwise(edges)])
        np.testing.assert_allclose(found, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-5)

    def test_long_documents_take_bounded_memory(self) -> None:
        # 60 documents of 8,000 vectors would be 120 MB, and the products of two of them 256 MB.
        similarities = DocumentSimilarities(one for _ in range(60) for one in random_documents([8000]))
        tracemalloc.start()
        row = similarities[0]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40e6
        np.testing.assert_allclose(row, 1.0, atol=1e-5)


@pytest.fixture(scope="module")
def vectors(mini: JinaColbertEncoder) -> list[NDArray[np.float32]]:
    return encoded(mini, ITEMS)


@pytest.fixture(params=["edge", "memory"], scope="module")
def collection(
    request: pytest.FixtureRequest,
    mini: JinaColbertEncoder,
    vectors: list[NDArray[np.float32]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ColbertCollection]:
    location = ":memory:" if request.param == "memory" else tmp_path_factory.mktemp("edge") / "c"
    with ColbertCollection.create(location, encoder=mini, dim=DIM, storage="float32") as made:
        store(made, ITEMS, vectors)
        yield made


class TestSearchMmr:
    @pytest.mark.parametrize("lambda_mult", [0.0, 0.3, 1.0])
    def test_it_is_the_rule_over_the_fetched_hits(
        self, collection: ColbertCollection, vectors: list[NDArray[np.float32]], lambda_mult: float
    ) -> None:
        for query in QUERIES[:3]:
            fetched = collection.search(query, 25)
            matrices = [vectors[int(hit.id[1:])] for hit in fetched]
            similarity = [[likeness(one, other) for other in matrices] for one in matrices]
            expected = by_definition([hit.relevance for hit in fetched], similarity, 6, lambda_mult)
            found = collection.search_mmr(query, 6, fetch_k=25, lambda_mult=lambda_mult)
            assert [hit.id for hit in found] == [fetched[position].id for position in expected]
            assert [hit.score for hit in found] == [fetched[position].score for position in expected]

    def test_copies_are_left_out(self, mini: JinaColbertEncoder) -> None:
        with ColbertCollection.create(":memory:", encoder=mini, dim=DIM) as collection:
            copies = [Document("The ferry sails at noon from the harbour.", f"copy-{n}") for n in range(15)]
            others = [Document("A ferry may be late in winter.", "late"), Document("Rice is cooked in water.", "rice")]
            collection.add([*copies, *others])
            plain = collection.search("when does the ferry sail?", 3)
            diverse = collection.search_mmr("when does the ferry sail?", 3)
            assert all(hit.id.startswith("copy-") for hit in plain)
            assert diverse[0].id == plain[0].id
            assert {hit.id for hit in diverse[1:]} == {"late", "rice"}

    def test_what_is_fetched(self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch) -> None:
        limits: list[int] = []
        engine = collection.engine
        original = engine.search
        monkeypatch.setattr(
            engine, "search", lambda requests, limit, **more: limits.append(limit) or original(requests, limit, **more)
        )
        for arguments in ({"k": 2}, {"k": 8}, {"k": 2, "fetch_k": 7}, {"k": 6, "fetch_k": 3}):
            assert len(collection.search_mmr(QUERIES[0], **arguments)) == arguments["k"]
        assert limits == [20, 32, 7, 6]

    def test_filter_and_threshold(self, collection: ColbertCollection) -> None:
        found = collection.search_mmr(QUERIES[0], 10, filter=group("g7"))
        assert sorted(hit.id for hit in found) == ["d107", "d57", "d7"]
        scores = [hit.score for hit in collection.search(QUERIES[0], 10)]
        few = collection.search_mmr(QUERIES[0], 10, lambda_mult=0.0, score_threshold=(scores[3] + scores[4]) / 2)
        assert len(few) == 4
        assert collection.search_mmr(QUERIES[0], filter=group("none")) == []

    def test_explanations_of_those_chosen(self, collection: ColbertCollection) -> None:
        found = collection.search_mmr(QUERIES[0], 4, lambda_mult=0.2, with_explanation=True)
        for hit in found:
            assert hit.explanation is not None
            assert (hit.explanation.text, hit.explanation.score) == (hit.text, pytest.approx(hit.score, abs=1e-4))

    def test_pooled_collections(
        self, mini: JinaColbertEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The stored vectors do: nothing but the query is encoded."""
        with ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM, pool_factor=2) as collection:
            collection.add(ITEMS[:30])
            monkeypatch.setattr(JinaColbertEncoder, "document_vectors", None)
            assert len(collection.search_mmr(QUERIES[0], 5)) == 5

    @pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.5", None, True])
    def test_lambda_that_cannot_be(self, collection: ColbertCollection, value: Any) -> None:
        with pytest.raises(InvalidQueryError, match=r"lambda_mult must be (a number|between 0)"):
            collection.search_mmr(QUERIES[0], lambda_mult=value)

    @pytest.mark.parametrize("arguments", [{"k": 0}, {"fetch_k": 0}, {"fetch_k": 2.5}, {"candidates": -1}])
    def test_numbers_that_cannot_be(self, collection: ColbertCollection, arguments: dict[str, Any]) -> None:
        with pytest.raises(InvalidQueryError, match=f"{next(iter(arguments))} must be a positive integer"):
            collection.search_mmr(QUERIES[0], **arguments)
        with pytest.raises(InvalidQueryError, match="non-empty str"):
            collection.search_mmr(" ")
