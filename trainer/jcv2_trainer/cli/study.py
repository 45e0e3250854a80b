"""The command ``jcv2 study recipe``. Heavy imports are deferred, to keep ``--help`` fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jcv2_plugin.evaluation.study.options import Device, Force, Model, Out, listed, number


def recipe(
    out: Out,
    pairs: Annotated[Path, typer.Option(help="A file of pairs.")],
    triplets: Annotated[Path, typer.Option(help="A file of triplets; the dev set is drawn from it.")],
    model: Model = "mini",
    dims: Annotated[str | None, typer.Option(help="Heads, with commas between; the model's if not given.")] = None,
    lang: Annotated[str | None, typer.Option(help="Only rows in this language.")] = None,
    trained: Annotated[
        Literal["heads", "lora", "all"], typer.Option(help="What is trained: the heads alone, LoRA too, everything.")
    ] = "lora",
    steps: Annotated[int, typer.Option(min=2, help="Optimiser steps of each route, an even number.")] = 200,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows a step.")] = 16,
    negatives: Annotated[int, typer.Option(min=1, help="Hard negatives of a triplet, at most.")] = 7,
    document_length: Annotated[int | None, typer.Option(min=3, help="Tokens of a passage in training.")] = None,
    queries: Annotated[int, typer.Option(min=2, help="Dev queries.")] = 200,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each route.")] = 3,
    device: Device = None,
    force: Force = False,
) -> None:
    """Compare two-stage with one-stage training, and tied with untied heads, at equal steps.

    The routes are pairs then triplets, either alone, and both at once.
    """
    from jcv2_plugin.evaluation.study.running import run_study
    from jcv2_trainer.training.recipe_study import Budget, RecipeStudy

    wanted = None if dims is None else tuple(number(one, "--dims") for one in listed(dims))
    budget = Budget(trained, steps, batch_size, negatives, document_length, queries)
    run_study(
        RecipeStudy(model, pairs, triplets, budget, dims=wanted, lang=lang, seeds=seeds, device=device),
        out,
        force=force,
    )
