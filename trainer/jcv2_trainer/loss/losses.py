"""Losses of one head, given its matrices of MaxSim scores.

Sources: contrastive loss (InfoNCE) and KL divergence to a cross-encoder as in arXiv 2408.16672, sections 3.1 and 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
