"""Triplets a second in training, side by side with sentence-transformers' trainer.

Both trainers train the same model (mini's backbone and its head of 128 dimensions, all weights) on the same real
triplets: same batch, lengths, optimiser and loss (InfoNCE over all passages of the batch). What differs is how the
batch is padded. Then ours with one head and with six. Every round takes other triplets, and the engines take turns.

    python benchmarks/training_throughput.py --rounds 5

The figures are ratios of processor time, which other work on the machine disturbs least; ratios of clock time stand
beside them. Losses must be equal to 1e-4 at every step, or the script fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, List, Value
from machine import machine
from transformers.utils import logging

from jcv2_plugin import JinaColbertEncoder
from jcv2_trainer.data.check import text_key
from jcv2_trainer.data.reading import read_rows
from jcv2_trainer.recipes import load_recipe
from jcv2_trainer.recipes.settings import TrainingRecipe
from jcv2_trainer.training.train import build_trainer

sys.path.append(str(Path(__file__).resolve().parent / "peers"))

from training import losses_of, without_dropout
from worker_sentence_transformers import make_trainer

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("JCV2_DATA") or ROOT / ".." / "shared" / "data")
OUTPUT = ROOT / "build" / "training_throughput.json"
PACKAGES = ("torch", "sentence-transformers", "transformers", "accelerate")
SIX = (128, 32, 64, 96, 256, 384)
TOLERANCE = 1e-4


def main() -> None:
    options = parse_options()
    logging.disable_progress_bar()
    chunks = list(triplets(options.data / "train" / "triplets.jsonl.xz", options))
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        JinaColbertEncoder.from_pretrained("mini", dims=128, device="cpu").export(Path(scratch, "one"))
        settings = {**vars(options), "output": f"{scratch}/output"}
        for number, chunk in enumerate(chunks):
            engines: dict[str, Callable[[], Any]] = {
                "sentence-transformers": lambda: make_trainer(f"{scratch}/one", chunk, settings),  # noqa: B023
                "one head": lambda: ours("mini", (128,), chunk, settings),  # noqa: B023
                "six heads": lambda: ours("mini", SIX, chunk, settings),  # noqa: B023
            }
            names = list(engines)
            order = names[number % 3 :] + names[: number % 3]  # none is always first
            measured = {name: measure(engines[name]()) for name in order}
            check_equal(measured["sentence-transformers"]["losses"], measured["one head"]["losses"])
            rounds.append(measured)
            say(f"round {number + 1}: " + ", ".join(f"{name} {measured[name]['processor']:.1f} s" for name in names))
    report = summarise(rounds, options)
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(markdown(report))
    say(f"Written to {OUTPUT}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="each on other triplets")
    parser.add_argument("--batch-size", type=int, default=8, help="triplets a step")
    parser.add_argument("--negatives", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps on the triplets of a round")
    parser.add_argument("--document-length", type=int, default=300)
    parser.add_argument("--lang", default="en", help="of the triplets; 'all' for any")
    parser.add_argument("--data", type=Path, default=DATA, help="default: $JCV2_DATA, or ../shared/data")
    return parser.parse_args()


def triplets(path: Path, options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Batches from all over the file, in which no text comes twice: equal texts count once with us only.

    Args:
        path: File of triplets.
        options: ``batch_size``, ``negatives`` (a triplet), ``rounds`` (how many batches) and ``lang``.
    """
    rows = [row for row in read_rows(path) if options.lang in ("all", row.lang)]
    generator = torch.Generator().manual_seed(13)
    order = iter(torch.randperm(len(rows), generator=generator).tolist())
    for _ in range(options.rounds):
        chunk: list[dict[str, Any]] = []
        seen: set[str] = set()
        while len(chunk) < options.batch_size:
            row = rows[next(order)]
            negatives = list(row.negatives[: options.negatives])
            texts = [row.query, row.positive, *negatives]
            if len(row.negatives) >= options.negatives and not seen & set(texts):
                seen.update(texts)
                chunk.append({"query": row.query, "positive": row.positive, "negatives": negatives, "lang": row.lang})
        yield chunk


def ours(model: str, dims: tuple[int, ...], chunk: list[dict[str, Any]], options: dict[str, Any]) -> Any:
    encoder = JinaColbertEncoder.from_pretrained(model, dims=dims, device="cpu")
    without_dropout(encoder)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_("pooler" not in name)
    changes = {
        "contrastive_weight": 1.0,
        "distillation_weight": 0.0,
        "document_length": options["document_length"],
        "negatives": options["negatives"],
        "batch_size": options["batch_size"],
        "epochs": float(options["steps"]),
        "learning_rate": 1e-5,
        "head_learning_rate": 1e-5,
        "weight_decay": 0.01,
        "scheduler": "constant",
        "warmup": 0.0,
        "log_every": 1,
        "lora": False,
        "pool_factors": options.get("pool_factors", (1.0,)),
    }
    settings = load_recipe(TrainingRecipe, "triplets", None, changes)
    rows = Dataset.from_list(
        [
            {
                **row,
                "scores": [],
                "source": "benchmark",  # one batch, whatever its sources
                "query_key": text_key(row["query"]),
                "positive_key": text_key(row["positive"]),
            }
            for row in chunk
        ]
    )
    return build_trainer(encoder, settings, rows.cast_column("scores", List(Value("float64"))), Path(options["output"]))


def measure(trainer: Any) -> dict[str, Any]:
    clock, processor = time.perf_counter(), time.process_time()
    trainer.train()
    return {
        "clock": time.perf_counter() - clock,
        "processor": time.process_time() - processor,
        "losses": losses_of(trainer),
    }


def check_equal(first: list[float], second: list[float]) -> None:
    if len(first) != len(second) or any(abs(one - other) > TOLERANCE for one, other in zip(first, second, strict=True)):
        raise SystemExit(f"The losses differ, so the comparison is void: {first} and {second}.")


def summarise(rounds: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    def ratio(slower: str, faster: str, time_kind: str) -> float:
        return statistics.median(one[slower][time_kind] / one[faster][time_kind] for one in rounds)

    return {
        "command": shlex.join(["python", "benchmarks/training_throughput.py", *sys.argv[1:]]),
        "batch_size": options.batch_size,
        "passages_a_triplet": 1 + options.negatives,
        "document_length": options.document_length,
        "rounds": len(rounds),
        "threads": torch.get_num_threads(),
        "speed_over_sentence_transformers": {
            kind: ratio("sentence-transformers", "one head", kind) for kind in ("processor", "clock")
        },
        "six_heads_over_sentence_transformers_one": {
            kind: ratio("sentence-transformers", "six heads", kind) for kind in ("processor", "clock")
        },
        "cost_of_six_heads": {kind: ratio("six heads", "one head", kind) for kind in ("processor", "clock")},
        "largest_loss_difference": max(
            abs(one - other)
            for measured in rounds
            for one, other in zip(
                measured["sentence-transformers"]["losses"], measured["one head"]["losses"], strict=True
            )
        ),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": machine(),
        "each": rounds,
    }


def markdown(report: dict[str, Any]) -> str:
    speed, cost = report["speed_over_sentence_transformers"], report["cost_of_six_heads"]
    six = report["six_heads_over_sentence_transformers_one"]
    return "\n".join(
        [
            "| | processor time | clock |",
            "|---|--:|--:|",
            f"| triplets a second, one head, over sentence-transformers' | {speed['processor']:.2f}x | "
            f"{speed['clock']:.2f}x |",
            f"| triplets a second, six heads, over sentence-transformers' with one | {six['processor']:.2f}x | "
            f"{six['clock']:.2f}x |",
            f"| cost of six heads over one | {cost['processor']:.2f}x | {cost['clock']:.2f}x |",
            f"| largest difference of the losses | {report['largest_loss_difference']:.1e} | |",
        ]
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
