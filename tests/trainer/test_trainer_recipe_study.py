"""``jcv2 study recipe``: its rows, its routes at equal steps, and its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_samples import make_rows, tiny_encoder, write_rows
from typer.testing import CliRunner

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.cli import app
from jcv2_plugin.evaluation.study.base import StudyError
from jcv2_plugin.evaluation.study.intervals import interval
from jcv2_trainer.training import recipe_study
from jcv2_trainer.training.dev import DevEvaluator
from jcv2_trainer.training.recipe_study import START, TIED, TWO_STAGES, UNTIED, RecipeStudy

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {
    "trained": "heads",
    "steps": 4,
    "batch_size": 4,
    "negatives": 2,
    "document_length": 24,
    "queries": 8,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_encoder(folder / "official").save_pretrained(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    triplets = make_rows(60, negatives=3, seed=1)
    pairs = [*make_rows(30, negatives=0, seed=2), *[{**row, "negatives": []} for row in triplets]]
    return {
        "pairs": write_rows(folder / "pairs.jsonl", pairs),
        "triplets": write_rows(folder / "triplets.jsonl", triplets),
    }


@pytest.fixture(scope="module")
def study(model: Path, files: dict[str, Path]) -> RecipeStudy:
    return RecipeStudy(str(model), **files, **SMALL, seeds=2, device="cpu")


def test_every_route_has_a_cell_for_each_seed_and_the_start_one(study):
    cells = [tuple(cell.parameters.values()) for cell in study.cells()]
    assert len(set(cells)) == len(cells) == 11
    assert [cell for cell in cells if cell[0] == START] == [(START, UNTIED, 0)]
    assert {cell[2] for cell in cells if cell[:2] == (TWO_STAGES, TIED)} == {0, 1}


def test_no_row_to_train_on_has_a_query_or_an_answer_of_the_dev_set(study):
    rows, dev = study._rows
    asked, answers = set(dev.queries.values()), {dev.documents[one] for own in dev.qrels.values() for one in own}
    assert len(asked) == SMALL["queries"]
    for stage, path in rows.items():
        own = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert len(own) == SMALL["steps"] * SMALL["batch_size"]
        assert not asked & {row["query"] for row in own}
        assert not answers & {row["positive"] for row in own}
        assert any("negatives" in row for row in own) == (stage == "triplets")


def test_all_routes_take_the_same_number_of_steps(study, monkeypatch):
    taken: dict[str, list[tuple[int, bool, str, int]]] = {}
    real = recipe_study.train

    def counting(request: Any) -> Any:
        report = real(request)
        settings = request.settings
        taken[route].append((report.steps, settings.symmetric, settings.heads, settings.negatives))
        return report

    monkeypatch.setattr(recipe_study, "train", counting)
    for cell in study.cells():
        route = f"{cell.parameters['route']}, {cell.parameters['heads']}"
        if not cell.parameters["seed"]:
            taken[route] = []
            values = study.measure(cell).values
            assert 0 <= float(values["ndcg@10, 16"]) <= 1
    assert taken == {
        "no training, untied": [],
        "pairs, then triplets, untied": [(2, True, "untied", 0), (2, False, "untied", 2)],
        "triplets alone, untied": [(4, False, "untied", 2)],
        "pairs alone, untied": [(4, True, "untied", 0)],
        "both at once, untied": [(4, False, "untied", 2)],
        "pairs, then triplets, tied": [(2, True, "tied", 0), (2, False, "tied", 2)],
    }


def test_the_start_is_measured_as_it_is(study, model):
    start = study.measure(study.cells()[0])
    encoder = JinaColbertEncoder.from_pretrained(str(model), device="cpu")
    figures = DevEvaluator(study._rows[1], (16, 8)).ndcg(encoder)
    assert [start.values[f"ndcg@10, {dim}"] for dim in (16, 8)] == pytest.approx(list(figures.values()))


def test_the_command_measures_reports_and_goes_on(model, files, tmp_path):
    arguments = ["study", "recipe", "--out", str(tmp_path), "--model", str(model), "--pairs", str(files["pairs"])]
    arguments += ["--triplets", str(files["triplets"]), "--trained", "heads", "--steps", "2", "--batch-size", "4"]
    arguments += ["--negatives", "2", "--document-length", "24", "--queries", "8", "--device", "cpu"]
    first = CliRunner().invoke(app, [*arguments, "--seeds", "1"])
    assert first.exit_code == 0, first.output
    content = json.loads((tmp_path / "recipe.json").read_text("utf-8"))
    assert len(content["cells"]) == 6
    page = (tmp_path / "recipe.html").read_text("utf-8")
    for cell in content["cells"]:
        assert interval([cell["samples"]["ndcg@10, 8"]]).text() in page
    assert "Pairs, then triplets (tied) against pairs, then triplets, at 8 dimensions" in page
    again = CliRunner().invoke(app, [*arguments, "--seeds", "1"])
    assert "6 of 6 cells were measured before; 0 to go" in again.output
    assert isinstance(CliRunner().invoke(app, [*arguments, "--lang", "en"]).exception, StudyError)


def test_too_little_is_refused(model, files, tmp_path):
    with pytest.raises(StudyError, match="steps must be even, since two stages share them, got 3"):
        RecipeStudy(str(model), **files, **{**SMALL, "steps": 3})
    few = write_rows(tmp_path / "few.jsonl", make_rows(1, negatives=1))
    with pytest.raises(StudyError, match=r"too few rows for a dev set|No rows are left"):
        RecipeStudy(str(model), files["pairs"], few, **SMALL, device="cpu")._rows  # noqa: B018
