"""Evaluate nDCG@10 on a dev set during training, at every head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.util.similarity import maxsim
from torch import Tensor

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.metrics import Metrics, measure_run, run_of
from jcv2_trainer.data.lines import DataError
from jcv2_trainer.data.rows import read_rows

_DOCUMENTS_AT_A_TIME = 512


@dataclass(frozen=True)
class DevSet:
    """Queries, the passages to search, and relevance judgements.

    Attributes:
        queries: Query texts by id.
        documents: Passage texts by id.
        qrels: Relevance by query id and document id.
    """

    queries: Mapping[str, str]
    documents: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]

    @classmethod
    def of_rows(
        cls,
        rows: Iterable[Mapping[str, Any]],
        also: Iterable[Mapping[str, Any]] = (),
        distractors: Iterable[str] = (),
        fill: int = 0,
    ) -> DevSet:
        """Turn training rows into a small retrieval task: find the positive among all their positives and negatives.

        Args:
            rows: Rows with ``query``, ``positive`` and ``negatives``.
            also: Rows whose positives are relevant too, if their query is one of ``rows``.
            distractors: Passages to add while there are fewer than ``fill``. Among the positives of a few pairs alone,
                every model finds the right one.
            fill: Number of passages up to which distractors are added.
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
            return cls(dict(dataset.queries), documents, dataset.qrels)
        rows = ({"query": row.query, "positive": row.positive, "negatives": row.negatives} for row in read_rows(path))
        dev = cls.of_rows(rows)
        if not dev.queries:
            raise DataError(f"{path} has no rows, so it is no dev set. Give a file of pairs or triplets, or no --dev.")
        return dev


class DevEvaluator(BaseEvaluator):
    """Evaluate a :class:`DevSet` with exact MaxSim, at several dimensions from one encoding.

    Args:
        dev: The dev set.
        dims: Dimensions to evaluate.
    """

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

    def metrics(self, encoder: JinaColbertEncoder) -> dict[int, Metrics]:
        """Return all metrics by dimension, means and per query."""
        query_ids, document_ids = list(self.dev.queries), list(self.dev.documents)
        texts = list(self.dev.documents.values())
        training = encoder.training
        encoder.eval()
        options: dict[str, Any] = {"dim": self.dims, "show_progress_bar": False}
        queries = encoder.encode_query(list(self.dev.queries.values()), **options)
        parts: dict[int, list[Tensor]] = {dim: [] for dim in self.dims}
        # Encode the passages in parts: all heads' vectors of a large set would not fit in memory.
        for start in range(0, len(texts), _DOCUMENTS_AT_A_TIME):
            documents = encoder.encode_document(texts[start : start + _DOCUMENTS_AT_A_TIME], **options)
            for dim in self.dims:
                parts[dim].append(maxsim(queries[dim], documents[dim]).cpu())
        encoder.train(training)
        return {
            dim: measure_run(run_of(torch.cat(own, dim=1), query_ids, document_ids), self.dev.qrels)
            for dim, own in parts.items()
        }


def metric_name(dim: int) -> str:
    """Return the name under which the trainer logs a head's nDCG@10."""
    return f"ndcg@10_{dim}"
