"""sentence-transformers' trainer with grouped batches, the loss over all heads, and small checkpoints."""

from __future__ import annotations

import os
import signal
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from sentence_transformers import MultiVectorEncoderTrainer
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from jcv2_plugin.errors import InvalidVectorError
from jcv2_plugin.evaluation.metrics import EvaluationError
from jcv2_trainer.data.collator import Batch, PackedCollator
from jcv2_trainer.data.sampler import GroupedBatchSampler
from jcv2_trainer.errors import TrainingError
from jcv2_trainer.loss.objective import MatryoshkaLateInteractionLoss
from jcv2_trainer.recipes.settings import MlmRecipe, TrainingRecipe

TRAINABLE, STATE = "trainable.safetensors", "trainer_state.json"
_PARTS = (STATE, TRAINABLE, "optimizer.pt", "scheduler.pt", "rng_state*.pth")


class SmallCheckpoints:
    """For a trainer: checkpoints hold only the trained parameters, and a loss that is not finite is an error."""

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss."""
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        if not bool(torch.isfinite((loss[0] if isinstance(loss, tuple) else loss).detach())):
            raise blown_up("loss", self.state.global_step)
        return loss

    def _save(self: Any, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        trained = trainable(self.accelerator.unwrap_model(self.model))
        (folder / TRAINABLE).write_bytes(save(trained, metadata={"format": "pt"}))

    def _load_from_checkpoint(self: Any, checkpoint_path: str, model: Any = None) -> None:
        load_trainable(self.accelerator.unwrap_model(self.model), Path(checkpoint_path))


def arguments_of(settings: TrainingRecipe | MlmRecipe, folder: Path, on_cpu: bool) -> dict[str, Any]:
    """Return the training arguments that all recipes have in common."""
    # Only if needed: transformers is renaming both arguments, and warns about each use.
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    can_bf16 = not on_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "warmup_steps": settings.warmup,
        "lr_scheduler_type": settings.scheduler if settings.scheduler != "constant" else "constant_with_warmup",
        "max_grad_norm": settings.max_grad_norm,
        "bf16": can_bf16 if settings.bf16 is None else settings.bf16,
        "save_strategy": "steps",
        "save_total_limit": settings.keep_checkpoints,
        "logging_steps": settings.log_every,
        "logging_first_step": True,
        "seed": settings.seed,
        "disable_tqdm": not sys.stderr.isatty(),
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        **(checkpointing if settings.gradient_checkpointing else {}),
    }


class ColbertTrainer(SmallCheckpoints, MultiVectorEncoderTrainer):
    """``MultiVectorEncoderTrainer`` for packed batches in groups, which logs the loss of each head."""

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
        if len(self.loss.last) > 1 and self.model.training:
            self.track_loss_components(self.loss.last)
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, unless weights are not finite: the evaluation would blame a text for it."""
        with finite(self.model, self.state.global_step):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Like transformers' method, except that on a tie the later checkpoint wins, as it has seen more data."""
        better: bool = super()._determine_best_metric(metrics, trial)
        name = self.args.metric_for_best_model
        if not better and name is not None and metrics.get(name) == self.state.best_metric:
            self.state.best_global_step = self.state.global_step
            return True
        return better

    def _load_best_model(self) -> None:
        # sentence-transformers' method only logs an error, and then goes on with the last weights.
        load_trainable(self.model, Path(str(self.state.best_model_checkpoint)))


def blown_up(what: str, step: int) -> TrainingError:
    """Return the error for numbers that became NaN or infinite at a step. Any other error would blame a text."""
    return TrainingError(
        f"At step {step}, the {what} became NaN or infinite. The likely cause is too high a learning rate. Lower "
        "--learning-rate (and --head-learning-rate), and check the scores of the data, if there are any."
    )


def check_finite(model: nn.Module, step: int) -> None:
    """Raise the error of :func:`blown_up` if a trained parameter is NaN or infinite."""
    for name, one in model.named_parameters():
        if one.requires_grad and not bool(one.isfinite().all()):
            raise blown_up(f"weight {name!r}", step)


@contextmanager
def finite(model: nn.Module, step: int) -> Iterator[None]:
    """Check the trained parameters, and translate errors of an evaluation that their products were not finite."""
    check_finite(model, step)
    try:
        yield
    except (EvaluationError, InvalidVectorError) as error:
        raise blown_up("output of the model", step) from error


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the trained parameters by name, on the CPU."""
    named = model.named_parameters()
    return {name: one.detach().to("cpu", copy=True).contiguous() for name, one in named if one.requires_grad}


def load_trainable(model: nn.Module, checkpoint: Path) -> None:
    """Load the trained parameters from a checkpoint.

    Raises:
        TrainingError: The file cannot be read.
        ValueError: The checkpoint has other parameters.
    """
    try:
        stored = load_file(checkpoint / TRAINABLE)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{checkpoint / TRAINABLE} is damaged ({error}). Start anew with --force.") from error
    own = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if set(stored) != set(own):
        differing = sorted(set(stored) ^ set(own))[:3]
        raise ValueError(f"{checkpoint}: trained with other parameters than this run's, such as {differing}.")
    with torch.no_grad():
        for name, one in own.items():
            one.copy_(stored[name])


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, the newest first. The trainer writes ``trainer_state.json`` last."""
    found = [path for path in folder.glob("checkpoint-*") if (path / STATE).is_file() and (path / TRAINABLE).is_file()]
    return sorted((path for path in found if step_of(path) >= 0), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint by its name, or -1."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def undamaged_checkpoint(folder: Path) -> Path:
    """Return the newest checkpoint of a run whose files can all be read, and warn about newer ones.

    Raises:
        TrainingError: There is none.
    """
    found = checkpoints(folder)
    for checkpoint in found:
        if (reason := damage(checkpoint)) is None:
            return checkpoint
        older = [one for one in found if step_of(one) < step_of(checkpoint)]
        if not older:
            raise TrainingError(f"{reason}, and there is no checkpoint before it. Start anew with --force.")
        warnings.warn(f"{reason}. Training continues from the checkpoint before it, {older[0]}.", stacklevel=2)
    raise TrainingError(
        f"There is no checkpoint in {folder} to resume from. Start without --resume, or give the --out of the run that "
        "was stopped."
    )


def damage(checkpoint: Path) -> str | None:
    """Return which file of a checkpoint is missing or damaged, and None if there is no such file.

    The best checkpoint so far, which training may end with, counts as one of its files.
    """
    try:
        best = TrainerState.load_from_json(str(checkpoint / STATE)).best_model_checkpoint
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        return f"{checkpoint / STATE} is damaged ({error})"
    wanted = [(checkpoint, name) for name in _PARTS[1:]] + ([(Path(best), TRAINABLE)] if best else [])
    for folder, name in wanted:
        files = sorted(folder.glob(name))
        if not files:
            return f"{folder / name} is missing"
        for file in files:
            try:
                _read(file)
            except (OSError, SafetensorError, zipfile.BadZipFile) as error:
                return f"{file} is damaged ({error})"
    return None


def _read(file: Path) -> None:
    """Raise unless a file is whole. torch's files are zip archives with checksums; nothing is unpickled."""
    if file.suffix == ".safetensors":
        load_file(file)
        return
    with zipfile.ZipFile(file) as archive:
        if (name := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {name}")


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

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Request a checkpoint and the end of training, after the same step in all processes."""
        if args.world_size > 1:
            flag = torch.tensor(int(self.stopped), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            self.stopped = bool(flag)
        if self.stopped:
            control.should_save = control.should_training_stop = True
        return control


class LogLines(TrainerCallback):
    """Print a line for each log entry, where there is no terminal for a progress bar."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print losses, or metrics of the dev set."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        names = {"loss": "loss", "grad_norm": "gradient", "learning_rate": "rate"}
        parts = [f"{short} {float(logs[name]):.4g}" for name, short in names.items() if name in logs]
        for name, value in logs.items():
            if name.startswith(("eval_ndcg@10_", "loss_")):
                parts.append(f"{name.removeprefix('eval_')} {float(value):.4f}")
        print(f"step {state.global_step} of {state.max_steps}: {', '.join(parts)}", flush=True)


class Course(TrainerCallback):
    """Pass the epoch to the sampler and the collator, and evaluate and save after the last step too.

    The sampler shuffles and the collator draws negatives by the epoch. accelerate's wrappers pass it in some cases
    only: not to a sampler that is split among several processes and whose first batches are skipped, as in a resumed
    run.
    """

    def __init__(self, collator: PackedCollator) -> None:
        self.collator = collator
        self.trainer: ColbertTrainer | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch."""
        self.collator.epoch = int(state.epoch or 0)
        if self.trainer is not None and self.trainer.sampler is not None:
            self.trainer.sampler.set_epoch(self.collator.epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Request an evaluation and a checkpoint after the last step, regardless of the interval."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = str(args.eval_strategy) != "IntervalStrategy.NO"
            control.should_save = True
        return control


def reports() -> list[str]:
    """Return where to log the run too: TensorBoard, and Weights & Biases if it is logged in, if they are installed."""
    from transformers import integrations

    available = integrations.get_available_reporting_integrations()  # type: ignore[attr-defined,no-untyped-call]
    logged_in = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "online")
    return [name for name in ("tensorboard", *["wandb"] * bool(logged_in)) if name in available]
