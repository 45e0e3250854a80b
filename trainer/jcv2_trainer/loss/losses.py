"""MaxSim scores of a batch for one head at a time, and the losses of these scores.

A score is the sum, over a query's tokens, of the largest dot product with a passage's tokens (arXiv 2004.12832). The
formula is sentence-transformers'. It is applied to each forward pass, so that scoring pads no more than encoding. The
losses are InfoNCE and the KL divergence to a cross-encoder, as in arXiv 2408.16672, sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from sentence_transformers.util.similarity import maxsim, maxsim_pairwise
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from jcv2_trainer.loss.pooling import pooled


@dataclass
class TokenVectors:
    """Token vectors of texts, as returned by the forward passes.

    Attributes:
        rows: Positions of the texts, for each pass.
        vectors: Token vectors of shape ``(texts, tokens, sum of dims)``, for each pass.
        masks: Masks of shape ``(texts, tokens)``, for each pass; true where a token is scored.
        count: Number of texts.
    """

    rows: list[list[int]]
    vectors: list[Tensor]
    masks: list[Tensor]
    count: int

    def head(self, start: int, dim: int) -> TokenVectors:
        """Return the vectors of one head, which are the components ``start:start + dim``, in float32.

        MaxSim sums dozens of dot products. In half precision, these sums lose more precision than the rest of the
        model.
        """
        return replace(self, vectors=[vectors[..., start : start + dim].float() for vectors in self.vectors])

    def pooled(self, factors: Sequence[float]) -> list[TokenVectors]:
        """Return the vectors of one head of documents, pooled by each factor: see :mod:`jcv2_trainer.loss.pooling`."""
        merging = [factor for factor in factors if factor > 1]
        found = {factor: replace(self, vectors=[], masks=[]) for factor in merging}
        for vectors, mask in zip(self.vectors, self.masks, strict=True) if merging else ():
            each = pooled(vectors[mask], mask.sum(dim=1).tolist(), merging)
            for own, (flat, counts) in zip(found.values(), each, strict=True):
                own.vectors.append(pad_sequence(list(torch.split(flat, counts)), batch_first=True))
                places = torch.arange(max(counts), device=mask.device)
                own.masks.append(places < torch.tensor(counts, device=mask.device)[:, None])
        return [found.get(factor, self) for factor in factors]

    @property
    def order(self) -> Tensor:
        """Position of each text in the concatenated passes, shape ``(texts,)``."""
        flat = torch.tensor([row for rows in self.rows for row in rows], device=self.vectors[0].device)
        return flat.argsort()

    def padded(self) -> tuple[Tensor, Tensor]:
        """Return all texts in their original order as one tensor ``(texts, most tokens, dim)``, and its mask."""
        most = max(mask.shape[1] for mask in self.masks)
        vectors = [torch.nn.functional.pad(one, (0, 0, 0, most - one.shape[1])) for one in self.vectors]
        masks = [torch.nn.functional.pad(one, (0, most - one.shape[1])) for one in self.masks]
        order = self.order
        return torch.cat(vectors)[order], torch.cat(masks)[order]


def head_slices(dims: Sequence[int]) -> list[tuple[int, int]]:
    """Return ``(first component, dim)`` of each head in concatenated vectors."""
    return list(zip(accumulate(dims, initial=0), dims, strict=False))


def all_scores(queries: TokenVectors, documents: TokenVectors) -> Tensor:
    """Return the MaxSim score of every query with every document, shape ``(queries, documents)``, float32."""
    right = list(zip(documents.vectors, documents.masks, strict=True))
    blocks = [
        torch.cat(
            [maxsim(query, document, a_mask=mask, b_mask=document_mask) for document, document_mask in right], dim=1
        )
        for query, mask in zip(queries.vectors, queries.masks, strict=True)
    ]
    return torch.cat(blocks)[queries.order][:, documents.order]


def candidate_scores(queries: TokenVectors, documents: TokenVectors, candidates: Tensor) -> Tensor:
    """Return the MaxSim scores of each query with its own candidates only, shape ``(queries, candidates)``, float32.

    ``candidates`` are positions among the documents, of the same shape. A negative one gets the score ``-inf``.
    """
    padded, padded_mask = queries.padded()
    scores = padded.new_full(candidates.shape, float("-inf"), dtype=torch.float32)
    for rows, vectors, mask in zip(documents.rows, documents.vectors, documents.masks, strict=True):
        position = torch.full((documents.count,), -1, device=candidates.device)
        position[torch.tensor(rows, device=candidates.device)] = torch.arange(len(rows), device=candidates.device)
        here = torch.where(candidates >= 0, position[candidates.clamp(min=0)], -1)
        query, column = (here >= 0).nonzero(as_tuple=True)
        if len(query):
            document = here[query, column]
            pair = maxsim_pairwise(padded[query], vectors[document], padded_mask[query], mask[document])
            scores = scores.index_put((query, column), pair)
    return scores


def contrastive_loss(scores: Tensor, positive: Tensor, excluded: Tensor, scale: float = 1.0) -> Tensor:
    """Return the InfoNCE loss of each query's positive against all documents of the batch, averaged over queries.

    Args:
        scores: Scores of shape ``(queries, documents)``, or ``(positives, queries)`` for the reverse direction, in
            which each positive has to find its own query.
        positive: Column of each row's match, shape ``(rows,)``.
        excluded: True where a column is not a negative of the row, same shape as the scores.
        scale: Factor on the scores.
    """
    logits = (scores * scale).masked_fill(excluded, float("-inf"))
    return F.cross_entropy(logits, positive)


def distillation_loss(scores: Tensor, teacher: Tensor, scale: float = 1.0, teacher_temperature: float = 1.0) -> Tensor:
    """Return the KL divergence from the teacher's distribution over a query's candidates to the student's.

    Args:
        scores: Scores of shape ``(queries, candidates)``, ``-inf`` where there is no candidate.
        teacher: The teacher's scores, same shape. A row with NaN at a candidate has no teacher.
        scale: Factor on the student's scores.
        teacher_temperature: Divisor of the teacher's scores.

    Returns:
        The mean over the rows with a teacher, or zero with a zero gradient if there are none. It is not divided by the
        square of ``scale``, although that is common if teacher and student share a temperature: it would change the
        weight relative to the contrastive loss by that square.
    """
    present = scores != float("-inf")
    taught = (~(teacher.isnan() & present)).all(dim=1) & (present.sum(dim=1) > 1)
    if not bool(taught.any()):
        return scores[present].sum() * 0.0
    present = present[taught]
    student = (scores[taught] * scale).log_softmax(dim=1)
    target = (teacher[taught] / teacher_temperature).masked_fill(~present, float("-inf")).log_softmax(dim=1)
    terms = torch.where(present, target.exp() * (target - student), torch.zeros_like(student))
    return terms.sum(dim=1).mean()
