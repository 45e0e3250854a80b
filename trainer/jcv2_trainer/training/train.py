"""Train an encoder from files, as the commands ``train``, ``pairs`` and ``triplets`` do."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import MultiVectorEncoderTrainingArguments
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainerState, set_seed

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.errors import Jcv2Error
from jcv2_plugin.files import new_folder
from jcv2_trainer.data.collator import PackedCollator
from jcv2_trainer.data.datasets_io import training_dataset
from jcv2_trainer.data.reading import OnBad
from jcv2_trainer.errors import TrainingError, out_of_memory
from jcv2_trainer.loss.calibration import best_scale
from jcv2_trainer.loss.objective import MatryoshkaLateInteractionLoss
from jcv2_trainer.recipes.settings import TrainingRecipe
from jcv2_trainer.training.card import TrainingReport, write_card
from jcv2_trainer.training.dev import DevEvaluator, metric_name, split
from jcv2_trainer.training.prepare import finish, interpolate, prepare, save_lora
from jcv2_trainer.training.requests import Request
from jcv2_trainer.training.runs import RunFolder, refuse_taken, sole_writer, write_report
from jcv2_trainer.training.trainer import (
    STATE,
    ColbertTrainer,
    Course,
    LogLines,
    StopOnSignal,
    arguments_of,
    check_finite,
    finite,
    load_trainable,
    reports,
    trainable,
)

_LEAST_QUERIES = 50  # in a dev set used for early stopping


def train(request: Request) -> TrainingReport:
    """Train an encoder as a :class:`Request` says.

    Returns:
        The report. If a signal interrupted the run, ``finished`` is False and nothing is written to ``out``. The model
        so far is then in ``<out>.run/model``, and ``resume`` continues the run.

    Raises:
        DataError: The data cannot be read, or has rows with errors (unless ``skip_bad``).
        TrainingError: The data does not fit the stage, ``out`` is taken, the run cannot be resumed, or memory runs out.
        Jcv2Error: The model cannot be loaded.
    """
    with sole_writer(request.out), out_of_memory(TrainingError(memory_hint(request.settings))):
        return _train(request)


def _train(request: Request) -> TrainingReport:
    settings = request.settings
    run = RunFolder.open(request.out, request.identity(), resume=request.resume, force=request.force)
    on_bad: OnBad = "skip" if request.skip_bad else "stop"
    everything, skipped = training_dataset(
        request.data, run.folder / "rows", on_bad=on_bad, languages=request.languages or None
    )
    rows, dev, report = split(everything, request)
    report.skipped = {**skipped, **report.skipped}
    encoder = load(request)
    set_seed(settings.seed)  # for LoRA's matrices; the trainer sets it again
    report.added_dims = prepare(encoder, settings, rows)
    start = trainable(encoder) if settings.interpolation < 1 else {}
    evaluator = None if dev is None else DevEvaluator(dev, encoder.dims)
    factors = (1.0, *(factor for factor in settings.pool_factors if factor > 1))
    if evaluator is not None:
        like = {f"{factor:g}": dict.fromkeys(map(str, encoder.dims), 0.0) for factor in factors}
        before = run.once("before.json", lambda: evaluator.pooled_ndcg(encoder, factors), like)
        # From a file, dimensions are strings.
        before = {factor: {int(dim): value for dim, value in own.items()} for factor, own in before.items()}
        report.before, report.pooled_before = before.pop("1"), before
    collator = _collator(encoder, settings, everything)
    if settings.scale is None:
        scale = run.once("scale.json", lambda: best_scale(encoder, rows, request.settings, collator), 0.0)
        settings = settings.model_copy(update={"scale": float(scale)})
        report.recipe = settings.model_dump()
    stop = StopOnSignal()
    trainer = build_trainer(encoder, settings, rows, run.folder, evaluator, collator, callbacks=[stop])
    _run(trainer, stop, run.checkpoint)
    report.steps = trainer.state.global_step
    report.best_step = trainer.state.best_global_step or report.steps
    report.finished = not stop.stopped
    report.history = [dict(one) for one in trainer.state.log_history]
    if trainer.is_world_process_zero():
        check_finite(encoder, report.steps)
        interpolate(encoder, start, settings.interpolation)
        if evaluator is not None:
            measured = {} if start or len(factors) > 1 else _of_the_best(trainer, encoder.dims)
            with finite(encoder, report.steps):
                after = {"1": measured} if measured else evaluator.pooled_ndcg(encoder, factors)
            report.after, report.pooled_after = after.pop("1"), after
        _write(encoder, report, run, request)
    trainer.accelerator.wait_for_everyone()
    return report


def load(request: Request) -> JinaColbertEncoder:
    """Load the initial encoder in float32, since optimisers lose small steps in half precision.

    Raises:
        TrainingError: The model is a backbone without heads.
        Jcv2Error: The model cannot be loaded.
    """
    options: dict[str, Any] = {name: getattr(request, name) for name in ("revision", "device", "attn_implementation")}
    try:
        return JinaColbertEncoder.from_pretrained(request.model, dtype=torch.float32, **options)
    except Jcv2Error as error:
        if "projection" not in str(error):
            raise
        raise TrainingError(f"{error} Such as: jcv2-finetune assemble {request.model} --data FILE --out DIR") from error
    except (AssertionError, ValueError, ImportError, RuntimeError) as error:
        given = ", ".join(f"{name} {value!r}" for name, value in options.items() if value is not None)
        raise TrainingError(f"{request.model!r} cannot be loaded with {given or 'the defaults'}: {error}") from error


def build_trainer(
    encoder: JinaColbertEncoder,
    settings: TrainingRecipe,
    rows: Dataset,
    folder: Path,
    evaluator: DevEvaluator | None = None,
    collator: PackedCollator | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> ColbertTrainer:
    """Build a trainer for an encoder prepared by :func:`~jcv2_trainer.training.prepare.prepare`.

    With an evaluator, training ends with the checkpoint that is best at the default dimension. The collator may know
    more passages that answer a query than the rows do.
    """
    collator = collator or _collator(encoder, settings, rows)
    loss = MatryoshkaLateInteractionLoss(encoder, settings, settings.head_weights)
    arguments = _arguments(encoder, settings, folder, evaluator is not None)
    course = Course(collator)
    more: list[TrainerCallback] = [course, *callbacks]
    if evaluator is not None and settings.patience and len(evaluator.dev.queries) >= _LEAST_QUERIES:
        more.append(EarlyStoppingCallback(settings.patience))
    trainer = ColbertTrainer(
        model=encoder,
        args=arguments,
        train_dataset=rows,
        loss=loss,
        evaluator=evaluator,
        data_collator=collator,  # type: ignore[arg-type]
        callbacks=more,
    )
    course.trainer = trainer
    if trainer.args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(LogLines)
    _set_intervals(trainer, settings)
    return trainer


def _collator(encoder: JinaColbertEncoder, settings: TrainingRecipe, everything: Dataset) -> PackedCollator:
    return PackedCollator(
        encoder,
        negatives=settings.negatives,
        document_length=settings.document_length,
        tokens_per_batch=settings.tokens_per_batch,
        known=known_positives(everything),
        seed=settings.seed,
    )


def known_positives(dataset: Dataset) -> dict[int, list[int]]:
    """Return the keys of the passages that answer a query, by the query's key, for queries with several."""
    positives: dict[int, set[int]] = defaultdict(set)
    keys = dataset.select_columns(["query_key", "positive_key"]).with_format("numpy")[:]
    _, groups, counts = np.unique(keys["query_key"], return_inverse=True, return_counts=True)
    queries, passages = (keys[name][counts[groups] > 1].tolist() for name in ("query_key", "positive_key"))
    for query, positive in zip(queries, passages, strict=True):
        positives[query].add(positive)
    return {query: sorted(keys) for query, keys in positives.items() if len(keys) > 1}


def _arguments(
    encoder: JinaColbertEncoder, settings: TrainingRecipe, folder: Path, evaluates: bool
) -> MultiVectorEncoderTrainingArguments:
    return MultiVectorEncoderTrainingArguments(
        **arguments_of(settings, folder, encoder.device.type == "cpu"),
        learning_rate_mapping={r"linears\.": settings.head_learning_rate},
        # Processes have different numbers of forward passes, so one that broadcasts buffers would wait for ever.
        ddp_broadcast_buffers=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=10**9,  # set below, when the number of steps is known
        save_steps=10**9,
        load_best_model_at_end=evaluates,
        metric_for_best_model=f"eval_{metric_name(encoder.dims[0])}" if evaluates else None,
        greater_is_better=True if evaluates else None,
        logging_nan_inf_filter=False,
        report_to=reports(),
    )


def _set_intervals(trainer: ColbertTrainer, settings: TrainingRecipe) -> None:
    """Evaluate and save as often as the recipe says, regardless of the number of steps."""
    rows: Any = trainer.train_dataset
    batches = len(trainer.get_batch_sampler(rows, settings.batch_size)) // trainer.args.world_size
    if not batches:
        raise TrainingError(f"{len(rows)} rows are too few for {trainer.args.world_size} processes. Give more rows.")
    steps = settings.max_steps or math.ceil(settings.epochs * math.ceil(batches / settings.accumulate))
    warming = math.ceil(settings.warmup * steps) + 1  # before that, the model has hardly improved
    trainer.args.eval_steps = trainer.args.save_steps = max(
        math.ceil(steps / settings.evaluations), min(warming, steps)
    )
    trainer.total_steps = steps
    trainer.state.compute_steps(trainer.args, steps)  # type: ignore[no-untyped-call]


def _run(trainer: ColbertTrainer, stop: StopOnSignal, checkpoint: Path | None) -> None:
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / STATE))
        if state.global_step >= trainer.total_steps:  # only the result is missing
            trainer.state = state
            load_trainable(trainer.model, Path(state.best_model_checkpoint or checkpoint))
            return
    with stop:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _of_the_best(trainer: ColbertTrainer, dims: Sequence[int]) -> dict[int, float]:
    """Return the logged metrics of the checkpoint that training ended with, or none if it was not evaluated."""
    best = trainer.state.best_global_step
    for entry in trainer.state.log_history:
        if best and entry["step"] == best and all(f"eval_{metric_name(dim)}" in entry for dim in dims):
            return {dim: float(entry[f"eval_{metric_name(dim)}"]) for dim in dims}
    return {}


def memory_hint(settings: TrainingRecipe) -> str:
    """Return what to change when memory runs out, most effective first."""
    advice = {
        "--cached (memory no longer depends on the batch)": not settings.cached,
        "a smaller --tokens-per-batch (with --cached)": True,
        "--gradient-checkpointing": not settings.gradient_checkpointing,
        "--lora": not settings.lora and not settings.freeze_backbone,
        f"a smaller --batch-size (now {settings.batch_size}) with --accumulate": True,
        "a smaller --document-length": True,
    }
    found = "; ".join(text for text, helps in advice.items() if helps)
    return f"Memory ran out. Try, in this order: {found}. Then start again with --force."


def _write(encoder: JinaColbertEncoder, report: TrainingReport, run: RunFolder, request: Request) -> None:
    out = run.out if report.finished else run.folder / "model"
    with new_folder(out, partial(refuse_taken, force=request.force or not report.finished)) as folder:
        if request.settings.lora:
            save_lora(encoder.backbone.model, folder / "adapter")
        finish(encoder, request.settings)
        encoder.save_pretrained(str(folder), create_model_card=False)
        write_card(folder, report)
        write_report(folder, report)
    if report.finished:
        run.clear()
