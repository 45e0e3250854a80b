"""The published size (560M parameters) on a CPU: loading, memory, one query, documents a second.

Writes a checkpoint of random weights in the official layout to build/real-size: 1.1 GB in bfloat16, the sizes and
vocabulary as published. sentence-transformers reads the same weights from an export. Each way runs in a process of its
own, one after another, so that the memory is its own. int8 is made by ``jcv2 quantize`` and is left out where that
would take more than ``--most-gib``.

    python benchmarks/real_size.py
    python benchmarks/real_size.py --ways float32 openvino --documents 2
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import peer_texts
import torch
from machine import machine

sys.path.append(str(Path(__file__).resolve().parent / "peers"))  # worker.py
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # official_checkpoint.py, xlm_roberta.py

from worker import forget_peak, peak_memory

from jcv2_plugin import JinaColbertEncoder

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "real-size"
OUTPUT = ROOT / "build" / "real_size.json"
PACKAGES = ("torch", "transformers", "sentence-transformers", "openvino", "nncf")
OFFICIAL, EXPORTED, INT8, VECTORS = (FOLDER / name for name in ("official", "exported", "int8", "vectors.npy"))
GIB = 1 << 30
QUERIES = 5
_WINDOW = 300
_SAMPLES = 10


def ours(folder: Path = OFFICIAL, **options: Any) -> Any:
    return JinaColbertEncoder.from_pretrained(folder, device="cpu", **options)


def theirs() -> Any:
    from sentence_transformers import MultiVectorEncoder

    return MultiVectorEncoder(str(EXPORTED), device="cpu", model_kwargs={"dtype": torch.float32})


WAYS: dict[str, Callable[[], Any]] = {
    "float32": lambda: ours(dtype=torch.float32),
    "openvino": lambda: ours(query_engine="openvino"),
    "sentence-transformers": theirs,
    "bfloat16": lambda: ours(dtype=torch.bfloat16),
    "int8": lambda: ours(INT8),
}


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    if options.measure:
        print(json.dumps(measure(options.measure, options.documents)))
        return
    prepare()
    rows, quantized = [], None
    if "int8" in options.ways:
        quantized = quantize(options)
    for way in options.ways:
        if way == "int8" and not INT8.exists():
            continue
        command = [sys.executable, __file__, "--measure", way, "--threads", str(options.threads)]
        done = subprocess.run(
            [*command, "--documents", str(options.documents)], stdout=subprocess.PIPE, text=True, check=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], file=sys.stderr, flush=True)
    report = {
        "command": shlex.join(["python", "benchmarks/real_size.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": {**machine(), "threads": options.threads},
        "quantizing": quantized,
        "rows": rows,
    }
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(markdown(report))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--documents", type=int, default=4, help="of each length")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--most-gib", type=float, default=16.0, help="memory that jcv2 quantize may take")
    parser.add_argument("--measure", choices=list(WAYS), help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare() -> None:
    """Write the checkpoint, and its export for sentence-transformers, where they are not there yet."""
    from official_checkpoint import write_full_size
    from xlm_roberta import real_vocabulary

    if not OFFICIAL.exists():
        staging = FOLDER / ".official"
        staging.mkdir(parents=True, exist_ok=True)
        write_full_size(staging, real_vocabulary())
        staging.rename(OFFICIAL)
    if not EXPORTED.exists():
        # In bfloat16, as stored, so that it is as large as the original.
        ours(dtype=torch.bfloat16).export(EXPORTED)


def quantize(options: argparse.Namespace) -> dict[str, Any]:
    """Run ``jcv2 quantize`` on a few texts; its seconds and memory, or why it failed."""
    if INT8.exists():
        return {"skipped": "made by an earlier run"}
    texts = FOLDER / "texts"
    texts.mkdir(exist_ok=True)
    for number, text in enumerate(peer_texts.docstrings()[:40]):
        (texts / f"{number}.txt").write_text(text, encoding="utf-8")
    limit = int(options.most_gib * GIB)
    start = time.perf_counter()
    done = subprocess.run(
        ["jcv2", "quantize", str(OFFICIAL), str(texts), "--out", str(INT8), "--samples", str(_SAMPLES)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    found = {"samples": _SAMPLES, "seconds": time.perf_counter() - start, "peak_bytes": peak}
    return found if done.returncode == 0 else {**found, "failed": done.stderr.strip()[-300:]}


def measure(way: str, documents: int) -> dict[str, Any]:
    """Load one way and encode."""
    texts = peer_texts.docstrings()
    forget_peak()
    start = time.perf_counter()
    encoder = WAYS[way]()
    row: dict[str, Any] = {"way": way, "loading_seconds": time.perf_counter() - start, "loading_bytes": peak_memory()}
    queries = peer_texts.queries(QUERIES, texts)
    vectors = [np.asarray(encoder.encode_query([query])[0].float()) for query in queries]
    forget_peak()
    times = []
    for query in queries:
        start = time.perf_counter()
        encoder.encode_query([query])
        times.append(time.perf_counter() - start)
    row |= {"query_milliseconds": 1000 * statistics.median(times), "bytes": peak_memory()}
    if way == "float32":
        np.save(VECTORS, vectors)
    if VECTORS.exists():
        row["difference"] = float(np.abs(np.stack(vectors) - np.load(VECTORS)).max())

    def tokens(text: str) -> int:
        return len(encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    for name, kind in (("100", "100 tokens"), (str(_WINDOW), "2,000 tokens")):  # the window cuts the long ones
        given = peer_texts.documents(kind, documents, tokens, texts)
        start = time.perf_counter()
        encoder.encode_document(given)
        row[f"documents_per_second_{name}"] = documents / (time.perf_counter() - start)
    return row


def markdown(report: dict[str, Any]) -> str:
    """The table for the docs."""
    head = ["", "loading, s", "peak of loading, GiB", "memory after it, GiB", "one query, ms"]
    lines = [f"| {' | '.join([*head, 'documents/s, 100 tokens', 'documents/s, 300 tokens', 'largest difference'])} |"]
    lines.append("|---|" + "--:|" * 7)
    for row in report["rows"]:
        cells = [
            row["way"],
            f"{row['loading_seconds']:.1f}",
            f"{row['loading_bytes'] / GIB:.1f}",
            f"{row['bytes'] / GIB:.1f}",
            f"{row['query_milliseconds']:.0f}",
            f"{row['documents_per_second_100']:.2f}",
            f"{row['documents_per_second_300']:.2f}",
            f"{row['difference']:.0e}" if "difference" in row else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if made := report["quantizing"]:
        lines += ["", f"`jcv2 quantize`: {_made(made)}."]
    return "\n".join(lines)


def _made(made: dict[str, Any]) -> str:
    if "skipped" in made:
        return str(made["skipped"])
    text = f"{made['seconds']:.0f} s and {made['peak_bytes'] / GIB:.1f} GiB at its peak, {made['samples']} samples"
    return f"failed after {text}: {made['failed']}" if "failed" in made else text


if __name__ == "__main__":
    main()
