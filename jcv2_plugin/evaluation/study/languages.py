"""The study ``languages``: compare a model with BM25 in each language and across languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from jcv2_plugin.encoder.model import JinaColbertEncoder
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.bm25 import bm25_run
from jcv2_plugin.evaluation.metrics import NDCG, RECALL, measure_run
from jcv2_plugin.evaluation.study.base import Cell, Chart, Measured, Report, Result, Section, Table
from jcv2_plugin.evaluation.study.charts import Bars, dot_chart
from jcv2_plugin.evaluation.study.intervals import FEW, METHOD, Interval, difference, interval, mean_over_sets
from jcv2_plugin.evaluation.study.retrieval import (
    DEPTH,
    EncodedSets,
    Sampling,
    by_language,
    by_set,
    cells_of,
    exact_run,
    model_settings,
    number_of_queries,
    paired,
    quality,
    sample_limits,
    samples_of,
    sizes,
    whole_draws,
)

MODEL, BM25 = "model", "BM25"
_UNKNOWN = "unknown tokens"


class LanguagesStudy:
    """Compare a model with BM25 by language; see :class:`jcv2_plugin.evaluation.study.base.Study`.

    Args:
        encoder: Model to measure.
        dim: Dimension to search with.
        sampling: Test sets and draws.
    """

    name = "languages"
    title = "Languages: a model beside BM25"

    def __init__(self, encoder: JinaColbertEncoder, dim: int, sampling: Sampling) -> None:
        self.encoder = encoder
        self.dim = dim
        self.sampling = sampling
        self._sets = EncodedSets(encoder, sampling, (dim,))

    @property
    def settings(self) -> Mapping[str, Any]:
        """Model, dimension and sampling."""
        return {**model_settings(self.encoder, (self.dim,)), "dim": self.dim, **self.sampling.settings}

    def cells(self) -> Sequence[Cell]:
        """Return a cell for the model and one for BM25 for each draw of each set."""
        return cells_of(self.sampling, "system", (MODEL, BM25))

    def measure(self, cell: Cell) -> Measured:
        """Search the draw with exact MaxSim or BM25."""
        dataset = self.sampling.dataset(cell.parameters)
        values = sizes(dataset)
        if cell.parameters["system"] == BM25:
            run, unknown = bm25_run(dataset, k=DEPTH), None
        else:
            queries = self._sets.queries(cell.parameters, dataset)[self.dim]
            run = exact_run(dataset, queries, self._sets.documents(cell.parameters, dataset)[self.dim])
            unknown = _unknown_share(self.encoder, dataset)
        figures, samples = quality(measure_run(run, dataset.qrels))
        return Measured(
            {**values, **figures, _UNKNOWN: unknown}, samples, self.sampling.languages(cell.parameters, dataset)
        )

    def report(self, results: Sequence[Result]) -> Report:
        """Return the report."""
        return languages_report(self.settings, results)


def _unknown_share(encoder: JinaColbertEncoder, dataset: BeirDataset) -> float | None:
    """Return the share of document tokens that are unknown to the tokenizer, which no training can make up for."""
    unknown = encoder.tokenizer.unk_token_id
    if unknown is None:
        return None
    texts = [passage.full_text for passage in dataset.corpus.values()]
    ids = encoder.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=encoder.document_length)
    lengths = [len(own) for own in ids["input_ids"]]
    return float(sum(own.count(unknown) for own in ids["input_ids"]) / max(1, sum(lengths)))


def languages_report(settings: Mapping[str, Any], results: Sequence[Result]) -> Report:
    """Return the report on the measured cells."""
    results = whole_draws(results, "system", (MODEL, BM25))
    languages = _languages(results)
    gaps = {name: _gap(own) for name, own in languages.items() if number_of_queries(own) >= FEW}
    ahead = [name for name, gap in gaps.items() if gap.low > 0]
    behind = [name for name, gap in gaps.items() if gap.high < 0]
    findings = [
        f"{settings['model']} at {settings['dim']} dims is ahead of BM25 in {_named(ahead)}, and behind in "
        f"{_named(behind)}; by nDCG@10, where the interval of the difference is on one side of 0 and there are {FEW} "
        "queries or more."
    ]
    crossing = [name for name in languages if "->" in name or "+" in name]
    kinds = {"In one language": [name for name in languages if name not in crossing], "Across languages": crossing}
    for what, names in kinds.items():
        if names:
            model, bm25 = (
                mean_over_sets([samples_of(languages[name], NDCG, system=system) for name in names])
                for system in (MODEL, BM25)
            )
            findings.append(f"{what} ({len(names)}), on average: {model.text()} against {bm25.text()} of BM25.")
    if blind := [name for name, own in by_set(results).items() if (_unknown(own) or 0) > 0.05]:
        findings.append(
            f"Over 5 % of the tokens of {_named(blind)} are unknown to the model's vocabulary: these texts it cannot "
            "read."
        )
    return Report(
        question=f"In which languages does {settings['model']} find more than BM25, and in which less?",
        findings=findings,
        sections=[
            Section("By language", [METHOD], [_chart(languages, settings), by_language_table(results)]),
            Section("By set", [], [languages_table(results)]),
        ],
        limits=[
            *sample_limits(results, settings),
            "BM25 splits words and stems them where a stemmer exists, and takes character bigrams where words are not "
            "spaced. Across languages, words in common are names and numbers only, so BM25 is a weak baseline there.",
            "Questions written for a passage, as in most of these sets, share words with it. That favours BM25 more "
            "than questions of people who have not seen the passage.",
        ],
    )


_FIGURES = ("nDCG@10, model", "BM25", "paired difference", "Recall@100, model", "BM25", "unknown tokens")


def by_language_table(results: Sequence[Result]) -> Table:
    """Return a table of both systems by query language, largest gain of the model first."""
    languages = _languages(whole_draws(results, "system", (MODEL, BM25)))
    rows = [[name, f"{number_of_queries(own):,}", *_figures(own)] for name, own in languages.items()]
    note = (
        "de->en asks for English documents in German, de->mixed for documents in several languages. Queries of several "
        "sets are taken together, each counting the same. Unknown tokens: of the documents."
    )
    return Table("Each language", ["language", "queries", *_FIGURES], rows, note)


def languages_table(results: Sequence[Result]) -> Table:
    """Return a table of both systems for each set."""
    sets = by_set(whole_draws(results, "system", (MODEL, BM25)))
    rows = [[name, str(own[0].values["language"] or "not said"), *_figures(own)] for name, own in sets.items()]
    note = "de->en asks an English corpus in German; de+zh is a corpus of both. Unknown tokens: of the documents."
    return Table("Each set", ["set", "language", *_FIGURES], rows, note, labels=2)


def _languages(results: Sequence[Result]) -> dict[str, list[Result]]:
    return dict(sorted(by_language(results).items(), key=lambda item: -_gap(item[1]).mean))


def _figures(results: Sequence[Result]) -> list[str]:
    ndcg, recall = (
        [interval(samples_of(results, measure, system=system)).text() for system in (MODEL, BM25)]
        for measure in (NDCG, RECALL)
    )
    unknown = _unknown(results)
    return [*ndcg, _gap(results).text(signed=True), *recall, "–" if unknown is None else f"{unknown:.1%}"]


def _gap(results: Sequence[Result]) -> Interval:
    return difference(paired(results, NDCG, {"system": MODEL}, {"system": BM25}))


def _unknown(results: Sequence[Result]) -> float | None:
    shares = [float(share) for one in results if (share := one.values[_UNKNOWN]) is not None]
    return mean(shares) if shares else None


def _named(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _chart(languages: Mapping[str, Sequence[Result]], settings: Mapping[str, Any]) -> Chart:
    systems = {MODEL: f"{settings['model']}, {settings['dim']} dims", BM25: "BM25"}
    groups = [
        Bars(label, [interval(samples_of(own, NDCG, system=system)) for own in languages.values()])
        for system, label in systems.items()
    ]
    description = f"nDCG@10 of {settings['model']} beside BM25 in each language: {', '.join(languages)}."
    svg = dot_chart(description, list(languages), groups, x_label="nDCG@10")
    return Chart("nDCG@10 in each language", svg, "Ends are 95 % intervals over queries.")
