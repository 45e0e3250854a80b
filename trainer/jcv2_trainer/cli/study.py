"""The command ``jcv2 study recipe``. Heavy imports are deferred, to keep ``--help`` fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jcv2_plugin.evaluation.study.options import Device, Dims, Force, Model, Out, numbers


def recipe(
    out: Out,
    pairs: Annotated[Path, typer.Option(help="File of pairs.")],
    triplets: Annotated[Path, typer.Option(help="File of triplets. The dev set is drawn from it.")],
    model: Model = "mini",
    dims: Dims = None,
    lang: Annotated[str | None, typer.Option(help="Only rows in this language.")] = None,
    trained: Annotated[
        Literal["heads", "lora", "all"], typer.Option(help="What to train: the heads only, LoRA too, or everything.")
    ] = "lora",
    steps: Annotated[int, typer.Option(min=2, help="Optimiser steps of each route; an even number.")] = 200,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows per step.")] = 16,
    negatives: Annotated[int, typer.Option(min=1, help="Maximum hard negatives per triplet.")] = 7,
    document_length: Annotated[int | None, typer.Option(min=3, help="Maximum tokens per passage in training.")] = None,
    queries: Annotated[int, typer.Option(min=2, help="Maximum number of dev queries.")] = 200,
    seeds: Annotated[int, typer.Option(min=1, help="Training runs of each route.")] = 3,
    device: Device = None,
    force: Force = False,
) -> None:
    """Compare two-stage with one-stage training, and tied with untied heads, at equal steps.

    The routes are pairs then triplets, either alone, and both at once.
    """
    from jcv2_plugin.evaluation.study.running import run_study
    from jcv2_trainer.training.recipe_study import RecipeStudy

    wanted = numbers(dims, "--dims") if dims else ()
    sizes = (trained, steps, batch_size, negatives, document_length, queries, seeds, device)
    run_study(RecipeStudy(model, pairs, triplets, wanted, lang, *sizes), out, force=force)
