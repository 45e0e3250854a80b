"""The study ``masks``: does padding queries with [MASK] tokens help, attended or not, by query length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jcv2_plugin.encoder.model import JinaColbertEncoder
from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.evaluation.metrics import NDCG, RECALL, measure_run
from jcv2_plugin.evaluation.study.base import Cell, Chart, Measured, Report, Result, Section, Table
from jcv2_plugin.evaluation.study.charts import Bars, bar_chart
from jcv2_plugin.evaluation.study.intervals import (
    FEW,
    METHOD,
    Interval,
    Samples,
    difference,
    interval,
    mean_over_sets,
    subtract,
)
from jcv2_plugin.evaluation.study.retrieval import (
    EncodedSets,
    Sampling,
    by_bucket,
    cells_of,
    distinct,
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

ATTENDED, UNATTENDED, NONE = VARIANTS = ("attended", "unattended", "none")
_TOKENS = "query tokens"
_OWN = "the model's own expansion"
_PARTS = 4  # buckets up to the expanded length


class MasksStudy:
    """Compare kinds of query expansion; see :class:`jcv2_plugin.evaluation.study.base.Study`.

    Args:
        encoder: Model to measure. Its own query expansion is restored after each cell.
        dim: Dimension to search with.
        sampling: Test sets and draws.
        length: Tokens of an expanded query; longer queries are cut, as ColBERT does.
    """

    name = "masks"
    title = "Query expansion: attended, unattended and no [MASK] tokens"

    def __init__(self, encoder: JinaColbertEncoder, dim: int, sampling: Sampling, length: int = 32) -> None:
        self.encoder = encoder
        self.dim = dim
        self.sampling = sampling
        self.length = length
        self._sets = EncodedSets(encoder, sampling, (dim,))
        with self._expansion(ATTENDED):  # fail early if the model cannot expand queries
            pass

    @property
    def settings(self) -> Mapping[str, Any]:
        """Model, dimension, expanded length and sampling."""
        expansion = self.encoder.backbone.query_expansion
        own = NONE if expansion is None else ATTENDED if expansion["attend"] else UNATTENDED
        return {
            **model_settings(self.encoder, (self.dim,)),
            "dim": self.dim,
            "length": self.length,
            _OWN: own,
            **self.sampling.settings,
        }

    def cells(self) -> Sequence[Cell]:
        """Return a cell for each variant and each draw of each set."""
        return cells_of(self.sampling, "expansion", VARIANTS)

    def measure(self, cell: Cell) -> Measured:
        """Search the draw with exact MaxSim and one kind of query expansion."""
        dataset = self.sampling.dataset(cell.parameters)
        documents = self._sets.documents(cell.parameters, dataset)[self.dim]
        with self._expansion(str(cell.parameters["expansion"])):
            texts = list(dataset.queries.values())
            queries = self.encoder.encode_query(texts, dim=self.dim, show_progress_bar=False)
        figures, samples = quality(measure_run(exact_run(dataset, queries, documents), dataset.qrels))
        figures["vectors a query"] = sum(len(one) for one in queries) / len(queries)
        return Measured({**sizes(dataset), **figures}, {**samples, _TOKENS: self._query_tokens(dataset.queries)})

    def report(self, results: Sequence[Result]) -> Report:
        """Return the report."""
        return masks_report(self.settings, results)

    @contextmanager
    def _expansion(self, variant: str) -> Iterator[None]:
        backbone = self.encoder.backbone
        own = backbone.query_expansion
        wanted: Any = None
        if variant != NONE:
            token = None if own is None else own["token"]
            wanted = {"strategy": "fixed", "attend": variant == ATTENDED, "length": self.length, "token": token}
        try:
            backbone.query_expansion = wanted
        except ValueError as error:
            raise InvalidOptionError(f"{self.encoder.name!r} cannot expand queries ({variant}): {error}") from error
        try:
            yield
        finally:
            backbone.query_expansion = own

    def _query_tokens(self, queries: Mapping[str, str]) -> dict[str, float]:
        """Return the number of tokens of each query before it is expanded or cut, markers included."""
        prompt = self.encoder.prompts.get("query") or ""
        ids = self.encoder.tokenizer([prompt + text for text in queries.values()])["input_ids"]
        return {query: float(len(own)) for query, own in zip(queries, ids, strict=True)}


def masks_report(settings: Mapping[str, Any], results: Sequence[Result]) -> Report:
    """Return the report on the measured cells."""
    results = whole_draws(results, "expansion", VARIANTS)
    sets = distinct(results, "set")
    over_all = {variant: _over_sets(results, variant) for variant in (ATTENDED, UNATTENDED)}
    findings = [
        f"{variant.capitalize()} [MASK] tokens change nDCG@10 by {gap.text(signed=True)} on average: {_verdict(gap)}."
        for variant, gap in over_all.items()
    ]
    return Report(
        question=(
            f"Does padding queries to {settings['length']} tokens with [MASK] help {settings['model']}, and should the "
            "other tokens attend to them?"
        ),
        findings=findings,
        sections=[
            Section(
                "By query length",
                [
                    METHOD,
                    f"Lengths are tokens before expansion, markers included. Queries over {settings['length']} tokens "
                    "are cut where they are expanded, and whole where they are not.",
                ],
                [_chart(settings, results), by_length(settings, results)],
            ),
            Section("By set", [], [_by_set(results, sets)]),
        ],
        limits=[
            *sample_limits(results, settings),
            f"The model's own way is: {settings[_OWN]}. A model that was trained in one way is measured "
            "here in ways that it was not trained in: this shows what happens when it is run wrongly, not what "
            "training in another way would give.",
            "Buckets of query length hold other questions, not shortened ones; length and difficulty go together.",
        ],
    )


def _verdict(gap: Interval, queries: int = FEW) -> str:
    if queries < FEW:
        return "too few queries to say"
    if gap.low > 0:
        return "they help"
    return "they harm" if gap.high < 0 else "no difference is shown"


def _over_sets(results: Sequence[Result], variant: str) -> Interval:
    sets = distinct(results, "set")
    return mean_over_sets([[subtract(*pair) for pair in _pairs(results, name, variant, NDCG)] for name in sets])


def _pairs(results: Sequence[Result], name: str, variant: str, measure: str) -> list[tuple[Samples, Samples]]:
    return paired(results, measure, {"set": name, "expansion": variant}, {"set": name, "expansion": NONE})


def _buckets(settings: Mapping[str, Any], results: Sequence[Result]) -> dict[str, list[Result]]:
    """Split results by query length: quarters of the expanded length, and longer queries."""
    step = settings["length"] // _PARTS
    return by_bucket(results, _TOKENS, [*(step * part for part in range(1, _PARTS)), settings["length"]])


def by_length(settings: Mapping[str, Any], results: Sequence[Result]) -> Table:
    """Return a table of the differences from no expansion, by query length."""
    rows = []
    for label, own in _buckets(settings, whole_draws(results, "expansion", VARIANTS)).items():
        queries = number_of_queries(own)
        gaps = [_over_sets(own, variant) for variant in (ATTENDED, UNATTENDED)]
        verdicts = [_verdict(gap, queries) for gap in gaps]
        rows.append([label, f"{queries:,}", *(gap.text(signed=True) for gap in gaps), *verdicts])
    columns = ["query tokens", "queries", "attended", "unattended", "attended: verdict", "unattended: verdict"]
    return Table("Paired difference in nDCG@10 to no expansion, averaged over the sets", columns, rows)


def _chart(settings: Mapping[str, Any], results: Sequence[Result]) -> Chart:
    buckets = _buckets(settings, results)
    groups = [
        Bars(variant, [_over_sets(own, variant) for own in buckets.values()]) for variant in (ATTENDED, UNATTENDED)
    ]
    description = f"Paired difference in nDCG@10 to no expansion, by query tokens: {', '.join(buckets)}."
    svg = bar_chart(description, list(buckets), groups, y_label="nDCG@10, less that of no expansion", zero_line=True)
    return Chart("What expansion changes, by query tokens", svg, "Ends are 95 % intervals of paired differences.")


def _by_set(results: Sequence[Result], sets: Sequence[str]) -> Table:
    rows = []
    for name in sets:
        figures = [interval(samples_of(results, NDCG, set=name, expansion=variant)).text() for variant in VARIANTS]
        gaps = [
            difference(_pairs(results, name, variant, measure)).text(signed=True)
            for measure in (NDCG, RECALL)
            for variant in (ATTENDED, UNATTENDED)
        ]
        rows.append([name, *figures, *gaps])
    columns = [
        "set",
        *(f"nDCG@10, {variant}" for variant in VARIANTS),
        "attended less none",
        "unattended less none",
        "Recall@100, attended less none",
        "unattended less none",
    ]
    return Table("Each set", columns, rows)
