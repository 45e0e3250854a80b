"""The losses of one head, on its matrices of MaxSim scores.

Sources: contrastive (InfoNCE) and KL divergence to a cross-encoder as in arXiv 2408.16672, sections 3.1 and 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(scores: Tensor, positive: Tensor, excluded: Tensor, scale: float = 1.0) -> Tensor:
    """InfoNCE: each query's positive against all documents of the batch, the mean over queries.

    Args:
        scores: ``(queries, documents)``.
        positive: Column of each query's positive, shape ``(queries,)``.
        excluded: True where a document is no negative of the query, ``(queries, documents)``.
        scale: Factor on the scores.
    """
    logits = (scores * scale).masked_fill(excluded, float("-inf"))
    return F.cross_entropy(logits, positive)


def symmetric_loss(scores: Tensor, positive: Tensor, excluded: Tensor, scale: float = 1.0) -> Tensor:
    """Half of InfoNCE from queries to documents, and half from the positives to the queries.

    The second half asks of each query's positive that the query scores highest among those it is not excluded for.
    """
    backward = scores[:, positive].T * scale  # (positives, queries), matched on the diagonal
    others = excluded[:, positive].T
    same = positive[:, None] == positive[None, :]
    same.fill_diagonal_(False)
    logits = backward.masked_fill(others | same, float("-inf"))
    targets = torch.arange(len(positive), device=scores.device)
    return (contrastive_loss(scores, positive, excluded, scale) + F.cross_entropy(logits, targets)) / 2


def distillation_loss(scores: Tensor, teacher: Tensor, scale: float = 1.0, teacher_temperature: float = 1.0) -> Tensor:
    """KL divergence from the teacher's distribution over a query's candidates to the student's.

    Args:
        scores: ``(queries, candidates)``, ``-inf`` where there is no candidate.
        teacher: The teacher's scores, same shape; a row with NaN where there is a candidate has no teacher.
        scale: Factor on the student's scores.
        teacher_temperature: Divides the teacher's.

    Returns:
        The mean over the rows with a teacher; zero, with a gradient of zero, where there is none. As in
        sentence-transformers the loss is divided by ``scale`` squared, so that gradients keep their size.
    """
    present = scores != float("-inf")
    taught = (~(teacher.isnan() & present)).all(dim=1) & (present.sum(dim=1) > 1)
    if not bool(taught.any()):
        return scores[present].sum() * 0.0
    present = present[taught]
    student = (scores[taught] * scale).log_softmax(dim=1)
    target = (teacher[taught] / teacher_temperature).masked_fill(~present, float("-inf")).log_softmax(dim=1)
    terms = torch.where(present, target.exp() * (target - student), torch.zeros_like(student))
    return terms.sum(dim=1).mean() / scale**2
