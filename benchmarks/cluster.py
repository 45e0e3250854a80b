"""What indexing on a cluster costs beside encoding: the constants of the plan in docs/scaling.md.

Seconds are of the processor, so that a machine that does something else beside it changes little. The parts:

- ``reading``: JSON lines, and text files that are split into passages with XLM-RoBERTa's tokenizer, as a worker does;
- ``wire``: bytes for each token vector in a request, over REST and gRPC;
- ``storing``: Qdrant's engine (Edge, the server's as a library) and this package, with vectors that are there already,
  into a collection that grows; vectors are random, texts are real;
- ``driver``: what the driver does for each document;
- ``pipeline``: all of a run on Ray but encoding and storing, by the clock: the most that one driver can pass on. Needs
  the extra ``ray``.

    python benchmarks/cluster.py
    python benchmarks/cluster.py --parts reading driver
"""

from __future__ import annotations

import argparse
import json
import pickle
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from encoded import DATA, PACKAGES, ROOT, say
from machine import machine
from qdrant_client.conversions.conversion import RestToGrpc

from jcv2_plugin import ColbertCollection, Document
from jcv2_plugin.cli.index import DocumentStream, SeenIds
from jcv2_plugin.collection import cluster
from jcv2_plugin.collection.cluster import Cluster, IndexDocuments, Outcome, ReadFiles
from jcv2_plugin.collection.ingest import BATCH_DOCUMENTS, NewDocument, points_of
from jcv2_plugin.collection.planning import Workload, measured, plan
from jcv2_plugin.collection.sources import PassageReader, find_files
from jcv2_plugin.documents import payload_of, point_id
from jcv2_plugin.encoder.named import load_encoder
from jcv2_plugin.engines.base import Point
from jcv2_plugin.engines.qdrant_config import point_struct
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.study.environment import versions

OUTPUT = ROOT / "build" / "cluster.json"
SET = "scifact"
DIM = 64
TOKENS = 120
DOCUMENTS = 100_000_000
SPEEDS = (50_000, 200_000, 600_000)
GIB = 2**30


def processor(work: Callable[[], Any]) -> float:
    """Seconds of the processor that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def columns(files: Iterable[str]) -> dict[str, list[Any]]:
    found = find_files(list(files))
    return {
        "file": list(range(len(found))),
        "path": [bytes(one.path.absolute()) for one in found],
        "name": [one.name.encode() for one in found],
    }


def measure_reading(encoder: Any, texts: list[str]) -> dict[str, float]:
    """Documents and tokens a second of one core."""
    count = encoder.token_counter()
    with tempfile.TemporaryDirectory(prefix="jcv2-cluster-") as name:
        folder = Path(name)
        rows = (json.dumps({"_id": str(n), "title": "", "text": text}) + "\n" for n, text in enumerate(texts))
        (folder / "rows.jsonl").write_text("".join(rows))
        (folder / "texts").mkdir()
        for start in range(0, min(len(texts), 2000), 20):
            (folder / "texts" / f"{start}.txt").write_text("\n\n".join(texts[start : start + 20]))
        work = ReadFiles(PassageReader(encoder), strict=True)
        lines = processor(lambda: [pickle.dumps(rows) for rows in work(columns([str(folder / "rows.jsonl")]))])
        passages: list[str] = []

        def split() -> None:
            for rows in work(columns([str(folder / "texts")])):
                passages.extend(text for text in rows["text"] if text)

        splitting = processor(split)
        return {
            "JSON lines": len(texts) / lines,
            "passages": len(passages) / splitting,
            "tokens a passage": sum(map(count, passages)) / len(passages),
            "tokens split": sum(map(count, passages)) / splitting,
        }


def random_vectors(number: int, tokens: int, chance: np.random.Generator) -> list[Any]:
    made = chance.standard_normal((number, tokens, DIM), dtype=np.float32)
    made /= np.linalg.norm(made, axis=2, keepdims=True)
    return list(made)


def measure_wire() -> dict[str, float]:
    """Bytes for each token vector in the request of an upsert."""
    (matrix,) = random_vectors(1, TOKENS, np.random.default_rng(0))
    point = point_struct(Point(point_id("a"), matrix, {}, {}), "float16", local=False)
    rest = len(point.model_dump_json(exclude_none=True).encode())
    return {"REST": rest / TOKENS, "gRPC": RestToGrpc.convert_point_struct(point).ByteSize() / TOKENS}


def measure_storing(texts: list[str], sizes: list[int]) -> list[dict[str, Any]]:
    """Seconds of the processor for each document, between one size of the collection and the next."""
    encoder, chance = load_encoder("mini", dims=DIM, device="cpu"), np.random.default_rng(0)
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="jcv2-cluster-") as name,
        ColbertCollection.create(Path(name) / "c", encoder=encoder, dim=DIM) as collection,
    ):
        before = 0
        for size in sizes:
            storing = making = 0.0
            for start in range(before, size, BATCH_DOCUMENTS):
                numbers = range(start, min(start + BATCH_DOCUMENTS, size))
                made = [Document(texts[n % len(texts)][: TOKENS * 5], f"d{n}") for n in numbers]
                new = [NewDocument(point_id(str(one.id)), one, payload_of(one)) for one in made]
                vectors = random_vectors(len(new), TOKENS, chance)
                began = time.process_time()
                points = points_of(collection.current, new, vectors=vectors)
                making += time.process_time() - began
                storing += processor(lambda points=points: collection.engine.upsert(points))  # type: ignore[misc]
            optimizing = processor(collection.engine.optimize)
            added = size - before
            rows.append(
                {
                    "documents": size,
                    "worker, ms a document": 1000 * making / added,
                    "engine, ms a document": 1000 * (storing + optimizing) / added,
                }
            )
            say(json.dumps(rows[-1]))
            before = size
    return rows


class _Fixed:
    """A cluster whose workers have done their work."""

    def __init__(self, outcomes: list[bytes]) -> None:
        self._outcomes = outcomes

    def index(self, *_: Any, **__: Any) -> Any:
        for outcome in self._outcomes:
            yield pickle.loads(outcome)


def measure_driver(encoder: Any, number: int) -> float:
    """Documents a second that the driver takes note of."""
    outcomes = [
        pickle.dumps(Outcome(files=[0] * 1000, ids=[f"document-{start + n}" for n in range(1000)], written=1000))
        for start in range(0, number, 1000)
    ]
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file, closing(SeenIds()) as seen:
        stream = DocumentStream(PassageReader(encoder), find_files([file.name]), seen, strict=True)
        fixed: Any = _Fixed(outcomes)
        return number / processor(lambda: stream.index_on(fixed, lambda done: None))


class Passed(IndexDocuments):
    """Takes documents and stores none."""

    def _stored(self, documents: Iterable[Document]) -> dict[str, list[int]]:
        return {"written": [len(list(documents))], "unchanged": [0], "blank": [0]}


def measure_pipeline(encoder: Any, texts: list[str], number: int) -> dict[str, float]:
    """Documents a second by the clock, and the seconds that a local cluster takes to start."""
    vars(cluster)["IndexDocuments"] = Passed
    with tempfile.TemporaryDirectory(prefix="jcv2-cluster-") as name:
        parts = 8
        for part in range(parts):
            rows = (
                json.dumps({"id": str(n), "text": texts[n % len(texts)][: TOKENS * 5]}) + "\n"
                for n in range(part, number, parts)
            )
            (Path(name) / f"{part}.jsonl").write_text("".join(rows))
        workers = Cluster("local", "http://127.0.0.1:1", {}, 2)
        began = time.perf_counter()
        times: list[tuple[float, int]] = []
        with closing(SeenIds()) as seen:
            stream = DocumentStream(PassageReader(encoder), find_files([name]), seen, strict=True)
            stream.index_on(workers, lambda done: times.append((time.perf_counter(), done)))
        first = times[0][0]
        return {
            "seconds to the first block": first - began,
            "documents a second": sum(done for _, done in times[1:]) / (times[-1][0] - first),
        }


def table(report: Mapping[str, Any]) -> str:
    """The constants."""
    reading, wire, storing = report["reading"], report["wire"], report["storing"]
    lines = [
        ("JSON lines read by a core", f"{reading['JSON lines']:,.0f} documents/s"),
        (
            f"texts split by a core, into passages of {reading['tokens a passage']:.0f} tokens",
            f"{reading['passages']:,.0f} passages/s",
        ),
        ("documents noted by the driver", f"{report['driver']:,.0f} documents/s"),
        *(
            (f"a token vector of {DIM} dimensions in a request over {name}", f"{size:,.0f} bytes")
            for name, size in wire.items()
        ),
        *(
            item
            for row in storing
            for item in (
                (
                    f"a worker's part in storing, beside encoding, up to {row['documents']:,} documents",
                    f"{row['worker, ms a document']:.2f} ms/document",
                ),
                (
                    f"the engine's part, with its index, up to {row['documents']:,} documents",
                    f"{row['engine, ms a document']:.2f} ms/document",
                ),
            )
        ),
    ]
    if "pipeline" in report:
        lines += [
            (
                "a run on two workers of Ray without encoding and storing, everything on this machine",
                f"{report['pipeline']['documents a second']:,.0f} documents/s",
            ),
            ("from the start of Ray to the first block", f"{report['pipeline']['seconds to the first block']:.0f} s"),
        ]
    return "\n".join(("| what | measured |", "|---|--:|", *(f"| {what} | {found} |" for what, found in lines)))


def plan_table(report: Mapping[str, Any]) -> str:
    """Disk, memory and shards of 100M documents."""
    lines = [
        "| dim | storage | pooling | disk of a copy, TiB | memory of a copy, GiB | shards | by "
        "| vectors in memory, GiB |",
        "|--:|---|--:|--:|--:|--:|---|--:|",
    ]
    storages: tuple[Any, ...] = ("float16", "int8", "turbo4")
    for dim in (128, 64):
        for storage in storages:
            for factor in (1, 2):
                made = plan(Workload(DOCUMENTS, TOKENS, dim, storage, pool_factor=factor))
                lines.append(
                    f"| {dim} | {storage} | {factor} | {made.total_disk / 2**40:,.1f} | {made.total_memory / GIB:,.0f} "
                    f"| {made.shards} | {made.limited_by} | {made.cached_vectors / GIB:,.0f} |"
                )
    return "\n".join(lines)


def hours_table(report: Mapping[str, Any]) -> str:
    """Hours of cards, readers and engines for 100M documents, by the tokens a second of a card."""
    wire, storing = report["wire"], report["storing"][-1]
    engine = DOCUMENTS * storing["engine, ms a document"] / 1000 / 3600
    lines = [
        "| tokens/s of a card (assumed) | card-hours | hours on 8 cards | documents/s in all | cores that split texts "
        "| cores of the servers' engines | gRPC, Gbit/s |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for speed in SPEEDS:
        hours = DOCUMENTS * TOKENS / speed / 3600
        rate = 8 * speed / TOKENS
        lines.append(
            f"| {speed:,} | {hours:,.0f} | {hours / 8:,.1f} | {rate:,.0f} "
            f"| {rate * TOKENS / report['reading']['tokens split']:,.0f} | {engine / (hours / 8):,.0f} "
            f"| {rate * TOKENS * wire['gRPC'] * 8 / 1e9:,.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("reading", "wire", "driver", "storing", "pipeline")
    parser.add_argument("--parts", nargs="*", choices=parts, default=parts)
    parser.add_argument("--sizes", nargs="*", type=int, default=[2_000, 8_000])
    parser.add_argument("--passed", type=int, default=200_000, help="documents of the part pipeline")
    options = parser.parse_args()
    texts = [document.text for document in BeirDataset.read(DATA / SET).documents()]
    report = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else {}
    encoder = load_encoder("mini-multilingual", dims=DIM, device="cpu")
    measures: dict[str, Callable[[], Any]] = {
        "reading": lambda: measure_reading(encoder, texts),
        "wire": measure_wire,
        "driver": lambda: measure_driver(encoder, 500_000),
        "storing": lambda: measure_storing(texts, options.sizes),
        "pipeline": lambda: measure_pipeline(encoder, texts, options.passed),
    }
    for name, measure in measures.items():
        if name in options.parts:
            report[name] = measure()
            say(f"{name}: {json.dumps(report[name])}")
            report["command"] = shlex.join(["python", "benchmarks/cluster.py", *sys.argv[1:]])
            report["versions"], report["machine"] = versions((*PACKAGES, "ray")), machine()
            OUTPUT.parent.mkdir(exist_ok=True)
            OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    say(f"{table(report)}\n\n{plan_table(report)}\n\n{hours_table(report)}\n\n{json.dumps(measured()['source'])}")


if __name__ == "__main__":
    main()
