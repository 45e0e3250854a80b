"""Train a masked-language model, so that a model converted to rotary positions learns to use them.

The loss is that of transformers' masked-language models. However, the head, whose logits are as wide as the vocabulary
(250,000 in XLM-R), is applied to the masked tokens only. At a mask share of 0.3, this takes a third of the memory and
time.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import MaskedLMOutput
from transformers.trainer_callback import PrinterCallback

from jcv2_plugin.errors import ModelLayoutError
from jcv2_plugin.files import new_folder
from jcv2_trainer.data.mlm import IGNORED, Rows, WordMasker, pack, text_files, tokenizer_digest
from jcv2_trainer.errors import TrainingError, out_of_memory
from jcv2_trainer.recipes.settings import MlmRecipe
from jcv2_trainer.training.rotary import load_masked_lm, read_config
from jcv2_trainer.training.runs import RunFolder, refuse_taken, sole_writer, versions, write_report
from jcv2_trainer.training.trainer import SmallCheckpoints, StopOnSignal, arguments_of, check_finite

__all__ = ["MlmRecipe", "MlmReport", "train_mlm"]

# Settings that may change when a run is resumed. Batch size and accumulation may only change if their product does not.
_FREE = {"batch_size", "accumulate", "bf16", "gradient_checkpointing", "save_every", "keep_checkpoints", "log_every"}


@dataclass
class MlmReport:
    """Result of masked-language training, as in ``training.json`` in the model folder.

    The losses are those of the held-out sequences, in nats per masked token.
    """

    model: str
    texts: list[str]
    documents: int
    tokens: int
    sequences: int
    held_out: int
    recipe: dict[str, Any]
    stage: str = "mlm"
    steps: int = 0
    start_loss: float | None = None
    final_loss: float | None = None
    finished: bool = True
    history: list[dict[str, float]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)


def train_mlm(
    texts: Sequence[Path],
    model: Path,
    out: Path,
    settings: MlmRecipe,
    *,
    resume: bool = False,
    force: bool = False,
    on_step: Callable[[int, int], object] | None = None,
) -> MlmReport:
    """Train a masked-language model on texts, and write it to a new folder, which is either complete or absent.

    During training, checkpoints, the packed texts and ``log.jsonl`` are in ``<out>.run``. Ctrl-C ends training after
    the current step, with a checkpoint. Progress bars are shown on a terminal, and nothing is printed in a pipe.

    Args:
        texts: Text files, see :func:`~jcv2_trainer.data.mlm.read_texts`.
        model: Folder of a transformers model with a masked-language head, such as
            :func:`~jcv2_trainer.training.rotary.to_rotary` writes. No remote code is run, and no pickle is read.
        out: Output folder.
        settings: The recipe.
        resume: Resume an interrupted run of the same model, texts and settings from its last complete checkpoint. The
            result is that of an uninterrupted run.
        force: Replace the result of a training in ``out``, and restart an unfinished run.
        on_step: Called after each step with its number and the total number of steps.

    Raises:
        ModelNotFoundError: ``model`` is not a folder.
        ModelLayoutError: ``model`` contains no model with a masked-language head, or only pickled weights.
        DataError: A file cannot be read, or there is too little text.
        TrainingError: ``out`` is taken, there is no such run to resume, or memory runs out.
    """
    out, model = out.expanduser().absolute(), model.expanduser()
    refuse_taken(out, force)
    with sole_writer(out), out_of_memory(TrainingError(_memory_hint(settings))):
        network, tokenizer = _load(model, settings)
        files = text_files(texts)
        on_cpu = not torch.cuda.is_available() and not torch.backends.mps.is_available()
        arguments = TrainingArguments(
            **arguments_of(settings, out.with_name(f"{out.name}.run"), on_cpu),
            save_steps=settings.save_every,
            remove_unused_columns=False,
            report_to=[],
            ddp_find_unused_parameters=False,
        )
        identity = {
            "stage": "mlm",
            "model": str(model.resolve()),
            "texts": files,
            "tokenizer": tokenizer_digest(tokenizer),
            "sequences per step": settings.batch_size * settings.accumulate * arguments.world_size,
            **settings.model_dump(exclude=_FREE),
        }
        with arguments.main_process_first(desc="packing the texts"):
            run = RunFolder.open(out, identity, resume=resume, force=force)
            cache = run.folder / "texts"
            packed, counts = pack(texts, tokenizer, settings.sequence_length, settings.whole_word, cache)
        order = np.random.default_rng(settings.seed).permutation(len(packed))
        held_out = min(settings.dev_size, max(1, round(settings.dev_share * len(order))))
        train_rows, dev_rows = (
            Rows(packed, np.sort(part), settings.seed) for part in (order[held_out:], order[:held_out])
        )
        stop = StopOnSignal()
        trainer = _Trainer(
            model=network,
            args=arguments,
            train_dataset=train_rows,
            data_collator=WordMasker(tokenizer, settings.mask_share),
            callbacks=[_Watch(train_rows, run, on_step), stop],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.accelerator.wait_for_everyone()
        before = run.once("before.json", lambda: {"loss": held_out_loss(trainer, dev_rows)}, {"loss": 0.0})
        with stop:
            trainer.train(resume_from_checkpoint=None if run.checkpoint is None else str(run.checkpoint))
        steps, network = trainer.state.global_step, trainer.accelerator.unwrap_model(trainer.model)
        report = MlmReport(
            model=str(model),
            texts=[str(name) for name, _ in files],
            documents=counts["documents"],
            tokens=counts["tokens"],
            sequences=len(train_rows),
            held_out=len(dev_rows),
            recipe=settings.model_dump(),
            steps=steps,
            start_loss=before["loss"],
            finished=steps >= trainer.state.max_steps,
            history=[dict(one) for one in trainer.state.log_history],
        )
        if report.finished:
            check_finite(network, steps)
            report.final_loss = held_out_loss(trainer, dev_rows)
        if report.finished and trainer.is_world_process_zero():
            with new_folder(run.out, partial(refuse_taken, force=force)) as folder:
                network.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                write_report(folder, report)
            run.clear()
        trainer.accelerator.wait_for_everyone()
    return report


def _load(folder: Path, settings: MlmRecipe) -> tuple[Any, Any]:
    """Load the model in float32, and its tokenizer."""
    raw = read_config(folder)
    model, tokenizer, missing = load_masked_lm(folder, torch.float32)
    if tokenizer.mask_token_id is None:
        raise ModelLayoutError(
            f"{folder}: the tokenizer has no mask token. Give the folder of a masked-language model."
        )
    if settings.whole_word and not tokenizer.is_fast:
        raise ModelLayoutError(
            f"{folder}: whole words need a fast tokenizer, and this one is slow. Give --no-whole-word."
        )
    if missing:
        raise ModelLayoutError(
            f"{folder} lacks weights, such as those of a masked-language head: {', '.join(sorted(missing)[:3])} "
            f"({len(missing)} in all). jcv2-finetune convert adds a head to a model with absolute positions."
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and raw.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        positions -= model.config.pad_token_id + 1  # their positions start after the padding's
    if positions is not None and settings.sequence_length > positions:
        raise TrainingError(
            f"sequence_length is {settings.sequence_length}, and {folder} has {positions} positions. "
            f"Give --sequence-length {positions} or less, or convert with larger --max-positions."
        )
    _predict_masked_only(model)
    return model, tokenizer


def _predict_masked_only(model: Any) -> None:
    """Replace a model's forward pass with one that applies the head to the masked tokens only.

    It also divides the loss by the number of masked tokens in all accumulated batches. transformers expects this of
    models that accept any keyword, but Jina's does not do it: its gradients would grow with the accumulation.
    """
    head = getattr(model, "lm_head", None) or getattr(model, "cls", None)
    model.accepts_loss_kwargs = head is not None and model.base_model is not model
    if head is None or not model.accepts_loss_kwargs:
        return

    def forward(self: Any, input_ids: Any, labels: Any, num_items_in_batch: Any = None) -> MaskedLMOutput:
        masked = labels != IGNORED
        logits = head(self.base_model(input_ids=input_ids)[0][masked]).float()
        total = F.cross_entropy(logits, labels[masked], reduction="sum")
        count = masked.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return MaskedLMOutput(loss=total / count)

    model.forward = types.MethodType(forward, model)


class _Trainer(SmallCheckpoints, Trainer):
    """transformers' ``Trainer``, with checkpoints that hold the parameters under their own names.

    transformers' version writes the names of the published file, but reads the parameters' own names. A model with
    Jina's architecture would therefore resume with its initial weights, with only a warning.
    """


class _Watch(TrainerCallback):
    """Pass the epoch to the rows, which determines their masks, write the log, and report steps to the caller."""

    def __init__(self, rows: Rows, run: RunFolder, on_step: Callable[[int, int], object] | None) -> None:
        self._rows = rows
        self._log = run.folder / "log.jsonl"
        self._on_step = on_step

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The data loader reads one batch ahead, so the epoch must be set before it starts.
        self._rows.epoch = int(state.epoch or 0) + 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._on_step is not None:
            self._on_step(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def held_out_loss(trainer: Trainer, rows: Rows) -> float:
    """Return the masked-language loss in nats per masked token, with the same masks at each call."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    was_training = model.training
    model.eval()
    loss, tokens = 0.0, 0
    size: int = trainer.args.per_device_train_batch_size
    # A generator of its own, so that the training's random numbers stay the same.
    batches: Any = DataLoader(rows, size, collate_fn=trainer.data_collator, generator=torch.Generator())  # type: ignore[arg-type]
    with torch.inference_mode(), trainer.accelerator.autocast():
        for batch in batches:
            count = int((batch["labels"] != IGNORED).sum())
            loss += count * float(model(**{name: one.to(trainer.args.device) for name, one in batch.items()}).loss)
            tokens += count
    model.train(was_training)
    return loss / max(1, tokens)


def _memory_hint(settings: MlmRecipe) -> str:
    half = max(1, settings.batch_size // 2)
    more = settings.accumulate * -(-settings.batch_size // half)
    return (
        f"Out of memory at --batch-size {settings.batch_size}. Try, in this order: --batch-size {half} with "
        f"--accumulate {more} (as many sequences per step); --gradient-checkpointing; --bf16, if the GPU supports "
        f"it; a --sequence-length below {settings.sequence_length}. If there is a checkpoint, you can continue "
        "from it with --resume, unless you change --sequence-length. Otherwise start again with --force."
    )
