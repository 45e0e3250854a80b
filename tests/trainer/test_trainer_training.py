"""Training from files to a folder: results, resuming, stopping, several processes, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from training_samples import make_rows, settings, tiny_encoder, write_rows
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.errors import InvalidOptionError
from jcv2_trainer.cli.app import app
from jcv2_trainer.data.lines import DataError
from jcv2_trainer.errors import TrainingError
from jcv2_trainer.loss.objective import MatryoshkaLateInteractionLoss
from jcv2_trainer.training.card import TrainingReport, card
from jcv2_trainer.training.dev import DevSet
from jcv2_trainer.training.requests import Request
from jcv2_trainer.training.runs import REPORT, RunFolder, sole_writer
from jcv2_trainer.training.train import train
from jcv2_trainer.training.trainer import (
    STATE,
    TRAINABLE,
    Course,
    checkpoints,
    undamaged_checkpoint,
)

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK: dict[str, Any] = {
    "max_steps": 3,
    "batch_size": 4,
    "tokens_per_batch": 256,
    "evaluations": 2,
    "log_every": 1,
    "learning_rate": 1e-3,
    "head_learning_rate": 1e-3,
}
STILL = {"learning_rate": 1e-12, "head_learning_rate": 1e-12}
"""Rates so small that no figure changes."""


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


def command(request: Request, *more: Any) -> list[str]:
    recipe = request.out.with_suffix(".json")  # YAML reads JSON
    recipe.write_text(request.settings.model_dump_json())
    arguments = [request.stage, *request.data, "--out", request.out, "--model", request.model, "--recipe", recipe]
    return [str(one) for one in (*arguments, "--device", "cpu", *more)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(JinaColbertEncoder.from_pretrained(str(folder), device="cpu").state_dict())


def largest_difference(first: Path, second: Path) -> float:
    one, other = weights(first), weights(second)
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


KINDS: dict[str, dict[str, Any]] = {
    "lora": {"cached": True},
    "full": {"lora": False, "gradient_checkpointing": True},
    "frozen": {"lora": False, "freeze_backbone": True},
    "tied": {"heads": "tied"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_a_model_with_card_curve_and_report(kind, model, data, tmp_path):
    out = tmp_path / "out"
    report = train(request_for(model, data, out, **KINDS[kind]))
    encoder = JinaColbertEncoder.from_pretrained(str(out), device="cpu")
    assert encoder.dims == (16, 8)
    assert torch.equal(encoder.heads.weight(16)[:8], encoder.heads.weight(8)) == (kind == "tied")
    card = (out / "README.md").read_text("utf-8")
    assert f"base_model: {model}\n---\n" in card
    assert f"| 8 | 16 | {report.before[8]:.4f} | {report.after[8]:.4f} |" in card
    assert f"batch_size: {QUICK['batch_size']}\n" in card
    assert (out / "curve.svg").read_text("utf-8").startswith("<svg")
    stored = json.loads((out / "training.json").read_text("utf-8"))
    assert stored["after"] == {str(dim): figure for dim, figure in report.after.items()}
    assert stored["steps"] == report.steps == 3
    assert [one["step"] for one in report.history if "eval_ndcg@10_16" in one] == [2, 3]  # the last step too
    assert (out / "adapter" / "adapter_model.safetensors").is_file() == (kind in ("lora", "tied"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows.jsonl"]  # the run's folder is gone

    before, after = weights(model), weights(out)
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if "linears" in name} <= changed
    assert any("linears" not in name for name in changed) == (kind != "frozen")
    assert not any("pooler" in name for name in changed)
    assert any("embeddings" in name for name in changed) == (kind == "full")


def test_heads_that_the_model_lacks_are_added(model, data, tmp_path):
    report = train(request_for(model, data, tmp_path / "out", dims=(16, 4, 24), max_steps=1))
    assert report.added_dims == (4, 24)
    assert "Heads added in this training: 4, 24." in (tmp_path / "out" / "README.md").read_text("utf-8")
    assert JinaColbertEncoder.from_pretrained(str(tmp_path / "out"), device="cpu").dims == (16, 4, 24)


@pytest.mark.parametrize("lora", [True, False])
def test_a_result_between_start_and_trained(model, data, tmp_path, lora):
    common = {"lora": lora, "dev_share": 0.0}
    train(request_for(model, data, tmp_path / "whole", **common))
    train(request_for(model, data, tmp_path / "half", interpolation=0.5, **common))
    start, whole, half = weights(model), weights(tmp_path / "whole"), weights(tmp_path / "half")
    for name in start:
        torch.testing.assert_close(half[name], (start[name] + whole[name]) / 2, rtol=1e-4, atol=1e-6)
    assert largest_difference(model, tmp_path / "whole") > 1e-3


def test_of_equal_figures_the_later_checkpoint_wins_and_few_queries_end_nothing(model, data, tmp_path):
    report = train(request_for(model, data, tmp_path / "out", evaluations=5, patience=1, max_steps=5, **STILL))
    assert report.after == pytest.approx(report.before, abs=1e-6)
    assert report.best_step == report.steps == 5


def test_queries_of_the_dev_set_are_not_trained_on(model, data, tmp_path):
    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    dev = write_rows(tmp_path / "dev.jsonl", rows[:5])
    report = train(replace(request_for(model, data, tmp_path / "out", dev_share=0.0, max_steps=1), dev=dev))
    assert (report.rows, report.skipped, report.dev["queries"]) == (35, {"query-of-dev-set": 5}, 5)
    with pytest.raises(TrainingError, match="All 5 rows have queries of"):
        train(replace(request_for(model, dev, tmp_path / "other"), dev=dev))
    dev.write_text("\n")
    with pytest.raises(DataError, match=r"dev\.jsonl has no rows"):
        DevSet.read(dev)


# Runs that are stopped


class Killed(BaseException):
    pass


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, stop: Any) -> None:
    """Call ``stop`` after a step of the next training."""
    usual = Course.on_step_end

    def on_step_end(self: Course, args: Any, state: Any, *more: Any, **kwargs: Any) -> Any:
        if state.global_step == step:
            stop()
        return usual(self, args, state, *more, **kwargs)

    monkeypatch.setattr(Course, "on_step_end", on_step_end)


def killed() -> None:
    raise Killed


LONG: dict[str, Any] = {
    "max_steps": 8,
    "warmup": 0.0,
    "evaluations": 8,
    "patience": 0,
    "dev_share": 0.1,
    "keep_checkpoints": 9,
}


@pytest.fixture(scope="module")
def unfinished(model, tmp_path_factory) -> Request:
    """A run that was killed at step 6, with checkpoints of steps 1 to 5."""
    folder = tmp_path_factory.mktemp("unfinished")
    data = write_rows(folder / "rows.jsonl", make_rows(40, negatives=3, scores=True))
    request = request_for(model, data, folder / "out", **LONG)
    with pytest.MonkeyPatch.context() as patched:
        stop_at(6, patched, killed)
        with pytest.raises(Killed):
            train(request)
    assert [path.name for path in checkpoints(folder / "out.run")] == [f"checkpoint-{step}" for step in (5, 4, 3, 2, 1)]
    return request


@pytest.fixture
def resumed(unfinished, tmp_path) -> Request:
    """The same run in a folder of its own, to be resumed."""
    shutil.copytree(unfinished.out.with_name("out.run"), tmp_path / "out.run")
    for state in (tmp_path / "out.run").glob(f"*/{STATE}"):
        state.write_text(state.read_text().replace(str(unfinished.out.parent), str(tmp_path)))
    return replace(unfinished, out=tmp_path / "out", resume=True)


def test_resuming_gives_what_an_unbroken_run_gives(unfinished, resumed, tmp_path):
    """From the last checkpoint, and from the one before it if a file of the last is damaged."""
    whole = train(replace(unfinished, out=tmp_path / "whole"))
    broken = resumed.out.with_name("out.run") / "checkpoint-5" / "optimizer.pt"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"checkpoint-5/optimizer\.pt is damaged.*continues from .*checkpoint-4\."):
        report = train(resumed)
    assert (report.steps, report.before) == (whole.steps, whole.before)
    losses = {one["step"]: one["loss"] for one in whole.history if "loss" in one}
    assert {one["step"]: one["loss"] for one in report.history if "loss" in one} == pytest.approx(losses, rel=1e-5)
    assert largest_difference(tmp_path / "whole", resumed.out) < 1e-5


@pytest.mark.skipif(not os.environ.get("JCV2_TEST_ALL"), reason="a process of its own; set JCV2_TEST_ALL=1")
def test_a_killed_process_is_resumed(unfinished, tmp_path):
    request = replace(unfinished, out=tmp_path / "out")
    process = subprocess.Popen([sys.executable, "-m", "jcv2_trainer", *command(request)])
    while not checkpoints(tmp_path / "out.run") and process.poll() is None:
        pass
    process.kill()
    process.wait()
    assert train(replace(request, resume=True)).steps == 8


@pytest.mark.parametrize(
    "name, damage",
    [
        (TRAINABLE, "truncated"),
        ("optimizer.pt", "truncated"),
        ("optimizer.pt", "flipped"),
        ("scheduler.pt", "empty"),
        ("scheduler.pt", "missing"),
        ("rng_state.pth", "truncated"),
        (STATE, "truncated"),
        (STATE, "deep"),
    ],
)
def test_a_damaged_file_of_a_checkpoint_is_named_and_passed_over(resumed, name, damage):
    run = resumed.out.with_name("out.run")
    file = run / "checkpoint-5" / name
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    if damage == "missing":
        file.unlink()
    else:
        damaged = {"truncated": content[:middle], "flipped": flipped, "empty": b"", "deep": b"[" * 200_000}
        file.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match=rf"checkpoint-5/{name} is (damaged|missing)"):
        assert undamaged_checkpoint(run).name == "checkpoint-4"


def test_without_an_undamaged_checkpoint_the_way_out_is_said(resumed):
    run = resumed.out.with_name("out.run")
    for checkpoint in checkpoints(run)[:-1]:
        shutil.rmtree(checkpoint)
    for name in (TRAINABLE, STATE):
        file = run / "checkpoint-1" / name
        file.write_bytes(file.read_bytes()[:50])
        with pytest.raises(TrainingError, match=rf"checkpoint-1/{name} is damaged.*no checkpoint before it.*--force"):
            train(resumed)
    assert "error: " in CliRunner().invoke(app, command(resumed, "--resume")).output
    for content in ("{", "[1]", "[" * 200_000):
        (run / "run.json").write_text(content)
        with pytest.raises(TrainingError, match=r"run\.json is damaged.*--force"):
            train(resumed)
    for name, content in (("scale.json", '"x"'), ("before.json", '{"x": 1}')):
        (run / name).write_text(content)
        with pytest.raises(TrainingError, match=rf"{name} is damaged \(it has .*\)"):
            RunFolder(run, resumed.out).read(name, {"64": 0.0} if name == "before.json" else 0.0)


def test_a_damaged_best_checkpoint_is_not_passed_over_in_silence(resumed):
    run = resumed.out.with_name("out.run")
    for step, best in ((5, 3), (4, 4)):
        state = json.loads((run / f"checkpoint-{step}" / STATE).read_text())
        state["best_model_checkpoint"] = str(run / f"checkpoint-{best}")
        (run / f"checkpoint-{step}" / STATE).write_text(json.dumps(state))
    (run / "checkpoint-3" / TRAINABLE).write_bytes(b"")
    with pytest.warns(UserWarning, match=f"checkpoint-3/{TRAINABLE} is damaged"):
        assert undamaged_checkpoint(run).name == "checkpoint-4"


def more_rows(path: Path) -> None:
    write_rows(path, make_rows(41, negatives=3, scores=True))


def other_words(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"toy", b"boy", 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "stage, name, change",
    [
        ("train", "rows", more_rows),
        ("pairs", "rows", other_words),
        ("triplets", "rows", Path.touch),
        ("train", "dev", other_words),
        ("pairs", "dev", Path.touch),
        ("triplets", "dev", more_rows),
    ],
)
def test_a_run_is_not_resumed_with_changed_data(stage, name, change, unfinished, model, data, tmp_path):
    dev = write_rows(tmp_path / "dev.jsonl", make_rows(9, seed=5))
    request = replace(request_for(model, data, tmp_path / "out", stage), stage=stage, dev=dev)
    run = RunFolder.open(request.out, request.identity(), resume=False, force=False)
    shutil.copytree(unfinished.out.with_name("out.run") / "checkpoint-2", run.folder / "checkpoint-2")
    assert RunFolder.open(request.out, request.identity(), resume=True, force=False).checkpoint is not None
    change(tmp_path / f"{name}.jsonl")
    result = CliRunner().invoke(app, command(request, "--dev", dev, "--resume"))
    assert result.exit_code == 2
    assert f"{name}.jsonl has changed since the run started" in result.output
    assert "start anew with --force" in result.output


def test_a_run_is_resumed_as_it_was_started_and_only_if_there_is_one(resumed, tmp_path):
    with pytest.raises(
        TrainingError, match=r"an unfinished run\. Continue it with --resume, or start anew with --force"
    ):
        train(replace(resumed, resume=False))
    other = resumed.settings.model_copy(update={"max_steps": 9})
    with pytest.raises(TrainingError, match="started with max_steps 8, not 9"):
        train(replace(resumed, settings=other))
    with pytest.raises(TrainingError, match="There is no checkpoint in"):
        train(replace(resumed, out=tmp_path / "another"))


def test_a_finished_run_whose_result_was_not_written_is_resumed_without_a_step(model, data, tmp_path, monkeypatch):
    request = request_for(model, data, tmp_path / "out")

    def full(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(JinaColbertEncoder, "save_pretrained", full)
        with pytest.raises(TrainingError, match=r"is full .*out' could not be written.*--resume"):
            train(request)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(MatryoshkaLateInteractionLoss, "_pass", None)
    resumed = train(replace(request, resume=True))
    assert (resumed.steps, len(resumed.after)) == (3, 2)
    assert "already contains a trained model" in CliRunner().invoke(app, command(request)).output


def test_two_at_one_output(model, data, tmp_path):
    request = request_for(model, data, tmp_path / "out")
    with sole_writer(request.out), pytest.raises(TrainingError, match="Another training is writing to"):
        train(request)
    assert list(tmp_path.glob("out*")) == []


def test_a_result_that_came_meanwhile_is_kept(model, data, tmp_path, monkeypatch):
    request = request_for(model, data, tmp_path / "out")

    def meanwhile(*args: Any, **kwargs: Any) -> None:
        request.out.mkdir()
        (request.out / REPORT).write_text("{}")

    monkeypatch.setattr("jcv2_trainer.training.train.write_card", meanwhile)
    with pytest.raises(TrainingError, match="already contains a trained model"):
        train(request)
    assert (request.out / REPORT).read_text() == "{}"


def test_a_run_folder_from_a_stranger_is_not_written_through(model, data, tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out.run").mkdir()
    (tmp_path / "out.run" / "log.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(TrainingError, match=r"log\.jsonl is a link"):
        train(request_for(model, data, tmp_path / "out"))
    assert (tmp_path / "victim").read_text() == "precious"


def test_interrupting_saves_and_says_how_to_go_on(model, data, tmp_path, monkeypatch):
    stop_at(2, monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    result = CliRunner().invoke(app, command(request_for(model, data, tmp_path / "out", max_steps=9)))
    assert result.exit_code == 130, result.output
    assert "Stopped after 2 steps" in result.output
    assert "--resume" in result.output
    assert not (tmp_path / "out").exists()
    assert checkpoints(tmp_path / "out.run")[0] == tmp_path / "out.run" / "checkpoint-2"
    so_far = JinaColbertEncoder.from_pretrained(str(tmp_path / "out.run" / "model"), device="cpu")
    assert so_far.dims == (16, 8)


@pytest.mark.parametrize("stage", ["train", "pairs"] if os.environ.get("JCV2_TEST_ALL") else ["pairs"])
def test_two_processes_lose_as_one_does(tmp_path, data, stage):
    tiny_encoder(tmp_path / "official").save_pretrained(str(tmp_path / "still"))
    without_dropout(tmp_path / "still")
    common = {"dev_share": 0.0, "lora": False, "max_steps": None, "epochs": 1.0}
    one = train(request_for(tmp_path / "still", data, tmp_path / "one", stage, batch_size=8, **common))
    request = replace(request_for(tmp_path / "still", data, tmp_path / "two", stage, **common), stage=stage)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "jcv2_trainer"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, *command(request)], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "two" / "training.json").read_text("utf-8"))
    first, second = ([entry["loss"] for entry in one if "loss" in entry] for one in (one.history, report["history"]))
    assert len(first) == len(second) == 5
    assert second == pytest.approx(first, abs=1e-4)
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-4


def without_dropout(folder: Path) -> None:
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text("utf-8"))
        path.write_text(
            json.dumps({name: 0.0 if value and "dropout" in name else value for name, value in config.items()})
        )


# What is refused


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_result_is_kept(model, data, tmp_path, force):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(TrainingError, match="not the result of a training"):
        train(replace(request_for(model, data, tmp_path / "out"), force=force))
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "rows, stage, changes, said",
    [
        ({"negatives": 0}, "triplets", {}, "jcv2-finetune mine"),
        ({}, "train", {"contrastive_weight": 0.0}, "jcv2-finetune score"),
        ({}, "train", {"dims": (16, 65)}, "64 components"),
    ],
)
def test_data_and_settings_that_do_not_fit(model, tmp_path, rows, stage, changes, said):
    data = write_rows(tmp_path / "rows.jsonl", make_rows(10, **rows))
    request = replace(request_for(model, data, tmp_path / "out", stage, dev_share=0.0, **changes), stage=stage)
    with pytest.raises(TrainingError, match=said):
        train(request)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dev_share", [0.0, 0.4])
def test_numbers_that_blow_up_are_not_blamed_on_a_text(model, data, tmp_path, dev_share):
    request = request_for(model, data, tmp_path / "out", "train", dev_share=dev_share, lora=False)
    rates = {"learning_rate": 1e30, "head_learning_rate": 1e30}  # beyond the bounds, to need few steps
    request = replace(request, settings=request.settings.model_copy(update=rates))
    with pytest.raises(TrainingError, match=r"At step \d+, the .* became NaN or infinite.*learning rate"):
        train(request)
    assert not (tmp_path / "out").exists()


def test_a_device_or_heads_that_are_not_there(model, data, tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(InvalidOptionError, match="device 'cuda' cannot be used"):
            train(replace(request_for(model, data, tmp_path / "out"), device="cuda"))
    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(TrainingError, match=r"projection.*jcv2-finetune assemble"):
        train(request_for(tmp_path / "bert", data, tmp_path / "out"))


def test_out_of_memory_names_the_knobs(model, data, tmp_path, monkeypatch):
    def exhausted(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(MatryoshkaLateInteractionLoss, "_pass", exhausted)
    with pytest.raises(TrainingError, match=r"--cached.*--batch-size \(now 4\)"):
        train(request_for(model, data, tmp_path / "out", dev_share=0.0))


# The command


def test_bad_rows_stop_it_or_are_counted_and_flags_override_the_recipe_file(model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(12))
    with rows.open("a") as file:
        file.write('{"query": "no passage"}\n')
    (tmp_path / "mine.yaml").write_text("max_steps: 1\ndev_share: 0.2\nbatch_size: 3\n")
    arguments = ["pairs", rows, "--model", model, "--out", tmp_path / "out", "--recipe", tmp_path / "mine.yaml"]
    stopped = CliRunner().invoke(app, [str(one) for one in arguments])
    assert stopped.exit_code == 2
    assert "rows.jsonl:13" in stopped.output
    counted = CliRunner().invoke(app, [str(one) for one in (*arguments, "--skip-bad", "--batch-size", "5")])
    assert counted.exit_code == 0, counted.output
    assert "1 left out (missing-field)" in counted.output
    assert "nDCG@10" in counted.output
    recipe = json.loads((tmp_path / "out" / "training.json").read_text("utf-8"))["recipe"]
    assert (recipe["max_steps"], recipe["batch_size"], recipe["symmetric"]) == (1, 5, True)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--epochs", "-1"], "epochs"),
        (["--dims", "16,sixteen"], "dims"),
        (["--dims", "16,16"], "distinct positive integers"),
        (["--heads", "shared"], "untied"),
        (["--head-learning-rate", "inf"], "finite"),
        (["--learning-rate", "1e30"], "less than or equal to 1"),
        (["--seed", "99999999999"], "less than 4294967296"),
        (["--lora", "--freeze-backbone"], "exclude each other"),
        (["--recipe", "mine.yaml"], "Did you mean 'learning_rate'?"),
    ],
)
def test_a_field_out_of_range_or_unknown(flags, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("learning_rat: 0.1\n")
    result = CliRunner().invoke(app, ["train", "rows.jsonl", "--out", "out", *flags])
    assert result.exit_code == 2
    assert said in result.output


def test_a_card_shows_the_names_in_the_data_as_text():
    names = {"files": ["a\x1b[2J.jsonl"], "languages": ["\x9b", ""], "sources": ["web\n\n# Forged <script>"]}
    data = {**names, "with_negatives": 0, "with_scores": 0}
    text = card(TrainingReport("mini\nlicense: forged", "train", 1, {}, data, {}, {}))
    assert text.replace("\n", "").isprintable()
    assert not [line for line in text.splitlines() if line.startswith(("license", "# Forged"))]
    assert "<script>" not in text
    assert "- languages: \\x9b, (none given)\n" in text
