"""Compare training recipes at equal steps: two stages or one, tied or untied heads.

The routes are pairs then triplets (the paper's), either alone, or both at once. arXiv 2408.16672 trains in two stages
and unties the heads. It does not report a single stage of the same length.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.evaluation.metrics import NDCG
from jcv2_plugin.evaluation.study.base import Cell, Chart, Report, StudyError, Table
from jcv2_plugin.evaluation.study.intervals import METHOD
from jcv2_plugin.evaluation.study.retrieval import Draws, distinct, load_encoder, model_settings
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
_AT = f"{NDCG}, "
_DEV_SHARE = 0.2
"""Maximum share of the triplets in the dev set, so that enough rows are left to train on."""


@dataclass
class RecipeStudy:
    """Study of training recipes, see :class:`jcv2_plugin.evaluation.study.base.Study`.

    ``dims`` are those of the model by default. ``trained``: the heads alone, LoRA matrices too, or everything.
    ``steps`` are those of a route, which two stages share. ``document_length`` is in tokens, and ``seeds`` counts the
    runs of a route.
    """

    model: str
    pairs: Path
    triplets: Path
    dims: Sequence[int] = ()
    lang: str | None = None
    trained: Literal["heads", "lora", "all"] = "lora"
    steps: int = 200
    batch_size: int = 16
    negatives: int = 7
    document_length: int | None = None
    queries: int = 200
    seeds: int = 3
    device: str | None = None

    name = "recipe"
    title = "Training: two stages or one, tied heads or untied"

    def __post_init__(self) -> None:
        if self.steps % 2:
            raise StudyError(f"steps must be even, since two stages share them, got {self.steps}.")
        encoder = load_encoder(self.model, device=self.device)
        self.dims = tuple(self.dims or encoder.dims)
        self._described = model_settings(encoder, [dim for dim in self.dims if dim in encoder.dims])
        self._folder = tempfile.TemporaryDirectory(prefix="jcv2-recipe-")

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model, the options, and the files with their sizes."""
        options = ("trained", "steps", "batch_size", "negatives", "document_length", "queries")
        return {
            **self._described,
            **{name: getattr(self, name) for name in options},
            **{
                stage: f"{path.name}, {path.stat().st_size:,} bytes"
                for stage, path in (("pairs", self.pairs), ("triplets", self.triplets))
            },
            "languages": self.lang and [self.lang],
            "dims": list(self.dims),
        }

    def cells(self) -> Sequence[Cell]:
        """Return a cell for each route and seed, and cells with tied heads for the two-stage route."""
        found = []
        for seed in range(self.seeds):
            for route, stages in ROUTES.items():
                if stages or not seed:  # the start has no seed
                    found.append(Cell({"route": route, "heads": UNTIED, "seed": seed}))
            found.append(Cell({"route": TWO_STAGES, "heads": TIED, "seed": seed}))
        return found

    def measure(self, cell: Cell) -> Cell:
        """Train along a route, and evaluate every head on the dev set."""
        stages = ROUTES[str(cell.parameters["route"])]
        seed, heads = int(cell.parameters["seed"] or 0), str(cell.parameters["heads"])
        rows, dev = self._rows
        model, losses = self.model, {}
        with tempfile.TemporaryDirectory(prefix="jcv2-recipe-") as folder:
            for number, stage in enumerate(stages):
                out = Path(folder) / f"{number}-{stage}"
                files = list(rows.values()) if stage == "joint" else [rows[stage]]
                settings = self._recipe(stage, heads, seed, self.steps // len(stages))
                report = train(Request(files, model, out, settings, device=self.device))
                losses[f"{stage}: scale"] = float(report.recipe["scale"])
                model = str(out)
            encoder = JinaColbertEncoder.from_pretrained(model, device=self.device)
            metrics = DevEvaluator(dev, [dim for dim in self.dims if dim in encoder.dims]).metrics(encoder)
        values = {f"{_AT}{dim}": found.ndcg_at_10 for dim, found in metrics.items()}
        samples = {
            f"{_AT}{dim}": {query: one[NDCG] for query, one in found.per_query.items()}
            for dim, found in metrics.items()
        }
        return cell.measured({**values, **losses, "dev passages": len(dev.documents)}, samples)

    @staticmethod
    def report(settings: Mapping[str, Any], cells: Sequence[Cell]) -> Report:
        """Return the report of the results."""
        return recipe_report(settings, cells)

    def _recipe(self, stage: Stage, heads: str, seed: int, steps: int) -> TrainingRecipe:
        changes: dict[str, Any] = {
            "dims": self.dims,
            "heads": heads,
            "seed": seed,
            "max_steps": steps,
            "epochs": 1000.0,  # limited by the steps
            "batch_size": self.batch_size,
            "document_length": self.document_length,
            "negatives": 0 if stage == "pairs" else self.negatives,
            "symmetric": stage == "pairs",
            "lora": self.trained == "lora",
            "freeze_backbone": self.trained == "heads",
            "learning_rate": 2e-5 if self.trained == "all" else 4e-4,
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
            stage: training_dataset(
                [path], folder / stage, on_bad="skip", languages=[self.lang] if self.lang else None
            )[0]
            for stage, path in (("pairs", self.pairs), ("triplets", self.triplets))
        }
        triplets = read["triplets"]
        chosen, dev = split_dev(triplets, _DEV_SHARE, self.queries)
        if not dev:
            raise StudyError(f"{self.triplets} has too few rows for a dev set. Give more.")
        held_out = triplets.select(dev)
        queries, positives = set(held_out["query_key"]), set(held_out["positive_key"])
        keys = zip(read["pairs"]["query_key"], read["pairs"]["positive_key"], strict=True)
        free = [index for index, (query, text) in enumerate(keys) if query not in queries and text not in positives]
        wanted = self.steps * self.batch_size
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


def recipe_report(settings: Mapping[str, Any], cells: Sequence[Cell]) -> Report:
    """Return the report of the results.

    Raises:
        StudyError: Nothing has been trained yet.
    """
    if all(one.parameters["route"] == START for one in cells):
        raise StudyError("No route has been trained yet, so there is nothing to report.")
    dims = [int(name.removeprefix(_AT)) for name in cells[0].samples]
    draws = Draws("variant", [replace(one, parameters={**one.parameters, "variant": _label(one)}) for one in cells])
    variants: list[str] = distinct(draws.cells, "variant")
    series = {f"{dim} dims": {one: draws.mean(one, f"{_AT}{dim}") for one in variants} for dim in dims}
    columns = ["route", *series]
    figures = [[one, *(_figure(draws, one, f"{_AT}{dim}") for dim in dims)] for one in variants]
    compared = [one for one in variants if one != TWO_STAGES and draws.pairs(one, TWO_STAGES, f"{_AT}{dims[0]}")]
    gaps = {one: [draws.mean(one, f"{_AT}{dim}", less=TWO_STAGES) for dim in dims] for one in compared}
    return Report(
        f"From {settings['model']}, with {settings['steps']} steps of {settings['batch_size']} rows: are two stages "
        "better than one, and untied heads better than tied ones?",
        [
            f"{one.capitalize()} against {TWO_STAGES}, at {dims[place]} dimensions: {own[place].text(signed=True)}, "
            f"{'better' if own[place].low > 0 else 'worse' if own[place].high < 0 else 'no difference shown'}."
            for one, own in gaps.items()
            for place in ([dims.index(min(dims))] if TIED in one else [0])
        ],
        {
            "nDCG@10 on the dev set": [
                METHOD,
                f"Training runs of each route: {len(distinct(cells, 'seed'))}. Seeds: lowest and highest mean.",
                Chart("nDCG@10 by route", "nDCG@10", series, "Bars are 95 % intervals."),
                Table("nDCG@10 by route and dimension", columns, figures),
            ],
            "Paired differences from two stages with untied heads": [
                Table(
                    "Difference from two stages",
                    columns,
                    [[one, *(gap.text(signed=True) for gap in own)] for one, own in gaps.items()],
                )
            ],
        },
        [
            f"{settings['model']} is already trained, and {settings['steps']} steps are few. This shows which route "
            "adapts it sooner, not where long training ends.",
            f"Trained: {settings['trained']}. Passages are cut to {settings['document_length'] or 'the window'} tokens "
            "in training. No scores of a teacher are used, so both stages are contrastive.",
            "Equal steps are not equal time: a step of triplets reads their negatives too.",
            "The dev set is drawn from the triplets, so routes with triplets are trained on its kind of negatives.",
        ],
    )


def _label(cell: Cell) -> str:
    route, heads = cell.parameters["route"], cell.parameters["heads"]
    return str(route) if heads == UNTIED else f"{route} ({heads})"


def _figure(draws: Draws, variant: str, measure: str) -> str:
    means = [sum(one.values()) / len(one) for one in draws.samples(variant, measure).values()]
    seeds = f", seeds {min(means):.3f} to {max(means):.3f}" if len(means) > 1 else ""
    return f"{draws.mean(variant, measure).text()}{seeds}"
