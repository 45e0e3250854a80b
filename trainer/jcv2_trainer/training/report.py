"""What a training did, as ``training.json`` in the model folder has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jcv2_trainer.training.runs import versions


@dataclass
class TrainingReport:
    """Data, recipe and figures of a run.

    Attributes:
        model: The model trained from.
        stage: The command.
        rows: Rows trained on.
        skipped: Rows left out, by reason.
        data: Files, and how many rows have negatives and scores.
        dev: Size of the dev set, empty without one.
        recipe: The settings.
        added_dims: Heads that the model did not have.
        steps: Optimisation steps done.
        best_step: The step whose weights these are: the best on the dev set.
        before: nDCG@10 on the dev set by dimension, of the start (new heads as they were started).
        after: The same of the result.
        finished: False if it was stopped before its end.
        history: Losses and figures by step.
        versions: Of Python and the packages that matter.
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
    finished: bool = True
    history: list[dict[str, float]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)
