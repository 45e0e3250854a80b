"""Scores of a cross-encoder: what they are, teachers that are none, and runs that are stopped."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from training_samples import read_jsonl as read
from training_samples import write_jsonl as write
from training_samples import write_word_bert
from transformers import BertForSequenceClassification, BertModel
from typer.testing import CliRunner

from jcv2_trainer.cli.app import app
from jcv2_trainer.data.check import check_file
from jcv2_trainer.data.reading import DataError, read_jsonl
from jcv2_trainer.mining.resumable import OutputError
from jcv2_trainer.mining.score import ScoreRecipe, TeacherError, load_teacher, score
from jcv2_trainer.recipes import load_recipe

WORDS = ["harbour", "ship", "river", "bread", "soup", "city", "capital", "of", "the", "is", "what", "where"]
ROWS = [
    {
        "query": f"what is the {WORDS[number % 7]} of {WORDS[(number * 3) % 7]}",
        "positive": " ".join(WORDS[(number + step) % 12] for step in range(3 + number % 5)),
        "negatives": [
            " ".join(WORDS[(number * step) % 12] for step in range(1, 2 + which * 4)) for which in range(number % 4)
        ],
        "lang": "en",
        "note": number,
    }
    for number in range(40)
]


def write_model(folder: Path, kind=BertForSequenceClassification, labels: int = 1) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return write_word_bert(
        folder, WORDS, kind, max_position_embeddings=64, initializer_range=0.5, num_labels=labels, **sizes
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    return str(write_model(tmp_path_factory.mktemp("teacher")))


def recipe(**changes) -> ScoreRecipe:
    return load_recipe(ScoreRecipe, "score", overrides=changes)


@pytest.fixture
def data(tmp_path) -> Path:
    return write(tmp_path / "data.jsonl", ROWS)


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def logits(teacher: str, rows) -> list[list[float]]:
    """Each row by itself, with the library's own prediction."""
    model = CrossEncoder(teacher, device="cpu", activation_fn=torch.nn.Identity())
    return [
        model.predict([(row["query"], one) for one in (row["positive"], *row["negatives"])]).tolist() for row in rows
    ]


# What is written


def test_scores_are_the_logits_of_each_pair(data, teacher, tmp_path):
    out = tmp_path / "out.jsonl"
    report = score(data, out, teacher, recipe(batch_size=8, window=2), device="cpu")
    rows = read(out)
    assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS
    for row, expected in zip(rows, logits(teacher, ROWS), strict=True):
        assert row["scores"] == pytest.approx(expected, abs=1e-5)
    spread = [one for row in rows for one in row["scores"]]
    assert spread == [float(str(np.float32(one))) for one in spread]  # read back, they are the same float32
    assert min(spread) < 0 or max(spread) > 1  # no probabilities
    assert np.std(spread) > 0.1
    assert check_file(out).errors == 0
    assert (report.rows, report.kept, report.lone) == (40, 0, 10)
    assert report.pairs == len(spread) == sum(1 + len(row["negatives"]) for row in ROWS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "out.jsonl"]


def test_scores_that_are_there_are_replaced_or_kept(data, teacher, tmp_path):
    rows = [
        {**ROWS[3], "scores": [4, 3, 2, 1]},
        {**ROWS[7], "scores": [1.0]},  # too few
        {**ROWS[3], "scores": ["x", 1, 2, 3]},
        {**ROWS[3], "scores": None},
    ]
    write(data, rows)
    report = score(data, tmp_path / "new.jsonl", teacher, recipe(), device="cpu")
    assert (report.kept, report.pairs) == (0, 16)
    report = score(data, tmp_path / "kept.jsonl", teacher, recipe(overwrite=False), device="cpu")
    new, kept = read(tmp_path / "new.jsonl"), read(tmp_path / "kept.jsonl")
    assert (report.kept, report.pairs) == (1, 12)
    assert kept[0]["scores"] == [4, 3, 2, 1]
    assert kept[1:] == new[1:]


def test_passages_are_cut_to_the_length_given(data, teacher, tmp_path):
    score(data, tmp_path / "long.jsonl", teacher, recipe(), device="cpu")
    score(data, tmp_path / "short.jsonl", teacher, recipe(max_length=10), device="cpu")
    assert read(tmp_path / "long.jsonl") != read(tmp_path / "short.jsonl")
    with pytest.raises(TeacherError, match=r"max_length is 65, but .* has 64 positions.*--max-length 64"):
        score(data, tmp_path / "out.jsonl", teacher, recipe(max_length=65), device="cpu")
    write(data, [{"query": "what is the city", "positive": "soup " * 500}])
    score(data, tmp_path / "cut.jsonl", teacher, recipe(), device="cpu")  # the model's own length holds


@pytest.mark.parametrize("suffix", [".xz", ".bz2", ".zst"])
def test_the_result_may_be_compressed(data, teacher, tmp_path, suffix):
    out = tmp_path / f"out.jsonl{suffix}"
    score(write(data, ROWS[:4]), out, teacher, recipe(), device="cpu")
    assert [row["note"] for _, row in read_jsonl(out)] == list(range(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", out.name]


def test_a_bad_row_is_named_before_a_teacher_is_loaded(data, tmp_path):
    write(data, [*ROWS, {"query": "q", "positive": "p", "negatives": ["n", 3]}])
    with pytest.raises(DataError, match=r"data\.jsonl:41: \[wrong-type\] negatives\[1\]"):
        score(data, tmp_path / "out.jsonl", str(tmp_path / "none"), recipe())
    with pytest.raises(DataError, match="has no rows"):
        score(write(data, []), tmp_path / "out.jsonl", str(tmp_path / "none"), recipe())
    assert list(tmp_path.iterdir()) == [data]


# Teachers that are none


@pytest.mark.parametrize(
    "name, said",
    [
        ("./none", "folder './none' does not exist"),
        ("someone/no-such-reranker", "neither a model folder nor a model that the hub returns: We couldn't connect"),
        (".", r"has no config\.json"),
    ],
)
def test_a_teacher_that_cannot_be_had(name, said, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("score", data, "--out", tmp_path / "out.jsonl", "--teacher", name)
    assert result.exit_code == 2
    assert re.search(f"error: .*{said}", result.output)
    assert list(tmp_path.iterdir()) == [data]


def test_a_classifier_or_an_encoder_without_a_head_is_no_teacher(tmp_path):
    with pytest.raises(TeacherError, match="is a classifier with 3 labels"):
        load_teacher(str(write_model(tmp_path / "three", labels=3)), recipe(), device="cpu")
    with pytest.raises(TeacherError, match=r"no head that scores pairs \(architectures: \['BertModel'\]\)"):
        load_teacher(str(write_model(tmp_path / "bare", BertModel)), recipe(), device="cpu")


def test_a_head_in_a_module_of_its_own_is_one(data, tmp_path):
    torch.manual_seed(3)
    transformer = Transformer(str(write_model(tmp_path / "bert", BertModel)))
    head = Dense(16, 1, activation_function=torch.nn.Identity(), module_input_name="sentence_embedding")
    head.module_output_name = "scores"
    model = CrossEncoder(modules=[transformer, Pooling(16), head], activation_fn=torch.nn.Identity(), device="cpu")
    model.save_pretrained(str(tmp_path / "teacher"))
    score(data, tmp_path / "out.jsonl", str(tmp_path / "teacher"), recipe(), device="cpu")
    row = ROWS[3]
    expected = model.predict([(row["query"], one) for one in (row["positive"], *row["negatives"])])
    assert read(tmp_path / "out.jsonl")[3]["scores"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_code_of_the_repository_is_not_run_unless_trusted(teacher, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(teacher, folder)
    config = json.loads((folder / "config.json").read_text())
    # As jina-reranker-v2 has it: without trust, transformers' own class of that name would be loaded at random.
    config["auto_map"] = {"AutoModelForSequenceClassification": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text(
        "from pathlib import Path\n"
        "from transformers import BertForSequenceClassification as Model\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class Model(Model):\n    pass\n"
    )
    with pytest.raises(TeacherError, match=r"needs its own Python code \(AutoModelForSequence.*--trust-remote-code"):
        load_teacher(str(folder), recipe(), device="cpu")
    assert not (tmp_path / "ran").exists()
    load_teacher(str(folder), recipe(), trust_remote_code=True, device="cpu")
    assert (tmp_path / "ran").exists()


def test_pickled_weights_are_not_read(teacher, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(teacher, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(TeacherError, match="safetensors"):
        load_teacher(str(folder), recipe(), device="cpu")


def test_scores_that_are_no_numbers_stop_the_run(data, teacher, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(teacher, folder)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match="returned nan for query 'what is the"):
        score(data, tmp_path / "out.jsonl", str(folder), recipe(), device="cpu")


# Runs that are stopped


class Stopped(Exception):
    pass


def stop(done: int, total: int) -> None:
    raise Stopped


def test_a_stopped_run_goes_on(data, teacher, tmp_path):
    settings = recipe(batch_size=4, window=2)
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    with pytest.raises(Stopped):
        score(data, out, teacher, settings, device="cpu", progress=stop)
    done = len(read(partial))
    assert 1 <= done < 8
    smaller = recipe(batch_size=2, window=1)
    report = score(data, out, teacher, smaller, device="cpu", resume=True)
    assert (report.resumed_at, report.rows) == (done, 40)
    assert report.pairs == sum(1 + len(row["negatives"]) for row in ROWS)
    for row, expected in zip(read(out), logits(teacher, ROWS), strict=True):
        assert row["scores"] == pytest.approx(expected, abs=1e-5)
    assert not partial.exists()
    with pytest.raises(OutputError, match="already exists"):
        score(data, out, teacher, settings, device="cpu", resume=True)


@pytest.mark.parametrize("what", ["name", "weights"])
def test_a_run_does_not_go_on_with_another_teacher(what, data, teacher, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(teacher, folder)
    out, used = tmp_path / "out.jsonl", str(folder)
    with pytest.raises(Stopped):
        score(data, out, used, recipe(batch_size=4, window=1), device="cpu", progress=stop)
    if what == "name":
        used = "someone/else"
    else:
        write_model(folder, labels=2)
    said = {
        "name": "started with teacher '.*teacher', not 'someone/else'",
        "weights": r"model\.safetensors has changed",
    }
    with pytest.raises(OutputError, match=said[what]):
        score(data, out, used, recipe(), device="cpu", resume=True)


# The command


def test_the_command_scores_and_sums_up(data, teacher, tmp_path):
    out = tmp_path / "out.jsonl"
    result = run("score", data, "--out", out, "--teacher", teacher, "--device", "cpu", "--batch-size", 16)
    assert result.exit_code == 0, result.output
    assert "40 rows, 100 passages scored by" in result.output
    assert "nothing to distil in 10 rows" in result.output
    assert "%" not in result.output  # no bars in a pipe
    result = run("score", out, "--out", tmp_path / "b.jsonl", "--teacher", teacher, "--no-overwrite", "--json")
    summary = {"out": str(tmp_path / "b.jsonl"), "rows": 40, "resumed_at": 0, "pairs": 0, "kept": 40, "lone": 10}
    assert json.loads(result.output) == summary


def test_the_help_says_that_a_teachers_code_is_run():
    result = CliRunner().invoke(app, ["score", "--help"], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})
    text = " ".join(result.output.replace("│", " ").split())
    assert "jinaai/jina-reranker-v2-base-multilingual (which needs --trust-remote-code)" in text
    assert "Run the Python code in the teacher's repository" in text
