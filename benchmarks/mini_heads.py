"""nDCG@10 of sets of heads over one backbone, side by side, all queries, exact MaxSim.

The texts are encoded once: a head is a matrix on the backbone's token states, and the largest head of ``mini`` is a
rotation of them. A set that was measured is kept in build/mini_heads.json, so that a run may be stopped and repeated.

    jcv2-finetune principal-heads ../shared/data/train/pairs.jsonl.xz --lang en --steps 0 --out build/principal-heads
    python benchmarks/mini_heads.py --other build/principal-heads

On a machine that is busy with other work, OMP_NUM_THREADS=1 makes it much faster.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from torch.nn import functional as F

from jcv2_plugin import JinaColbertEncoder, MatryoshkaHeads
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.metrics import evaluate_run, run_of

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("JCV2_DATA") or ROOT / ".." / "shared" / "data")
OUTPUT = ROOT / "build" / "mini_heads.json"
SETS = ("xquad-en", "mlqa-en", "tydi-en", "qed-nq-en", "cranfield", "scifact", "cosqa-dev")
MEAN_OVER = SETS[:5]
DIMS = (128, 64, 32)
WHOLE = "whole states"
PACKAGES = ("torch", "sentence-transformers", "transformers", "pytrec-eval-terrier")
_DOCUMENTS_AT_A_TIME = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, required=True, help="folder of heads to compare the shipped ones with")
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="folders in BEIR layout under --data")
    parser.add_argument("--data", type=Path, default=DATA, help="default: $JCV2_DATA, or ../shared/data")
    options = parser.parse_args()
    encoder = JinaColbertEncoder.from_pretrained("mini", device="cpu")
    assert encoder.heads is not None
    heads = {"principal components": MatryoshkaHeads.load(str(options.other)), "shipped": encoder.heads}
    report: dict[str, Any] = {"fingerprint": {str(dim): encoder.head_fingerprint(dim) for dim in DIMS}, "sets": {}}
    if OUTPUT.exists() and (old := json.loads(OUTPUT.read_text("utf-8")))["fingerprint"] == report["fingerprint"]:
        report = old
    for name in options.sets:
        if name not in report["sets"]:
            report["sets"][name] = measure(BeirDataset.read(options.data / name), encoder, heads)
            print(name, report["sets"][name], file=sys.stderr, flush=True)
        report |= {
            "command": shlex.join(["python", "benchmarks/mini_heads.py", *sys.argv[1:]]),
            "versions": {one: importlib.metadata.version(one) for one in PACKAGES},
            "machine": machine(),
        }
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(markdown(report))


def measure(dataset: BeirDataset, encoder: JinaColbertEncoder, heads: dict[str, MatryoshkaHeads]) -> dict[str, Any]:
    """nDCG@10 by heads and dimension, of passages cut to the model's window."""
    assert encoder.heads is not None
    turned = encoder.heads.weight(encoder.heads.in_features).T  # back from the largest head to the states
    largest = encoder.heads.in_features
    weights = {(name, dim): own.weight(dim) @ turned for name, own in heads.items() for dim in DIMS}
    weights[WHOLE, largest] = torch.eye(largest)
    queries = [torch.as_tensor(one) for one in encoder.encode_query(list(dataset.queries.values()), dim=largest)]
    keys, texts = list(dataset.corpus), [passage.full_text for passage in dataset.corpus.values()]
    scores = {key: np.empty((len(queries), len(keys)), np.float32) for key in weights}
    for start in range(0, len(keys), _DOCUMENTS_AT_A_TIME):
        vectors = encoder.encode_document(texts[start : start + _DOCUMENTS_AT_A_TIME], dim=largest)
        documents = [torch.as_tensor(one) for one in vectors]
        bounds = np.cumsum([0, *(len(one) for one in documents)])[:-1]
        flat = torch.cat(documents)
        for key, weight in weights.items():
            projected = F.normalize(flat @ weight.T, dim=-1).T
            for row, query in enumerate(queries):
                similarities = (F.normalize(query @ weight.T, dim=-1) @ projected).numpy()
                best = np.maximum.reduceat(similarities, bounds, axis=1).sum(axis=0)
                scores[key][row, start : start + len(documents)] = best
    figures: dict[str, Any] = {"queries": len(queries), "documents": len(keys)}
    for (name, dim), matrix in scores.items():
        run = run_of(torch.from_numpy(matrix), list(dataset.queries), keys)
        figures.setdefault(name, {})[str(dim)] = evaluate_run(run, dataset.qrels)["ndcg@10"]
    return figures


def markdown(report: dict[str, Any]) -> str:
    """A row for each set and one for the mean: whole states, then principal components and shipped heads by size."""
    columns = [(WHOLE, "384"), *((name, str(dim)) for dim in DIMS for name in ("principal components", "shipped"))]
    short = {"principal components": "components", "shipped": "shipped"}
    head = ["nDCG@10", *(f"{dim}, {short[name]}" if name in short else f"{dim}" for name, dim in columns)]
    lines = [head, ["---", *["--:"] * len(columns)]]
    for name in sorted(report["sets"], key=SETS.index):
        lines.append([name, *(f"{report['sets'][name][kind][dim]:.3f}" for kind, dim in columns)])
    if all(name in report["sets"] for name in MEAN_OVER):
        means = [np.mean([report["sets"][one][kind][dim] for one in MEAN_OVER]) for kind, dim in columns]
        lines.append(["mean of the first five", *(f"{mean:.4f}" for mean in means)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
