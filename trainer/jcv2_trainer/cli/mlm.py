"""The commands ``convert`` and ``mlm``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jcv2_trainer.cli.commands import INTERRUPTED, failing_politely, quiet_libraries, recipe_command, say
from jcv2_trainer.processes import is_first_process
from jcv2_trainer.recipes.settings import MlmRecipe

_STOPPED = "Stopped. If there is a checkpoint, continue from it with --resume."


def convert(
    source: Annotated[Path, typer.Argument(help="Folder of a BERT, RoBERTa, CamemBERT or XLM-RoBERTa.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    rope_theta: Annotated[float, typer.Option(help="Base of the rotary frequencies.")] = 10000.0,
    max_positions: Annotated[int, typer.Option(min=3, help="The longest text, in tokens.")] = 8194,
) -> None:
    """Convert a BERT or XLM-RoBERTa to rotary positions, the architecture of jina-colbert-v2's backbone.

    All weights except the position table are kept. The model must learn its new positions before it is useful: see the
    command mlm. The exit status is 2 if the source cannot be converted.
    """
    with failing_politely(lambda: _STOPPED):
        quiet_libraries()
        from jcv2_trainer.training.rotary import to_rotary

        done = to_rotary(source, out, rope_theta=rope_theta, max_positions=max_positions)
    say(
        f"{out}: {done.model_type} with rotary positions (theta {rope_theta:g}, up to {max_positions:,} tokens), "
        f"{done.parameters:,} parameters."
    )
    for note in done.notes:
        say(f"  {note}")
    say(f"  Next, warm up the positions: jcv2-finetune mlm TEXT... --model {out} --out DIR")


@recipe_command(MlmRecipe, "mlm")
def mlm(
    texts: Annotated[
        list[Path],
        typer.Argument(
            metavar="TEXT",
            help="Texts: .txt with a document per line, or JSON lines with a field 'text' (both also .gz, .xz, "
            ".bz2, .zst), or Parquet with a column 'text'.",
        ),
    ],
    model: Annotated[Path, typer.Option(help="Folder of a model with a masked-language head, such as convert writes.")],
    out: Annotated[Path, typer.Option(help="The folder to write the model to.")],
    settings: MlmRecipe,
    recipe: Annotated[Path | None, typer.Option(help="YAML with fields of the recipe.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a model in --out, or restart a stopped run.")] = False,
) -> None:
    """Train a masked-language model on texts, to warm up rotary positions after convert.

    Texts are packed into sequences without padding, and whole words are masked. Ctrl-C finishes the current step and
    saves a checkpoint. On several GPUs: accelerate launch -m jcv2_trainer mlm ... The exit status is 2 if training
    cannot start or continue, and 130 after Ctrl-C.
    """
    with failing_politely(lambda: _STOPPED):
        quiet_libraries()
        from jcv2_trainer.training.mlm import train_mlm

        report = train_mlm(texts, model, out, settings, resume=resume, force=force)
    if not is_first_process():
        raise typer.Exit(0 if report.finished else INTERRUPTED)
    if not report.finished:
        say(
            f"Stopped after step {report.steps:,}, with a checkpoint in {out}.run. "
            "Continue with the same command and --resume.",
            err=True,
        )
        raise typer.Exit(INTERRUPTED)
    say(
        f"{out}: trained for {report.steps:,} steps on {report.sequences:,} sequences of {settings.sequence_length} "
        f"tokens, from {report.documents:,} documents."
    )
    say(
        f"  masked-language loss on {report.held_out:,} sequences held out: "
        f"{report.start_loss:.4f} before, {report.final_loss:.4f} after"
    )
