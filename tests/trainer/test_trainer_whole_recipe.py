"""The paper's recipe from a plain model to a retriever with six heads, by the commands alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from training_samples import write_rows, write_word_bert
from typer.testing import CliRunner

from jcv2_plugin import JinaColbertEncoder
from jcv2_trainer.cli.app import app

pytestmark = pytest.mark.usefixtures("one_thread")

DIMS = (16, 4, 8, 12, 24, 32)
TOPICS = 30
FILLERS = [f"filler{number}" for number in range(20)]


def asked(topic: int) -> str:
    return f"ask{topic}"


def told(topic: int) -> str:
    return f"tell{topic}"


def passage(topics: list[int], generator: random.Random) -> str:
    words = [told(topic) for topic in topics] + generator.choices(FILLERS, k=4)
    generator.shuffle(words)
    return " ".join(words)


def toy_rows(count: int, seed: int, *, negatives: int = 0) -> list[dict[str, Any]]:
    """Queries ask for three topics by words that passages never have: which word answers which is to be learnt.

    A negative has two of the three topics, and its score says so.
    """
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        topics = generator.sample(range(TOPICS), 3)
        others = [topic for topic in range(TOPICS) if topic not in topics]
        near = [[*generator.sample(topics, 2), generator.choice(others)] for _ in range(negatives)]
        words = [asked(topic) for topic in topics] + generator.choices(FILLERS, k=1)
        rows.append(
            {
                "query": " ".join(words),
                "positive": passage(topics, generator),
                "negatives": [passage(one, generator) for one in near],
                "scores": [3.0] + [2.0] * negatives if negatives else [],
            }
        )
    return rows


def write_plain_bert(folder: Path) -> Path:
    words = [word for topic in range(TOPICS) for word in (asked(topic), told(topic))] + FILLERS
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return write_word_bert(folder, words, max_position_embeddings=40, initializer_range=0.2, **sizes, **dropout)


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())


def accuracy(folder: Path, rows: list[dict[str, Any]], dim: int) -> float:
    """Share of the queries whose positive is ranked first among all positives."""
    encoder = JinaColbertEncoder.from_pretrained(str(folder), device="cpu")
    queries = encoder.encode_query([row["query"] for row in rows], dim=dim)
    passages = encoder.encode_document([row["positive"] for row in rows], dim=dim)
    best = encoder.similarity(queries, passages).argmax(dim=1)
    return float((best == torch.arange(len(rows))).float().mean())


def test_from_a_plain_bert_to_a_retriever_with_six_heads(tmp_path: Path) -> None:
    dev = toy_rows(60, seed=1)
    pairs = write_rows(tmp_path / "pairs.jsonl", toy_rows(600, seed=2))
    triplets = write_rows(tmp_path / "triplets.jsonl", toy_rows(120, seed=3, negatives=3))
    dev_file = write_rows(tmp_path / "dev.jsonl", dev)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(row["positive"] for row in toy_rows(300, seed=4)) + "\n")
    plain, rotary, warm, assembled, paired, final = (
        tmp_path / name for name in ("plain", "rotary", "warm", "assembled", "paired", "final")
    )

    run("check", pairs, triplets)
    run("convert", write_plain_bert(plain), rotary, "--max-positions", 128)
    run("mlm", texts, "--model", rotary, "--out", warm, "--sequence-length", 32, "--max-steps", 5, "--batch-size", 8)
    lengths = ("--query-length", 8, "--document-length", 16)
    run("assemble", warm, "--data", pairs, "--out", assembled, "--dims", ",".join(map(str, DIMS)), *lengths)
    common = ("--dev", dev_file, "--device", "cpu", "--learning-rate", 3e-3, "--head-learning-rate", 3e-3)
    steps = ("--batch-size", 50, "--max-steps", 120, "--evaluations", 2)
    run("pairs", pairs, "--model", assembled, "--out", paired, *steps, *common)
    steps = ("--batch-size", 20, "--max-steps", 12, "--evaluations", 1)
    run("triplets", triplets, "--model", paired, "--out", final, *steps, *common)

    assert report(final)["data"]["with_scores"] == 120
    start, middle, end = report(paired)["before"], report(paired)["after"], report(final)["after"]
    assert list(start) == list(end) == [str(dim) for dim in DIMS]
    assert max(start.values()) < 0.2  # chance, among 60 passages
    assert min(middle.values()) > 0.75
    assert sum(end.values()) > sum(middle.values()) - 0.1
    assert JinaColbertEncoder.from_pretrained(str(final), device="cpu").dims == DIMS
    for dim in DIMS:
        assert accuracy(assembled, dev, dim) < 0.15
        assert accuracy(final, dev, dim) > 0.6
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted(
        path.name for path in (plain, rotary, warm, assembled, paired, final)
    )
