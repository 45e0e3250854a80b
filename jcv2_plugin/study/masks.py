"""Whether padding queries with [MASK] tokens helps, attended or not, by query length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jcv2_plugin.encoder import JinaColbertEncoder
from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.evaluation import NDCG, RECALL, measure_run
from jcv2_plugin.study.base import Cell, Chart, Measured, Report, Result, Section, Table
from jcv2_plugin.study.charts import Bars, bar_chart
from jcv2_plugin.study.intervals import METHOD, Interval, Samples, difference, interval, mean_over_sets, subtract
from jcv2_plugin.study.retrieval import (
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

ATTENDED, UNATTENDED, NONE = VARIANTS = ("attended", "unattended", "none")
_TOKENS = "query tokens"
_OWN = "the model's own expansion"
_ENOUGH = 20
_PARTS = 4  # of the expanded length, for the buckets


class MasksStudy:
    """See :class:`jcv2_plugin.study.base.Study`.

    Args:
        encoder: The model; its own way of expanding queries is put back after each cell.
        dim: The head to search with.
        sampling: The sets.
        length: Tokens that an expanded query has; longer ones are cut, as ColBERT does.
    """

    name = "masks"
    title = "Query expansion: attended, unattended and no [MASK] tokens"

    def __init__(self, encoder: JinaColbertEncoder, dim: int, sampling: Sampling, length: int = 32) -> None:
        self.encoder = encoder
        self.dim = dim
        self.sampling = sampling
        self.length = length
        self._sets = EncodedSets(encoder, sampling, (dim,))
        with self._expansion(ATTENDED):  # that it can be done is known before anything is measured
            pass

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model, its head, the expanded length and the sampling."""
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
        """One for each variant in each draw of each set."""
        return cells_of(self.sampling, "expansion", VARIANTS)

    def measure(self, cell: Cell) -> Measured:
        """Search the draw exactly, its queries expanded in one of the ways."""
        dataset = self.sampling.dataset(cell.parameters)
        documents = self._sets.documents(cell.parameters, dataset)[self.dim]
        with self._expansion(str(cell.parameters["expansion"])):
            queries = self._sets.queries(dataset, self.dim)
        figures, samples = quality(measure_run(exact_run(dataset, queries, documents), dataset.qrels))
        figures["vectors a query"] = sum(len(one) for one in queries) / len(queries)
        return Measured({**sizes(dataset), **figures}, {**samples, _TOKENS: self._query_tokens(dataset.queries)})

    def report(self, results: Sequence[Result]) -> Report:
        """The report."""
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
        """Tokens of each query before it is expanded or cut, markers included."""
        prompt = self.encoder.prompts.get("query") or ""
        ids = self.encoder.tokenizer([prompt + text for text in queries.values()])["input_ids"]
        return {query: float(len(own)) for query, own in zip(queries, ids, strict=True)}


def masks_report(settings: Mapping[str, Any], results: Sequence[Result]) -> Report:
    """The report of what was measured."""
    results = whole_draws(results, "expansion", VARIANTS)
    sets = distinct(results, "set")
    over_all = {variant: _over_sets(results, sets, variant) for variant in (ATTENDED, UNATTENDED)}
    findings = [
        f"{variant.capitalize()} [MASK] tokens change nDCG@10 by {gap.text(signed=True)} on average: {_verdict(gap)}."
        for variant, gap in over_all.items()
    ]
    buckets = _buckets(settings["length"], results)
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
                [_chart(results, sets, buckets), by_length(settings, results)],
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


def _verdict(gap: Interval, queries: int = _ENOUGH) -> str:
    if queries < _ENOUGH:  # a bootstrap of so few knows nothing of the others
        return "too few queries to say"
    if gap.low > 0:
        return "they help"
    return "they harm" if gap.high < 0 else "no difference is shown"


def _over_sets(results: Sequence[Result], sets: Sequence[str], variant: str, measure: str = NDCG) -> Interval:
    return mean_over_sets([[subtract(*pair) for pair in _pairs(results, name, variant, measure)] for name in sets])


def _pairs(results: Sequence[Result], name: str, variant: str, measure: str) -> list[tuple[Samples, Samples]]:
    return paired(results, measure, {"set": name, "expansion": variant}, {"set": name, "expansion": NONE})


Bucket = tuple[int, int | None]
"""From so many tokens to so many; None is without end."""


def _buckets(length: int, results: Sequence[Result]) -> list[Bucket]:
    """Quarters of the expanded length, and what is longer; those that hold a query."""
    step = length // _PARTS
    ends = [step * part for part in range(1, _PARTS)] + [length]
    all_buckets: list[Bucket] = [(low + 1, high) for low, high in zip([0, *ends[:-1]], ends, strict=True)]
    all_buckets.append((length + 1, None))
    counts = [tokens for one in results for tokens in one.samples[_TOKENS].values()]
    return [bucket for bucket in all_buckets if any(_within(tokens, bucket) for tokens in counts)]


def _within(tokens: float, bucket: Bucket) -> bool:
    return bucket[0] <= tokens and (bucket[1] is None or tokens <= bucket[1])


def _label(bucket: Bucket) -> str:
    return f"{bucket[0]}–{bucket[1]}" if bucket[1] is not None else f"{bucket[0]} and more"


def _in_bucket(
    results: Sequence[Result], sets: Sequence[str], variant: str, bucket: Bucket
) -> tuple[Interval | None, int]:
    """The difference to no expansion over all sets that have such queries, and how many queries there are."""
    parts: list[list[dict[str, float]]] = []
    queries: set[tuple[str, str]] = set()
    for name in sets:
        tokens = {key: value for own in samples_of(results, _TOKENS, set=name) for key, value in own.items()}
        own = [
            {query: value for query, value in subtract(*pair).items() if _within(tokens[query], bucket)}
            for pair in _pairs(results, name, variant, NDCG)
        ]
        if any(own):
            parts.append(own)
            queries.update((name, query) for one in own for query in one)
    return (mean_over_sets(parts) if parts else None), len(queries)


def by_length(settings: Mapping[str, Any], results: Sequence[Result]) -> Table:
    """Differences to no expansion by query length."""
    results = whole_draws(results, "expansion", VARIANTS)
    sets = distinct(results, "set")
    rows = []
    for bucket in _buckets(settings["length"], results):
        cells = [_in_bucket(results, sets, variant, bucket) for variant in (ATTENDED, UNATTENDED)]
        rows.append(
            [
                _label(bucket),
                f"{cells[0][1]:,}",
                *("–" if own is None else own.text(signed=True) for own, _ in cells),
                *("–" if own is None else _verdict(own, queries) for own, queries in cells),
            ]
        )
    columns = ["query tokens", "queries", "attended", "unattended", "attended: verdict", "unattended: verdict"]
    return Table("Paired difference in nDCG@10 to no expansion, averaged over the sets", columns, rows)


def _chart(results: Sequence[Result], sets: Sequence[str], buckets: Sequence[Bucket]) -> Chart:
    groups = [
        Bars(variant, [_in_bucket(results, sets, variant, bucket)[0] for bucket in buckets])
        for variant in (ATTENDED, UNATTENDED)
    ]
    labels = [_label(bucket) for bucket in buckets]
    description = f"Paired difference in nDCG@10 to no expansion, by query tokens: {', '.join(labels)}."
    svg = bar_chart(description, labels, groups, y_label="nDCG@10, less that of no expansion", zero_line=True)
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
