"""Documents a second: token-budget batches against sentence-transformers' fixed batches, side by side.

The same weights, texts and threads; the encoder is exported to a folder that plain sentence-transformers reads.
Runs alternate, and the ratio of each round is taken, so that a machine's moods cancel; the medians are printed,
with the versions and the machine. The vectors of both are compared too.

    python benchmarks/encode_throughput.py                      # the model mini, 200 docstrings
    python benchmarks/encode_throughput.py --sweep              # find the best tokens_per_batch for this device
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from machine import machine
from sentence_transformers import MultiVectorEncoder
from transformers.utils import logging as transformers_logging

from jcv2_plugin import JinaColbertEncoder

SWEEP = (256, 512, 1024, 2048)


def read_texts(folder: Path | None, count: int) -> list[str]:
    """Docstrings of the standard library (found everywhere), or the documents of a BEIR folder."""
    if folder is not None:
        with (folder / "corpus.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return [f"{row.get('title', '')} {row['text']}".strip() for row in rows][:count]
    texts = []
    warnings.simplefilter("ignore", DeprecationWarning)
    for name in ("argparse", "asyncio", "collections", "concurrent.futures", "datetime", "decimal", "email.message",
                 "http.client", "json", "logging", "pathlib", "random", "socket", "statistics", "string", "subprocess",
                 "tarfile", "threading", "typing", "unittest", "urllib.request", "zipfile"):  # fmt: skip
        module = __import__(name, fromlist=["_"])
        for thing in [module, *vars(module).values()]:
            documentation = getattr(thing, "__doc__", None)
            if isinstance(documentation, str) and documentation.strip():
                texts.append(documentation.strip())
            for member in vars(thing).values() if isinstance(thing, type) else ():
                documentation = getattr(member, "__doc__", None)
                if isinstance(documentation, str) and documentation.strip():
                    texts.append(documentation.strip())
    # An order that is random but the same everywhere.
    return sorted(set(texts), key=lambda text: zlib.crc32(text.encode()))[:count]


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beir", type=Path, help="take the texts of this BEIR folder")
    parser.add_argument("--sweep", action="store_true", help="try several token budgets")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[32, 8], help="sentence-transformers' batches")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    ours = JinaColbertEncoder.from_pretrained(arguments.model)
    texts = read_texts(arguments.beir, arguments.texts)
    with tempfile.TemporaryDirectory() as folder:
        ours.export(Path(folder) / "exported", dim=arguments.dim)
        theirs = MultiVectorEncoder(str(Path(folder) / "exported"), device=str(ours.device))
    runs: dict[str, Callable[[], object]] = {}
    budgets = SWEEP if arguments.sweep else (ours.tokens_per_batch,)
    for budget in budgets:
        runs[f"ours, {budget} tokens a batch"] = lambda budget=budget: ours.encode_document(  # type: ignore[misc]
            texts, dim=arguments.dim, tokens_per_batch=budget
        )
    for size in arguments.batch_sizes:
        default = " (its default)" if size == 32 else ""
        runs[f"sentence-transformers, batches of {size}{default}"] = lambda size=size: theirs.encode_document(  # type: ignore[misc]
            texts, batch_size=size
        )
    difference = max(
        float((mine - other).abs().max())
        for mine, other in zip(
            ours.encode_document(texts, dim=arguments.dim), theirs.encode_document(texts), strict=True
        )
    )
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            measured[name].append(seconds(run))
    report(arguments, texts, ours, measured, difference)


def report(
    arguments: argparse.Namespace,
    texts: list[str],
    encoder: JinaColbertEncoder,
    measured: dict[str, list[float]],
    difference: float,
) -> None:
    lengths = sorted(len(ids) for ids in encoder.tokenizer(texts, truncation=True, max_length=300)["input_ids"])
    versions = {name: version(name) for name in ("jcv2-plugin", "sentence-transformers", "transformers", "torch")}
    where = machine()
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    print(f"`python {' '.join(sys.argv)}`; {where['cpu']}, {where['threads']} threads; {packages}")
    print(
        f"{len(texts)} texts of {statistics.mean(lengths):.0f} tokens (median {lengths[len(lengths) // 2]}, "
        f"longest {lengths[-1]}), {arguments.rounds} alternating rounds, largest difference {difference:.1e}\n"
    )
    reference = next(name for name in measured if "sentence-transformers" in name)
    print(f"| | documents/s | ratio to {reference} |\n|---|--:|--:|")
    rows = {}
    for name, times in measured.items():
        ratio = statistics.median(theirs / mine for theirs, mine in zip(measured[reference], times, strict=True))
        rate = len(texts) / statistics.median(times)
        rows[name] = {"documents_per_second": rate, "ratio": ratio}
        print(f"| {name} | {rate:.0f} | {ratio:.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"versions": versions, "machine": where, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
