"""Find the scale of MaxSim scores at which a model's own scores say most about the right passage.

MaxSim is a sum over a query's tokens, so the gap between right and wrong passages depends on the model and on the
length of its queries. If scores are too close together, their softmax pulls all of them apart before it learns anything
about hard negatives. LoRA on mini lowered nDCG@10 on a dev set at a scale of 1, and raised it at 5; the initial loss is
lowest at 2 there. Training uses twice the scale with the lowest initial loss, so that easy negatives count little from
the first step on.
"""

from __future__ import annotations

import math
from itertools import islice

import torch
from datasets import Dataset

from jcv2_plugin import JinaColbertEncoder
from jcv2_trainer.data.collator import PackedCollator
from jcv2_trainer.data.sampler import GroupedBatchSampler
from jcv2_trainer.loss.losses import all_scores, contrastive_loss
from jcv2_trainer.loss.objective import MatryoshkaLateInteractionLoss, targets
from jcv2_trainer.recipes.settings import TrainingRecipe

_ROWS = 128
_SHARPER = 2.0
_GRID = [2 ** (exponent / 2) for exponent in range(-4, 13)]  # 0.25 to 64


def best_scale(encoder: JinaColbertEncoder, rows: Dataset, settings: TrainingRecipe, collator: PackedCollator) -> float:
    """Return twice the scale with the lowest InfoNCE loss of the untrained model's default head, on some batches."""
    size = min(settings.batch_size, _ROWS)
    sampler = GroupedBatchSampler(rows, size, seed=settings.seed)
    loss = MatryoshkaLateInteractionLoss(encoder, settings)
    totals = dict.fromkeys(_GRID, 0.0)
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        for chosen in islice(sampler, max(1, math.ceil(_ROWS / size))):
            batch = collator.collate([rows[index] for index in chosen]).to(encoder.device)
            queries, documents = loss.encode(batch)
            scores = all_scores(queries.head(0, encoder.dims[0]), documents.head(0, encoder.dims[0]))
            positive, excluded = targets(batch.document_keys, batch.positive, batch.known)
            for scale in _GRID:
                totals[scale] += float(contrastive_loss(scores, positive, excluded, scale)) * len(chosen)
    encoder.train(training)
    if max(totals.values()) == min(totals.values()):  # without negatives, the loss does not depend on the scale
        return 1.0
    return _SHARPER * min(totals, key=totals.__getitem__)
