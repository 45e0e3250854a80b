"""What each storage profile and token pooling cost and keep: bytes, memory, nDCG@10 and time, on Qdrant Edge.

For each set, dimension, pooling factor and profile a collection is stored on disk with the same first stage. Measured:

- bytes on disk an original token (before pooling), of the vectors alone and of the whole folder, as the file system
  counts them after the collection is closed;
- private memory of a new process that opens it and searches, without the model (on Linux);
- nDCG@10, searching with the first stage at 500 candidates;
- the time of an exact search divided by that of float32's, median of ratios of alternating searches.

    python benchmarks/compression.py
    python benchmarks/compression.py --sets tydi-en --dims 64 --pool-factors 1 2
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoded import PACKAGES, ROOT, EncodedSet, read_set, say, store
from first_stages import search
from machine import machine
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.engines.base import Matrix
from jcv2_plugin.engines.storage import STORAGES
from jcv2_plugin.evaluation.metrics import evaluate_run

OUTPUT = ROOT / "build" / "compression.json"
CANDIDATES = 500

# Opens a shard and searches with random queries of its dim; prints private memory before and after, in bytes.
RESIDENT = """
import re, sys
import numpy as np, qdrant_edge
from pathlib import Path
from jcv2_plugin.engines.edge import EdgeEngine
from jcv2_plugin.engines.base import SearchRequest
def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = anonymous()
engine = EdgeEngine.open(Path(sys.argv[1]))
chance = np.random.default_rng(0)
for _ in range(5):
    query = chance.standard_normal((16, int(sys.argv[2]))).astype(np.float32)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    engine.search([SearchRequest(query)], 10, filter=None, score_threshold=None)
print(anonymous() - before)
engine.close()
"""


def pooled(vectors: list[Matrix], factor: float) -> list[Matrix]:
    """As ``pool_factor`` does when a collection encodes."""
    if factor == 1:
        return vectors
    pooling = HierarchicalTokenPooling(factor)
    tensors = [torch.from_numpy(np.array(one)) for one in vectors]
    return [one.numpy() for one in pooling.pool(tensors, task="document")]


def bytes_on_disk(folder: Path) -> int:
    """What the files take on disk, sparse parts not counted."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def bytes_by_part(folder: Path) -> dict[str, int]:
    """The same for each part of the segments: vectors and indexes by name, payloads, ids; and the write-ahead log."""
    parts: Counter[str] = Counter()
    for file in (folder / "shard").rglob("*"):
        if not file.is_file():
            continue
        names = file.relative_to(folder / "shard").parts
        name = names[2] if names[0] == "segments" and len(names) > 2 else names[0]
        name = "quantized" if "quantized" in str(file) else name.partition(".")[0]
        parts[name] += file.stat().st_blocks * 512
    return dict(parts)


def resident(folder: Path, dim: int) -> int | None:
    """Private memory that opening and searching adds, in bytes; None where the system does not say."""
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(folder), str(dim)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def measure(
    folder: Path, data: EncodedSet, vectors: list[Matrix], encoder: JinaColbertEncoder, options: dict[str, Any]
) -> dict[str, Any]:
    """All figures of one collection but the time."""
    with ColbertCollection.create(folder, encoder=encoder, **options) as collection:
        store(collection, data.documents, vectors)
        run = {query: dict(search(collection, data, query, CANDIDATES)[1]) for query in data.queries}
    tokens = data.tokens
    parts = bytes_by_part(folder)
    return {
        "parts": parts,
        "ndcg@10": evaluate_run(run, data.qrels)["ndcg@10"],
        "vector bytes/token": (parts["vector_storage-colbert"] + parts.get("quantized", 0)) / tokens,
        "bytes/token": bytes_on_disk(folder) / tokens,
        "bytes/document": bytes_on_disk(folder) / len(data.documents),
        "resident bytes": resident(folder, options["dim"]),
    }


def time_ratios(
    folders: dict[str, Path], data: EncodedSet, encoder: JinaColbertEncoder, queries: int
) -> dict[str, float]:
    """Exact search against float32 without pooling, the first of the folders."""
    opened = {name: ColbertCollection.open(folder, encoder=encoder) for name, folder in folders.items()}
    ratios: dict[str, list[float]] = {name: [] for name in folders}
    for query in list(data.queries)[:queries]:
        times = {name: search(collection, data, query, None)[0] for name, collection in opened.items()}
        base = times[next(iter(folders))]
        for name, seconds in times.items():
            ratios[name].append(seconds / base)
    for collection in opened.values():
        collection.close()
    return {name: statistics.median(values) for name, values in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["tydi-en", "scifact", "cosqa-dev"])
    parser.add_argument("--dims", nargs="+", type=int, default=[128, 64])
    parser.add_argument("--pool-factors", nargs="+", type=float, default=[1, 2, 3])
    parser.add_argument("--profiles", nargs="+", default=list(STORAGES))
    parser.add_argument("--pooled-profiles", nargs="+", default=["float16", "turbo4"], help="where tokens are pooled")
    parser.add_argument("--queries", type=int, default=10**9, help="of each set, at most")
    parser.add_argument("--timed-queries", type=int, default=15)
    chosen = parser.parse_args()
    rows = []
    for name in chosen.sets:
        for dim in chosen.dims:
            encoder = JinaColbertEncoder.from_pretrained("mini", dims=dim, device="cpu")
            data = read_set(name, encoder, dim, chosen.queries)
            with tempfile.TemporaryDirectory(prefix="jcv2-compression-") as root:
                folders: dict[str, Path] = {}
                measured = {}
                for factor in chosen.pool_factors:
                    vectors = pooled(data.vectors, factor)
                    for storage in chosen.profiles if factor == 1 else chosen.pooled_profiles:
                        key = f"{storage}, pool {factor:g}"
                        folders[key] = Path(root) / key.replace(" ", "")
                        options = {"dim": dim, "storage": storage, "pool_factor": factor}
                        measured[key] = measure(folders[key], data, vectors, encoder, options)
                        say(f"{name}, {dim} dims, {key}: {json.dumps(measured[key])}")
                ratios = time_ratios(folders, data, encoder, chosen.timed_queries) if chosen.timed_queries else {}
                for key, figures in measured.items():
                    storage, _, factor_text = key.partition(", pool ")
                    rows.append(
                        {
                            "set": name,
                            "dim": dim,
                            "storage": storage,
                            "pool_factor": float(factor_text),
                            "documents": len(data.documents),
                            "tokens": data.tokens,
                            **figures,
                            "time/float32": ratios.get(key),
                        }
                    )
    print(table(rows))
    report = {
        "command": shlex.join(["python", "benchmarks/compression.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": machine(),
        "rows": rows,
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    say(f"Written to {OUTPUT}")


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the sets, a row for each dim, pooling and profile."""
    keys = ("vector bytes/token", "bytes/token", "bytes/document", "resident bytes", "ndcg@10", "time/float32")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["dim"], row["pool_factor"], row["storage"]), []).append(row)
    lines = [
        [
            "dim",
            "pool",
            "storage",
            "vectors B/token",
            "all B/token",
            "B/document",
            "memory MiB",
            "nDCG@10",
            "to float32",
        ],
        ["--:", "--:", "---", *["--:"] * 7],
    ]
    lines[0].append("time")
    for (dim, factor, storage), group in groups.items():
        means = {key: _mean([row[key] for row in group]) for key in keys}
        base = _mean([row["ndcg@10"] for row in groups.get((dim, 1.0, "float32"), group)])
        lines.append(
            [
                str(dim),
                f"{factor:g}",
                storage,
                f"{means['vector bytes/token']:.0f}",
                f"{means['bytes/token']:.0f}",
                f"{means['bytes/document']:,.0f}",
                f"{means['resident bytes'] / 2**20:.0f}",
                f"{means['ndcg@10']:.4f}",
                f"{means['ndcg@10'] / base - 1:+.2%}",
                f"{means['time/float32']:.2f}",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else float("nan")


if __name__ == "__main__":
    main()
