"""Compute nDCG@10, recall@100 and MRR@10 of a run or a stored collection with trec_eval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytrec_eval

from jcv2_plugin.errors import Jcv2Error
from jcv2_plugin.evaluation.beir import BeirDataset, without_own

if TYPE_CHECKING:
    from torch import Tensor

    from jcv2_plugin.collection.collection import ColbertCollection

Run = Mapping[str, Mapping[str, float]]
"""Scores by query id and document id; higher is better."""

Qrels = Mapping[str, Mapping[str, int]]
"""Relevance by query id and document id; 1 or more is relevant."""

METRICS = NDCG, RECALL, MRR = "ndcg@10", "recall@100", "mrr@10"
"""Keys of :meth:`Metrics.as_dict`."""

_RECALL_DEPTH = 100
_MRR_DEPTH = 10
_QUERIES_PER_BATCH = 64


class EvaluationError(Jcv2Error, ValueError):
    """A run, its judgments or a collection cannot be evaluated, or the result would be misleading."""


@dataclass(frozen=True)
class Metrics:
    """Means over all queries with judgments, between 0 and 1. A query without results counts as 0.

    Attributes:
        ndcg_at_10: nDCG of the top 10, with linear gains.
        recall_at_100: Share of the relevant documents that are in the top 100.
        mrr_at_10: Reciprocal rank of the first relevant document, 0 if it is not in the top 10.
        per_query: The three values for each query, with the keys of :meth:`as_dict`.
    """

    ndcg_at_10: float
    recall_at_100: float
    mrr_at_10: float
    per_query: Mapping[str, Mapping[str, float]] = field(repr=False)

    def as_dict(self) -> dict[str, float]:
        """Return the three means as ``"ndcg@10"``, ``"recall@100"`` and ``"mrr@10"``."""
        return {NDCG: self.ndcg_at_10, RECALL: self.recall_at_100, MRR: self.mrr_at_10}


def evaluate_run(run: Run, qrels: Qrels) -> dict[str, float]:
    """Return the means of :func:`measure_run` as ``"ndcg@10"``, ``"recall@100"`` and ``"mrr@10"``."""
    return measure_run(run, qrels).as_dict()


def run_of(scores: Tensor, queries: Sequence[str], documents: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the best documents of each query: the 100 that the metrics need, and one for its own document.

    Args:
        scores: Scores of shape ``(queries, documents)``.
        queries: Query ids, in row order.
        documents: Document ids, in column order.
    """
    best = scores.topk(min(_RECALL_DEPTH + 1, len(documents)), dim=1)
    return {
        query: {documents[index]: score for score, index in zip(own, indices, strict=True)}
        for query, own, indices in zip(queries, best.values.tolist(), best.indices.tolist(), strict=True)
    }


def measure_run(run: Run, qrels: Qrels) -> Metrics:
    """Evaluate a run with trec_eval. For equal scores, the document with the larger id is ranked first.

    Queries without judgments are ignored. nDCG uses relevance as linear gain; for the other two metrics, 1 or more is
    relevant.

    Raises:
        EvaluationError: If there are no judgments, or a score is not finite.
    """
    if not qrels or not all(qrels.values()):
        bare = [query for query, judgments in qrels.items() if not judgments]
        what = f"The queries {bare[:5]!r} have no judgments." if bare else "There are no judgments."
        raise EvaluationError(f"{what} Leave such queries out of qrels.")
    results = {query: {document: float(score) for document, score in run.get(query, {}).items()} for query in qrels}
    for query, scores in results.items():
        for document, score in scores.items():
            if not math.isfinite(score):
                raise EvaluationError(
                    f"Query {query!r}: document {document!r} has the score {score}, which cannot be ranked. "
                    "Leave such documents out of the run."
                )
    evaluator = pytrec_eval.RelevanceEvaluator(
        {query: dict(judgments) for query, judgments in qrels.items()},
        {"ndcg_cut.10", f"recall.{_RECALL_DEPTH}", "recip_rank"},
    )
    found = evaluator.evaluate({query: scores for query, scores in results.items() if scores})
    per_query = {query: _values(found[query]) if query in found else dict.fromkeys(METRICS, 0.0) for query in qrels}
    ndcg, recall, mrr = (
        math.fsum(values[key] for values in per_query.values()) / len(per_query) for key in (NDCG, RECALL, MRR)
    )
    return Metrics(ndcg, recall, mrr, per_query)


def _values(measures: Mapping[str, float]) -> dict[str, float]:
    # trec_eval's recip_rank has no cutoff. Since it is 1/rank, cutting it off here is the same as ranking only the top
    # 10, and leaves ties to trec_eval.
    reciprocal = measures["recip_rank"]
    within = reciprocal * (_MRR_DEPTH + 0.5) > 1
    recall = measures[f"recall_{_RECALL_DEPTH}"]
    return {NDCG: measures["ndcg_cut_10"], RECALL: recall, MRR: reciprocal if within else 0.0}


def evaluate_collection(
    collection: ColbertCollection,
    dataset: BeirDataset,
    k: int = _RECALL_DEPTH,
    progress: Callable[[int], None] | None = None,
    *,
    candidates: int | None = None,
    exact: bool | None = True,
    ignore_identical_ids: bool | None = None,
) -> Metrics:
    """Search a stored collection with the queries of a test set, and evaluate the results.

    Args:
        collection: Collection with the test set's corpus, under the original ids.
        dataset: Queries and judgments.
        k: Number of results per query, at least 100.
        progress: Called after each batch of at most 64 queries with the number of queries in it.
        candidates: See :meth:`~jcv2_plugin.ColbertCollection.search`.
        exact: See :meth:`~jcv2_plugin.ColbertCollection.search`. By default all documents are ranked, as for published
            figures.
        ignore_identical_ids: Which queries' own documents are left out of their results, see
            :meth:`~jcv2_plugin.evaluation.beir.BeirDataset.own_documents`. By default those with the query's id and
            text, as for published figures.

    Raises:
        EvaluationError: If ``k`` is too small for recall@100, or the collection does not contain the corpus.
    """
    if k < _RECALL_DEPTH:
        raise EvaluationError(f"recall@100 needs {_RECALL_DEPTH} results a query, got k={k!r}. Leave k out.")
    if (held := collection.count()) < len(dataset.corpus):
        raise EvaluationError(
            f"{collection!r} holds {held} documents, the corpus of {dataset.name!r} {len(dataset.corpus)}: searching "
            "a part of it would be too easy. Ingest dataset.documents() to its end."
        )
    run: dict[str, dict[str, float]] = {}
    own = dataset.own_documents(ignore_identical_ids)
    queries = list(dataset.queries.items())
    for start in range(0, len(queries), _QUERIES_PER_BATCH):
        batch = queries[start : start + _QUERIES_PER_BATCH]
        found = collection.search_many([text for _, text in batch], k + bool(own), candidates=candidates, exact=exact)
        for (query, _), hits in zip(batch, found, strict=True):
            run[query] = {hit.id: hit.score for hit in hits}
        if progress is not None:
            progress(len(batch))
    ids = {document for results in run.values() for document in results}
    if ids.isdisjoint(dataset.corpus):
        raise EvaluationError(
            f"None of the documents found in {collection!r} is one of {dataset.name!r}; found are "
            f"{sorted(ids)[:3]!r}. Ingest dataset.documents(), which keeps their ids."
        )
    return measure_run(without_own(run, own), dataset.qrels)
