"""Batches by token budget: texts sorted by tokenised length, as many a batch as fit a padded-token budget.

A fixed number of texts a batch either pads short texts to long ones or starves the device; a budget of
padded tokens does neither. On a CPU small batches also keep the activations in the caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Measured for CPU: 512 to 2,048 are within a few percent of each other (docs/encoder.md). The accelerator
# values only keep activations of a 1024-wide model within a few GiB; measure on yours.
DEFAULT_TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 32_768, "mps": 8_192}
_OVERHEAD_SHARE = 32  # a batch costs as much, beside its tokens, as a 32nd of a full one
_MOST_TEXTS = 4096  # in one batch, to bound the search below


def default_tokens_per_batch(device_type: str) -> int:
    """The budget used where the caller names none, for ``torch.device.type``."""
    return DEFAULT_TOKENS_PER_BATCH.get(device_type, 8_192)


def plan_batches(lengths: Sequence[int], tokens_per_batch: int, max_texts: int | None = None) -> Iterator[list[int]]:
    """Group indices into ``lengths`` so that (longest in batch) x (texts in batch) stays within the budget.

    Of all ways to cut the sorted lengths into batches, the one of least cost is taken, where a batch costs its
    padded tokens and a fixed overhead. Longest first, so that running out of memory shows at once. A single text
    over the budget gets a batch of its own. Every index comes exactly once.

    Raises:
        ValueError: If the budget or ``max_texts`` is not positive.
    """
    if tokens_per_batch < 1 or (max_texts is not None and max_texts < 1):
        raise ValueError(
            f"tokens_per_batch and batch_size must be positive, got {tokens_per_batch!r} and {max_texts!r}."
        )
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    longest = np.maximum(np.asarray(lengths, dtype=np.int64)[order], 1)
    most = min(max_texts or _MOST_TEXTS, _MOST_TEXTS)
    overhead = tokens_per_batch // _OVERHEAD_SHARE
    # cost[end] is the least cost of the first `end` texts, whose last batch begins at begin[end].
    cost = np.zeros(len(order) + 1, dtype=np.int64)
    begin = np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        starts = np.arange(max(0, end - most), end)
        padded = (end - starts) * longest[starts]
        allowed = padded <= tokens_per_batch
        allowed[-1] = True
        total = np.where(allowed, cost[starts] + padded + overhead, np.iinfo(np.int64).max)
        choice = int(total.argmin())
        cost[end], begin[end] = total[choice], starts[choice]
    batches = []
    end = len(order)
    while end > 0:
        batches.append(order[begin[end] : end].tolist())
        end = int(begin[end])
    yield from reversed(batches)


def occupied_columns(features: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """First and past-the-last column of each row that the model must see, each of shape ``(texts,)``.

    Query expansion tokens count even where the attention mask leaves them out: they are scored.
    """
    used = features["attention_mask"].bool()
    if (expansion := features.get("query_expansion_positions")) is not None:
        used = used | expansion.bool()
    columns = torch.arange(used.shape[1])
    first = torch.where(used, columns, used.shape[1]).amin(dim=1)
    last = torch.where(used, columns + 1, 0).amax(dim=1)
    return first, last


def take_rows(features: dict[str, Any], rows: list[int], first: int, last: int) -> dict[str, Any]:
    """The features of some texts, cut to the columns ``first:last``; values that are no rows pass through."""
    texts, width = features["attention_mask"].shape
    taken: dict[str, Any] = {}
    for name, value in features.items():
        if isinstance(value, Tensor) and value.ndim >= 1 and value.shape[0] == texts:
            value = value[rows]
            if value.ndim >= 2 and value.shape[1] == width:
                value = value[:, first:last]
        taken[name] = value
    return taken
