"""Proof that training learns what it should: a domain, from a few of its triplets, on the CPU.

With JCV2_TEST_ALL=1 from 500 triplets in two epochs, whatever the seed.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import starting
import torch
from full import FULL
from training_samples import settings, write_jsonl

from jcv2_trainer.data.reading import Row, read_rows
from jcv2_trainer.training.card import TrainingReport
from jcv2_trainer.training.requests import Request
from jcv2_trainer.training.train import train

SEEDS, TRIPLETS, EPOCHS, MARGIN = ((1, 2, 3), 500, 2.0, 0.01) if FULL else ((1,), 250, 1.0, 0.0)
"""The margin is what every seed must gain in nDCG@10 at both dimensions; over 150 questions."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def medical(data_dir, tmp_path_factory) -> tuple[Path, Path]:
    """Medical triplets, and a dev set of other questions about other answers."""
    rows = [row for row in read_rows(data_dir / "train" / "triplets.jsonl.xz") if row.source == "medquad"]
    folder = tmp_path_factory.mktemp("medical")
    rows.sort(key=lambda row: row.positive)  # by the answer, so that no answer is on both sides
    chosen, held_out = rows[::4][:TRIPLETS], rows[1::4][:150]
    answers = {row.positive for row in chosen}
    held_out = [row for row in held_out if row.positive not in answers]
    write_jsonl(folder / "train.jsonl", [as_triplet(row) for row in chosen])
    write_jsonl(
        folder / "dev.jsonl", [as_triplet(row) if FULL else {**as_triplet(row), "negatives": []} for row in held_out]
    )
    return folder / "train.jsonl", folder / "dev.jsonl"


@pytest.fixture(scope="module")
def reports(medical, tmp_path_factory) -> dict[int, tuple[TrainingReport, float]]:
    """What each seed gave and how many seconds of processor time it took; two at a time, a thread each."""
    folder = tmp_path_factory.mktemp("trained")
    with ProcessPoolExecutor(2, mp_context=starting.CONTEXT) as pool:
        runs = {seed: pool.submit(finetune, *medical, folder / str(seed), seed) for seed in SEEDS}
        return {seed: run.result() for seed, run in runs.items()}


def finetune(data: Path, dev: Path, out: Path, seed: int) -> tuple[TrainingReport, float]:
    torch.set_num_threads(1)
    changes: dict[str, Any] = {
        "dims": (128, 64),
        "seed": seed,
        "evaluations": 1,
        "epochs": EPOCHS,
        "negatives": 2 if FULL else 1,
    }
    started = time.process_time()
    report = train(Request([data], "mini", out, settings("train", **changes), dev=dev, device="cpu"))
    return report, time.process_time() - started


@pytest.mark.parametrize("seed", SEEDS)
def test_triplets_of_a_domain_help_in_it(reports, seed):
    report, seconds = reports[seed]
    print(f"seed {seed}: {report.before} -> {report.after}, {seconds:.0f} s")
    assert seconds < 180
    for dim in (128, 64):
        assert report.after[dim] - report.before[dim] > MARGIN


def as_triplet(row: Row) -> dict[str, Any]:
    """A row with two negatives and the first 25 words of each text: enough to tell answers apart, and quick."""
    positive, *others = (" ".join(text.split()[:25]) for text in (row.positive, *row.negatives))
    negatives = [text for text in dict.fromkeys(others) if text != positive]
    return {"query": row.query, "positive": positive, "negatives": negatives[:2]}
