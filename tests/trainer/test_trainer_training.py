"""Training from files to a folder: results, resuming, stopping, several processes, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_samples import make_rows, settings, tiny_encoder, write_rows
from typer.testing import CliRunner

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.errors import Jcv2Error
from jcv2_trainer.cli.app import app
from jcv2_trainer.errors import TrainingError
from jcv2_trainer.training.requests import Request
from jcv2_trainer.training.train import train
from jcv2_trainer.training.trainer import TRAINABLE, last_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {
    "epochs": 1.0,
    "batch_size": 4,
    "tokens_per_batch": 256,
    "evaluations": 2,
    "log_every": 1,
    "learning_rate": 1e-3,
    "head_learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with heads of 16 and 8 dimensions, and with dropout."""
    folder = tmp_path_factory.mktemp("model")
    tiny_encoder(folder / "official", dropout=0.1).save_pretrained(str(folder / "model"))
    return folder / "model"


@pytest.fixture
def data(tmp_path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", make_rows(40, negatives=3, scores=True))


def request_for(model: Path, data: Path, out: Path, name: str = "train", **changes: Any) -> Request:
    return Request([data], str(model), out, settings(name, **{**QUICK, **changes}), device="cpu")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(JinaColbertEncoder.from_pretrained(str(folder), device="cpu").state_dict())


def largest_difference(first: Path, second: Path) -> float:
    one, other = weights(first), weights(second)
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


class TestResult:
    @pytest.fixture(scope="class", params=["lora", "full", "frozen", "tied"])
    def trained(self, request, model, tmp_path_factory) -> tuple[str, Path, Any]:
        folder = tmp_path_factory.mktemp(request.param)
        data = write_rows(folder / "rows.jsonl", make_rows(40, negatives=3, scores=True))
        changes: dict[str, Any] = {
            "lora": {},
            "full": {"lora": False, "cached": True},
            "frozen": {"lora": False, "freeze_backbone": True},
            "tied": {"heads": "tied", "gradient_checkpointing": True},
        }[request.param]
        report = train(request_for(model, data, folder / "out", **changes))
        return request.param, folder / "out", report

    def test_the_folder_is_a_model_with_card_curve_and_report(self, trained):
        kind, out, report = trained
        encoder = JinaColbertEncoder.from_pretrained(str(out), device="cpu")
        assert encoder.dims == (16, 8)
        assert encoder.encode_query("what is it", dim=8).shape[1] == 8
        card = (out / "README.md").read_text("utf-8")
        assert "nDCG@10" in card
        assert f"batch_size: {QUICK['batch_size']}" in card
        assert (out / "curve.svg").read_text("utf-8").startswith("<svg")
        stored = json.loads((out / "training.json").read_text("utf-8"))
        assert stored["after"] == {str(dim): figure for dim, figure in report.after.items()}
        assert stored["steps"] == report.steps > 0
        assert (out / "adapter" / "adapter_model.safetensors").is_file() == (kind in ("lora", "tied"))

    def test_what_was_to_be_trained_has_changed_and_nothing_else(self, trained, model):
        kind, out, _ = trained
        before, after = weights(model), weights(out)
        assert set(before) == set(after)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert {name for name in before if "linears" in name} <= changed
        backbone = {name for name in changed if "linears" not in name}
        assert bool(backbone) == (kind != "frozen")
        assert not any("pooler" in name for name in changed)
        if kind == "lora":
            assert not any("embeddings" in name for name in changed)

    def test_the_run_folder_is_gone(self, trained):
        _, out, _ = trained
        assert not out.with_name("out.run").exists()
        assert sorted(path.name for path in out.parent.iterdir()) == ["out", "rows.jsonl"]

    def test_sentence_transformers_reads_an_export(self, trained, tmp_path):
        from sentence_transformers import MultiVectorEncoder

        _, out, _ = trained
        encoder = JinaColbertEncoder.from_pretrained(str(out), device="cpu")
        encoder.export(tmp_path / "export", dim=8)
        plain = MultiVectorEncoder(str(tmp_path / "export"), device="cpu")
        text = ["the first of several"]
        torch.testing.assert_close(
            plain.encode_document(text)[0], encoder.encode_document(text, dim=8)[0], rtol=1e-5, atol=1e-5
        )

    def test_only_tied_heads_are_prefixes(self, trained):
        kind, out, _ = trained
        heads = JinaColbertEncoder.from_pretrained(str(out), device="cpu").heads
        assert heads is not None
        assert torch.equal(heads.weight(16)[:8], heads.weight(8)) == (kind == "tied")


def test_heads_that_the_model_lacks_are_added(model, data, tmp_path):
    report = train(request_for(model, data, tmp_path / "out", dims=(16, 4, 24), max_steps=1))
    assert report.added_dims == (4, 24)
    assert JinaColbertEncoder.from_pretrained(str(tmp_path / "out"), device="cpu").dims == (16, 4, 24)


@pytest.mark.parametrize("lora", [True, False])
def test_a_result_between_start_and_trained(model, data, tmp_path, lora):
    common = {"lora": lora, "max_steps": 3, "dev_share": 0.0}
    train(request_for(model, data, tmp_path / "whole", **common))
    train(request_for(model, data, tmp_path / "half", interpolation=0.5, **common))
    start, whole, half = weights(model), weights(tmp_path / "whole"), weights(tmp_path / "half")
    for name in start:
        torch.testing.assert_close(half[name], (start[name] + whole[name]) / 2, rtol=1e-4, atol=1e-6)
    assert largest_difference(model, tmp_path / "whole") > 1e-3


def test_resuming_gives_what_an_unbroken_run_gives(model, data, tmp_path):
    whole = request_for(model, data, tmp_path / "whole", evaluations=9, patience=0, epochs=2.0, dev_share=0.1)
    report = train(whole)
    parts = replace(whole, out=tmp_path / "parts")
    process = start(parts, data, model)
    run = tmp_path / "parts.run"
    wait_for(lambda: last_checkpoint(run) is not None and step_of(run) >= 4, process)
    process.kill()
    process.wait()
    assert not (tmp_path / "parts").exists()
    resumed_from = step_of(run)
    assert 4 <= resumed_from < report.steps
    resumed = train(replace(parts, resume=True))
    assert resumed.steps == report.steps
    assert resumed.before == report.before
    losses = {one["step"]: one["loss"] for one in report.history if "loss" in one}
    for one in resumed.history:
        if "loss" in one and one["step"] > resumed_from:
            assert one["loss"] == pytest.approx(losses[one["step"]], rel=1e-5)
    assert largest_difference(tmp_path / "whole", tmp_path / "parts") < 1e-5


def test_a_finished_run_whose_result_was_not_written_is_resumed_without_a_step(model, data, tmp_path, monkeypatch):
    request = request_for(model, data, tmp_path / "out", max_steps=4)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(JinaColbertEncoder, "save_pretrained", full)
        with pytest.raises(OSError, match="No space"):
            train(request)
    assert not (tmp_path / "out").exists()
    resumed = train(replace(request, resume=True))
    assert resumed.steps == 4
    whole = train(replace(request, out=tmp_path / "whole"))
    assert resumed.after == whole.after
    assert largest_difference(tmp_path / "out", tmp_path / "whole") < 1e-6


def test_of_equal_figures_the_later_checkpoint_wins(model, data, tmp_path):
    """Rates so small that no figure changes: the end is kept, not the first evaluation."""
    slow = {"learning_rate": 1e-12, "head_learning_rate": 1e-12, "evaluations": 5, "patience": 0, "max_steps": 5}
    report = train(request_for(model, data, tmp_path / "out", **slow))
    assert report.after == pytest.approx(report.before, abs=1e-6)
    assert report.best_step == report.steps == 5


def test_a_few_dev_queries_do_not_end_a_training(model, data, tmp_path):
    slow = {"learning_rate": 1e-12, "head_learning_rate": 1e-12, "evaluations": 8, "patience": 1}
    assert train(request_for(model, data, tmp_path / "out", max_steps=8, **slow)).steps == 8


def test_queries_of_the_dev_set_are_not_trained_on(model, data, tmp_path):
    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    dev = write_rows(tmp_path / "dev.jsonl", rows[:5])
    report = train(replace(request_for(model, data, tmp_path / "out", dev_share=0.0, evaluations=1), dev=dev))
    assert (report.rows, report.skipped, report.dev["queries"]) == (35, {"query-of-dev-set": 5}, 5)
    with pytest.raises(TrainingError, match="The queries of all 5 rows are queries of"):
        train(replace(request_for(model, dev, tmp_path / "other"), dev=dev))


def test_the_last_step_is_measured(model, data, tmp_path):
    report = train(request_for(model, data, tmp_path / "out", max_steps=7, evaluations=2))
    measured = [entry["step"] for entry in report.history if "eval_ndcg@10_16" in entry]
    assert measured == [4, 7]


def test_interrupting_saves_and_says_how_to_go_on(model, data, tmp_path):
    request = request_for(model, data, tmp_path / "out", epochs=200.0, evaluations=2)
    process = start(request, data, model)
    wait_for(lambda: (tmp_path / "out.run" / "before.json").exists(), process)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "--resume" in output
    assert not (tmp_path / "out").exists()
    checkpoint = last_checkpoint(tmp_path / "out.run")
    assert checkpoint is not None
    assert (checkpoint / TRAINABLE).is_file()
    so_far = JinaColbertEncoder.from_pretrained(str(tmp_path / "out.run" / "model"), device="cpu")
    assert so_far.dims == (16, 8)


@pytest.mark.parametrize("stage", ["train", "pairs"])
def test_two_processes_lose_as_one_does(tmp_path, data, stage):
    tiny_encoder(tmp_path / "official").save_pretrained(str(tmp_path / "still"))
    without_dropout(tmp_path / "still")
    common = {"dev_share": 0.0, "lora": False, "epochs": 1.0}
    one = train(request_for(tmp_path / "still", data, tmp_path / "one", stage, batch_size=8, **common))
    request = replace(
        request_for(tmp_path / "still", data, tmp_path / "two", stage, batch_size=4, **common), stage=stage
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "jcv2_trainer"]
    process = start(request, data, tmp_path / "still", launch)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    report = json.loads((tmp_path / "two" / "training.json").read_text("utf-8"))
    first = [entry["loss"] for entry in one.history if "loss" in entry]
    second = [entry["loss"] for entry in report["history"] if "loss" in entry]
    assert len(first) == len(second) == 5
    assert second == pytest.approx(first, abs=1e-4)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-4


class TestRefusals:
    def refused(self, request: Request) -> str:
        with pytest.raises(TrainingError) as caught:
            train(request)
        return str(caught.value)

    def test_a_folder_that_is_no_result(self, model, data, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        for force in (False, True):
            request = replace(request_for(model, data, tmp_path / "out"), force=force)
            assert "no result of a training" in self.refused(request)
        assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"

    def test_a_result_without_force(self, model, data, tmp_path):
        request = request_for(model, data, tmp_path / "out", max_steps=1, dev_share=0.0)
        train(request)
        assert "--force" in self.refused(request)
        assert train(replace(request, force=True)).steps == 1

    def test_nothing_to_resume(self, model, data, tmp_path):
        request = replace(request_for(model, data, tmp_path / "out"), resume=True)
        assert "no checkpoint" in self.refused(request)

    def test_an_unfinished_run_and_another_recipe(self, model, data, tmp_path):
        request = request_for(model, data, tmp_path / "out", max_steps=2, dev_share=0.0)
        train(request)
        # As a killed run leaves it.
        again = request_for(model, data, tmp_path / "again", max_steps=2, dev_share=0.0)
        from jcv2_trainer.training.runs import RunFolder

        run = RunFolder.open(again.out, again.identity(), resume=False, force=False)
        unfinished = run.folder / "checkpoint-1"
        unfinished.mkdir()
        shutil.copy(next(model.glob("*.safetensors")), unfinished / TRAINABLE)
        (unfinished / "trainer_state.json").write_text("{}")
        assert "--resume" in self.refused(again)
        other = replace(again, settings=settings("train", **{**QUICK, "max_steps": 3, "dev_share": 0.0}), resume=True)
        message = self.refused(other)
        assert "max_steps = 2" in message
        assert "3" in message

    def test_triplets_without_negatives(self, model, tmp_path):
        data = write_rows(tmp_path / "pairs.jsonl", make_rows(10, negatives=0))
        request = replace(request_for(model, data, tmp_path / "out", "triplets"), stage="triplets")
        assert "jcv2-finetune mine" in self.refused(request)

    def test_distillation_alone_without_scores(self, model, tmp_path):
        data = write_rows(tmp_path / "rows.jsonl", make_rows(10))
        assert "jcv2-finetune score" in self.refused(request_for(model, data, tmp_path / "out", contrastive_weight=0.0))

    def test_a_dimension_beyond_the_states(self, model, data, tmp_path):
        assert "64 components" in self.refused(request_for(model, data, tmp_path / "out", dims=(16, 65)))

    def test_a_loss_that_is_no_number_stops_it(self, model, data, tmp_path):
        wild = {"learning_rate": 1e30, "head_learning_rate": 1e30, "lora": False, "dev_share": 0.0}
        message = self.refused(request_for(model, data, tmp_path / "out", **wild))
        assert "--learning-rate" in message
        assert not (tmp_path / "out").exists()

    def test_a_device_that_is_not_there(self, model, data, tmp_path):
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        request = replace(request_for(model, data, tmp_path / "out"), device="cuda")
        assert "'cuda'" in self.refused(request)

    def test_a_backbone_without_heads(self, data, tmp_path):
        from transformers import BertConfig, BertModel

        BertModel(
            BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        ).save_pretrained(tmp_path / "bert")
        with pytest.raises(Jcv2Error, match="projection"):
            train(request_for(tmp_path / "bert", data, tmp_path / "out"))

    def test_out_of_memory_names_the_knobs(self, model, data, tmp_path, monkeypatch):
        from jcv2_trainer.loss.objective import MatryoshkaLateInteractionLoss

        def exhausted(*args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

        monkeypatch.setattr(MatryoshkaLateInteractionLoss, "_pass", exhausted)
        message = self.refused(request_for(model, data, tmp_path / "out", dev_share=0.0))
        assert "--cached" in message
        assert "--batch-size (now 4)" in message
        assert not (tmp_path / "out").exists()


class TestCommand:
    def test_bad_rows_stop_it_or_are_counted(self, model, tmp_path):
        rows = write_rows(tmp_path / "rows.jsonl", make_rows(12))
        with rows.open("a") as file:
            file.write('{"query": "no passage"}\n')
        arguments = ["train", str(rows), "--model", str(model), "--out", str(tmp_path / "out"), "--max-steps", "1"]
        stopped = CliRunner().invoke(app, arguments)
        assert stopped.exit_code == 2
        assert "rows.jsonl:13" in stopped.output
        assert "positive" in stopped.output
        assert not (tmp_path / "out").exists()
        counted = CliRunner().invoke(app, [*arguments, "--skip-bad", "--dev-share", "0.2"])
        assert counted.exit_code == 0, counted.output
        assert "1 left out (missing-field)" in counted.output
        assert "nDCG@10" in counted.output

    def test_a_recipe_file_and_a_flag(self, model, tmp_path):
        rows = write_rows(tmp_path / "rows.jsonl", make_rows(12))
        (tmp_path / "mine.yaml").write_text("max_steps: 1\ndev_share: 0.0\nbatch_size: 3\n")
        arguments = ["pairs", str(rows), "--model", str(model), "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, [*arguments, "--recipe", str(tmp_path / "mine.yaml"), "--batch-size", "5"])
        assert result.exit_code == 0, result.output
        recipe = json.loads((tmp_path / "out" / "training.json").read_text("utf-8"))["recipe"]
        assert (recipe["max_steps"], recipe["batch_size"], recipe["symmetric"]) == (1, 5, True)

    @pytest.mark.parametrize(
        "flags, said",
        [
            (["--epochs", "-1"], "epochs"),
            (["--dims", "16,sixteen"], "dims"),
            (["--heads", "shared"], "untied"),
            (["--head-learning-rate", "inf"], "finite"),
            (["--lora", "--freeze-backbone"], "exclude each other"),
        ],
    )
    def test_a_field_out_of_range(self, flags, said, tmp_path):
        result = CliRunner().invoke(app, ["train", "rows.jsonl", "--out", str(tmp_path / "out"), *flags])
        assert result.exit_code == 2
        assert said in result.output

    def test_an_unknown_field_in_a_recipe_file(self, tmp_path):
        (tmp_path / "mine.yaml").write_text("learning_rat: 0.1\n")
        arguments = ["train", "rows.jsonl", "--out", str(tmp_path / "out"), "--recipe", str(tmp_path / "mine.yaml")]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert "learning_rate" in result.output


# Helpers that start a training in a process of its own


def start(request: Request, data: Path, model: Path, launch: list[str] | None = None) -> subprocess.Popen[str]:
    recipe = request.out.with_suffix(".json")  # YAML reads JSON
    recipe.write_text(request.settings.model_dump_json())
    command = [sys.executable, *(launch or ["-m", "jcv2_trainer"]), request.stage, str(data)]
    command += ["--out", str(request.out), "--model", str(model), "--recipe", str(recipe), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_for(ready, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()[0]}")
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def step_of(run: Path) -> int:
    checkpoint = last_checkpoint(run)
    assert checkpoint is not None
    return int(checkpoint.name.rpartition("-")[2])


def without_dropout(folder: Path) -> None:
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text("utf-8"))
        for name in config:
            if "dropout" in name and config[name] is not None:
                config[name] = 0.0
        path.write_text(json.dumps(config))
