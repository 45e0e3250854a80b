"""Retrieval quality of the model ``mini`` at each Matryoshka dimension, beside BM25.

Every figure is measured by searching a collection on disk (Qdrant Edge) that holds the whole corpus.

    python benchmarks/mini_quality.py --sets xquad-en mlqa-en --dims 128 64

On a machine that is busy with other work, OMP_NUM_THREADS=1 makes it much faster.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.encoder.windows import LongDocuments
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.bm25 import bm25_run
from jcv2_plugin.evaluation.metrics import evaluate_collection, evaluate_run

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("JCV2_DATA") or ROOT / ".." / "shared" / "data")
OUTPUT = ROOT / "build" / "mini_quality.json"
MODEL = "mini"
DIMS = (384, 256, 128, 96, 64, 32)
LONG_DOCUMENTS: LongDocuments = "truncate"
"""As in the published figures of ColBERT models, and in ``jcv2 eval``."""

PACKAGES = ("torch", "sentence-transformers", "transformers", "qdrant-edge-py", "bm25s", "pytrec-eval-terrier")


def main() -> None:
    options = parse_options()
    encoder = JinaColbertEncoder.from_pretrained(MODEL, dims=tuple(options.dims), device="cpu")
    rows = [measure_set(options.data / name, options.split, options.dims, encoder) for name in options.sets]
    print(markdown(rows, options.dims))
    report = {
        "command": shlex.join(["python", "benchmarks/mini_quality.py", *sys.argv[1:]]),
        "model": MODEL,
        "document_length": encoder.document_length,
        "long_documents": LONG_DOCUMENTS,
        "split": options.split,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": machine(),
        "sets": rows,
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    say(f"Written to {OUTPUT}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["xquad-en"], help="folders in BEIR layout under --data")
    parser.add_argument("--dims", nargs="+", type=int, default=list(DIMS), help="Matryoshka dimensions")
    parser.add_argument(
        "--mini",
        dest="split",
        action="store_const",
        const="mini",
        default="test",
        help="the queries of qrels/mini.tsv, at most 100 a set",
    )
    parser.add_argument("--data", type=Path, default=DATA, help="default: $JCV2_DATA, or ../shared/data")
    return parser.parse_args()


def measure_set(folder: Path, split: str, dims: list[int], encoder: JinaColbertEncoder) -> dict[str, Any]:
    """The figures of one set: of each dimension, and of BM25."""
    dataset = BeirDataset.read(folder, split=split)
    say(f"{dataset.name}: {len(dataset.corpus)} documents, {len(dataset.queries)} queries")
    return {
        "name": dataset.name,
        "documents": len(dataset.corpus),
        "documents_without_text": len(dataset.skipped),
        "queries": len(dataset.queries),
        "dims": {str(dim): measure_dim(dataset, dim, encoder) for dim in dims},
        "bm25": evaluate_run(bm25_run(dataset), dataset.qrels),
    }


def measure_dim(dataset: BeirDataset, dim: int, encoder: JinaColbertEncoder) -> dict[str, float]:
    """The three figures at one dimension, with the seconds that indexing and searching took."""
    with tempfile.TemporaryDirectory(prefix="mini-quality-") as folder:
        path = Path(folder) / str(dim)
        start = time.perf_counter()
        with ColbertCollection.create(path, encoder=encoder, dim=dim, long_documents=LONG_DOCUMENTS) as made:
            made.ingest(dataset.documents())
        indexed = time.perf_counter()
        with ColbertCollection.open(path, encoder=encoder) as collection:
            figures = evaluate_collection(collection, dataset).as_dict()
        searched = time.perf_counter()
    say(f"  {dim} dims: {figures}, {indexed - start:.0f} s indexing, {searched - indexed:.0f} s searching")
    return {**figures, "seconds_indexing": indexed - start, "seconds_searching": searched - indexed}


def markdown(rows: list[dict[str, Any]], dims: list[int]) -> str:
    """nDCG@10: a row for each set, a column for each dimension and BM25."""
    head = ["nDCG@10", *(f"{dim} dims" for dim in dims), "BM25"]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for row in rows:
        figures = [*(row["dims"][str(dim)] for dim in dims), row["bm25"]]
        lines.append([row["name"], *(f"{one['ndcg@10']:.3f}" for one in figures)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
