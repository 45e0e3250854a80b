"""Training loss over all Matryoshka heads, with one backbone pass and one backward pass.

Every head projects the hidden states of a batch and has its own loss. The total is their weighted sum (arXiv
2408.16672: Matryoshka representation learning without weight tying). Since the heads share no weights, a head's
gradient is that of its own loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers.base.losses.gradcache import RandContext
from sentence_transformers.util import all_gather, all_gather_padded, get_rank
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jcv2_plugin import JinaColbertEncoder
from jcv2_trainer.data.collator import Batch, Packed
from jcv2_trainer.loss.losses import contrastive_loss, distillation_loss
from jcv2_trainer.loss.scoring import TokenVectors, all_scores, candidate_scores, head_slices
from jcv2_trainer.recipes.settings import TrainingRecipe


class MatryoshkaLateInteractionLoss(nn.Module):
    """InfoNCE and/or distillation at every head, as described in the module.

    With ``settings.cached``, gradients are cached (GradCache, arXiv 2101.06983): texts are encoded without a graph, the
    loss gives the gradient of each token vector, and a second pass backpropagates it into the model, one forward pass
    at a time. Loss and gradients are the same as without caching. Memory is that of one forward pass and of the
    vectors. With several processes, in-batch negatives come from all of them.

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
        # Read by sentence-transformers' trainer, since backward runs in a hook on the loss.
        self.uses_gradient_cache = settings.cached
        self.last: dict[int, Tensor] = {}

    def forward(self, features: Batch, labels: Tensor | None = None) -> Tensor:
        """Return the loss of a batch, a scalar."""
        if not (self.settings.cached and torch.is_grad_enabled()):
            return self._loss(*self.encode(features), features)
        return self._cached(features)

    # Encoding

    def encode(self, batch: Batch) -> tuple[TokenVectors, TokenVectors]:
        """Return the token vectors of the batch's queries and documents, those of all heads concatenated."""
        return self._encode(batch.queries, "query"), self._encode(batch.documents, "document")

    def _encode(self, packed: Packed, task: str) -> TokenVectors:
        passes = [self._pass(one, task) for one in packed.features]
        return TokenVectors(packed.rows, [one for one, _ in passes], [mask for _, mask in passes], packed.count)

    def _pass(self, features: dict[str, Any], task: str) -> tuple[Tensor, Tensor]:
        # Copied, because the model modifies the dictionary and a second pass reads it again.
        output = self.model(dict(features), task=task, dim=self.dims)
        return output["token_embeddings"], output["attention_mask"].bool()

    # Loss of encoded texts

    def _loss(self, queries: TokenVectors, documents: TokenVectors, batch: Batch) -> Tensor:
        settings = self.settings
        keys, positive, gathered = batch.document_keys, batch.positive, documents
        several = dist.is_initialized() and dist.get_world_size() > 1
        if settings.contrastive_weight and several:
            gathered, keys, positive = _gather(documents, keys, positive)
        positive, excluded = targets(keys, positive, batch.known)
        asked, own_query, not_asked = queries, torch.arange(queries.count, device=keys.device), None
        if settings.contrastive_weight and settings.symmetric:
            known = batch.known
            if several:
                asked, known, own_query = _gather_queries(queries, known)
            not_asked = answered(batch.document_keys[batch.positive], known, own_query)
        total = torch.zeros((), device=keys.device)
        scale = settings.scale or 1.0
        # Sum scores in float32, even if the model computes in half precision.
        with torch.autocast(keys.device.type, enabled=False):
            for (start, dim), weight in zip(head_slices(self.dims), self.weights, strict=True):
                if weight == 0:
                    continue
                own = queries.head(start, dim)
                loss = torch.zeros((), device=keys.device)
                if settings.contrastive_weight:
                    scores = all_scores(own, gathered.head(start, dim))
                    contrast = contrastive_loss(scores, positive, excluded, scale)
                    if not_asked is not None:
                        back = scores if not several else all_scores(asked.head(start, dim), documents.head(start, dim))
                        back = back[:, batch.positive if several else positive].T
                        contrast = (contrast + contrastive_loss(back, own_query, not_asked, scale)) / 2
                    loss = loss + settings.contrastive_weight * contrast
                if settings.distillation_weight and not bool(batch.teacher.isnan().all()):
                    scores = candidate_scores(own, documents.head(start, dim), batch.candidates)
                    loss = loss + settings.distillation_weight * distillation_loss(
                        scores, batch.teacher, scale, settings.teacher_temperature
                    )
                self.last[dim] = loss.detach()
                total = total + weight * loss
        return total

    # Gradient caching

    def _cached(self, batch: Batch) -> Tensor:
        sides = ((batch.queries, "query"), (batch.documents, "document"))
        states: list[RandContext] = []
        encoded: list[TokenVectors] = []
        with torch.no_grad():
            for packed, task in sides:
                vectors, masks = [], []
                for features in packed.features:
                    states.append(RandContext(*(one for one in features.values() if isinstance(one, Tensor))))
                    one, mask = self._pass(features, task)
                    vectors.append(one.detach().requires_grad_())
                    masks.append(mask)
                encoded.append(TokenVectors(packed.rows, vectors, masks, packed.count))
        with torch.enable_grad():
            loss = self._loss(encoded[0], encoded[1], batch)
            loss.backward()  # type: ignore[no-untyped-call]
        gradients = [one.grad for side in encoded for one in side.vectors]
        result = loss.detach().requires_grad_()
        result.register_hook(  # type: ignore[no-untyped-call]
            partial(self._replay, batch=batch, gradients=gradients, states=states)
        )
        return result

    def _replay(
        self, upstream: Tensor, *, batch: Batch, gradients: list[Tensor | None], states: list[RandContext]
    ) -> None:
        """Encode again with a graph, and backpropagate the cached gradients, scaled by ``upstream``."""
        passes = [
            (features, task)
            for packed, task in ((batch.queries, "query"), (batch.documents, "document"))
            for features in packed.features
        ]
        model: Any = self.model
        parallel = isinstance(model, DistributedDataParallel)
        with torch.enable_grad():
            for index, ((features, task), gradient, state) in enumerate(zip(passes, gradients, states, strict=True)):
                # Synchronise gradients between processes once, after the last pass.
                waits = parallel and index < len(passes) - 1
                with model.no_sync() if waits else nullcontext(), state:
                    vectors, _ = self._pass(features, task)
                    cached = torch.zeros_like(vectors) if gradient is None else gradient
                    torch.autograd.backward(vectors, cached.to(vectors.dtype) * upstream.to(vectors.dtype))


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


def _gather_queries(queries: TokenVectors, known: Tensor) -> tuple[TokenVectors, Tensor, Tensor]:
    """Gather the queries of all processes, their known answers, and the positions of this process's queries among them.

    A process with fewer queries fills up with copies of its last one. A copy has the same known answers as its
    original, so it is excluded for the original's positive and counts once more as a negative of the others. Batches of
    unequal size only occur at the end of a group.
    """
    vectors, mask = queries.padded()
    sizes = all_gather(torch.tensor([[queries.count, known.shape[1]]], device=known.device))
    most, widest = (int(size) for size in sizes.max(dim=0).values)
    filled = torch.arange(most, device=known.device).clamp(max=queries.count - 1)
    known = torch.cat([known, known[:, :1].expand(-1, widest - known.shape[1])], dim=1)[filled]
    gathered, gathered_mask = all_gather_padded(vectors[filled], mask[filled], with_grad=True)
    everything = TokenVectors([list(range(len(gathered)))], [gathered], [gathered_mask], len(gathered))
    own = torch.arange(queries.count, device=known.device) + get_rank() * most
    return everything, all_gather(known), own


def _gather(documents: TokenVectors, keys: Tensor, positive: Tensor) -> tuple[TokenVectors, Tensor, Tensor]:
    """Gather the documents of all processes, their keys, and the positions of this process's positives among them."""
    vectors, mask = documents.padded()
    counts = all_gather(torch.tensor([documents.count], device=keys.device))
    most = int(counts.max())
    # Processes have different numbers of distinct documents: fill up with copies of the last; equal keys count once.
    filled = torch.arange(most, device=keys.device).clamp(max=documents.count - 1)
    gathered, gathered_mask = all_gather_padded(vectors[filled], mask[filled], with_grad=True)
    everything = TokenVectors([list(range(len(gathered)))], [gathered], [gathered_mask], len(gathered))
    return everything, all_gather(keys[filled]), positive + get_rank() * most
