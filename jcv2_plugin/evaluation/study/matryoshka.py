"""The study ``matryoshka``: quality, bytes and scoring time at each Matryoshka dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from sentence_transformers.util.similarity import maxsim
from torch.nn.utils.rnn import pad_sequence

from jcv2_plugin.encoder.model import JinaColbertEncoder
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.metrics import NDCG, RECALL
from jcv2_plugin.evaluation.study.base import Cell, Chart, Interval, Report, Samples, Table, Value
from jcv2_plugin.evaluation.study.environment import clock
from jcv2_plugin.evaluation.study.intervals import FEW, METHOD, share
from jcv2_plugin.evaluation.study.retrieval import (
    Draws,
    RetrievalStudy,
    Run,
    Sampling,
    Vectors,
    distinct,
    exact_run,
    having,
)

_TIMED_QUERIES = 10
_TIMED_DOCUMENTS = 300  # number of candidates of a first stage
_TIME = "scoring time, to the largest head"
_RELEVANT = "relevant tokens"
_DIRECTIONS = "de->en: German queries, English documents; de->mixed: documents in several languages."
_LENGTH = "Length is the number of token vectors of the documents that are relevant to a query, on average."
_ENOUGH = 97
_PAIRED = (
    "Queries of several sets are pooled with the same weight. Percentages are paired by query, so their intervals are "
    f"narrower than those of nDCG@10. The last column goes by means; it is empty for fewer than {FEW} queries."
)
_TIMING = (
    "Documents are scored in float16. Time: MaxSim of a query with up to 300 documents, alternating with the largest "
    "head; medians of ratios. Less than 1 is faster."
)
_RULE = (
    "Derived by rule from the averages over the sets: the smallest head within a share of the best nDCG@10 or "
    "Recall@100, and the best head within a number of bytes per token. Your own sets may lead to another choice."
)


class MatryoshkaStudy(RetrievalStudy):
    """Compare all dimensions of a model."""

    name = "matryoshka"
    title = "Matryoshka dimensions: what each costs and what it keeps"
    axis = "dim"

    def __init__(self, encoder: JinaColbertEncoder, sampling: Sampling) -> None:
        super().__init__(encoder, sampling, *sorted(encoder.dims, reverse=True))
        self.ways = self.dims

    @property
    def settings(self) -> Mapping[str, Any]:
        """Model with the fingerprint of each head, and sampling."""
        return {**super().settings, "largest": self.dims[0]}

    def search(self, cell: Cell, dataset: BeirDataset) -> tuple[Run, dict[str, Value], dict[str, Samples]]:
        """Search the draw with exact MaxSim at one dimension, and time scoring against the largest dimension."""
        dim, largest = int(cell.parameters["dim"] or 0), self.dims[0]
        documents, queries = self.documents(cell, dataset), self.queries(cell, dataset)
        tokens = dict(zip(dataset.corpus, map(len, documents[dim]), strict=True))
        values: dict[str, Value] = {"tokens a document": mean(tokens.values())}
        for what, number in (("token", 1), ("document", mean(tokens.values()))):
            values |= {f"bytes a {what}, float{8 * size}": size * dim * number for size in (2, 4)}
        values[_TIME] = 1.0
        if dim != largest:
            values |= _scoring_time((queries[dim], documents[dim]), (queries[largest], documents[largest]))
        relevant: dict[str, float] = {}
        for query, judgments in dataset.qrels.items():
            if own := [tokens[document] for document, grade in judgments.items() if grade > 0 and document in tokens]:
                relevant[query] = sum(own) / len(own)
        return exact_run(dataset, queries[dim], documents[dim]), values, {_RELEVANT: relevant}

    @staticmethod
    def report(settings: Mapping[str, Any], cells: Sequence[Cell]) -> Report:
        """Return the report."""
        draws = Draws.whole("dim", cells)
        heads = _heads(draws)
        best, smallest, which = max(heads, key=lambda head: head.ndcg.mean), heads[-1], scenarios(heads)
        languages = _kept("language", draws.by_language(), worst_first=True)
        enough: dict[str, list[str]] = {}
        for row in sorted(languages[-1].rows):
            enough.setdefault(row[-1], []).append(row[0])
        findings = [
            f"Best nDCG@10 over {len(draws.each_set())} set(s): {best.ndcg.text()}, with {best.dim} dimensions.",
            f"{smallest.dim} dimensions keep {smallest.ndcg.mean / best.ndcg.mean:.1%} of it, with {2 * smallest.dim} "
            f"instead of {2 * best.dim} bytes per token in float16.",
            *(f"{row[0]}: {row[1]} dimensions." for row in which.rows),
            *(f"Fewest dimensions that keep {_ENOUGH} %: {dim} in {', '.join(own)}." for dim, own in enough.items()),
        ]
        return Report(
            f"What does each Matryoshka dimension of {settings['model']} cost, and what does it keep?",
            findings,
            {
                "By language": [METHOD, _DIRECTIONS, *languages],
                "By document length": [_LENGTH, *_kept("length", draws.by_bucket(_RELEVANT, (64, 128, 256)))],
                "Quality against size": [_overview(draws, heads)],
                "Which dimension for which scenario": [_RULE, which],
                "By set": _kept("set", draws.each_set())[-1:],
            },
            [
                *draws.limits(settings),
                f"Only {settings['model']} was measured. What small heads keep depends on their training.",
                "Languages and lengths come from different sets, so a difference between rows may be one of the sets.",
                "Times are of scoring alone, on this machine. A first stage, or vectors on disk, change them.",
            ],
        )


_Side = tuple[Vectors, Vectors]


def _scoring_time(side: _Side, largest: _Side) -> dict[str, Value]:
    """Time MaxSim of a query with up to 300 documents, alternating with the largest head, and return the medians."""
    sides = []
    for queries, documents in (side, largest):
        some = [one.to(queries[0].device, queries[0].dtype) for one in documents[:_TIMED_DOCUMENTS]]
        mask = pad_sequence([one.new_ones(len(one), dtype=torch.bool) for one in some], batch_first=True)
        sides.append((queries, pad_sequence(some, batch_first=True), mask))
    device, times = sides[0][1].device, []
    for query in range(min(_TIMED_QUERIES, len(side[0])) + 1):
        row = []
        for queries, padded, mask in sides:
            start = clock(device)
            maxsim(queries[query % len(queries)], padded, b_mask=mask)
            row.append(clock(device) - start)
        times.append(row)
    times = times[1:]  # the first is a warm-up
    found: dict[str, Value] = {_TIME: median(own / other for own, other in times)}
    return found | ({"scoring, ms": 1000 * median(own for own, _ in times)} if device.type == "cuda" else {})


class Head(NamedTuple):
    """The figures of one head, averaged over the sets."""

    dim: int
    ndcg: Interval
    recall: Interval
    time: float


def _heads(draws: Draws) -> list[Head]:
    """Return the heads, largest first."""
    found = []
    for dim in sorted(distinct(draws.cells, "dim"), reverse=True):
        ndcg, recall = (draws.mean(dim, measure, each_set=True) for measure in (NDCG, RECALL))
        times = [float(one.values[_TIME] or 0) for one in having(draws.cells, dim=dim)]
        found.append(Head(dim, ndcg, recall, mean(times)))
    return found


def _overview(draws: Draws, heads: Sequence[Head]) -> Table:
    best = max(head.ndcg.mean for head in heads)
    tokens = mean(float(one.values["tokens a document"] or 0) for one in draws.cells)
    rows = []
    for dim, ndcg, recall, time in heads:
        sizes = [f"{number:,.0f}" for number in (dim, 2 * dim, 4 * dim, 2 * dim * tokens, 4 * dim * tokens)]
        rows.append([*sizes, ndcg.text(), f"{ndcg.mean / best:.1%}", recall.text(), f"{time:.2f}"])
    columns = ["dims", "bytes a token, float16", "float32", "bytes a document, float16", "float32"]
    columns += ["nDCG@10", "of the best", "Recall@100", _TIME]
    note = f"A document has {tokens:.0f} token vectors on average. {_TIMING}"
    return Table("Each head, averaged over the sets", columns, rows, note)


def scenarios(heads: Sequence[Head]) -> Table:
    """Return a table of the dimension to use in different scenarios."""
    best = max(heads, key=lambda head: head.ndcg.mean)
    deepest = max(head.recall.mean for head in heads)
    smallest = sorted(heads, key=lambda head: head.dim)
    chosen = {"The best nDCG@10": best}
    for loss in (0.01, 0.03):
        near = (head for head in smallest if head.ndcg.mean >= (1 - loss) * best.ndcg.mean)
        chosen[f"Within {loss:.0%} of the best nDCG@10"] = next(near)
    candidates = (head for head in smallest if head.recall.mean >= 0.99 * deepest)
    chosen["Finding candidates: within 1% of the best Recall@100"] = next(candidates)
    for budget in (64, 128, 256, 512):
        if within := [head for head in heads if 2 * head.dim <= budget]:
            chosen[f"At most {budget} bytes a token in float16"] = max(within, key=lambda head: head.ndcg.mean)
    rows = [
        [name, str(head.dim), str(2 * head.dim), head.ndcg.text(), f"{head.ndcg.mean / best.ndcg.mean:.1%}"]
        for name, head in chosen.items()
    ]
    return Table("Which dimension", ["what matters", "dims", "bytes a token, float16", "nDCG@10", "of the best"], rows)


def _kept(heading: str, groups: Mapping[str, Draws], *, worst_first: bool = False) -> list[Any]:
    """Return a chart and a table of the % of nDCG@10 at the largest head that smaller heads keep."""
    largest, *smaller = sorted({dim for own in groups.values() for dim in distinct(own.cells, "dim")}, reverse=True)
    kept = {name: {dim: share(own.pairs(dim, largest)) for dim in smaller} for name, own in groups.items()}
    if worst_first:
        kept = dict(sorted(kept.items(), key=lambda item: [one.mean for one in item[1].values() if one][-1:]))
    rows = []
    for name, shares in kept.items():
        enough = min((dim for dim, one in shares.items() if one and one.mean >= _ENOUGH), default=largest)
        texts = ["–" if one is None else one.text(1) for one in shares.values()]
        queries, ndcg = groups[name].queries, groups[name].mean(largest).text()
        rows.append([name, f"{queries:,}", ndcg, *texts, str(enough) if queries >= FEW else "–"])
    columns = [heading, "queries", f"nDCG@10, {largest} dims", *(f"{dim} dims, %" for dim in smaller)]
    columns.append(f"dims that keep {_ENOUGH} %")
    table = Table(f"nDCG@10 by {heading}, and the % of it that smaller heads keep", columns, rows, _PAIRED)
    series = {f"{dim} dims": {name: shares[dim] for name, shares in kept.items()} for dim in smaller}
    title, label = f"What smaller heads keep, by {heading}", f"% of nDCG@10 at {largest} dims"
    note = "Bars are 95 % intervals, paired by query."
    return [Chart(title, label, series, note, reference=100), table] if series else [table]
