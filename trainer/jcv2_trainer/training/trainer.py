"""sentence-transformers' trainer with grouped batches, the loss over all heads, and small checkpoints."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save
from sentence_transformers import MultiVectorEncoderTrainer
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from jcv2_trainer.data.collator import Batch, PackedCollator
from jcv2_trainer.data.sampler import GroupedBatchSampler
from jcv2_trainer.errors import TrainingError
from jcv2_trainer.loss.objective import MatryoshkaLateInteractionLoss

TRAINABLE = "trainable.safetensors"
_STATE = "trainer_state.json"


class ColbertTrainer(MultiVectorEncoderTrainer):
    """``MultiVectorEncoderTrainer`` for packed batches and the loss over all heads.

    The inputs are :class:`~jcv2_trainer.data.collator.Batch`, and the loss is
    :class:`~jcv2_trainer.loss.objective.MatryoshkaLateInteractionLoss`. Batches are grouped
    (:class:`~jcv2_trainer.data.sampler.GroupedBatchSampler`), a checkpoint holds only the trained parameters, and the
    loss of each head is logged.
    """

    loss: MatryoshkaLateInteractionLoss  # type: ignore[assignment]
    sampler: GroupedBatchSampler | None = None
    total_steps: int = 0

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Do nothing: :mod:`jcv2_trainer.training.card` writes the model card, from the recipe and the results."""

    def get_batch_sampler(self, dataset: Dataset, batch_size: int, *args: Any, **kwargs: Any) -> GroupedBatchSampler:
        """Return the grouped batch sampler."""
        if self.sampler is None:  # called twice: to count the steps, and to train
            self.sampler = GroupedBatchSampler(dataset, batch_size, processes=self.args.world_size, seed=self.args.seed)
        return self.sampler

    def collect_features(self, inputs: Mapping[str, Any]) -> tuple[Batch, None]:  # type: ignore[override]
        """Move the collator's batch to the trainer's device."""
        return inputs["batch"].to(self.args.device), None

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, and log the loss of each head."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if not bool(torch.isfinite(loss.detach() if isinstance(loss, Tensor) else loss[0].detach())):
            raise TrainingError(
                f"The loss is no number any more behind step {self.state.global_step}. Lower --learning-rate and "
                "--head-learning-rate, and look at the scores of the data."
            )
        if len(self.loss.last) > 1 and self.model.training:
            self.track_loss_components({f"loss_{dim}": one for dim, one in self.loss.last.items()})
        return loss

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Like transformers' method, except that on a tie the later checkpoint wins, as it has seen more data."""
        better: bool = super()._determine_best_metric(metrics, trial)
        name = self.args.metric_for_best_model
        if not better and name is not None and metrics.get(name) == self.state.best_metric:
            self.state.best_global_step = self.state.global_step
            return True
        return better

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRAINABLE).write_bytes(save(trainable(self.model), metadata={"format": "pt"}))

    def _load_from_checkpoint(self, checkpoint_path: str, model: nn.Module | None = None) -> None:
        load_trainable(self.model, Path(checkpoint_path))


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the trained parameters by name, on the CPU."""
    named = model.named_parameters()
    return {name: one.detach().to("cpu", copy=True).contiguous() for name, one in named if one.requires_grad}


def load_trainable(model: nn.Module, checkpoint: Path) -> None:
    """Load the trained parameters from a checkpoint.

    Raises:
        ValueError: The checkpoint has other parameters.
    """
    stored = load_file(checkpoint / TRAINABLE)
    own = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if set(stored) != set(own):
        differing = sorted(set(stored) ^ set(own))[:3]
        raise ValueError(f"{checkpoint}: trained with other parameters than this run's, such as {differing}.")
    with torch.no_grad():
        for name, one in own.items():
            one.copy_(stored[name])


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None. The trainer writes ``trainer_state.json`` last."""
    whole = [
        path
        for path in folder.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdecimal() and (path / _STATE).is_file() and (path / TRAINABLE).is_file()
    ]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class StopOnSignal(TrainerCallback):
    """End training after the current step on Ctrl-C or SIGTERM, with a checkpoint. A second signal ends it at once.

    Use it as a context manager around ``trainer.train()``. Outside the main thread, signals are not handled.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Request a checkpoint and the end of training, after the same step in all processes."""
        stopped = self.stopped
        if args.world_size > 1:
            flag = torch.tensor(int(stopped), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            self.stopped = stopped = bool(flag)
        if stopped:
            control.should_save = True
            control.should_training_stop = True
        return control


class LogLines(TrainerCallback):
    """Print a line for each log entry, where there is no terminal for a progress bar."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print losses, or metrics of the dev set."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        names = {"loss": "loss", "grad_norm": "gradient", "learning_rate": "rate"}
        parts = [f"{short} {float(logs[name]):.4g}" for name, short in names.items() if name in logs]
        for name, value in logs.items():
            if name.startswith(("eval_ndcg@10_", "loss_")):
                parts.append(f"{name.removeprefix('eval_')} {float(value):.4f}")
        print(f"step {state.global_step} of {state.max_steps}: {', '.join(parts)}", flush=True)


class MeasureTheEnd(TrainerCallback):
    """Evaluate and save after the last step too, regardless of the interval."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Request an evaluation and a checkpoint after the last step."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = str(args.eval_strategy) != "IntervalStrategy.NO"
            control.should_save = True
        return control


class EpochOfData(TrainerCallback):
    """Pass the epoch to the sampler and the collator, which shuffle and sample negatives by it.

    accelerate's wrappers do so in some cases only: not for a sampler that is split among several processes and whose
    first batches are skipped, as in a resumed run.
    """

    def __init__(self, collator: PackedCollator) -> None:
        self.collator = collator
        self.trainer: ColbertTrainer | None = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch."""
        self.collator.epoch = int(state.epoch or 0)
        if self.trainer is not None and self.trainer.sampler is not None:
            self.trainer.sampler.set_epoch(self.collator.epoch)


def reports() -> list[str]:
    """Return where to log the run besides the terminal: TensorBoard and Weights & Biases, where available.

    Both must be installed, and Weights & Biases must be logged in.
    """
    from transformers import integrations

    available = integrations.get_available_reporting_integrations()  # type: ignore[attr-defined,no-untyped-call]
    wanted = ["tensorboard"]
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "online"):
        wanted.append("wandb")
    return [name for name in wanted if name in available]
