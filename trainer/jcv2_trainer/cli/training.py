"""The commands ``train``, ``pairs`` and ``triplets``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from jcv2_plugin.encoder import DEFAULT_MODEL
from jcv2_trainer.cli.commands import (
    INTERRUPTED,
    RecipeFile,
    failing_politely,
    quiet_libraries,
    recipe_command,
    say,
    with_pooling,
)
from jcv2_trainer.processes import is_first_process
from jcv2_trainer.recipes.settings import TrainingRecipe
from jcv2_trainer.training.requests import Request, Stage

if TYPE_CHECKING:
    from jcv2_trainer.training.card import TrainingReport

_HELP: dict[Stage, str] = {
    "train": "Adapt a model to a domain, from pairs or triplets. No further flag is needed.",
    "pairs": "Stage 1 of the paper: pairs, with in-batch negatives over large batches (symmetric InfoNCE).",
    "triplets": "Stage 2 of the paper: triplets with hard negatives, distilled from a teacher's scores (KL).",
}
_AFTER = (
    "The model is written to --out after training: all heads, a card with data, recipe and results by dimension, and a "
    "chart. Checkpoints are in OUT.run until then. Ctrl-C finishes the current step and saves; --resume continues. On "
    "several GPUs: accelerate launch -m jcv2_trainer train ... The exit status is 2 for an error, and 130 if training "
    "was stopped."
)


def training_command(stage: Stage) -> Callable[..., None]:
    """Return a command whose options are the fields of :class:`Request` and of the recipe."""

    def command(recipe: Path | None, **given: Any) -> None:
        _train(Request(stage=stage, **given))

    own = [one.replace(kind=one.KEYWORD_ONLY) for one in inspect.signature(Request, eval_str=True).parameters.values()]
    own = [one.replace(default=DEFAULT_MODEL) if one.name == "model" else one for one in own if one.name != "stage"]
    recipe = inspect.Parameter("recipe", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=RecipeFile)
    vars(command)["__signature__"] = inspect.Signature([*own, recipe])
    command.__doc__ = f"{_HELP[stage]}\n\n{_AFTER}"
    return recipe_command(TrainingRecipe, stage)(command)


def _train(request: Request) -> None:
    quiet_libraries()
    with failing_politely(lambda: "Stopped. Continue from the last checkpoint, if there is one, with --resume."):
        from jcv2_trainer.training.train import train

        report = train(request)
    if is_first_process():
        _show(report, request.out)
    if not report.finished:
        raise typer.Exit(INTERRUPTED)


def _show(report: TrainingReport, out: Path) -> None:
    skipped = "".join(f", {count:,} left out ({reason})" for reason, count in report.skipped.items())
    kept = "" if report.best_step == report.steps else f"; the best model is that of step {report.best_step:,}"
    say(f"{report.rows:,} rows{skipped}; {report.steps:,} steps{kept}.")
    if report.after:
        say(f"nDCG@10 on the dev set ({report.dev['queries']:,} queries, {report.dev['documents']:,} passages):")
        for factor, before in ({"1": report.before} | report.pooled_before).items():
            for dim, after in (report.pooled_after.get(factor) or report.after).items():
                change = f"{before[dim]:.4f} -> {after:.4f}  ({after - before[dim]:+.4f})"
                say(f"  {dim:>5} dims{with_pooling(float(factor))}  {change}")
        if report.after[dim := next(iter(report.after))] < report.before[dim]:
            say("No checkpoint is better than the start. Try lower rates, more rows, or another --dev set.", err=True)
    if report.finished:
        say(f"{out}: the model, its card (README.md) and curve.svg" if report.after else f"{out}: the model")
    else:
        say(
            f"Stopped after {report.steps:,} steps. The model so far is in {out}.run/model. Continue with the same "
            "command and --resume."
        )
