"""The dev set: split it off from the training rows, and evaluate nDCG@10 on it at every head during training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from sentence_transformers.util.similarity import maxsim
from torch import Tensor

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.evaluation.beir import BeirDataset, without_own
from jcv2_plugin.evaluation.metrics import Metrics, measure_run, run_of
from jcv2_trainer.data.check import text_key
from jcv2_trainer.data.datasets_io import split_dev
from jcv2_trainer.data.lines import DataError
from jcv2_trainer.data.reading import read_rows
from jcv2_trainer.errors import TrainingError
from jcv2_trainer.training.card import TrainingReport
from jcv2_trainer.training.requests import Request

_DOCUMENTS_AT_A_TIME = 512
_LEAST_PASSAGES = 500  # in a dev set split off from the data
_MOST_SOURCES = 50  # listed in the model card


@dataclass(frozen=True)
class DevSet:
    """Query texts by id, passage texts by id, and relevance by query id and document id.

    ``own_documents`` are the queries that are passages too, see :meth:`BeirDataset.own_documents`.
    """

    queries: Mapping[str, str]
    documents: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    own_documents: frozenset[str] = frozenset()

    @classmethod
    def of_rows(
        cls,
        rows: Iterable[Mapping[str, Any]],
        also: Iterable[Mapping[str, Any]] = (),
        distractors: Iterable[str] = (),
        fill: int = 0,
    ) -> DevSet:
        """Turn training rows into a small retrieval task: find the positive among all their positives and negatives.

        The positives of the rows ``also`` are relevant too, if their query is one of ``rows``. Distractors are added
        while there are fewer than ``fill`` passages: among the positives of a few pairs alone, every model finds the
        right one.
        """
        queries: dict[str, str] = {}
        documents: dict[str, str] = {}
        qrels: dict[str, dict[str, int]] = {}
        for row in rows:
            query = queries.setdefault(row["query"], f"q{len(queries)}")
            for text in (row["positive"], *row["negatives"]):
                documents.setdefault(text, f"d{len(documents)}")
            qrels.setdefault(query, {})[documents[row["positive"]]] = 1
        for row in also:
            if row["query"] in queries:
                document = documents.setdefault(row["positive"], f"d{len(documents)}")
                qrels[queries[row["query"]]][document] = 1
        for text in distractors:
            if len(documents) >= fill:
                break
            documents.setdefault(text, f"d{len(documents)}")
        return cls({key: text for text, key in queries.items()}, {key: text for text, key in documents.items()}, qrels)

    @classmethod
    def read(cls, path: Path) -> DevSet:
        """Read a folder in BEIR layout (its dev split, or else test), or a file of pairs or triplets.

        Raises:
            DataError: The file cannot be read, has a row with errors, or has no rows.
        """
        if path.is_dir() and (path / "corpus.jsonl").is_file():
            split = "dev" if (path / "qrels" / "dev.tsv").is_file() else "test"
            dataset = BeirDataset.read(path, split=split)
            documents = {key: passage.full_text for key, passage in dataset.corpus.items()}
            return cls(dict(dataset.queries), documents, dataset.qrels, dataset.own_documents())
        rows = ({"query": row.query, "positive": row.positive, "negatives": row.negatives} for row in read_rows(path))
        dev = cls.of_rows(rows)
        if not dev.queries:
            raise DataError(f"The dev set {path} has no rows. Give a file of pairs or triplets, or no --dev.")
        return dev


class DevEvaluator(BaseEvaluator):
    """Evaluate a :class:`DevSet` with exact MaxSim, at several dimensions from one encoding."""

    def __init__(self, dev: DevSet, dims: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dev = dev
        self.dims = tuple(dims)
        self.primary_metric = metric_name(self.dims[0])

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Return nDCG@10 by :func:`metric_name`. The other arguments are sentence-transformers' and unused."""
        return {metric_name(dim): value for dim, value in self.ndcg(model).items()}

    def ndcg(self, encoder: JinaColbertEncoder) -> dict[int, float]:
        """Return nDCG@10 by dimension."""
        return {dim: metrics.ndcg_at_10 for dim, metrics in self.metrics(encoder).items()}

    def pooled_ndcg(self, encoder: JinaColbertEncoder, factors: Sequence[float]) -> dict[str, dict[int, float]]:
        """Return nDCG@10 by token pooling factor of the passages, such as ``"2"``, and by dimension."""
        found = self.pooled_metrics(encoder, factors)
        return {f"{factor:g}": {dim: one.ndcg_at_10 for dim, one in own.items()} for factor, own in found.items()}

    def metrics(self, encoder: JinaColbertEncoder) -> dict[int, Metrics]:
        """Return all metrics by dimension, means and per query."""
        return self.pooled_metrics(encoder, [1])[1]

    def pooled_metrics(self, encoder: JinaColbertEncoder, factors: Sequence[float]) -> dict[float, dict[int, Metrics]]:
        """Return all metrics by token pooling factor of the passages, and by dimension."""
        texts = list(self.dev.documents.values())
        training = encoder.training
        encoder.eval()
        options: dict[str, Any] = {"dim": self.dims, "show_progress_bar": False}
        queries = encoder.encode_query(list(self.dev.queries.values()), **options)
        parts: dict[tuple[float, int], list[Tensor]] = {key: [] for key in product(factors, self.dims)}
        # Encode the passages in parts: all heads' vectors of a large set would not fit in memory.
        for start in range(0, len(texts), _DOCUMENTS_AT_A_TIME):
            documents = encoder.encode_document(texts[start : start + _DOCUMENTS_AT_A_TIME], **options)
            for factor, dim in parts:
                pooling = HierarchicalTokenPooling(factor)
                read = pooling.pool(documents[dim], task="document") if factor > 1 else documents[dim]
                parts[factor, dim].append(maxsim(queries[dim], read).cpu())
        encoder.train(training)
        found: dict[float, dict[int, Metrics]] = {factor: {} for factor in factors}
        for (factor, dim), own in parts.items():
            run = run_of(torch.cat(own, dim=1), list(self.dev.queries), list(self.dev.documents))
            found[factor][dim] = measure_run(without_own(run, self.dev.own_documents), self.dev.qrels)
        return found


def metric_name(dim: int) -> str:
    """Return the name under which the trainer logs a head's nDCG@10."""
    return f"ndcg@10_{dim}"


def split(dataset: Dataset, request: Request) -> tuple[Dataset, DevSet | None, TrainingReport]:
    """Return the training rows, the dev set, and the report before training.

    Raises:
        TrainingError: The rows do not fit the stage, or none are left besides the dev set.
    """
    settings = request.settings
    negatives, scores = (
        pc.list_value_length(dataset.data.column(column)).to_numpy() for column in ("negatives", "scores")
    )
    if request.stage == "triplets" and not negatives.all():
        raise TrainingError(
            f"{(negatives == 0).sum():,} of {len(dataset):,} rows have no negatives, which the stage triplets needs. "
            "Add some with: jcv2-finetune mine; or train with: jcv2-finetune pairs (or train)."
        )
    if not settings.contrastive_weight and not (scores.all() and negatives.all() and settings.negatives):
        raise TrainingError(
            "contrastive_weight is 0, but some rows have no negatives or no teacher's scores, so nothing could be "
            "learnt from them. Add scores with: jcv2-finetune score; or give --contrastive-weight 1."
        )
    chosen, dev, held_out = _hold_out(dataset, request)
    labels = dataset.select_columns(["lang", "source"])[:]
    report = TrainingReport(
        model=request.model,
        stage=request.stage,
        rows=len(chosen),
        skipped={"query-of-dev-set": held_out} if held_out else {},
        data={
            "files": [path.name for path in request.data],
            "with_negatives": int((negatives[chosen] > 0).sum()),
            "with_scores": int((scores[chosen] > 0).sum()),
            "languages": sorted(set(labels["lang"])),
            "sources": sorted(set(labels["source"]))[:_MOST_SOURCES],
        },
        dev={} if dev is None else {"queries": len(dev.queries), "documents": len(dev.documents)},
        recipe=settings.model_dump(),
    )
    return dataset.select(chosen), dev, report


def _hold_out(dataset: Dataset, request: Request) -> tuple[list[int], DevSet | None, int]:
    """Return the rows to train on, the dev set, and how many rows are in neither, as they share its queries."""
    settings = request.settings
    everything = range(len(dataset))
    if request.dev is not None:
        dev = DevSet.read(request.dev)
        asked = {text_key(query) for query in dev.queries.values()}
        chosen = [index for index, key in enumerate(dataset["query_key"]) if key not in asked]
        if not chosen:
            raise TrainingError(f"All {len(dataset):,} rows have queries of {request.dev}. Give other rows.")
        return chosen, dev, len(dataset) - len(chosen)
    if not settings.dev_share:
        return list(everything), None, 0
    chosen, dev_rows = split_dev(dataset, settings.dev_share, settings.dev_size, settings.seed)
    left = sorted({*everything}.difference(chosen, dev_rows))
    if not chosen:
        raise TrainingError(
            f"No rows are left for training besides a dev set of {len(dev_rows)}. Give more, or --dev-share 0."
        )
    others = (row["positive"] for row in dataset.select(chosen[: 2 * _LEAST_PASSAGES]))
    dev_set = DevSet.of_rows(dataset.select(dev_rows), dataset.select(left), others, _LEAST_PASSAGES)
    return chosen, dev_set if dev_rows else None, len(left)
