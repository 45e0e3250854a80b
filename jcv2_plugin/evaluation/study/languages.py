"""The study ``languages``: compare a model with BM25 in each language and across languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.bm25 import bm25_run
from jcv2_plugin.evaluation.metrics import RECALL
from jcv2_plugin.evaluation.study.base import Cell, Chart, Report, Samples, Table, Value
from jcv2_plugin.evaluation.study.intervals import FEW, METHOD, mean_over_sets
from jcv2_plugin.evaluation.study.retrieval import Draws, RetrievalStudy, Run, exact_run

MODEL, BM25 = "model", "BM25"
_UNKNOWN = "unknown tokens"
_FIGURES = ("nDCG@10, model", "BM25", "paired difference", "Recall@100, model", "BM25", "unknown tokens")
_NOTE = (
    "de->en: German queries, English documents; de->mixed: documents in several languages. Queries of several sets are "
    "pooled with the same weight. Unknown tokens: of the documents."
)


class LanguagesStudy(RetrievalStudy):
    """Compare a model at one dimension with BM25 by language."""

    name = "languages"
    title = "Languages: a model compared with BM25"
    axis, ways = "system", (MODEL, BM25)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Model, dimension and sampling."""
        return {**super().settings, "dim": self.dims[0]}

    def search(self, cell: Cell, dataset: BeirDataset) -> tuple[Run, dict[str, Value], dict[str, Samples]]:
        """Search the draw with exact MaxSim or BM25."""
        if cell.parameters["system"] == BM25:
            return bm25_run(dataset), {_UNKNOWN: None}, {}
        (queries,), (documents,) = (own(cell, dataset).values() for own in (self.queries, self.documents))
        return exact_run(dataset, queries, documents), {_UNKNOWN: self._unknown_share(dataset)}, {}

    def _unknown_share(self, dataset: BeirDataset) -> float | None:
        """Return the share of document tokens that are unknown to the tokenizer, so that no training can help."""
        tokenizer, length = self.encoder.tokenizer, self.encoder.document_length
        if tokenizer.unk_token_id is None:
            return None
        texts = [passage.full_text for passage in dataset.corpus.values()]
        found = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=length)["input_ids"]
        unknown = sum(own.count(tokenizer.unk_token_id) for own in found)
        return float(unknown / max(1, sum(len(own) for own in found)))

    @staticmethod
    def report(settings: Mapping[str, Any], cells: Sequence[Cell]) -> Report:
        """Return the report."""
        draws = Draws.whole("system", cells, (MODEL, BM25))
        languages = dict(sorted(draws.by_language().items(), key=lambda item: -item[1].mean(MODEL, less=BM25).mean))
        series = {
            label: {name: own.mean(system) for name, own in languages.items()}
            for system, label in ((MODEL, f"{settings['model']}, {settings['dim']} dims"), (BM25, "BM25"))
        }
        rows = [[name, f"{own.queries:,}", *_figures(own)] for name, own in languages.items()]
        sets = [
            [name, str(own.cells[0].values["language"] or "unknown"), *_figures(own)]
            for name, own in draws.each_set().items()
        ]
        return Report(
            f"In which languages does {settings['model']} find more than BM25, and in which less?",
            _findings(settings, draws, languages),
            {
                "By language": [
                    METHOD,
                    Chart("nDCG@10 in each language", "nDCG@10", series, "Bars are 95 % intervals over queries."),
                    Table("Each language", ["language", "queries", *_FIGURES], rows, _NOTE),
                ],
                "By set": [Table("Each set", ["set", "language", *_FIGURES], sets, labels=2)],
            },
            [
                *draws.limits(settings),
                "BM25 stems words if a stemmer exists, and uses character bigrams if no spaces separate words. "
                "Across languages, it is a weak baseline: only names and numbers match.",
                "In most of these sets, the questions were written for a passage and share words with it. That favours "
                "BM25.",
            ],
        )


def _findings(settings: Mapping[str, Any], draws: Draws, languages: Mapping[str, Draws]) -> list[str]:
    gaps = {name: own.mean(MODEL, less=BM25) for name, own in languages.items() if own.queries >= FEW}
    ahead = [name for name, gap in gaps.items() if gap.low > 0]
    behind = [name for name, gap in gaps.items() if gap.high < 0]
    found = [
        f"nDCG@10 of {settings['model']} at {settings['dim']} dimensions is higher than that of BM25 in "
        f"{_named(ahead)}, and lower in {_named(behind)}. Languages with fewer than {FEW} queries, or with an interval "
        "of the difference that contains 0, are not counted."
    ]
    for what, crossing in (("Within a language", False), ("Across languages", True)):
        own = [part for name, part in languages.items() if ("->" in name or "+" in name) == crossing]
        if own:
            model, bm25 = (
                mean_over_sets([list(part.samples(system).values()) for part in own]).text() for system in (MODEL, BM25)
            )
            found.append(f"{what} ({len(own)}), on average: {model}; BM25: {bm25}.")
    if blind := [name for name, own in draws.each_set().items() if (_unknown(own) or 0) > 0.05]:
        found.append(f"More than 5 % of the tokens of {_named(blind)} are unknown to the model's vocabulary.")
    return found


def _figures(draws: Draws) -> list[str]:
    ndcg = [draws.mean(system).text() for system in (MODEL, BM25)]
    recall = [draws.mean(system, RECALL).text() for system in (MODEL, BM25)]
    unknown = _unknown(draws)
    return [
        *ndcg,
        draws.mean(MODEL, less=BM25).text(signed=True),
        *recall,
        "–" if unknown is None else f"{unknown:.1%}",
    ]


def _unknown(draws: Draws) -> float | None:
    shares = [float(found) for one in draws.cells if (found := one.values[_UNKNOWN]) is not None]
    return mean(shares) if shares else None


def _named(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
