"""What each first stage finds of what exact MaxSim finds, and in which part of its time.

For each set and stage: recall@10 against exact MaxSim, nDCG@10, and the median over queries of the time of a search
divided by that of the exact search of the same query right before it; on Qdrant Edge, queries encoded beforehand.
Then how the time of one search grows from 2,000 documents to all of them, by ratios in alternation too.

    python benchmarks/first_stages.py
    python benchmarks/first_stages.py --sets tydi-en --queries 50       # in a few minutes
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from encoded import PACKAGES, ROOT, UNION, EncodedSet, read_set, say, store
from machine import machine

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.documents import ID_KEY
from jcv2_plugin.engines.base import Candidates, SearchRequest
from jcv2_plugin.evaluation.metrics import evaluate_run

STAGES = ("pooled", "bm25", "hybrid")
CANDIDATES = (50, 100, 200, 300, 500)
OUTPUT = ROOT / "build" / "first_stages.json"
K = 10
_GROWTH_QUERIES = 100

Found = list[tuple[str, float]]


def search(collection: ColbertCollection, data: EncodedSet, query: str, candidates: int | None) -> tuple[float, Found]:
    """Seconds and results of one search, the first stage's query included."""
    vectors, text = data.query_vectors[query], data.queries[query]
    start = time.perf_counter()
    first = None
    if candidates is not None:
        stages = {stage.name: stage.query(text, vectors) for stage in collection.current.stages}
        first = Candidates(stages, candidates)
    found = collection.engine.search([SearchRequest(vectors, first)], K, filter=None, score_threshold=None)[0]
    return time.perf_counter() - start, [(str(one.payload[ID_KEY]), one.score) for one in found]


def measure(collection: ColbertCollection, data: EncodedSet, candidates: Sequence[int]) -> dict[str, Any]:
    """Recall and nDCG at each number of candidates, with the ratio of times to exact search."""
    recalls: dict[int, list[float]] = {number: [] for number in candidates}
    ratios: dict[int, list[float]] = {number: [] for number in candidates}
    runs: dict[int | None, dict[str, dict[str, float]]] = {number: {} for number in (None, *candidates)}
    for query in data.queries:
        exact_seconds, exact = search(collection, data, query, None)
        runs[None][query] = dict(exact)
        for number in candidates:
            seconds, found = search(collection, data, query, number)
            runs[number][query] = dict(found)
            recalls[number].append(len({one for one, _ in exact} & {one for one, _ in found}) / len(exact))
            ratios[number].append(seconds / exact_seconds)
    figures: dict[str, Any] = {"exact": {"ndcg@10": evaluate_run(runs[None], data.qrels)["ndcg@10"]}}
    for number in candidates:
        figures[str(number)] = {
            "recall@10": statistics.fmean(recalls[number]),
            "ndcg@10": evaluate_run(runs[number], data.qrels)["ndcg@10"],
            "time/exact": statistics.median(ratios[number]),
        }
    return figures


def build(folder: Path, data: EncodedSet, encoder: JinaColbertEncoder, dim: int, stage: Any) -> ColbertCollection:
    """A collection on Edge with one first stage."""
    collection = ColbertCollection.create(folder, encoder=encoder, dim=dim, first_stage=stage)
    store(collection, data.documents, data.vectors)
    return collection


def growth(data: EncodedSet, encoder: JinaColbertEncoder, dim: int, sizes: Sequence[int], number: int) -> list[Any]:
    """How many times longer a search takes with more documents: two-stage and exact, medians of ratios."""
    with tempfile.TemporaryDirectory(prefix="jcv2-growth-") as folder:
        parts = [data if size >= len(data.documents) else data.first(size) for size in sizes]
        made = [build(Path(folder) / str(n), part, encoder, dim, "hybrid") for n, part in enumerate(parts)]
        rows = []
        queries = list(data.queries)[:: max(1, len(data.queries) // _GROWTH_QUERIES)]
        times: list[dict[str, list[float]]] = [{"two-stage": [], "exact": []} for _ in made]
        for query in queries:
            for index, collection in enumerate(made):
                times[index]["two-stage"].append(search(collection, data, query, number)[0])
                times[index]["exact"].append(search(collection, data, query, None)[0])
        for part, one in zip(parts, times, strict=True):
            row: dict[str, Any] = {"documents": len(part.documents)}
            for kind in ("two-stage", "exact"):
                row[f"{kind}, to the smallest"] = statistics.median(
                    a / b for a, b in zip(one[kind], times[0][kind], strict=True)
                )
            row["two-stage/exact"] = statistics.median(
                a / b for a, b in zip(one["two-stage"], one["exact"], strict=True)
            )
            rows.append(row)
        for collection in made:
            collection.close()
    return rows


def table(results: list[dict[str, Any]], candidates: Sequence[int]) -> str:
    """A row for each set and stage."""
    head = ["set", "first stage", "", *map(str, candidates), "exact"]
    lines = [head, ["---"] * 3 + ["--:"] * (len(candidates) + 1)]
    for row in results:
        figures = row["figures"]
        for key, digits, exact in (("recall@10", 3, "1"), ("ndcg@10", 3, None), ("time/exact", 3, "1")):
            last = exact or f"{figures['exact'][key]:.{digits}f}"
            cells = [f"{figures[str(number)][key]:.{digits}f}" for number in candidates]
            name, stage = (row["set"], row["stage"]) if key == "recall@10" else ("", "")
            lines.append([name, stage, key, *cells, last])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--sets", nargs="+", default=["tydi-en", "scifact", "cosqa-dev", UNION])
    parser.add_argument("--stages", nargs="+", default=list(STAGES))
    parser.add_argument("--candidates", nargs="+", type=int, default=list(CANDIDATES))
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=100, help="of each set, at most")
    parser.add_argument("--growth", nargs="*", type=int, default=[250, 500, 1000, 2000, 5000, 20000])
    options = parser.parse_args()
    encoder = JinaColbertEncoder.from_pretrained(options.model, dims=options.dim, device="cpu")
    results = []
    data = None
    for name in options.sets:
        data = read_set(name, encoder, options.dim, options.queries)
        say(f"{name}: {len(data.documents)} documents of {data.tokens / len(data.documents):.0f} tokens")
        for stage in options.stages:
            with (
                tempfile.TemporaryDirectory(prefix="jcv2-stage-") as folder,
                build(Path(folder) / "c", data, encoder, options.dim, stage) as collection,
            ):
                figures = measure(collection, data, options.candidates)
            results.append({"set": name, "documents": len(data.documents), "stage": stage, "figures": figures})
            say(f"  {stage}: {json.dumps(figures)}")
    grown = growth(data, encoder, options.dim, options.growth, 300) if options.growth and data is not None else []
    print(table(results, options.candidates))
    for row in grown:
        print(json.dumps(row))
    report = {
        "command": shlex.join(["python", "benchmarks/first_stages.py", *sys.argv[1:]]),
        "model": options.model,
        "dim": options.dim,
        "queries a set": options.queries,
        "versions": {name: version(name) for name in PACKAGES},
        "machine": machine(),
        "results": results,
        "growth": grown,
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    say(f"Written to {OUTPUT}")


if __name__ == "__main__":
    main()
