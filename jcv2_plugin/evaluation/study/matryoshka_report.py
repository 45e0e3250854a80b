"""The report of the study ``matryoshka``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from jcv2_plugin.evaluation.metrics import NDCG, RECALL
from jcv2_plugin.evaluation.study.base import Chart, Report, Result, Section, Table
from jcv2_plugin.evaluation.study.charts import Bars, dot_chart
from jcv2_plugin.evaluation.study.intervals import FEW, METHOD, Interval, interval, mean_over_sets, share
from jcv2_plugin.evaluation.study.retrieval import (
    by_bucket,
    by_language,
    by_set,
    distinct,
    having,
    number_of_queries,
    paired,
    sample_limits,
    samples_of,
    whole_draws,
)

_TIME = "scoring time, to the largest head"
_NEAR = (0.01, 0.03)
_BUDGETS = (64, 128, 256, 512)
_LENGTHS = (64, 128, 256)
_ENOUGH = 97
_PAIRED = (
    "Queries of several sets are taken together, each counting the same. Shares are paired by query, so that their "
    "intervals are narrower than those of the figures themselves. The last column goes by means, and says nothing of "
    f"fewer than {FEW} queries."
)
RELEVANT = "relevant tokens"


class Head(NamedTuple):
    """The figures of one head, averaged over the sets."""

    dim: int
    ndcg: Interval
    recall: Interval
    time: float


def matryoshka_report(settings: Mapping[str, Any], results: Sequence[Result]) -> Report:
    """Return the report on the measured cells."""
    results = whole_draws(results, "dim", distinct(results, "dim"))
    sets = distinct(results, "set")
    heads = heads_of(results)
    best = max(heads, key=lambda head: head.ndcg.mean)
    smallest = heads[-1]
    languages, lengths = languages_of(results), lengths_of(results)
    findings = [
        f"Best over {sets[0] if len(sets) == 1 else f'{len(sets)} sets'}: {best.dim} dims with nDCG@10 "
        f"{best.ndcg.text()}.",
        f"{smallest.dim} dims keep {smallest.ndcg.mean / best.ndcg.mean:.1%} of it, with {2 * smallest.dim} instead of "
        f"{2 * best.dim} bytes a token in float16.",
        *(f"{row[0]}: {row[1]} dims." for row in scenarios(heads).rows),
        *_by_enough(languages),
    ]
    return Report(
        question=f"What does each Matryoshka dimension of {settings['model']} cost, and what does it keep?",
        findings=findings,
        sections=[
            Section(
                "By language",
                [METHOD, "de->en asks for English documents in German, de->mixed for documents in several languages."],
                [*_kept_chart("language", languages), kept_table("language", languages)],
            ),
            Section(
                "By document length",
                ["Lengths are of the documents that are relevant to a query, as token vectors; the mean of several."],
                [*_kept_chart("length", lengths), kept_table("length", lengths)],
            ),
            Section("Quality against size", [], [overview(results)]),
            Section("Which dimension for which scenario", [_RULE], [scenarios(heads)]),
            Section("By set", [], [kept_table("set", _parts(by_set(results)))]),
        ],
        limits=_limits(settings, results),
    )


def heads_of(results: Sequence[Result]) -> list[Head]:
    """Return the heads, largest first, with their figures averaged over the sets."""
    found = []
    for dim in sorted(distinct(results, "dim"), reverse=True):
        own = having(results, dim=dim)
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
    """Return a table of each head's size, quality and scoring time."""
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
    """Return a table of the dimension to use in different scenarios."""
    best = max(heads, key=lambda head: head.ndcg.mean)
    deepest = max(head.recall.mean for head in heads)
    rows = [_scenario("Nothing may be lost: the best nDCG@10", best, best)]
    for loss in _NEAR:
        near = min((head for head in heads if head.ndcg.mean >= (1 - loss) * best.ndcg.mean), key=_dim)
        rows.append(_scenario(f"Within {loss:.0%} of the best nDCG@10", near, best))
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


def _by_enough(languages: Mapping[str, Part]) -> list[str]:
    found: dict[int, list[str]] = {}
    for name, part in sorted(languages.items()):
        if part.enough:
            found.setdefault(part.enough, []).append(name)
    return [f"{dim} dims are the fewest that keep {_ENOUGH} % in {', '.join(found[dim])}." for dim in sorted(found)]


class Part(NamedTuple):
    """Part of the queries: their number, nDCG@10 at the largest head, and the % of it that each smaller head keeps."""

    largest: int
    queries: int
    ndcg: Interval
    kept: dict[int, Interval | None]

    @property
    def enough(self) -> int | None:
        """The smallest head that keeps enough; None if there are too few queries to say."""
        heads = [dim for dim, one in self.kept.items() if one and one.mean >= _ENOUGH]
        return min(heads, default=self.largest) if self.queries >= FEW else None


def languages_of(results: Sequence[Result]) -> dict[str, Part]:
    """Return parts by query language, sorted by what the smallest head keeps, lowest first."""
    parts = _parts(by_language(whole_draws(results, "dim", distinct(results, "dim"))))
    return dict(sorted(parts.items(), key=lambda item: [one.mean for one in item[1].kept.values() if one][-1:]))


def lengths_of(results: Sequence[Result]) -> dict[str, Part]:
    """Return parts by the length of the relevant documents."""
    return _parts(by_bucket(whole_draws(results, "dim", distinct(results, "dim")), RELEVANT, _LENGTHS))


def _parts(groups: Mapping[str, Sequence[Result]]) -> dict[str, Part]:
    found = {}
    for name, results in groups.items():
        largest, *smaller = sorted(distinct(results, "dim"), reverse=True)
        kept = {dim: share(paired(results, NDCG, {"dim": dim}, {"dim": largest})) for dim in smaller}
        ndcg = interval(samples_of(results, NDCG, dim=largest))
        found[name] = Part(largest, number_of_queries(results), ndcg, kept)
    return found


def kept_table(heading: str, parts: Mapping[str, Part]) -> Table:
    """Return a table of what smaller heads keep in each part."""
    some = next(iter(parts.values()))
    columns = [heading, "queries", f"nDCG@10, {some.largest} dims", *(f"{dim} dims, %" for dim in some.kept)]
    rows = [
        [
            name,
            f"{part.queries:,}",
            part.ndcg.text(),
            *("–" if one is None else one.text(1) for one in part.kept.values()),
            str(part.enough or "–"),
        ]
        for name, part in parts.items()
    ]
    title = f"nDCG@10 by {heading}, and the % of it that smaller heads keep"
    return Table(title, [*columns, f"dims that keep {_ENOUGH} %"], rows, _PAIRED)


def _kept_chart(heading: str, parts: Mapping[str, Part]) -> list[Chart]:
    some = next(iter(parts.values()))
    if not some.kept:
        return []
    groups = [Bars(f"{dim} dims", [part.kept[dim] for part in parts.values()]) for dim in some.kept]
    label = f"% of nDCG@10 at {some.largest} dims"
    description = f"{label} that smaller heads keep, by {heading}: {', '.join(parts)}."
    svg = dot_chart(description, list(parts), groups, x_label=label, reference=100)
    return [Chart(f"What smaller heads keep, by {heading}", svg, "Ends are 95 % intervals, paired by query.")]


def _limits(settings: Mapping[str, Any], results: Sequence[Result]) -> list[str]:
    return [
        *sample_limits(results, settings),
        f"One model was measured, {settings['model']}. How much a small head keeps is a matter of how its heads were "
        "trained: other models lose more or less.",
        "Languages and lengths are those of different sets, so that a difference between rows may be one of the sets.",
        "Times are of scoring alone, on this machine, and relative. An index with a first stage, or vectors on a disk, "
        "shifts them.",
    ]
