"""The study ``masks``: does padding queries with [MASK] tokens help, attended or not, by query length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jcv2_plugin.encoder.model import JinaColbertEncoder
from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.metrics import NDCG, RECALL
from jcv2_plugin.evaluation.study.base import Cell, Chart, Interval, Report, Samples, Table, Value
from jcv2_plugin.evaluation.study.intervals import FEW, METHOD
from jcv2_plugin.evaluation.study.retrieval import Draws, RetrievalStudy, Run, Sampling, exact_run

ATTENDED, UNATTENDED, NONE = VARIANTS = ("attended", "unattended", "none")
_TOKENS = "query tokens"
_OWN = "the model's own expansion"
_PARTS = 4  # buckets up to the expanded length


class MasksStudy(RetrievalStudy):
    """Compare kinds of query expansion at one dimension. The model's own is restored after each cell.

    Queries longer than ``length`` tokens are cut if they are expanded, as ColBERT does. A model that cannot expand
    queries is an ``InvalidOptionError``.
    """

    name = "masks"
    title = "Query expansion: attended, unattended and no [MASK] tokens"
    axis, ways = "expansion", VARIANTS

    def __init__(self, encoder: JinaColbertEncoder, sampling: Sampling, dim: int, length: int = 32) -> None:
        super().__init__(encoder, sampling, dim)
        self.length = length
        with self._expansion(ATTENDED):  # fail early if the model cannot expand queries
            pass

    @property
    def settings(self) -> Mapping[str, Any]:
        """Model, dimension, expanded length and sampling."""
        expansion = self.encoder.backbone.query_expansion
        own = NONE if expansion is None else ATTENDED if expansion["attend"] else UNATTENDED
        return {**super().settings, "dim": self.dims[0], "length": self.length, _OWN: own}

    def search(self, cell: Cell, dataset: BeirDataset) -> tuple[Run, dict[str, Value], dict[str, Samples]]:
        """Search the draw with exact MaxSim and one kind of query expansion."""
        (documents,) = self.documents(cell, dataset).values()
        texts = list(dataset.queries.values())
        with self._expansion(str(cell.parameters["expansion"])):
            queries = self.encoder.encode_query(texts, dim=self.dims[0], show_progress_bar=False)
        # Tokens before a query is expanded or cut, markers included.
        prompt = self.encoder.prompts.get("query") or ""
        ids = self.encoder.tokenizer([prompt + text for text in texts])["input_ids"]
        tokens = {query: float(len(own)) for query, own in zip(dataset.queries, ids, strict=True)}
        vectors = sum(len(one) for one in queries) / len(queries)
        return exact_run(dataset, queries, documents), {"vectors a query": vectors}, {_TOKENS: tokens}

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

    @staticmethod
    def report(settings: Mapping[str, Any], cells: Sequence[Cell]) -> Report:
        """Return the report."""
        draws, length = Draws.whole("expansion", cells, VARIANTS), settings["length"]
        kinds = (ATTENDED, UNATTENDED)
        gaps = {kind: draws.mean(kind, less=NONE, each_set=True) for kind in kinds}
        findings = [
            f"{kind.capitalize()} [MASK] tokens change nDCG@10 by {gap.text(signed=True)} on average: {_verdict(gap)}."
            for kind, gap in gaps.items()
        ]
        buckets = draws.by_bucket(_TOKENS, [*(length // _PARTS * part for part in range(1, _PARTS)), length])
        series = {
            kind: {name: own.mean(kind, less=NONE, each_set=True) for name, own in buckets.items()} for kind in kinds
        }
        label = "nDCG@10, difference from no expansion"
        return Report(
            f"Does padding queries to {length} tokens with [MASK] help {settings['model']}, and should the other "
            "tokens attend to them?",
            findings,
            {
                "By query length": [
                    METHOD,
                    f"Lengths are tokens before expansion, markers included. Queries of more than {length} tokens are "
                    "cut if they are expanded.",
                    Chart(
                        "What expansion changes, by query tokens",
                        label,
                        series,
                        "Paired, with 95 % intervals.",
                        reference=0,
                    ),
                    _by_length(buckets),
                ],
                "By set": [_by_set(draws)],
            },
            [
                *draws.limits(settings),
                f"The model's own expansion: {settings[_OWN]}. The others are ways in which it was not trained, so "
                "this shows what using it wrongly does, and not what training in another way would give.",
                "Buckets of query length contain different questions, so length and difficulty are not separated.",
            ],
        )


def _verdict(gap: Interval, queries: int = FEW) -> str:
    if queries < FEW:
        return "too few queries"
    return "better" if gap.low > 0 else "worse" if gap.high < 0 else "no difference shown"


def _by_length(buckets: Mapping[str, Draws]) -> Table:
    rows = []
    for label, own in buckets.items():
        gaps = [own.mean(kind, less=NONE, each_set=True) for kind in (ATTENDED, UNATTENDED)]
        verdicts = [_verdict(gap, own.queries) for gap in gaps]
        rows.append([label, f"{own.queries:,}", *(gap.text(signed=True) for gap in gaps), *verdicts])
    columns = ["query tokens", "queries", "attended", "unattended", "attended: verdict", "unattended: verdict"]
    return Table("Paired difference in nDCG@10 from no expansion, averaged over the sets", columns, rows)


def _by_set(draws: Draws) -> Table:
    columns = ["set", *(f"nDCG@10, {kind}" for kind in VARIANTS)]
    columns += [f"{measure}, {kind} less none" for measure in ("nDCG@10", "Recall@100") for kind in VARIANTS[:2]]
    rows = [
        [
            name,
            *(own.mean(kind).text() for kind in VARIANTS),
            *(
                own.mean(kind, measure, less=NONE).text(signed=True)
                for measure in (NDCG, RECALL)
                for kind in VARIANTS[:2]
            ),
        ]
        for name, own in draws.each_set().items()
    ]
    return Table("Each set", columns, rows)
