"""The report of the study ``matryoshka``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, quantiles
from typing import Any, NamedTuple

from jcv2_plugin.evaluation import NDCG, RECALL
from jcv2_plugin.study.base import Chart, Report, Result, Section, Table
from jcv2_plugin.study.charts import Line, line_chart
from jcv2_plugin.study.intervals import METHOD, Interval, Samples, interval, mean_over_sets, subtract
from jcv2_plugin.study.retrieval import distinct, paired, sample_limits, samples_of, whole_draws

_TIME = "scoring time, to the largest head"
_NEAR = (0.01, 0.03)
_BUDGETS = (64, 128, 256, 512)
_THIRDS = ("short", "middle", "long")


class Head(NamedTuple):
    """A head's figures over all sets."""

    dim: int
    ndcg: Interval
    recall: Interval
    time: float


def matryoshka_report(settings: Mapping[str, Any], results: Sequence[Result]) -> Report:
    """The report of what was measured."""
    results = whole_draws(results, "dim", distinct(results, "dim"))
    sets = distinct(results, "set")
    heads = heads_of(results)
    best = max(heads, key=lambda head: head.ndcg.mean)
    smallest, largest = heads[-1], heads[0]
    findings = [
        f"Best over {_sets(sets)}: {best.dim} dims with nDCG@10 {best.ndcg.text()}.",
        f"{smallest.dim} dims keep {smallest.ndcg.mean / best.ndcg.mean:.1%} of it, with {2 * smallest.dim} instead of "
        f"{2 * best.dim} bytes a token in float16.",
        *(f"{row[0]}: {row[1]} dims." for row in scenarios(heads).rows),
    ]
    return Report(
        question=f"What does each Matryoshka dimension of {settings['model']} cost, and what does it keep?",
        findings=findings,
        sections=[
            Section(
                "Quality against size",
                [METHOD],
                [_curve(results, sets), overview(results), _difference_chart(results, sets, largest.dim)],
            ),
            Section("Which dimension for which scenario", [_RULE], [scenarios(heads)]),
            Section("By set", [], [_by_set(results, sets, largest.dim)]),
            Section("By language", [], [_by_language(results, largest.dim)]),
            Section(
                "By document length",
                [
                    "The queries of a set in three parts by the length of their relevant documents, as token vectors; "
                    f"figures are paired differences in nDCG@10 to {largest.dim} dims, averaged over the sets."
                ],
                [_by_length(results, sets, largest.dim)],
            ),
        ],
        limits=_limits(settings, results),
    )


def heads_of(results: Sequence[Result]) -> list[Head]:
    """The heads, largest first, with their figures averaged over the sets."""
    found = []
    for dim in sorted(distinct(results, "dim"), reverse=True):
        own = [one for one in results if one.parameters["dim"] == dim]
        found.append(
            Head(
                dim,
                mean_over_sets([samples_of(own, NDCG, set=name) for name in distinct(own, "set")]),
                mean_over_sets([samples_of(own, RECALL, set=name) for name in distinct(own, "set")]),
                mean(float(one.values[_TIME] or 0) for one in own),
            )
        )
    return found


def overview(results: Sequence[Result]) -> Table:
    """Each head's size, quality and time."""
    results = whole_draws(results, "dim", distinct(results, "dim"))
    heads = heads_of(results)
    best = max(head.ndcg.mean for head in heads)
    tokens = mean(float(one.values["tokens a document"] or 0) for one in results)
    rows = [
        [
            str(head.dim),
            f"{2 * head.dim}",
            f"{4 * head.dim}",
            f"{2 * head.dim * tokens:,.0f}",
            f"{4 * head.dim * tokens:,.0f}",
            head.ndcg.text(),
            f"{head.ndcg.mean / best:.1%}",
            head.recall.text(),
            f"{head.time:.2f}",
        ]
        for head in heads
    ]
    return Table(
        "Each head, averaged over the sets",
        [
            "dims",
            "bytes a token, float16",
            "float32",
            "bytes a document, float16",
            "float32",
            "nDCG@10",
            "of the best",
            "Recall@100",
            "scoring time, to the largest head",
        ],
        rows,
        f"A document has {tokens:.0f} token vectors on average. Documents were scored as float16. Time: MaxSim of a "
        "query with up to 300 documents, by turns with the largest head, medians of ratios; less than 1 is "
        "faster.",
    )


_RULE = (
    "Derived by rule from the averages over the sets: the smallest head within a share of the best nDCG@10 or "
    "Recall@100, and the best within so many bytes a token. Sets of your own may lead to another choice."
)


def scenarios(heads: Sequence[Head]) -> Table:
    """Which dimension to take, by rule."""
    best = max(heads, key=lambda head: head.ndcg.mean)
    deepest = max(head.recall.mean for head in heads)
    rows = [_scenario("Nothing may be lost: the best nDCG@10", best, best)]
    for share in _NEAR:
        near = min((head for head in heads if head.ndcg.mean >= (1 - share) * best.ndcg.mean), key=_dim)
        rows.append(_scenario(f"Within {share:.0%} of the best nDCG@10", near, best))
    first_stage = min((head for head in heads if head.recall.mean >= 0.99 * deepest), key=_dim)
    rows.append(_scenario("Finding candidates: within 1% of the best Recall@100", first_stage, best))
    for budget in _BUDGETS:
        if within := [head for head in heads if 2 * head.dim <= budget]:
            own = max(within, key=lambda head: head.ndcg.mean)
            rows.append(_scenario(f"At most {budget} bytes a token in float16", own, best))
    return Table("Which dimension", ["what matters", "dims", "bytes a token, float16", "nDCG@10", "of the best"], rows)


def _dim(head: Head) -> int:
    return head.dim


def _scenario(name: str, head: Head, best: Head) -> list[str]:
    kept = head.ndcg.mean / best.ndcg.mean
    return [name, str(head.dim), str(2 * head.dim), head.ndcg.text(), f"{kept:.1%}"]


def _sets(sets: Sequence[str]) -> str:
    return sets[0] if len(sets) == 1 else f"{len(sets)} sets ({', '.join(sets)})"


def _curve(results: Sequence[Result], sets: Sequence[str]) -> Chart:
    lines = []
    for name in sets:
        dims = sorted(distinct([one for one in results if one.parameters["set"] == name], "dim"))
        lines.append(
            Line(
                name,
                [2 * dim for dim in dims],
                [interval(samples_of(results, NDCG, set=name, dim=dim)) for dim in dims],
            )
        )
    description = f"nDCG@10 against bytes a token in float16, a line for each set: {', '.join(sets)}."
    svg = line_chart(description, lines, x_label="bytes a token, float16 (twice the dimension)", y_label="nDCG@10")
    return Chart("nDCG@10 against bytes a token", svg, "Bars are 95 % intervals over queries.")


def _difference_chart(results: Sequence[Result], sets: Sequence[str], largest: int) -> Chart:
    lines = []
    for name in sets:
        dims = sorted(distinct([one for one in results if one.parameters["set"] == name], "dim"))
        lines.append(Line(name, dims, [_to_largest(results, name, dim, largest) for dim in dims]))
    description = f"Paired differences in nDCG@10 to {largest} dims, a line for each set: {', '.join(sets)}."
    svg = line_chart(description, lines, x_label="dims", y_label=f"nDCG@10, less that of {largest} dims", reference=0)
    return Chart(
        f"What a smaller head costs, beside {largest} dims",
        svg,
        "Paired by query, so that these intervals are narrower than those of the figures themselves.",
    )


def _to_largest(results: Sequence[Result], name: str, dim: int, largest: int) -> Interval:
    pairs = paired(results, NDCG, {"set": name, "dim": dim}, {"set": name, "dim": largest})
    return interval([subtract(one, other) for one, other in pairs])


def _by_set(results: Sequence[Result], sets: Sequence[str], largest: int) -> Table:
    rows = []
    for name in sets:
        own = [one for one in results if one.parameters["set"] == name]
        for dim in sorted(distinct(own, "dim"), reverse=True):
            cells = [one for one in own if one.parameters["dim"] == dim]
            rows.append(
                [
                    name,
                    str(dim),
                    interval(samples_of(own, NDCG, dim=dim)).text(),
                    _to_largest(results, name, dim, largest).text(signed=True) if dim != largest else "–",
                    interval(samples_of(own, RECALL, dim=dim)).text(),
                    f"{mean(float(one.values['bytes a document, float16'] or 0) for one in cells):,.0f}",
                    f"{mean(float(one.values[_TIME] or 0) for one in cells):.2f}",
                ]
            )
    return Table(
        "Each head in each set",
        [
            "set",
            "dims",
            "nDCG@10",
            f"paired difference to {largest}",
            "Recall@100",
            "bytes a document, float16",
            "scoring time, to the largest head",
        ],
        rows,
        labels=2,
    )


def _by_language(results: Sequence[Result], largest: int) -> Table:
    languages: dict[str, list[str]] = {}
    for one in results:
        own = languages.setdefault(str(one.values["language"] or "not said"), [])
        if one.parameters["set"] not in own:
            own.append(str(one.parameters["set"]))
    dims = sorted(distinct(results, "dim"), reverse=True)
    rows = []
    for language, sets in languages.items():
        figures = [mean_over_sets([samples_of(results, NDCG, set=name, dim=dim) for name in sets]) for dim in dims]
        rows.append([language, ", ".join(sets), *(figure.text() for figure in figures)])
    note = f"As far as the sets say their language. {largest} dims is the largest head measured."
    return Table("nDCG@10 by language", ["language", "sets", *(f"{dim} dims" for dim in dims)], rows, note, labels=2)


def _by_length(results: Sequence[Result], sets: Sequence[str], largest: int) -> Table:
    lengths = {name: _lengths(results, name) for name in sets}
    bounds = {name: quantiles(own.values(), n=3) for name, own in lengths.items() if len(set(own.values())) > 2}
    rows = []
    for dim in sorted(distinct(results, "dim"), reverse=True):
        if dim == largest:
            continue
        row = [str(dim)]
        for third in range(len(_THIRDS)):
            parts = []
            for name, (low, high) in bounds.items():
                pairs = paired(results, NDCG, {"set": name, "dim": dim}, {"set": name, "dim": largest})
                own = [_in_third(subtract(*pair), lengths[name], third, low, high) for pair in pairs]
                if any(own):
                    parts.append(own)
            row.append(mean_over_sets(parts).text(signed=True) if parts else "–")
        rows.append(row)
    where = "; ".join(f"{name} {low:.0f} and {high:.0f}" for name, (low, high) in bounds.items())
    return Table(
        f"Difference in nDCG@10 to {largest} dims, by length of the relevant document",
        ["dims", *_THIRDS],
        rows,
        f"The parts are cut at these numbers of token vectors: {where}." if where else "",
    )


def _lengths(results: Sequence[Result], name: str) -> Samples:
    found: dict[str, float] = {}
    for one in results:
        if one.parameters["set"] == name:
            found.update(one.samples["relevant tokens"])
    return found


def _in_third(differences: Samples, lengths: Samples, third: int, low: float, high: float) -> dict[str, float]:
    return {
        query: value
        for query, value in differences.items()
        if query in lengths and (lengths[query] > low) + (lengths[query] > high) == third
    }


def _limits(settings: Mapping[str, Any], results: Sequence[Result]) -> list[str]:
    return [
        *sample_limits(results, settings),
        f"One model was measured, {settings['model']}. How much a small head keeps is a matter of how its heads were "
        "trained: other models lose more or less.",
        "Times are of scoring alone, on this machine, and relative. An index with a first stage, or vectors on a disk, "
        "shifts them.",
    ]
