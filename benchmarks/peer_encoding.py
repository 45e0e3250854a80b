"""Encoding beside the peers: documents of three lengths, in bulk; queries, one at a time and in bulk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import peer_texts
from encoded import say
from peer_bench import INT8, OPENVINO, OURS, Bench, window_of
from peer_measures import ratios, spread, turns, write_json
from peer_process import Worker
from worker import read_vectors

ENCODERS = {OURS: OURS, **{name: name for name in ("sentence-transformers", "pylate", "fastembed")}, INT8: "int8"}
"""Names of rows, and whose worker each is."""
QUERY_ENCODERS = {**ENCODERS, OPENVINO: "jcv2-openvino"}
"""Those of queries; documents are encoded in torch all the same."""


@dataclass(frozen=True)
class EncodingScale:
    """How much is encoded.

    Attributes:
        documents: Texts of each kind of :data:`peer_texts.LENGTHS`.
        batch_sizes: What a peer's best is chosen of, for each kind.
        queries: Texts.
        rounds: In which the engines take turns.
    """

    documents: dict[str, int]
    batch_sizes: dict[str, tuple[int, ...]]
    queries: int
    rounds: int


def encode_documents(bench: Bench, scale: EncodingScale) -> list[dict[str, Any]]:
    """A row for each kind of text, engine and batch size: the default, and the best found."""
    rows: list[dict[str, Any]] = []
    for window, kinds in groupby(scale.documents, key=window_of):
        with bench.workers(ENCODERS, bench.checkpoint(window)) as workers:
            for kind in kinds:
                number = scale.documents[kind]
                texts = peer_texts.documents(kind, number, bench.tokens, bench.source)
                file = write_json(bench.scratch / "texts.json", texts)
                tokens = spread([float(bench.tokens(text)) for text in texts])
                about = {"kind": kind, "documents": number, "tokens": tokens}
                measured = _measure(bench, workers, file, scale, scale.batch_sizes[kind], kind)
                rows += [{**about, **row} for row in measured]
    return rows


def _measure(
    bench: Bench, workers: dict[str, Worker], file: str, scale: EncodingScale, sizes: Sequence[int], kind: str
) -> Iterator[dict[str, Any]]:
    first = {name: _first(bench, worker, file, "document") for name, worker in workers.items()}
    runs: list[tuple[str, int | None]] = [(OURS, None)]
    for name, worker in workers.items():
        if name == OURS or first[name] is None:
            continue
        if name == INT8:
            runs.append((name, None))
            continue
        swept = {size: worker.ask("encode", texts=file, role="document", batch=size)["clock"] for size in sizes}
        best = min(swept, key=lambda size: swept[size])
        runs += [(name, None), (name, best)]
        say(f"{kind}: {name}, seconds by batch size {swept}")
    times: dict[tuple[str, int | None], list[dict[str, Any]]] = {run: [] for run in runs}
    for order in turns(runs, scale.rounds):
        for name, size in order:
            times[name, size].append(workers[name].ask("encode", texts=file, role="document", batch=size))
    ours, int8 = times[OURS, None], times.get((INT8, None))
    for (name, size), measured in times.items():
        row = {
            "engine": name,
            "batch": size,
            "documents_per_second": spread([one["texts"] / one["clock"] for one in measured]),
            "over_ours": ratios(measured, ours),
            "over_int8": None if int8 is None else ratios(measured, int8),
            "peak_bytes": max(one["peak_bytes"] for one in measured),
            "vectors": measured[0]["vectors"],
            **first[name],
        }
        say(f"{kind}: {name}, batch {size or 'default'}: {row['over_ours']}, {row['difference']}")
        yield row


def encode_queries(bench: Bench, scale: EncodingScale) -> list[dict[str, Any]]:
    """A row for each engine: one query a call, and all in one."""
    texts = peer_texts.queries(scale.queries, bench.source)
    file = write_json(bench.scratch / "queries.json", texts)
    with bench.workers(QUERY_ENCODERS, bench.checkpoint()) as workers:
        first = {name: _first(bench, worker, file, "query") for name, worker in workers.items()}
        names = [name for name in workers if first[name] is not None]
        for name in names:  # one by one, as an engine may have another way for single texts
            save = bench.scratch / f"{name}-single.npz"
            workers[name].ask("encode_each", texts=file, role="query", save=str(save))
            first[name]["single_difference"] = difference(bench.scratch / f"{OURS}-query.npz", save)  # type: ignore[index]
        bulk: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        each: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for order in turns(names, scale.rounds):
            for name in order:
                bulk[name].append(workers[name].ask("encode", texts=file, role="query"))
                single = workers[name].ask("encode_each", texts=file, role="query")
                each[name] += [
                    {"clock": clock, "processor": processor}
                    for clock, processor in zip(single["clock"], single["processor"], strict=True)
                ]
    return [
        {
            "engine": name,
            "queries": len(texts),
            "milliseconds": spread([1000 * one["clock"] for one in each[name]]),
            "single_over_ours": ratios(each[name], each[OURS]),
            "queries_per_second": spread([len(texts) / one["clock"] for one in bulk[name]]),
            "single_over_openvino": ratios(each[name], each[OPENVINO]) if OPENVINO in each else None,
            "single_over_int8": ratios(each[name], each[INT8]) if INT8 in each else None,
            "bulk_over_ours": ratios(bulk[name], bulk[OURS]),
            **first[name],
        }
        for name in names
    ]


def _first(bench: Bench, worker: Worker, file: str, role: str) -> dict[str, Any] | None:
    """A run to warm up, whose vectors are compared with ours; None if the engine fails."""
    save = bench.scratch / f"{worker.name}-{role}.npz"
    done = bench.attempt(worker.name, f"{role}s", lambda: worker.ask("encode", texts=file, role=role, save=str(save)))
    if done is None:
        return None
    return {"difference": difference(bench.scratch / f"{OURS}-{role}.npz", save)}


def difference(ours: Path, theirs: Path) -> float | str:
    """The largest difference of a component; a text where the numbers of vectors differ."""
    pairs = list(zip(read_vectors(ours), read_vectors(theirs), strict=True))
    unlike = sum(one.shape != other.shape for one, other in pairs)
    if unlike:
        return f"{unlike} of {len(pairs)} texts have another number of vectors"
    return max(float(np.abs(one - other).max()) for one, other in pairs)
