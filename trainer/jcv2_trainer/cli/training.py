"""The commands ``train``, ``pairs`` and ``triplets``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jcv2_plugin.encoder import DEFAULT_MODEL
from jcv2_trainer.cli.commands import INTERRUPTED, failing_politely, quiet_libraries
from jcv2_trainer.cli.recipe_flags import recipe_command
from jcv2_trainer.processes import is_first_process
from jcv2_trainer.recipes.settings import TrainingRecipe

if TYPE_CHECKING:
    from jcv2_trainer.training.report import TrainingReport

Stage = Literal["train", "pairs", "triplets"]

_HELP: dict[Stage, str] = {
    "train": "Adapt a model to a domain, from pairs or triplets: the sensible thing, with no further flag.",
    "pairs": "Stage 1 of the paper: pairs, with in-batch negatives over large batches (symmetric InfoNCE).",
    "triplets": "Stage 2 of the paper: triplets with hard negatives, distilled from a teacher's scores (KL).",
}
_DATA = "Files of rows: .jsonl (.gz, .xz, .zst), .parquet, or a saved datasets folder. See: jcv2-finetune check."


def register(app: typer.Typer) -> None:
    """Add the commands ``train``, ``pairs`` and ``triplets`` to an app."""
    for stage, text in _HELP.items():
        app.command(name=stage, help=f"{text}\n\n{_AFTER}")(_command(stage))


_STOPPED = "Stopped at once. If there is a checkpoint already, it is whole; go on with --resume."
_AFTER = (
    "The model is written to --out when training is done: all heads, a card with data, recipe and figures by "
    "dimension, and a curve. Checkpoints lie in OUT.run meanwhile. Ctrl-C ends behind the running step and saves; "
    "--resume goes on. Several GPUs: accelerate launch -m jcv2_trainer train ... The exit status is 2 for an error, "
    "and 130 if training was stopped."
)


def _command(stage: Stage) -> Callable[..., None]:
    @recipe_command(TrainingRecipe, stage)
    def command(
        data: Annotated[list[Path], typer.Argument(help=_DATA)],
        out: Annotated[Path, typer.Option(help="Folder for the trained model.")],
        model: Annotated[str, typer.Option(help="Name or folder of the model to start from.")] = DEFAULT_MODEL,
        dev: Annotated[
            Path | None, typer.Option(help="Dev set: a file like the data, or a BEIR folder. Else rows are set aside.")
        ] = None,
        recipe: Annotated[Path | None, typer.Option(help="YAML file with fields of the recipe.")] = None,
        lang: Annotated[list[str] | None, typer.Option(help="Only rows in this language; may be repeated.")] = None,
        skip_bad: Annotated[
            bool, typer.Option("--skip-bad", help="Leave out rows with errors, and count them, where else it stops.")
        ] = False,
        resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
        force: Annotated[
            bool, typer.Option("--force", help="Replace a trained model, and start an unfinished run anew.")
        ] = False,
        device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the best there is if not given.")] = None,
        revision: Annotated[str | None, typer.Option(help="Hub revision of the model.")] = None,
        attn_implementation: Annotated[
            str | None, typer.Option(help="sdpa, eager or flash_attention_2 (with --bf16).")
        ] = None,
        *,
        settings: TrainingRecipe,
    ) -> None:
        try:
            from jcv2_trainer.training.requests import Request
            from jcv2_trainer.training.train import train
        except ImportError as error:
            raise typer.BadParameter(
                f"Training needs more packages ({error}): pip install 'jcv2-plugin[train]'"
            ) from error
        _quiet()
        request = Request(
            data=data,
            model=model,
            out=out,
            settings=settings,
            stage=stage,
            dev=dev,
            on_bad="skip" if skip_bad else "stop",
            languages=lang or None,
            resume=resume,
            force=force,
            device=device,
            revision=revision,
            attn_implementation=attn_implementation,
        )
        with failing_politely(lambda: _STOPPED):
            report = train(request)
        if is_first_process():
            _show(report, out)
        if not report.finished:
            raise typer.Exit(INTERRUPTED)

    return command


def _quiet() -> None:
    """Silence transformers' progress bars and hints, which are meant for those who write their own training loop."""
    import warnings

    quiet_libraries()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _show(report: TrainingReport, out: Path) -> None:
    skipped = "".join(f", {count:,} left out ({reason})" for reason, count in report.skipped.items())
    kept = "" if report.best_step == report.steps else f", of which the model behind step {report.best_step:,} was best"
    typer.echo(f"{report.rows:,} rows{skipped}; {report.steps:,} steps{kept}.")
    if report.after:
        typer.echo(f"nDCG@10 on the dev set ({report.dev['queries']:,} queries, {report.dev['documents']:,} passages):")
        for dim, after in report.after.items():
            before = report.before[dim]
            typer.echo(f"  {dim:>5} dims  {before:.4f} -> {after:.4f}  ({after - before:+.4f})")
    if report.after and (dim := next(iter(report.after))) and report.after[dim] < report.before[dim]:
        typer.echo(
            "No checkpoint was better than the start. Try lower rates, more rows, or another --dev set.", err=True
        )
    if report.finished:
        typer.echo(f"{out}: the model, its card (README.md) and curve.svg" if report.after else f"{out}: the model")
    else:
        typer.echo(
            f"Stopped after {report.steps:,} steps. The model so far is in {out}.run/model. Go on: the same command "
            "with --resume."
        )
