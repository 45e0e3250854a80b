"""Collate training rows into batches with little padding.

Collators that pad every column of a batch to its longest text compute two to four times as many positions as there are
tokens (on triplets of mixed lengths, 22% of the positions are real in PyLate's and 36% in sentence-transformers').
Here, the distinct passages of a batch are tokenised once, sorted by length and split into forward passes by a budget of
padded tokens, as in the encoder's inference. With flash attention, nothing is padded at all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.batching import default_tokens_per_batch
from jcv2_trainer.data.check import text_key

NO_CANDIDATE = -1
_MOST_TEXTS = 4096


@dataclass
class Packed:
    """Queries or passages, split into forward passes: the positions of the texts and the model inputs of each."""

    rows: list[list[int]]
    features: list[dict[str, Any]]
    count: int


@dataclass
class Batch:
    """Output of :class:`PackedCollator` and input of the loss.

    Attributes:
        queries: The rows' queries.
        documents: The distinct passages of all rows.
        positive: Position of each row's positive among the documents, shape ``(rows,)``.
        candidates: Positions of each row's positive and negatives, shape ``(rows, 1 + negatives)``, filled up with
            ``NO_CANDIDATE``.
        teacher: The teacher's scores of the candidates, same shape; NaN if missing.
        document_keys: A 64-bit key of each document's text, shape ``(documents,)``.
        known: Keys of all passages known to answer each row's query, shape ``(rows, most)``, filled up with the
            positive's key. None of them is used as a negative, wherever it comes from.
    """

    queries: Packed
    documents: Packed
    positive: Tensor
    candidates: Tensor
    teacher: Tensor
    document_keys: Tensor
    known: Tensor

    def to(self, device: torch.device) -> Batch:
        """Move the batch to another device."""
        return Batch(**{name: _moved(value, device) for name, value in vars(self).items()})


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Packed):
        features = [{name: _moved(one, device) for name, one in each.items()} for each in value.features]
        return replace(value, features=features)
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


@dataclass
class PackedCollator:
    """Collate dataset rows into a :class:`Batch`, as described in the module.

    If a row has more than ``negatives``, a new sample is drawn each epoch, determined by ``seed`` and the row.
    ``known`` holds the keys of the passages known to answer a query, by the query's key, for queries with several. The
    limits are in tokens; their defaults are the encoder's and the device's.
    """

    encoder: JinaColbertEncoder
    negatives: int = 7
    document_length: int | None = None
    tokens_per_batch: int | None = None
    known: Mapping[int, Sequence[int]] = field(default_factory=dict)
    seed: int = 13
    epoch: int = 0
    # Required by sentence-transformers' trainer.
    valid_label_columns: list[str] = field(default_factory=list)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Batch]:
        """Return the batch under the key ``"batch"``, since the trainer passes dictionaries."""
        return {"batch": self.collate(rows)}

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Collate rows of :func:`jcv2_trainer.data.datasets_io.training_dataset` into a batch."""
        chosen = [self._candidates(row) for row in rows]
        documents = {text: at for at, text in enumerate(dict.fromkeys(one for texts, _ in chosen for one in texts))}
        candidates = _filled([[documents[text] for text in texts] for texts, _ in chosen], NO_CANDIDATE, torch.int64)
        known = [[row["positive_key"], *self.known.get(row["query_key"], ())] for row in rows]
        most = max(map(len, known))
        return Batch(
            queries=self._pack([row["query"] for row in rows], "query"),
            documents=self._pack(list(documents), "document"),
            positive=candidates[:, 0].clone(),
            candidates=candidates,
            teacher=_filled([scores or [math.nan] * len(texts) for texts, scores in chosen], math.nan, torch.float32),
            document_keys=torch.tensor([text_key(text) for text in documents], dtype=torch.int64),
            known=torch.tensor([one + one[:1] * (most - len(one)) for one in known], dtype=torch.int64),
        )

    def _candidates(self, row: Mapping[str, Any]) -> tuple[list[str], list[float]]:
        """Return the positive and the negatives, with the teacher's scores if there are any."""
        negatives, scores = list(row["negatives"]), list(row["scores"])
        chosen = list(range(len(negatives)))
        if len(chosen) > self.negatives:
            # Seeded by the row, not by the order of calls, so that a resumed run draws the same.
            draw = random.Random(f"{self.seed}-{self.epoch}-{row['query_key']}-{row['positive_key']}")
            chosen = sorted(draw.sample(chosen, self.negatives))
        texts = [row["positive"], *(negatives[index] for index in chosen)]
        return texts, [scores[0], *(scores[1 + index] for index in chosen)] if scores else []

    def _pack(self, texts: list[str], task: str) -> Packed:
        # Passages may be truncated to fewer tokens in training than in later use.
        cut = {"processing_kwargs": {"text": {"max_length": self.document_length}}}
        kwargs: dict[str, Any] = cut if task == "document" and self.document_length is not None else {}
        budget = self.tokens_per_batch or default_tokens_per_batch(self.encoder.device.type)
        prompt = self.encoder.prompts.get(task) or None
        batches = list(self.encoder.feature_batches(texts, budget, _MOST_TEXTS, prompt=prompt, task=task, **kwargs))
        return Packed([rows for rows, _ in batches], [features for _, features in batches], len(texts))


def _filled(lists: Sequence[Sequence[Any]], fill: Any, dtype: torch.dtype) -> Tensor:
    width = max(map(len, lists))
    return torch.tensor([[*one, *[fill] * (width - len(one))] for one in lists], dtype=dtype)
