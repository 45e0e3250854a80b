"""This project beside its peers: the same weights, texts, machine and threads, in rounds that take turns.

Each engine is a process in a virtual environment of its own, with pinned packages (benchmarks/peers/*.txt), made on
the first run under build/peers. Ratios are taken round by round, and their medians reported with the least and the
largest; above 1 is in this project's favour. Tasks:

- encode: documents of three lengths, at each engine's default batch size and its best; vectors are compared. Ours is
  also run in eight bits, in the environment "int8";
- query: one query a call, and all in one;
- index: from texts to an index that can be searched;
- search: storing, bytes, recall@10 against exact MaxSim, and the time of a search;
- train: a step on triplets.

    python benchmarks/peers.py                                          # small scale
    python benchmarks/peers.py --scale full
    python benchmarks/peers.py --tasks encode query --peers pylate --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoded import ROOT, say
from machine import machine
from transformers.utils import logging as transformers_logging

sys.path.append(str(Path(__file__).resolve().parent / "peers"))  # worker.py, which the workers share with this

from peer_bench import OURS, Bench
from peer_encoding import EncodingScale, encode_documents, encode_queries
from peer_environments import FOLDER, PEERS
from peer_storing import StoringScale, ingest, store_and_search
from peer_tables import TABLES, left_out
from peer_training import TrainingScale, train

OUTPUT = ROOT / "build" / "peers.json"
QUIET = 1.0
"""Load of the machine, a core of it taken, above which a run says that its figures are noisy."""


@dataclass(frozen=True)
class Scale:
    """What the tasks do."""

    encoding: EncodingScale
    storing: StoringScale
    training: TrainingScale


SCALES = {
    "tiny": Scale(
        EncodingScale(
            {"short": 24, "100 tokens": 8, "2,000 tokens": 2},
            {"short": (8,), "100 tokens": (4,), "2,000 tokens": (1,)},
            queries=8,
            rounds=2,
        ),
        StoringScale(documents=(150,), queries=6, ingested=24, rounds=1),
        TrainingScale(rounds=1, steps=1, batch_size=2, negatives=2),
    ),
    "small": Scale(
        EncodingScale(
            {"short": 60, "100 tokens": 24, "2,000 tokens": 2},
            {"short": (8,), "100 tokens": (4,), "2,000 tokens": (1,)},
            queries=20,
            rounds=3,
        ),
        StoringScale(documents=(2000,), queries=10, ingested=80, rounds=2),
        TrainingScale(rounds=2, steps=1, batch_size=4, negatives=7),
    ),
    "full": Scale(
        EncodingScale(
            {"short": 200, "100 tokens": 64, "2,000 tokens": 4},
            {"short": (4, 8, 16), "100 tokens": (4, 8, 16), "2,000 tokens": (1, 2)},
            queries=100,
            rounds=5,
        ),
        StoringScale(documents=(2000, 10_000, 20_000), queries=30, ingested=300, rounds=3),
        TrainingScale(rounds=3, steps=1, batch_size=8, negatives=7),
    ),
}
TASKS: dict[str, Callable[[Bench, Scale], list[dict[str, Any]]]] = {
    "encode": lambda bench, scale: encode_documents(bench, scale.encoding),
    "query": lambda bench, scale: encode_queries(bench, scale.encoding),
    "index": lambda bench, scale: ingest(bench, scale.storing),
    "search": lambda bench, scale: store_and_search(bench, scale.storing),
    "train": lambda bench, scale: train(bench, scale.training),
}


def main() -> None:
    options = parse_options()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    load = os.getloadavg()[0]
    if load > QUIET:
        say(f"The machine is busy (load {load:.1f}): these figures will be noisy. Ratios suffer least.")
    with tempfile.TemporaryDirectory(prefix="jcv2-peers-") as scratch:
        bench = Bench(Path(scratch), FOLDER / "models", options.threads, options.peers, options.dim)
        results, seconds = {}, {}
        for task in options.tasks:
            start = time.perf_counter()
            results[task] = TASKS[task](bench, SCALES[options.scale])
            seconds[task] = time.perf_counter() - start
            say(f"{task} took {seconds[task]:.0f} s")
    report = {
        "command": shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]]),
        "scale": options.scale,
        "dim": options.dim,
        "versions": bench.versions,
        "machine": {**machine(), "threads": options.threads, "load": [load, os.getloadavg()[0]]},
        "seconds": seconds,
        "unavailable": bench.unavailable,
        "tasks": results,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for task in options.tasks:
        print(f"\n{task}\n\n{TABLES[task](report)}")
    print(f"\n{left_out(report)}")
    say(f"Written to {options.json}")


def parse_options() -> argparse.Namespace:
    others = [name for name in PEERS if name != OURS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--scale", choices=list(SCALES), default="small", help="tiny only shows that it runs")
    parser.add_argument("--peers", nargs="*", choices=others, default=others)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--json", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
