"""Training loss over all Matryoshka heads, with one backbone pass and one backward pass.

Every head projects the hidden states of a batch and has its own loss. The total is their weighted sum (arXiv
2408.16672: Matryoshka representation learning without weight tying). Since the heads share no weights, a head's
gradient is that of its own loss. With several token pooling factors, a head's loss is the mean over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers.util import all_gather, all_gather_padded, get_rank
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from jcv2_plugin import JinaColbertEncoder
from jcv2_trainer.data.collator import Batch, Packed
from jcv2_trainer.loss.losses import (
    TokenVectors,
    all_scores,
    candidate_scores,
    contrastive_loss,
    distillation_loss,
    head_slices,
)
from jcv2_trainer.recipes.settings import TrainingRecipe


class MatryoshkaLateInteractionLoss(nn.Module):
    """InfoNCE and/or distillation at every head, as described in the module.

    With ``settings.cached``, each forward pass is a checkpoint: only its token vectors are kept, and it is computed
    again when their gradients are there, as with GradCache (arXiv 2101.06983). Loss and gradients are the same as
    without. Memory is that of one forward pass and of the vectors. With several processes, in-batch negatives come from
    all of them.

    Args:
        model: The encoder. All its heads are trained.
        settings: Weights, scale, temperature and whether to cache.
        weights: Weights of the heads' losses, in the order of the model's dims. Defaults to equal weights. They are
            normalised to a sum of 1, so that the loss is on the scale of a single head's.
    """

    model: JinaColbertEncoder

    def __init__(
        self, model: JinaColbertEncoder, settings: TrainingRecipe, weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.dims = model.dims
        weights = weights or [1.0] * len(self.dims)
        self.weights = [weight / sum(weights) for weight in weights]
        self.last: dict[str, Tensor] = {}
        """Loss of each head and factor, by its name in the log."""

    def forward(self, features: Batch, labels: Tensor | None = None) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return self._loss(*self.encode(features), features)

    def encode(self, batch: Batch) -> tuple[TokenVectors, TokenVectors]:
        """Return the token vectors of the batch's queries and documents, those of all heads concatenated."""
        return self._encode(batch.queries, "query"), self._encode(batch.documents, "document")

    def _encode(self, packed: Packed, task: str) -> TokenVectors:
        if self.settings.cached and torch.is_grad_enabled():
            passes = [
                checkpoint(self._pass, features, task, use_reentrant=False, context_fn=self._contexts)
                for features in packed.features
            ]
        else:
            passes = [self._pass(features, task) for features in packed.features]
        return TokenVectors(packed.rows, [one for one, _ in passes], [mask for _, mask in passes], packed.count)

    def _pass(self, features: dict[str, Any], task: str) -> tuple[Tensor, Tensor]:
        # Copied, because the model modifies the dictionary and a second pass reads it again.
        output = self.model(dict(features), task=task, dim=self.dims)
        return output["token_embeddings"], output["attention_mask"].bool()

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Contexts of a pass and of its repetition, which must not prepare another synchronisation of gradients."""
        model: Any = self.model
        return nullcontext(), model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def _loss(self, queries: TokenVectors, documents: TokenVectors, batch: Batch) -> Tensor:
        settings = self.settings
        keys, known, positive, gathered = batch.document_keys, batch.known, batch.positive, documents
        several = dist.is_initialized() and dist.get_world_size() > 1
        if settings.contrastive_weight and several:
            gathered, keys, offset = _gather(documents, keys)
            positive = positive + offset
        positive, excluded = targets(keys, positive, known)
        asked, own_query, not_asked = queries, torch.arange(queries.count, device=keys.device), None
        if settings.contrastive_weight and settings.symmetric:
            if several:
                asked, known, offset = _gather(queries, _widened(known))
                own_query = own_query + offset
            not_asked = answered(batch.document_keys[batch.positive], known, own_query)
        total = torch.zeros((), device=keys.device)
        scale = settings.scale or 1.0
        # Sum scores in float32, even if the model computes in half precision.
        with torch.autocast(keys.device.type, enabled=False):
            for (start, dim), weight in zip(head_slices(self.dims), self.weights, strict=True):
                if weight == 0:
                    continue
                own, factors = queries.head(start, dim), settings.pool_factors
                for factor, pooled in zip(factors, documents.head(start, dim).pooled(factors), strict=True):
                    loss = torch.zeros((), device=keys.device)
                    if settings.contrastive_weight:
                        everything = pooled
                        if several and factor == 1:
                            everything = gathered.head(start, dim)
                        elif several:
                            everything, _, _ = _gather(pooled, batch.document_keys)
                        scores = all_scores(own, everything)
                        contrast = contrastive_loss(scores, positive, excluded, scale)
                        if not_asked is not None:
                            back = scores if not several else all_scores(asked.head(start, dim), pooled)
                            back = back[:, batch.positive if several else positive].T
                            contrast = (contrast + contrastive_loss(back, own_query, not_asked, scale)) / 2
                        loss = loss + settings.contrastive_weight * contrast
                    if settings.distillation_weight and not bool(batch.teacher.isnan().all()):
                        scores = candidate_scores(own, pooled, batch.candidates)
                        loss = loss + settings.distillation_weight * distillation_loss(
                            scores, batch.teacher, scale, settings.teacher_temperature
                        )
                    self.last[f"loss_{dim}" if factor == 1 else f"loss_{dim}_pool_{factor:g}"] = loss.detach()
                    total = total + weight / len(factors) * loss
        return total


def targets(keys: Tensor, positive: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the column of each query's positive, ``(queries,)``, and what to exclude, ``(queries, documents)``.

    A text counts once, wherever it comes from: the first of several columns with equal keys stands for all. Passages
    known to answer a query are excluded from its negatives.
    """
    _, group = torch.unique(keys, return_inverse=True)
    positions = torch.arange(len(keys), device=keys.device)
    first = torch.full_like(positions, len(keys)).scatter_reduce(0, group, positions, "amin")[group]
    positive = first[positive]
    excluded = torch.zeros(len(known), len(keys), dtype=torch.bool, device=keys.device)
    for column in known.unbind(dim=1):  # one at a time: all at once would be (queries, documents, most)
        excluded |= keys[None, :] == column[:, None]
    excluded |= (first != positions)[None, :]
    return positive, excluded.scatter(1, positive[:, None], False)


def answered(positive_keys: Tensor, known: Tensor, own: Tensor) -> Tensor:
    """Return which queries are not negatives of a positive, ``(positives, queries)``: those it answers, except its own.

    Args:
        positive_keys: Keys of the positives, ``(positives,)``.
        known: Keys of the passages that answer each query, ``(queries, most)``.
        own: Position of each positive's own query, ``(positives,)``.
    """
    excluded = (positive_keys[:, None, None] == known[None, :, :]).any(dim=2)
    return excluded.scatter(1, own[:, None], False)


def _widened(known: Tensor) -> Tensor:
    """Return as many known answers for each query as other processes have, filled up with the first."""
    widest = int(all_gather(torch.tensor([known.shape[1]], device=known.device)).max())
    return torch.cat([known, known[:, :1].expand(-1, widest - known.shape[1])], dim=1)


def _gather(texts: TokenVectors, column: Tensor) -> tuple[TokenVectors, Tensor, int]:
    """Gather the texts of all processes and a column of keys, and return the position of this process's first text.

    A process with fewer texts fills up with copies of its last one. Documents with equal keys count once. A copied
    query has the same known answers as its original, so it is excluded for the original's positive and counts once more
    as a negative of the others. Batches with unequal numbers of queries only occur at the end of a group.
    """
    vectors, mask = texts.padded()
    most = int(all_gather(torch.tensor([texts.count], device=column.device)).max())
    filled = torch.arange(most, device=column.device).clamp(max=texts.count - 1)
    gathered, gathered_mask = all_gather_padded(vectors[filled], mask[filled], with_grad=True)
    everything = TokenVectors([list(range(len(gathered)))], [gathered], [gathered_mask], len(gathered))
    return everything, all_gather(column[filled]), get_rank() * most
