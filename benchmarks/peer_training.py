"""A step of training beside sentence-transformers' trainer and PyLate's: same triplets, lengths, optimiser and loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from encoded import say
from peer_bench import OURS, WINDOW, Bench
from peer_measures import ratios, spread, turns, write_json

TRAINERS = (OURS, "sentence-transformers", "pylate")


@dataclass(frozen=True)
class TrainingScale:
    """How much is trained: ``rounds``, each on other triplets, of ``steps`` steps with ``batch_size`` of them."""

    rounds: int
    steps: int
    batch_size: int
    negatives: int


def train(bench: Bench, scale: TrainingScale) -> list[dict[str, Any]]:
    """A row for each trainer."""
    settings = {
        "batch_size": scale.batch_size,
        "negatives": scale.negatives,
        "steps": scale.steps,
        "document_length": WINDOW,
        "dim": bench.dim,
    }
    model = str(bench.checkpoint())
    chunks = triplets(bench.source, scale)
    with bench.workers({name: name for name in TRAINERS}, None) as workers:
        times: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
        warm = {**settings, "steps": 1}
        rows = write_json(bench.scratch / "rows.json", next(chunks))
        for name, worker in workers.items():
            output = str(bench.scratch / f"trained-{name}")
            done = bench.attempt(
                name,
                "train",
                lambda w=worker, o=output: w.ask("train", model=model, rows=rows, settings={**warm, "output": o}),
            )
            if done is None:
                del times[name]
        for order in turns(list(times), scale.rounds):
            rows = write_json(bench.scratch / "rows.json", next(chunks))
            for name in order:
                output = str(bench.scratch / f"trained-{name}")
                times[name].append(
                    workers[name].ask("train", model=model, rows=rows, settings={**settings, "output": output})
                )
            say(f"training: { {name: measured[-1] for name, measured in times.items()} }")
    triplets_a_round = scale.batch_size * scale.steps
    return [
        {
            "engine": name,
            "batch_size": scale.batch_size,
            "passages_a_triplet": 1 + scale.negatives,
            "triplets_per_second": spread([triplets_a_round / one["clock"] for one in measured]),
            "over_ours": ratios(measured, times[OURS]),
            "peak_bytes": max(one["peak_bytes"] for one in measured),
            "loss_difference": max(
                abs(mine - other)
                for our, their in zip(times[OURS], measured, strict=True)
                for mine, other in zip(our["losses"], their["losses"], strict=True)
            ),
        }
        for name, measured in times.items()
    ]


def triplets(source: list[str], scale: TrainingScale) -> Iterator[list[dict[str, Any]]]:
    """Batches of docstrings: a summary line, the text under it, and other docstrings; no text comes twice in one."""
    split = (text.partition("\n") for text in source)
    pairs = [(line.strip(), rest.strip()) for line, _, rest in split if len(rest.strip()) >= 40 and len(line) >= 20]
    by_body = {rest: line for line, rest in dict(pairs).items()}
    bodies = list(by_body)
    width = 1 + scale.negatives
    per_batch = scale.batch_size * width
    for start in range(0, len(bodies) - per_batch + 1, per_batch):
        part = bodies[start : start + per_batch]
        yield [
            {
                "query": by_body[part[first]],
                "positive": part[first],
                "negatives": part[first + 1 : first + width],
                "lang": "en",
            }
            for first in range(0, per_batch, width)
        ]
