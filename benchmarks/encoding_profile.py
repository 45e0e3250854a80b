"""Where the time of encoding goes, and how near matrix multiplication is to what the processor can.

torch's profiler on one thread, so that each operator's time is its own. Documents are those of the peers' benchmark.
Ways of computing attention that multiply matrices within themselves count as attention.

    python benchmarks/encoding_profile.py
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peer_texts
import torch
from arithmetic import matrix_operations, matrix_peak, seconds, token_counts
from machine import machine
from peer_bench import Bench, window_of
from peer_environments import FOLDER
from torch.profiler import ProfilerActivity, profile

from jcv2_plugin import JinaColbertEncoder

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "encoding_profile.json"
PACKAGES = ("torch", "transformers", "sentence-transformers")
DIM = 128
NUMBERS = {"short": 200, "100 tokens": 60, "2,000 tokens": 3}
"""How many documents of each kind."""
_MATRICES = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::linear", "mkldnn::", "aten::mkldnn")
_ATTENTION = "scaled_dot_product"
_SIDE = 2048
_KINDS = ("matrices", "attention", "other operators", "outside of torch")


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    bench = Bench(FOLDER, FOLDER / "models", 1, [], DIM)
    report: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/encoding_profile.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": machine(),
        "kinds": {},
    }
    for kind in peer_texts.LENGTHS:
        encoder = JinaColbertEncoder.from_pretrained(bench.checkpoint(window_of(kind)), device="cpu")
        number = max(1, round(NUMBERS[kind] * options.share))
        texts = peer_texts.documents(kind, number, bench.tokens, bench.source)
        report["kinds"][kind] = measure(encoder, texts)
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(markdown(report))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the documents")
    return parser.parse_args()


def measure(encoder: JinaColbertEncoder, texts: list[str]) -> dict[str, Any]:
    """Shares of the time of a call, and the speed of the backbone's matrices over that of one large product."""
    encoder.encode_document(texts)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        total = seconds(lambda: encoder.encode_document(texts), "cpu")
    parts = split({event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}, total)
    tokens = sum(token_counts(encoder, texts))
    reached = tokens * matrix_operations(encoder) / parts["matrices"]
    return {
        "texts": len(texts),
        "tokens": tokens,
        "shares": {name: value / total for name, value in parts.items()},
        "matrices, of the peak": reached / matrix_peak(_SIDE, torch.float32, "cpu", repeats=10),
    }


def split(operators: Mapping[str, float], total: float) -> dict[str, float]:
    """Seconds of operators, by kind; what no operator took is outside of torch."""
    found = dict.fromkeys(_KINDS, 0.0)
    for name, value in operators.items():
        matrices = name.startswith(_MATRICES)
        found["attention" if _ATTENTION in name else "matrices" if matrices else "other operators"] += value
    found["outside of torch"] = max(0.0, total - sum(found.values()))
    return found


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "| documents | matrix multiplication | attention | all else in torch | outside of it | products, of the peak |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for kind, found in report["kinds"].items():
        shares = " | ".join(f"{found['shares'][name]:.0%}" for name in _KINDS)
        lines.append(f"| {kind} | {shares} | {found['matrices, of the peak']:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
