"""nDCG@10, recall@100 and MRR@10 against values worked out by hand from their definitions."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jcv2_plugin import ColbertCollection, JinaColbertEncoder, SearchHit
from jcv2_plugin.errors import Jcv2Error
from jcv2_plugin.evaluation.beir import BeirDataset, Passage
from jcv2_plugin.evaluation.bm25 import bm25_run
from jcv2_plugin.evaluation.metrics import EvaluationError, evaluate_collection, evaluate_run, measure_run

KEYS = ["ndcg@10", "recall@100", "mrr@10"]


def ranking(*documents: str) -> dict[str, float]:
    """Scores that put documents in this order."""
    return {document: float(-position) for position, document in enumerate(documents)}


def values(run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]]) -> list[float]:
    found = evaluate_run(run, qrels)
    assert list(found) == KEYS
    return list(found.values())


def test_gains_are_linear() -> None:
    # Relevances in order of rank: 1, 0, 2. DCG = 1/log2(2) + 0 + 2/log2(4) = 1 + 1 = 2.
    # Ideal: 2, 1. IDCG = 2/log2(2) + 1/log2(3) = 2 + 1/log2(3).
    # Exponential gains would give (1 + 3/2) / (3 + 1/log2(3)).
    found = values({"q": ranking("a", "b", "c")}, {"q": {"a": 1, "c": 2}})
    assert found == pytest.approx([2 / (2 + 1 / math.log2(3)), 1.0, 1.0])


@pytest.mark.parametrize(
    "rank, expected",
    [
        (1, [1.0, 1.0, 1.0]),
        (3, [1 / 2, 1.0, 1 / 3]),
        (10, [1 / math.log2(11), 1.0, 1 / 10]),
        (11, [0.0, 1.0, 0.0]),
        (100, [0.0, 1.0, 0.0]),
        (101, [0.0, 0.0, 0.0]),
    ],
)
def test_cuts(rank: int, expected: list[float]) -> None:
    documents = [f"x{number}" for number in range(120)]
    documents[rank - 1] = "relevant"
    assert values({"q": ranking(*documents)}, {"q": {"relevant": 1}}) == pytest.approx(expected)


def test_the_mean_counts_queries_without_results() -> None:
    qrels = {"found": {"a": 1}, "second": {"b": 1}, "empty": {"a": 1}, "absent": {"a": 1}}
    run = {"found": ranking("a"), "second": ranking("a", "b"), "empty": {}, "unjudged": ranking("a")}
    metrics = measure_run(run, qrels)
    assert list(metrics.as_dict().values()) == pytest.approx([(1 + 1 / math.log2(3)) / 4, 2 / 4, 1.5 / 4])
    assert list(metrics.per_query) == list(qrels)
    assert metrics.per_query["second"] == pytest.approx({"ndcg@10": 1 / math.log2(3), "recall@100": 1.0, "mrr@10": 0.5})
    assert metrics.per_query["absent"] == dict.fromkeys(KEYS, 0.0)


def test_of_equal_scores_the_larger_id_comes_first() -> None:
    run = {"q": {"a": 1.0, "b": 1.0, "c": 2.0}}
    assert values(run, {"q": {"b": 1}}) == pytest.approx([1 / math.log2(3), 1.0, 1 / 2])
    assert values(run, {"q": {"a": 1}}) == pytest.approx([1 / 2, 1.0, 1 / 3])


def by_definition(scores: Mapping[str, float], judgments: Mapping[str, int]) -> list[float]:
    """The three figures of one query, in plain Python."""
    ordered = sorted(sorted(scores, reverse=True), key=lambda document: -scores[document])
    gains = [max(judgments.get(document, 0), 0) for document in ordered]
    ideal = sorted((max(gain, 0) for gain in judgments.values()), reverse=True)
    relevant = sum(gain > 0 for gain in ideal)
    if not relevant:
        return [0.0, 0.0, 0.0]
    dcg, best = (sum(g / math.log2(i + 2) for i, g in enumerate(one[:10])) for one in (gains, ideal))
    reciprocal = next((1 / rank for rank, gain in enumerate(gains[:10], start=1) if gain), 0.0)
    return [dcg / best, sum(gain > 0 for gain in gains[:100]) / relevant, reciprocal]


def test_random_runs_agree_with_the_definitions() -> None:
    draw = random.Random(5)
    documents = [f"d{number}" for number in range(150)]
    qrels, run = {}, {}
    for number in range(60):
        judged, found = draw.sample(documents, draw.randint(1, 40)), draw.sample(documents, draw.randint(0, 130))
        qrels[f"q{number}"] = {document: draw.randint(-1, 3) for document in judged}
        run[f"q{number}"] = {document: draw.randint(0, 40) / 4 for document in found}  # With many ties.
    metrics = measure_run(run, qrels)
    for query, judgments in qrels.items():
        expected = by_definition(run[query], judgments)
        assert list(metrics.per_query[query].values()) == pytest.approx(expected), query


def test_scores_of_numpy() -> None:
    run: Any = {"q": {"a": np.float32(0.5), "b": np.int64(1)}}
    assert values(run, {"q": {"b": 1}}) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_must_be_finite(score: float) -> None:
    with pytest.raises(EvaluationError, match=rf"'q': document 'a' has the score {score}"):
        evaluate_run({"q": {"a": score}}, {"q": {"a": 1}})


@pytest.mark.parametrize("qrels, message", [({}, "There are no judgments"), ({"q": {}}, r"queries \['q'\] have no")])
def test_there_must_be_judgments(qrels: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate_run({}, qrels)
    assert issubclass(EvaluationError, Jcv2Error)


CORPUS = {
    "volcano": Passage("Volcanoes", "Molten rock rises from below the crust and erupts as lava."),
    "bread": Passage("", "Knead flour, water, yeast and salt, let the dough rise, then bake the loaf."),
    "orbit": Passage("", "The moon circles the Earth once in about twenty-seven days."),
    "chess": Passage("Chess", "The bishop moves diagonally, the rook along ranks and files."),
    "violin": Passage("", "The violin has four strings and is played with a bow."),
}
QUERIES = {
    "q1": "Where does lava come from?",
    "q2": "How do I bake a loaf of bread?",
    "q3": "How long does the moon take around the Earth?",
    "q4": "How does a rook move in chess?",
    "q5": "Which instrument is played with a bow?",
}
# q5 has a second relevant document, of higher grade, that nothing in its text gives away.
QRELS = {
    "q1": {"volcano": 1},
    "q2": {"bread": 1},
    "q3": {"orbit": 1},
    "q4": {"chess": 1},
    "q5": {"violin": 1, "bread": 2},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset() -> BeirDataset:
    return BeirDataset("five", CORPUS, QUERIES, QRELS)


@pytest.fixture(scope="module")
def collection(dataset: BeirDataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ColbertCollection]:
    """Made, closed and opened again: what is evaluated is what is stored."""
    path = tmp_path_factory.mktemp("evaluation") / "five"
    encoder = JinaColbertEncoder.from_pretrained("mini", dims=64, device="cpu")
    with ColbertCollection.create(path, encoder=encoder, dim=64) as made:
        made.ingest(dataset.documents())
    with ColbertCollection.open(path, encoder=encoder) as opened:
        yield opened


def test_a_stored_collection(collection: ColbertCollection, dataset: BeirDataset) -> None:
    metrics = evaluate_collection(collection, dataset)
    for query, document in [("q1", "volcano"), ("q2", "bread"), ("q3", "orbit"), ("q4", "chess")]:
        assert metrics.per_query[query] == dict.fromkeys(KEYS, 1.0), document
    order = [hit.id for hit in collection.search(QUERIES["q5"], k=5)]
    assert order[0] == "violin"
    second = order.index("bread") + 1
    ndcg = (1 + 2 / math.log2(second + 1)) / (2 + 1 / math.log2(3))
    assert metrics.per_query["q5"] == pytest.approx({"ndcg@10": ndcg, "recall@100": 1.0, "mrr@10": 1.0})
    assert list(metrics.as_dict().values()) == pytest.approx([(4 + ndcg) / 5, 1.0, 1.0])
    assert (metrics.ndcg_at_10, metrics.recall_at_100, metrics.mrr_at_10) == tuple(metrics.as_dict().values())


def test_queries_go_in_batches_of_64(dataset: BeirDataset) -> None:
    class Watched:
        """Finds the first document only."""

        def __init__(self) -> None:
            self.asked: list[tuple[int, int]] = []

        def count(self) -> int:
            return len(CORPUS)

        def search_many(self, queries: list[str], k: int, **options: object) -> list[list[SearchHit]]:
            assert options == {"candidates": None, "exact": True}, "figures are of exact searches"
            self.asked.append((len(queries), k))
            return [[SearchHit("volcano", "", {}, score=1.0)] for _ in queries]

    queries = {f"q{number}": f"Question {number}?" for number in range(130)}
    many = replace(dataset, queries=queries, qrels={query: {"volcano": 1} for query in queries})
    watched: Any = Watched()
    done: list[int] = []
    assert evaluate_collection(watched, many, progress=done.append).mrr_at_10 == 1.0
    assert done == [64, 64, 2]
    assert watched.asked == [(64, 100), (64, 100), (2, 100)]


def test_a_query_that_is_a_document_too(collection: ColbertCollection, dataset: BeirDataset) -> None:
    """As in ArguAna and Quora, whose published figures leave that document out."""
    ids = ("volcano", "bread")
    queries = {own_id: CORPUS[own_id].full_text for own_id in ids}
    # The answer is what comes right behind the query's own document.
    qrels = {own_id: {collection.search(text, 2)[1].id: 1} for own_id, text in queries.items()}
    own = replace(dataset, queries=queries, qrels=qrels)
    assert evaluate_collection(collection, own).as_dict() == dict.fromkeys(KEYS, 1.0)
    ranked = evaluate_collection(collection, own, ignore_identical_ids=False)
    assert (ranked.ndcg_at_10, ranked.mrr_at_10) == pytest.approx((1 / math.log2(3), 0.5))
    altered = replace(own, queries={own_id: f"{text} Why?" for own_id, text in queries.items()})
    assert evaluate_collection(collection, altered).mrr_at_10 == 0.5
    assert evaluate_collection(collection, altered, ignore_identical_ids=True).mrr_at_10 == 1.0
    assert all(query not in found for query, found in bm25_run(own).items())
    assert all(query in found for query, found in bm25_run(own, ignore_identical_ids=False).items())
    assert list(bm25_run(own, k=1)["bread"]) == list(bm25_run(own)["bread"])[:1]


def test_too_few_results_for_the_recall(collection: ColbertCollection, dataset: BeirDataset) -> None:
    with pytest.raises(EvaluationError, match=r"recall@100 needs 100 results a query, got k=10"):
        evaluate_collection(collection, dataset, k=10)


def test_a_collection_of_something_else(collection: ColbertCollection, dataset: BeirDataset) -> None:
    larger = replace(dataset, corpus={**CORPUS, "more": Passage("", "One more.")})
    with pytest.raises(EvaluationError, match=r"holds 5 documents, the corpus of 'five' 6: .*Ingest"):
        evaluate_collection(collection, larger)
    other = replace(dataset, corpus={f"other-{own_id}": passage for own_id, passage in CORPUS.items()})
    with pytest.raises(EvaluationError, match=r"None of the documents found .* is one of 'five'; found are \['bread'"):
        evaluate_collection(collection, other)
