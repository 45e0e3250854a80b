"""Ingestion: memory as the corpus grows, and what storing costs beside encoding.

Three measurements, on Qdrant Edge with the model mini:

- ``memory``: private (anonymous) and peak memory after each 10,000 documents of a stream of so many; texts are made
  up, and short, so that it ends soon;
- ``overlap``: documents a second end to end, divided by those of the encoder alone on the same documents, medians of
  alternating rounds; beside it the same without overlapping;
- ``repeat``: the time of a second run, in which nothing has changed, divided by that of the first.

    python benchmarks/ingestion.py
    python benchmarks/ingestion.py --parts memory --documents 20000
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from encoded import PACKAGES, ROOT, say
from machine import machine

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.checks import in_batches
from jcv2_plugin.collection.ingest import BATCH_DOCUMENTS, changed, points_of

OUTPUT = ROOT / "build" / "ingestion.json"
WORDS = (
    *("harbour", "ship", "tide", "captain", "cargo", "anchor", "storm", "lighthouse", "rope", "sail", "port", "island"),
    *("crew", "voyage", "map", "compass", "wind", "river", "bridge", "market", "grain", "salt", "timber", "copper"),
    *("wool", "letter", "ledger", "council", "tax", "guild", "apprentice", "tower", "gate", "bell"),
)


def documents(count: int, words: int, seed: int = 0) -> Iterator[Document]:
    """Texts that are made up, of about so many words each."""
    chance = random.Random(seed)
    for number in range(count):
        length = max(3, int(chance.gauss(words, words / 4)))
        yield Document(" ".join(chance.choices(WORDS, k=length)), f"document-{number}", {"number": number})


def anonymous_memory() -> int:
    """Private memory of this process that no file stands behind, in bytes."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def measure_memory(encoder: JinaColbertEncoder, count: int, words: int, dim: int) -> list[dict[str, Any]]:
    """Memory while a stream is ingested."""
    rows: list[dict[str, Any]] = []
    stored = 0
    start = time.perf_counter()

    def progress(more: int) -> None:
        nonlocal stored
        before, stored = stored, stored + more
        if stored // 10_000 > before // 10_000 or stored == count:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            rows.append({"documents": stored, "anonymous MiB": anonymous_memory() >> 20, "peak MiB": peak >> 20})
            say(f"{json.dumps(rows[-1])}, {stored / (time.perf_counter() - start):.0f} documents/s")

    with (
        tempfile.TemporaryDirectory(prefix="jcv2-ingest-") as root,
        ColbertCollection.create(Path(root) / "c", encoder=encoder, dim=dim) as collection,
    ):
        collection.ingest(documents(count, words), progress=progress, journal=Path(root) / "journal")
        assert collection.count() == count
    return rows


def measure_overlap(encoder: JinaColbertEncoder, count: int, words: int, dim: int, rounds: int) -> dict[str, float]:
    """The encoder alone, all of ingest(), and the same steps one after the other.

    Beside the time on the clock, which other work on the machine upsets, the processor's time of this process.
    """
    names = ("ingest()", "one after the other")
    ratios: dict[str, list[float]] = {
        f"{name} / encoder, {kind}": [] for kind in ("clock", "processor") for name in names
    }
    ratios["encoder / ingest() again, clock"] = []
    for number in range(rounds + 1):
        items = list(documents(count, words, seed=number))
        with tempfile.TemporaryDirectory(prefix="jcv2-ingest-") as root:
            alone = _times(partial(_encode, encoder, items, dim))
            with ColbertCollection.create(Path(root) / "a", encoder=encoder, dim=dim) as collection:
                whole = _times(partial(collection.ingest, items))
                again = _times(partial(collection.ingest, items))
            with ColbertCollection.create(Path(root) / "b", encoder=encoder, dim=dim) as collection:
                apart = _times(partial(_one_after_the_other, collection, items))
        if number == 0:  # the first round warms up
            continue
        for name, times in zip(names, (whole, apart), strict=True):
            for kind, own, encoding in zip(("clock", "processor"), times, alone, strict=True):
                ratios[f"{name} / encoder, {kind}"].append(encoding / own)
        ratios["encoder / ingest() again, clock"].append(alone[0] / again[0])
        say(f"encoder alone {count / alone[0]:.0f} documents/s, { ({k: round(v[-1], 3) for k, v in ratios.items()}) }")
    return {name: statistics.median(values) for name, values in ratios.items()}


def _times(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def _encode(encoder: JinaColbertEncoder, items: list[Document], dim: int) -> None:
    for batch in in_batches(items, BATCH_DOCUMENTS):
        encoder.document_vectors([one.text for one in batch], dim)


def _one_after_the_other(collection: ColbertCollection, items: list[Document]) -> None:
    current = collection.current
    for batch in in_batches(items, BATCH_DOCUMENTS):
        current.engine.upsert(points_of(current, changed(current.engine, batch)))
    current.engine.optimize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["overlap", "memory"], choices=["overlap", "memory"])
    parser.add_argument("--documents", type=int, default=100_000, help="of the memory measurement")
    parser.add_argument("--words", type=int, default=12, help="of a document of the memory measurement")
    parser.add_argument("--overlap-documents", type=int, default=512)
    parser.add_argument("--overlap-words", type=int, default=90)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dim", type=int, default=64)
    options = parser.parse_args()
    encoder = JinaColbertEncoder.from_pretrained("mini", dims=options.dim, device="cpu")
    source: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/ingestion.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": machine(),
    }
    # The parts may be measured one by one.
    report: dict[str, Any] = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else {}
    if "overlap" in options.parts:
        ratios = measure_overlap(encoder, options.overlap_documents, options.overlap_words, options.dim, options.rounds)
        report["overlap"] = {"ratios": ratios, **source}
        print(json.dumps(ratios))
    if "memory" in options.parts:
        rows = measure_memory(encoder, options.documents, options.words, options.dim)
        report["memory"] = {"rows": rows, **source}
        print(json.dumps(rows))
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    say(f"Written to {OUTPUT}")


if __name__ == "__main__":
    main()
