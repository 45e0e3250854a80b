"""Compare training recipes at equal steps: two stages or one, tied or untied heads.

The routes are pairs then triplets (the paper's), either alone, or both at once. arXiv 2408.16672 trains in two stages
and unties the heads. It does not report a single stage of the same length.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.evaluation.metrics import NDCG
from jcv2_plugin.evaluation.study.base import Cell, Chart, Measured, Report, Result, Section, StudyError, Table
from jcv2_plugin.evaluation.study.charts import Bars, bar_chart
from jcv2_plugin.evaluation.study.intervals import METHOD, Samples, difference, interval
from jcv2_plugin.evaluation.study.retrieval import distinct, draws_of, load_encoder, model_settings, paired
from jcv2_trainer.data.datasets_io import split_dev, training_dataset
from jcv2_trainer.recipes import load_recipe
from jcv2_trainer.recipes.settings import TrainingRecipe
from jcv2_trainer.training.dev import DevEvaluator, DevSet
from jcv2_trainer.training.requests import Request
from jcv2_trainer.training.train import train

Stage = Literal["pairs", "triplets", "joint"]
START, TWO_STAGES = "no training", "pairs, then triplets"
UNTIED, TIED = "untied", "tied"
ROUTES: Mapping[str, tuple[Stage, ...]] = {
    START: (),
    TWO_STAGES: ("pairs", "triplets"),
    "triplets alone": ("triplets",),
    "pairs alone": ("pairs",),
    "both at once": ("joint",),
}
_DEV_SHARE = 0.2
"""Maximum share of the triplets in the dev set, so that enough rows are left to train on."""


@dataclass(frozen=True)
class Budget:
    """Resources given to every route.

    Attributes:
        trained: What is trained: the heads alone, LoRA matrices too, or everything.
        steps: Total optimiser steps, which two stages share.
        batch_size: Rows per step.
        negatives: Maximum hard negatives per triplet.
        document_length: Maximum tokens per passage in training. Defaults to the model's.
        queries: Maximum number of dev queries.
    """

    trained: Literal["heads", "lora", "all"]
    steps: int
    batch_size: int
    negatives: int
    document_length: int | None
    queries: int


class RecipeStudy:
    """Study of training recipes, see :class:`jcv2_plugin.evaluation.study.base.Study`.

    Args:
        model: Name or folder of the initial model.
        pairs: A file of pairs.
        triplets: A file of triplets.
        budget: Steps and sizes.
        dims: Dimensions to train. Defaults to the model's.
        lang: Use only rows in this language.
        seeds: Number of training runs per route.
        device: See :meth:`JinaColbertEncoder.from_pretrained`.
    """

    name = "recipe"
    title = "Training: two stages or one, tied heads or untied"

    def __init__(
        self,
        model: str,
        pairs: Path,
        triplets: Path,
        budget: Budget,
        *,
        dims: Sequence[int] | None = None,
        lang: str | None = None,
        seeds: int = 3,
        device: str | None = None,
    ) -> None:
        if budget.steps % 2:
            raise StudyError(f"steps must be even, since two stages share them, got {budget.steps}.")
        self.model, self.budget, self.seeds, self.device = model, budget, seeds, device
        self._files: dict[str, Path] = {"pairs": pairs, "triplets": triplets}
        self._languages = None if lang is None else [lang]
        encoder = load_encoder(model, dims=None, device=device, document_length=None)
        self.dims = tuple(encoder.dims if dims is None else dims)
        self._described = model_settings(encoder, [dim for dim in self.dims if dim in encoder.dims])
        self._folder = tempfile.TemporaryDirectory(prefix="jcv2-recipe-")

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model, the budget, and the files with their sizes."""
        files = {stage: f"{path.name}, {path.stat().st_size:,} bytes" for stage, path in self._files.items()}
        languages = {"languages": self._languages, "dims": list(self.dims)}
        return {**self._described, **asdict(self.budget), **files, **languages}

    def cells(self) -> Sequence[Cell]:
        """Return a cell for each route and seed, and cells with tied heads for the two-stage route."""
        found = []
        for seed in range(self.seeds):
            for route, stages in ROUTES.items():
                if stages or not seed:  # the start has no seed
                    found.append(Cell({"route": route, "heads": UNTIED, "seed": seed}))
            found.append(Cell({"route": TWO_STAGES, "heads": TIED, "seed": seed}))
        return found

    def measure(self, cell: Cell) -> Measured:
        """Train along a route, and evaluate every head on the dev set."""
        stages = ROUTES[str(cell.parameters["route"])]
        seed, heads = int(cell.parameters["seed"] or 0), str(cell.parameters["heads"])
        rows, dev = self._rows
        model, losses = self.model, {}
        with tempfile.TemporaryDirectory(prefix="jcv2-recipe-") as folder:
            for number, stage in enumerate(stages):
                out = Path(folder) / f"{number}-{stage}"
                files = list(rows.values()) if stage == "joint" else [rows[stage]]
                settings = self._recipe(stage, heads, seed, self.budget.steps // len(stages))
                report = train(Request(files, model, out, settings, device=self.device))
                losses[f"{stage}: scale"] = float(report.recipe["scale"])
                model = str(out)
            encoder = JinaColbertEncoder.from_pretrained(model, device=self.device)
            metrics = DevEvaluator(dev, [dim for dim in self.dims if dim in encoder.dims]).metrics(encoder)
        values = {f"{NDCG}, {dim}": found.ndcg_at_10 for dim, found in metrics.items()}
        samples = {
            f"{NDCG}, {dim}": {query: one[NDCG] for query, one in found.per_query.items()}
            for dim, found in metrics.items()
        }
        return Measured({**values, **losses, "dev passages": len(dev.documents)}, samples)

    def report(self, results: Sequence[Result]) -> Report:
        """Return the report of the results."""
        return recipe_report(self.settings, results)

    def _recipe(self, stage: Stage, heads: str, seed: int, steps: int) -> TrainingRecipe:
        budget = self.budget
        changes: dict[str, Any] = {
            "dims": self.dims,
            "heads": heads,
            "seed": seed,
            "max_steps": steps,
            "epochs": 1000.0,  # limited by the steps
            "batch_size": budget.batch_size,
            "document_length": budget.document_length,
            "negatives": 0 if stage == "pairs" else budget.negatives,
            "symmetric": stage == "pairs",
            "lora": budget.trained == "lora",
            "freeze_backbone": budget.trained == "heads",
            "learning_rate": 2e-5 if budget.trained == "all" else 4e-4,
            "dev_share": 0.0,
            "evaluations": 1,
            "log_every": steps,  # the study has its own progress bar
        }
        return load_recipe(TrainingRecipe, "train").model_copy(update=changes)

    @cached_property
    def _rows(self) -> tuple[dict[str, Path], DevSet]:
        """Files of the rows to train on, and the dev set, whose queries and positives do not occur in them."""
        folder = Path(self._folder.name)
        read = {
            stage: training_dataset([path], folder / stage, on_bad="skip", languages=self._languages)[0]
            for stage, path in self._files.items()
        }
        triplets = read["triplets"]
        chosen, dev = split_dev(triplets, _DEV_SHARE, self.budget.queries)
        if not dev:
            raise StudyError(f"{self._files['triplets']} has too few rows for a dev set. Give more.")
        held_out = triplets.select(dev)
        queries, positives = set(held_out["query_key"]), set(held_out["positive_key"])
        keys = zip(read["pairs"]["query_key"], read["pairs"]["positive_key"], strict=True)
        free = [index for index, (query, text) in enumerate(keys) if query not in queries and text not in positives]
        wanted = self.budget.steps * self.budget.batch_size
        files = {
            "pairs": _write(read["pairs"], free, wanted, folder / "pairs.jsonl"),
            "triplets": _write(triplets, chosen, wanted, folder / "triplets.jsonl"),
        }
        return files, DevSet.of_rows(held_out)


def _write(rows: Dataset, chosen: Sequence[int], most: int, path: Path) -> Path:
    """Write at most ``most`` of the chosen rows, sampled at random with a fixed seed."""
    if not chosen:
        raise StudyError("No rows are left to train on beside the dev set. Give larger files.")
    drawn = random.Random(0).sample(list(chosen), min(most, len(chosen)))
    fields = ["query", "positive", "negatives", "lang", "source"]
    with path.open("w", encoding="utf-8") as file:
        for row in rows.select(drawn).select_columns(fields):
            kept = {name: value for name, value in row.items() if value}
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")
    return path


def recipe_report(settings: Mapping[str, Any], results: Sequence[Result]) -> Report:
    """Return the report of the results.

    Raises:
        StudyError: Nothing has been trained yet.
    """
    routes = [route for route in distinct(results, "route") if route != START]
    if not routes:
        raise StudyError("No route has been trained yet, so there is nothing to report.")
    dims = _dims(results)
    first = dims[0]
    findings = []
    for route in routes:
        if route == TWO_STAGES or not (gap := _gaps(results, first, route, UNTIED)):
            continue
        own = difference(gap)
        verdict = "better" if own.low > 0 else "worse" if own.high < 0 else "not shown to differ"
        findings.append(
            f"{route.capitalize()} against {TWO_STAGES}, at {first} dims: {own.text(signed=True)}, {verdict}."
        )
    if gap := _gaps(results, min(dims), TWO_STAGES, TIED):
        findings.append(f"Tied against untied heads, at {min(dims)} dims: {difference(gap).text(signed=True)}.")
    seeds = len(distinct(results, "seed"))
    return Report(
        question=(
            f"From {settings['model']}, with {settings['steps']} steps of {settings['batch_size']} rows: do two stages "
            "pay, and do untied heads?"
        ),
        findings=findings,
        sections=[
            Section(
                "nDCG@10 on the dev set",
                [METHOD, f"{seeds} training(s) of each route; spread is the lowest and highest of their means."],
                [_chart(results, dims), _table(results, dims)],
            ),
            Section("Paired differences to the two stages with untied heads", [], [_differences(results, dims)]),
        ],
        limits=[
            f"The start, {settings['model']}, is a trained model, and {settings['steps']} steps are few: this shows "
            "which route adapts it sooner, not where long training ends.",
            f"Trained: {settings['trained']}. Passages are cut to {settings['document_length'] or 'the window'} tokens "
            "in training. No teacher's scores are distilled, so both stages are contrastive.",
            "Equal steps are not equal time: a step of triplets reads its negatives too.",
            "The dev set is drawn from the triplets, so routes that see triplets are trained on its kind of negatives.",
        ],
    )


def tables(results: Sequence[Result]) -> list[Table]:
    """Return nDCG@10 by route and dimension, and the differences from the two-stage route."""
    dims = _dims(results)
    return [_table(results, dims), _differences(results, dims)]


def _dims(results: Sequence[Result]) -> list[int]:
    return [int(name.removeprefix(f"{NDCG}, ")) for name in results[0].samples]


def _draws(results: Sequence[Result], dim: int, route: str, heads: str) -> list[Samples]:
    return list(draws_of(results, f"{NDCG}, {dim}", route=route, heads=heads).values())


def _gaps(results: Sequence[Result], dim: int, route: str, heads: str) -> list[Any]:
    return paired(results, f"{NDCG}, {dim}", {"route": route, "heads": heads}, {"route": TWO_STAGES, "heads": UNTIED})


def _variants(results: Sequence[Result]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((str(one.parameters["route"]), str(one.parameters["heads"])) for one in results))


def _label(route: str, heads: str) -> str:
    return route if heads == UNTIED else f"{route} ({heads})"


def _table(results: Sequence[Result], dims: Sequence[int]) -> Table:
    rows = []
    for route, heads in _variants(results):
        cells = []
        for dim in dims:
            draws = _draws(results, dim, route, heads)
            means = [sum(one.values()) / len(one) for one in draws]
            spread = f", seeds {min(means):.3f} to {max(means):.3f}" if len(means) > 1 else ""
            cells.append(f"{interval(draws).text()}{spread}")
        rows.append([_label(route, heads), *cells])
    return Table("nDCG@10 by route and dimension", ["route", *(f"{dim} dims" for dim in dims)], rows)


def _differences(results: Sequence[Result], dims: Sequence[int]) -> Table:
    rows = []
    for route, heads in _variants(results):
        if (route, heads) == (TWO_STAGES, UNTIED):
            continue
        gaps = [_gaps(results, dim, route, heads) for dim in dims]
        if all(gaps):
            rows.append([_label(route, heads), *(difference(gap).text(signed=True) for gap in gaps)])
    return Table("Less than or more than the two stages", ["route", *(f"{dim} dims" for dim in dims)], rows)


def _chart(results: Sequence[Result], dims: Sequence[int]) -> Chart:
    variants = _variants(results)
    groups = [
        Bars(f"{dim} dims", [interval(_draws(results, dim, route, heads)) for route, heads in variants]) for dim in dims
    ]
    labels = [_label(route, heads) for route, heads in variants]
    svg = bar_chart(f"nDCG@10 by route: {', '.join(labels)}.", labels, groups, y_label="nDCG@10")
    return Chart("Quality by route", svg, "Ends are 95 % intervals.")
