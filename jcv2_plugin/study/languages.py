"""A model beside BM25 in each language, and across languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from jcv2_plugin.beir import BeirDataset
from jcv2_plugin.bm25 import bm25_run
from jcv2_plugin.encoder import JinaColbertEncoder
from jcv2_plugin.evaluation import NDCG, RECALL, measure_run
from jcv2_plugin.study.base import Cell, Chart, Measured, Report, Result, Section, Table, Value
from jcv2_plugin.study.charts import Bars, bar_chart
from jcv2_plugin.study.intervals import METHOD, Interval, difference, interval, mean_over_sets
from jcv2_plugin.study.retrieval import (
    DEPTH,
    EncodedSets,
    Sampling,
    cells_of,
    distinct,
    exact_run,
    model_settings,
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
    """See :class:`jcv2_plugin.study.base.Study`.

    Args:
        encoder: The model.
        dim: The head to search with.
        sampling: The sets.
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
        """The model, its head and the sampling."""
        return {**model_settings(self.encoder, (self.dim,)), "dim": self.dim, **self.sampling.settings}

    def cells(self) -> Sequence[Cell]:
        """One for the model and one for BM25 in each draw of each set."""
        return cells_of(self.sampling, "system", (MODEL, BM25))

    def measure(self, cell: Cell) -> Measured:
        """Search the draw, exactly by MaxSim or with BM25."""
        dataset = self.sampling.dataset(cell.parameters)
        values = sizes(dataset)
        if cell.parameters["system"] == BM25:
            figures, samples = quality(measure_run(bm25_run(dataset, k=DEPTH), dataset.qrels))
            return Measured({**values, **figures, _UNKNOWN: None}, samples)
        documents = self._sets.documents(cell.parameters, dataset)[self.dim]
        run = exact_run(dataset, self._sets.queries(dataset, self.dim), documents)
        figures, samples = quality(measure_run(run, dataset.qrels))
        return Measured({**values, **figures, _UNKNOWN: _unknown_share(self.encoder, dataset)}, samples)

    def report(self, results: Sequence[Result]) -> Report:
        """The report."""
        return languages_report(self.settings, results)


def _unknown_share(encoder: JinaColbertEncoder, dataset: BeirDataset) -> float | None:
    """How much of the documents the tokenizer has no token for: what of them no training can make up for."""
    unknown = encoder.tokenizer.unk_token_id
    if unknown is None:
        return None
    texts = [passage.full_text for passage in dataset.corpus.values()]
    ids = encoder.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=encoder.document_length)
    lengths = [len(own) for own in ids["input_ids"]]
    return float(sum(own.count(unknown) for own in ids["input_ids"]) / max(1, sum(lengths)))


def languages_report(settings: Mapping[str, Any], results: Sequence[Result]) -> Report:
    """The report of what was measured."""
    results = whole_draws(results, "system", (MODEL, BM25))
    sets = distinct(results, "set")
    languages = {one.parameters["set"]: str(one.values["language"] or "not said") for one in results}
    crossing = [name for name in sets if "->" in languages[name] or "+" in languages[name]]
    gaps = {name: _gap(results, name) for name in sets}
    ahead = [name for name in sets if gaps[name].low > 0]
    behind = [name for name in sets if gaps[name].high < 0]
    findings = [
        f"{settings['model']} at {settings['dim']} dims is ahead of BM25 in {_named(ahead)}, and behind in "
        f"{_named(behind)}; by nDCG@10, where the interval of the difference is on one side of 0."
    ]
    parts = {"one language": [name for name in sets if name not in crossing], "several languages": crossing}
    for what, own in parts.items():
        if own:
            both = {
                system: mean_over_sets([samples_of(results, NDCG, set=name, system=system) for name in own])
                for system in (MODEL, BM25)
            }
            findings.append(
                f"Sets in {what} ({len(own)}), on average: {both[MODEL].text()} against {both[BM25].text()} of BM25."
            )
    if blind := [name for name in sets if (_unknown(results, name) or 0) > 0.05]:
        findings.append(
            f"Over 5 % of the tokens of {_named(blind)} are unknown to the model's vocabulary: these texts it cannot "
            "read."
        )
    items: list[Table | Chart] = [_chart(results, sets, settings), languages_table(results)]
    return Report(
        question=f"In which languages does {settings['model']} find more than BM25, and in which less?",
        findings=findings,
        sections=[Section("Beside BM25", [METHOD], items)],
        limits=[
            *sample_limits(results, settings),
            "BM25 splits words and stems them where a stemmer exists, and takes character bigrams where words are not "
            "spaced. Across languages, words in common are names and numbers only, so BM25 is a weak baseline there.",
            "Questions written for a passage, as in most of these sets, share words with it. That favours BM25 more "
            "than questions of people who have not seen the passage.",
        ],
    )


def languages_table(results: Sequence[Result]) -> Table:
    """Both systems in each set."""
    results = whole_draws(results, "system", (MODEL, BM25))
    rows = []
    for name in distinct(results, "set"):
        own = [one for one in results if one.parameters["set"] == name]
        unknown = _unknown(results, name)
        rows.append(
            [
                name,
                str(own[0].values["language"] or "not said"),
                *(_figure(own, NDCG, system) for system in (MODEL, BM25)),
                _gap(results, name).text(signed=True),
                *(_figure(own, RECALL, system) for system in (MODEL, BM25)),
                "–" if unknown is None else f"{unknown:.1%}",
            ]
        )
    columns = [
        "set",
        "language",
        "nDCG@10, model",
        "BM25",
        "paired difference",
        "Recall@100, model",
        "BM25",
        "unknown tokens",
    ]
    note = "de->en asks an English corpus in German; de+zh is a corpus of both. Unknown tokens: of the documents."
    return Table("Each set", columns, rows, note, labels=2)


def _figure(results: Sequence[Result], measure: str, system: str) -> str:
    return interval(samples_of(results, measure, system=system)).text()


def _gap(results: Sequence[Result], name: str) -> Interval:
    pairs = paired(results, NDCG, {"set": name, "system": MODEL}, {"set": name, "system": BM25})
    return difference(pairs)


def _unknown(results: Sequence[Result], name: str) -> float | None:
    shares: list[Value] = [
        one.values[_UNKNOWN] for one in results if one.parameters["set"] == name and one.values[_UNKNOWN] is not None
    ]
    return mean(float(share or 0) for share in shares) if shares else None


def _named(sets: Sequence[str]) -> str:
    return ", ".join(sets) if sets else "none"


def _chart(results: Sequence[Result], sets: Sequence[str], settings: Mapping[str, Any]) -> Chart:
    groups = []
    for system, label in ((MODEL, f"{settings['model']}, {settings['dim']} dims"), (BM25, "BM25")):
        own = [samples_of(results, NDCG, set=name, system=system) for name in sets]
        groups.append(Bars(label, [interval(one) for one in own]))
    description = f"nDCG@10 of {settings['model']} beside BM25 in each set: {', '.join(sets)}."
    svg = bar_chart(description, sets, groups, y_label="nDCG@10")
    return Chart("nDCG@10 in each set", svg, "Ends are 95 % intervals over queries.")
