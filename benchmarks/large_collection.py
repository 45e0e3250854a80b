"""A collection of up to 100,000 real passages on Qdrant Edge, as it grows.

For each storage profile, in a process of its own: storing and optimising, disk, opening,
memory, one search and searches of several threads, recall@10 against exact MaxSim, two filters without and
with a payload index, and adding and deleting 1,000 documents at the end. Passages and queries are those of
``large_texts.py``; queries are encoded beforehand, so a search is what the collection does.

    python benchmarks/large_collection.py
    python benchmarks/large_collection.py --storages turbo4 --sizes 2000 10000
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoded import PACKAGES, ROOT, say
from large_texts import CACHE, DIM, LargeCorpus, read_large
from machine import machine
from qdrant_client import models

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.collection.search import CANDIDATES
from jcv2_plugin.documents import ID_KEY, payload_of, point_id
from jcv2_plugin.engines.base import Candidates, Point, SearchRequest

OUTPUT = ROOT / "build" / "large_collection.json"
K = 10
THREADS = (1, 2, 4)
CHANGED = 1_000
_BATCH = 256
_EXACT_BLOCK = 50
BUCKET = "metadata.bucket"
FILTERS = {
    "1 %": models.Filter(must=[models.FieldCondition(key=BUCKET, match=models.MatchValue(value=7))]),
    "30 %": models.Filter(must=[models.FieldCondition(key=BUCKET, range=models.Range(lt=30))]),
}


def exact_top(corpus: LargeCorpus, sizes: Sequence[int]) -> dict[int, list[list[str]]]:
    """The ids of the best documents of each query by MaxSim, among the first so many; kept in build/large."""
    file = CACHE / f"exact-{len(corpus.query_vectors)}-{'-'.join(map(str, sizes))}.json"
    if file.exists():
        return {int(size): found for size, found in json.loads(file.read_text()).items()}
    say("exact MaxSim, once")
    count, dim = len(corpus.query_vectors), corpus.query_vectors[0].shape[1]
    flat = torch.from_numpy(np.concatenate(corpus.query_vectors)).T.contiguous()
    owners = torch.repeat_interleave(torch.arange(count), torch.tensor([len(one) for one in corpus.query_vectors]))
    best, at = torch.full((count, K), -torch.inf), torch.zeros((count, K), dtype=torch.long)
    found: dict[int, list[list[str]]] = {}
    for start in range(0, max(sizes), _EXACT_BLOCK):
        part = [torch.from_numpy(one.astype(np.float32)) for one in corpus.vectors[start : start + _EXACT_BLOCK]]
        longest = max(map(len, part))
        # Repeating a row changes no maximum.
        padded = torch.stack([torch.cat([one, one[:1].expand(longest - len(one), dim)]) for one in part])
        scores = torch.zeros(len(part), count).index_add_(1, owners, (padded @ flat).amax(dim=1)).T
        numbers = torch.arange(start, start + len(part)).expand(count, len(part))
        best, chosen = torch.cat([best, scores], dim=1).topk(K)
        at = torch.cat([at, numbers], dim=1).gather(1, chosen)
        if start + len(part) in sizes:
            found[start + len(part)] = [[str(one) for one in row] for row in at.tolist()]
    file.write_text(json.dumps(found))
    return found


def points(collection: ColbertCollection, corpus: LargeCorpus, start: int, stop: int) -> Iterator[list[Point]]:
    """Points of the passages with these numbers, in batches."""
    for first in range(start, stop, _BATCH):
        part = slice(first, min(first + _BATCH, stop))
        matrices = [one.astype(np.float32) for one in corpus.vectors[part]]
        stages = collection.current.stage_vectors(corpus.texts[part], matrices)
        yield [
            Point(
                point_id(str(number)),
                matrix,
                payload_of(Document(text, str(number), {"bucket": number % 100})),
                stage,
            )
            for number, text, matrix, stage in zip(
                range(part.start, part.stop), corpus.texts[part], matrices, stages, strict=True
            )
        ]


def store(collection: ColbertCollection, corpus: LargeCorpus, start: int, stop: int) -> dict[str, float]:
    """Store passages, then optimise. Milliseconds a document: making points, writing; and in all: optimising."""
    making = writing = 0.0
    clock = time.perf_counter()
    for batch in points(collection, corpus, start, stop):
        made = time.perf_counter()
        collection.engine.upsert(batch)
        written = time.perf_counter()
        making, writing, clock = making + made - clock, writing + written - made, written
    stopped = longest_stop(collection.optimize)
    optimizing = time.perf_counter() - clock
    each = 1000 / (stop - start)
    return {
        "making points": making * each,
        "writing": writing * each,
        "optimising": optimizing * 1000,
        "longest stop": stopped * 1000,
    }


def longest_stop(work: Callable[[], object]) -> float:
    """Seconds for which other threads, such as an event loop, stood still at most while this was done in a thread."""
    thread = threading.Thread(target=work)
    thread.start()
    longest, last = 0.0, time.perf_counter()
    while thread.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    thread.join()
    return longest


def requests(collection: ColbertCollection, corpus: LargeCorpus) -> list[SearchRequest]:
    """The queries, with the collection's first stage and the usual number of candidates."""
    names = [stage.name for stage in collection.current.stages]
    stages = collection.current.query_stages(names, corpus.queries, corpus.query_vectors)
    return [
        SearchRequest(vectors, Candidates(own, CANDIDATES))
        for vectors, own in zip(corpus.query_vectors, stages, strict=True)
    ]


def timed(collection: ColbertCollection, asked: Sequence[SearchRequest], filter: models.Filter | None = None) -> Any:
    """Milliseconds of each search, and the ids that it found."""
    times, found = [], []
    for request in asked:
        start = time.perf_counter()
        hits = collection.engine.search([request], K, filter=filter, score_threshold=None)[0]
        times.append((time.perf_counter() - start) * 1000)
        found.append([str(one.payload[ID_KEY]) for one in hits])
    return times, found


def percentiles(times: Sequence[float]) -> dict[str, float]:
    return {"p50": statistics.median(times), "p95": float(np.percentile(times, 95))}


def searches_per_second(collection: ColbertCollection, asked: Sequence[SearchRequest], threads: int) -> float:
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda one: collection.engine.search([one], K, filter=None, score_threshold=None), asked))
    return len(asked) / (time.perf_counter() - start)


def memory() -> int:
    """Memory of this process that no file stands behind, in bytes. Mapped files can be dropped at any time."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def disk(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def measure(storage: Any, sizes: Sequence[int], queries: int) -> list[dict[str, Any]]:
    """A row for each size; the last one with filters and changes."""
    corpus = read_large(max(sizes), queries)
    exact = exact_top(corpus, sizes)
    encoder = JinaColbertEncoder.from_pretrained("mini", dims=DIM, device="cpu")
    before = memory()
    rows: list[dict[str, Any]] = []
    root = Path(tempfile.mkdtemp(prefix="jcv2-large-", dir=ROOT / "build"))
    try:
        folder = root / "collection"
        ColbertCollection.create(folder, encoder=encoder, dim=DIM, storage=storage).close()
        for start, stop in zip([0, *sizes], sizes, strict=False):
            row: dict[str, Any] = {
                "storage": storage,
                "documents": stop,
                "tokens": sum(map(len, corpus.vectors[:stop])),
            }
            with ColbertCollection.open(folder, encoder=encoder) as collection:
                row["storing"] = store(collection, corpus, start, stop)
            row["bytes"] = disk(folder)
            clock = time.perf_counter()
            with ColbertCollection.open(folder, encoder=encoder) as collection:
                row["opening seconds"] = time.perf_counter() - clock
                asked = requests(collection, corpus)
                timed(collection, asked[:20])
                times, found = timed(collection, asked)
                row["search"] = percentiles(times)
                row["recall"] = statistics.fmean(
                    len(set(one) & set(best)) / K for one, best in zip(found, exact[stop], strict=True)
                )
                row["searches/s"] = {str(n): searches_per_second(collection, asked, n) for n in THREADS}
                row["memory"] = memory() - before
                if stop == max(sizes):
                    row.update(at_the_end(collection, corpus, asked))
            rows.append(row)
            say(json.dumps(row))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return rows


def at_the_end(collection: ColbertCollection, corpus: LargeCorpus, asked: Sequence[SearchRequest]) -> dict[str, Any]:
    """Filters, and what changes to the full collection cost."""
    figures: dict[str, Any] = {"filters": {}}
    for name in ("without an index", "with an index"):
        if name == "with an index":
            clock = time.perf_counter()
            collection.create_payload_index(BUCKET, "integer")
            figures["payload index seconds"] = time.perf_counter() - clock
        figures["filters"][name] = {
            share: percentiles(timed(collection, asked, filter)[0]) for share, filter in FILTERS.items()
        }
    last = len(corpus.texts)
    clock = time.perf_counter()
    collection.delete([str(number) for number in range(last - CHANGED, last)])
    figures["deleting seconds"] = time.perf_counter() - clock
    clock = time.perf_counter()
    figures["adding"] = store(collection, corpus, last - CHANGED, last)
    figures["adding seconds"] = time.perf_counter() - clock
    return figures


def markdown(report: dict[str, Any]) -> str:
    """Two tables: as the collection grows, and at its full size."""
    head = (
        "storage",
        "documents",
        "storing, ms a document",
        "of these, optimising",
        "threads stopped, ms",
        "bytes a token",
        "opening, s",
        "private memory, MB",
        "search p50, ms",
        "p95",
        "searches/s, 1 / 2 / 4 threads",
        "recall@10",
    )
    lines: list[Sequence[str]] = [head, ["---", *["--:"] * (len(head) - 1)]]
    earlier: dict[str, int] = {}
    for row in report["rows"]:
        new = row["documents"] - earlier.get(row["storage"], 0)
        earlier[row["storage"]] = row["documents"]
        optimising = row["storing"]["optimising"] / new
        each = row["storing"]["making points"] + row["storing"]["writing"] + optimising
        lines.append(
            (
                row["storage"],
                f"{row['documents']:,}",
                f"{each:.2f}",
                f"{optimising:.2f}",
                f"{row['storing']['longest stop']:.0f}",
                f"{row['bytes'] / row['tokens']:.0f}",
                f"{row['opening seconds']:.2f}",
                f"{row['memory'] / 1e6:.0f}",
                f"{row['search']['p50']:.1f}",
                f"{row['search']['p95']:.1f}",
                " / ".join(f"{one:.0f}" for one in row["searches/s"].values()),
                f"{row['recall']:.3f}",
            )
        )
    ends = [row for row in report["rows"] if "filters" in row]
    second: list[Sequence[str]] = [
        ("storage", "filter", "without an index, p50 ms", "with an index", "1,000 added, s", "1,000 deleted, s"),
        ("---", "---", *["--:"] * 4),
    ]
    for row in ends:
        without, indexed = row["filters"]["without an index"], row["filters"]["with an index"]
        for share in FILTERS:
            second.append(
                (
                    row["storage"],
                    share,
                    f"{without[share]['p50']:.1f}",
                    f"{indexed[share]['p50']:.1f}",
                    f"{row['adding seconds']:.1f}",
                    f"{row['deleting seconds']:.2f}",
                )
            )
    return "\n\n".join("\n".join(f"| {' | '.join(cells)} |" for cells in table) for table in (lines, second))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storages", nargs="+", default=["float16", "turbo4"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[2_000, 10_000, 30_000, 100_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options.part, options.sizes, options.queries)))
        return
    exact_top(read_large(max(options.sizes), options.queries), options.sizes)
    rows = []
    for storage in options.storages:
        command = [sys.executable, __file__, "--part", storage, "--queries", str(options.queries), "--sizes"]
        done = subprocess.run([*command, *map(str, options.sizes)], stdout=subprocess.PIPE, check=True)
        rows += json.loads(done.stdout)
    report = {
        "command": shlex.join(["python", "benchmarks/large_collection.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": machine(),
        "rows": rows,
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(markdown(report))
    say(f"Written to {OUTPUT}")


if __name__ == "__main__":
    main()
