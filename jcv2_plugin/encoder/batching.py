"""Batching by token budget: sort texts by tokenised length and fill each batch up to a number of padded tokens.

A fixed number of texts per batch either wastes compute on padding or underuses the device. On a CPU, small batches also
keep the activations in the caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Measured on CPU only: 512 to 2,048 are within a few percent of each other (docs/encoder.md). The accelerator values
# just keep the activations of a 1024-wide model within a few GiB.
DEFAULT_TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 32_768, "mps": 8_192}
_OVERHEAD_SHARE = 32  # fixed cost of a batch: 1/32 of a full one
_MOST_TEXTS = 4096  # per batch, to bound the search below


def default_tokens_per_batch(device_type: str) -> int:
    """Return the default token budget for a ``torch.device.type``."""
    return DEFAULT_TOKENS_PER_BATCH.get(device_type, 8_192)


def plan_batches(lengths: Sequence[int], tokens_per_batch: int, max_texts: int | None = None) -> Iterator[list[int]]:
    """Group the indices of ``lengths`` so that (longest in batch) x (texts in batch) stays within the budget.

    Of all ways to cut the sorted lengths into batches, this picks the cheapest one; the cost of a batch is its number
    of padded tokens plus a fixed overhead. Batches come longest first, so that running out of memory shows early. A
    single text over the budget gets its own batch.
    """
    if tokens_per_batch < 1 or (max_texts is not None and max_texts < 1):
        raise ValueError(
            f"tokens_per_batch and batch_size must be positive, got {tokens_per_batch!r} and {max_texts!r}."
        )
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    longest = np.maximum(np.asarray(lengths, dtype=np.int64)[order], 1)
    most = min(max_texts or _MOST_TEXTS, _MOST_TEXTS)
    overhead = tokens_per_batch // _OVERHEAD_SHARE
    # cost[end] is the minimum cost of the first `end` texts, whose last batch begins at begin[end].
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
    """Return the first and past-the-last column that each row needs, each of shape ``(texts,)``.

    Query expansion tokens are included even if the attention mask excludes them, because they are scored.
    """
    used = features["attention_mask"].bool()
    if (expansion := features.get("query_expansion_positions")) is not None:
        used = used | expansion.bool()
    columns = torch.arange(used.shape[1])
    first = torch.where(used, columns, used.shape[1]).amin(dim=1)
    last = torch.where(used, columns + 1, 0).amax(dim=1)
    return first, last


def take_rows(features: dict[str, Any], rows: list[int], first: int, last: int) -> dict[str, Any]:
    """Return the features of some texts, cut to the columns ``first:last``. Other values are passed through."""
    texts, width = features["attention_mask"].shape
    taken: dict[str, Any] = {}
    for name, value in features.items():
        if isinstance(value, Tensor) and value.ndim >= 1 and value.shape[0] == texts:
            value = value[rows]
            if value.ndim >= 2 and value.shape[1] == width:
                value = value[:, first:last]
        taken[name] = value
    return taken
