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
        scores: ``(queries, documents)``; or ``(positives, queries)`` for the way back, in which each positive asks
            which of the queries is its own.
        positive: Column of each row's match, shape ``(rows,)``.
        excluded: True where a column is no negative of the row, same shape as the scores.
        scale: Factor on the scores.
    """
    logits = (scores * scale).masked_fill(excluded, float("-inf"))
    return F.cross_entropy(logits, positive)


def distillation_loss(scores: Tensor, teacher: Tensor, scale: float = 1.0, teacher_temperature: float = 1.0) -> Tensor:
    """KL divergence from the teacher's distribution over a query's candidates to the student's.

    Args:
        scores: ``(queries, candidates)``, ``-inf`` where there is no candidate.
        teacher: The teacher's scores, same shape; a row with NaN where there is a candidate has no teacher.
        scale: Factor on the student's scores.
        teacher_temperature: Divides the teacher's.

    Returns:
        The mean over the rows with a teacher; zero, with a gradient of zero, where there is none. It is not divided by
        the square of ``scale``, as distillation with one temperature on both sides often is: that would shift its
        weight against the contrastive loss by that square.
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
