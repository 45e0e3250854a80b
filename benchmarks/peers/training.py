"""What the trainers of sentence-transformers and PyLate are told alike."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from torch import nn


def trainer_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments that both trainers take.

    Args:
        settings: ``batch_size``, ``steps`` and ``output`` (a folder).
    """
    return {
        "output_dir": settings["output"],
        "per_device_train_batch_size": settings["batch_size"],
        "num_train_epochs": settings["steps"],
        "learning_rate": 1e-5,
        "weight_decay": 0.01,
        "lr_scheduler_type": "constant_with_warmup",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }


def by_column(rows: list[dict[str, Any]], settings: dict[str, Any]) -> Dataset:
    """Triplets (``query``, ``positive``, ``negatives``) with a column for each negative."""
    columns = {name: [row[name] for row in rows] for name in ("query", "positive")}
    for index in range(settings["negatives"]):
        columns[f"negative_{index + 1}"] = [row["negatives"][index] for row in rows]
    return Dataset.from_dict(columns)


def without_dropout(model: nn.Module) -> None:
    """Random zeros would make the losses differ."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def losses_of(trainer: Any) -> list[float]:
    """The loss of each step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
