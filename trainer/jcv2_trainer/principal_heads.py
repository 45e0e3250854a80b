"""Heads without training: the principal components of a backbone's token states.

For a backbone that has no late-interaction heads yet, projecting on the leading eigenvectors of the
(uncentred) second moment of its normalised token states loses the least of their dot products, which are
what MaxSim compares. It is the starting point from which heads are trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jcv2_plugin.batching import occupied_columns, plan_batches, take_rows
from jcv2_plugin.heads import MatryoshkaHeads
from sentence_transformers.base.modules import Transformer
from torch.nn import functional as F


def second_moment(backbone: Transformer, texts: Sequence[str], tokens_per_batch: int = 512) -> torch.Tensor:
    """Mean outer product of the L2-normalised token states of ``texts``, of shape ``(hidden, hidden)``."""
    total = torch.zeros(0)
    tokens = 0
    backbone.eval()
    for start in range(0, len(texts), 256):
        features = backbone.preprocess(texts[start : start + 256], task="document")
        first, last = occupied_columns(features)
        for rows in plan_batches((last - first).tolist(), tokens_per_batch):
            with torch.inference_mode():
                batch = take_rows(features, rows, int(first[rows].min()), int(last[rows].max()))
                output = backbone(batch)
                states = output["token_embeddings"][output["attention_mask"].bool()]
                states = F.normalize(states.double(), dim=-1)
                moment = states.T @ states
            total = moment if total.numel() == 0 else total + moment
            tokens += len(states)
    return total / tokens


def principal_heads(moment: torch.Tensor, dims: Iterable[int]) -> MatryoshkaHeads:
    """Heads on the leading eigenvectors of a second moment, the first of ``dims`` being the default.

    Raises:
        ValueError: If a dimension exceeds the hidden size.
    """
    wanted = tuple(dims)
    hidden = moment.shape[0]
    if max(wanted) > hidden:
        raise ValueError(f"The backbone's states have {hidden} components, so no head of {max(wanted)} can be fitted.")
    components = torch.linalg.eigh(moment).eigenvectors.flip(1).T  # rows, largest eigenvalue first
    # Eigenvectors have no sign; fix it, so that a refit gives the same file.
    signs = torch.sign(components.gather(1, components.abs().argmax(dim=1, keepdim=True)))
    components = (components * signs).float()
    return MatryoshkaHeads(hidden, wanted, weights={dim: components[:dim] for dim in wanted})
