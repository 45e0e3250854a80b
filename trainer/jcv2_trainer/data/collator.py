"""Batches without padding waste: all passages of a batch are dealt by length into forward passes.

Collators that pad every column of a batch to its longest text compute two to four times as many positions as there
are tokens (22 % of the positions are real in PyLate's, 36 % in sentence-transformers', on triplets of mixed
lengths). Here the distinct passages of a batch are tokenised once, sorted, and cut into forward passes by a budget of
padded tokens, as the encoder does in inference; with flash attention nothing is padded at all.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """Texts of one kind, dealt into forward passes.

    Attributes:
        rows: For each forward pass the positions of its texts.
        features: For each forward pass what the model reads.
        count: Number of texts.
    """

    rows: list[list[int]]
    features: list[dict[str, Any]]
    count: int


@dataclass
class Batch:
    """What :class:`PackedCollator` makes of some rows, and the loss reads.

    Attributes:
        queries: The rows' queries.
        documents: The distinct passages of all rows.
        positive: Position of each row's positive among the documents, shape ``(rows,)``.
        candidates: Positions of each row's positive and negatives, shape ``(rows, 1 + negatives)``; where a row has
            fewer, ``NO_CANDIDATE``.
        teacher: The teacher's scores of the candidates, same shape; NaN where there are none.
        document_keys: A 64-bit key of each document's text, shape ``(documents,)``.
        known: Keys of all passages known to answer each row's query, shape ``(rows, most)``, filled up with the
            positive's: none of them is a negative, wherever it comes from.
    """

    queries: Packed
    documents: Packed
    positive: Tensor
    candidates: Tensor
    teacher: Tensor
    document_keys: Tensor
    known: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(**{name: _moved(value, device) for name, value in vars(self).items()})


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Packed):
        moved = [{name: _moved(one, device) for name, one in features.items()} for features in value.features]
        return Packed(value.rows, moved, value.count)
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


@dataclass
class PackedCollator:
    """Make a :class:`Batch` of dataset rows; see the module.

    Args:
        encoder: Tokenises, and says how queries and documents are prepared.
        negatives: Negatives of each row, at most. From more, as many are drawn, by ``seed`` and the row, anew in each
            epoch.
        document_length: Tokens a passage is cut to; None leaves it to the encoder.
        tokens_per_batch: Padded tokens a forward pass; None takes the device's default.
        known: Keys of the passages known to answer a query, by the query's key, where there are several.
        seed: Of the drawing of negatives.
    """

    encoder: JinaColbertEncoder
    negatives: int = 7
    document_length: int | None = None
    tokens_per_batch: int | None = None
    known: Mapping[int, Sequence[int]] = field(default_factory=dict)
    seed: int = 13
    epoch: int = 0
    # sentence-transformers' trainer asks its collator for this.
    valid_label_columns: list[str] = field(default_factory=list)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Batch]:
        """The batch under the key ``"batch"``, as the trainer passes dictionaries on."""
        return {"batch": self.collate(rows)}

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Make the batch of some rows.

        Args:
            rows: With ``query``, ``positive``, ``negatives``, ``scores``, ``query_key`` and ``positive_key``, as
                :func:`jcv2_trainer.data.datasets_io.training_dataset` has them.
        """
        documents: dict[str, int] = {}
        candidates: list[list[int]] = []
        scores: list[list[float]] = []
        for row in rows:
            texts, teacher = self._candidates(row)
            candidates.append([documents.setdefault(text, len(documents)) for text in texts])
            scores.append(teacher or [float("nan")] * len(texts))
        keys = torch.tensor([text_key(text) for text in documents], dtype=torch.int64)
        known = [[row["positive_key"], *self.known.get(row["query_key"], ())] for row in rows]
        most = max(map(len, known))
        table = _filled(candidates, NO_CANDIDATE, torch.int64)
        return Batch(
            queries=self._pack([row["query"] for row in rows], "query"),
            documents=self._pack(list(documents), "document"),
            positive=table[:, 0].clone(),
            candidates=table,
            teacher=_filled(scores, float("nan"), torch.float32),
            document_keys=keys,
            known=torch.tensor([one + one[:1] * (most - len(one)) for one in known], dtype=torch.int64),
        )

    def _candidates(self, row: Mapping[str, Any]) -> tuple[list[str], list[float]]:
        """Positive and negatives, with the teacher's scores or none."""
        negatives, scores = list(row["negatives"]), list(row["scores"])
        chosen = list(range(len(negatives)))
        if len(chosen) > self.negatives:
            # By the row itself, not by the order of calls: a resumed run draws the same.
            draw = random.Random(f"{self.seed}-{self.epoch}-{row['query_key']}-{row['positive_key']}")
            chosen = sorted(draw.sample(chosen, self.negatives))
        texts = [row["positive"], *(negatives[index] for index in chosen)]
        return texts, [scores[0], *(scores[1 + index] for index in chosen)] if scores else []

    def _pack(self, texts: list[str], task: str) -> Packed:
        # The document tower may be cut shorter in training than the model is used later.
        cut = {"processing_kwargs": {"text": {"max_length": self.document_length}}}
        kwargs: dict[str, Any] = cut if task == "document" and self.document_length is not None else {}
        budget = self.tokens_per_batch or default_tokens_per_batch(self.encoder.device.type)
        batches = list(
            self.encoder.feature_batches(
                texts, budget, _MOST_TEXTS, prompt=self.encoder.prompts.get(task) or None, task=task, **kwargs
            )
        )
        return Packed([rows for rows, _ in batches], [features for _, features in batches], len(texts))


def _filled(lists: Sequence[Sequence[Any]], fill: Any, dtype: torch.dtype) -> Tensor:
    width = max(map(len, lists))
    return torch.tensor([[*one, *[fill] * (width - len(one))] for one in lists], dtype=dtype)
