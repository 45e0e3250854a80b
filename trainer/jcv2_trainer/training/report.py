"""Report of a training run, written to ``training.json`` in the model folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jcv2_trainer.training.runs import versions


@dataclass
class TrainingReport:
    """Data, recipe and results of a run.

    Attributes:
        model: The initial model.
        stage: The command.
        rows: Number of training rows.
        skipped: Number of skipped rows, by reason.
        data: File names, and how many rows have negatives and scores.
        dev: Size of the dev set. Empty without one.
        recipe: The settings.
        added_dims: Dimensions of the heads that were added to the model.
        steps: Number of optimiser steps done.
        best_step: Step of the saved weights, which are the best on the dev set.
        before: nDCG@10 of the initial model on the dev set, by dimension (new heads as initialised).
        after: nDCG@10 of the trained model on the dev set, by dimension.
        pooled_before: The same as ``before`` with pooled passages, by token pooling factor. 1 is not among them.
        pooled_after: The same as ``after`` with pooled passages.
        finished: False if training was interrupted.
        history: Losses and metrics by step.
        versions: Versions of Python and the relevant packages.
    """

    model: str
    stage: str
    rows: int
    skipped: dict[str, int]
    data: dict[str, Any]
    dev: dict[str, Any]
    recipe: dict[str, Any]
    added_dims: tuple[int, ...] = ()
    steps: int = 0
    best_step: int = 0
    before: dict[int, float] = field(default_factory=dict)
    after: dict[int, float] = field(default_factory=dict)
    pooled_before: dict[str, dict[int, float]] = field(default_factory=dict)
    pooled_after: dict[str, dict[int, float]] = field(default_factory=dict)
    finished: bool = True
    history: list[dict[str, float]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)
