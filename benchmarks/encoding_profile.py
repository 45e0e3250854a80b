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
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peer_texts
import torch
from machine import machine
from torch.profiler import ProfilerActivity, profile

from jcv2_plugin import JinaColbertEncoder

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "encoding_profile.json"
MODELS = ROOT / "build" / "peers" / "models"
PACKAGES = ("torch", "transformers", "sentence-transformers")
DIM = 128
WINDOW = 300
NUMBERS = {"short": 200, "100 tokens": 60, "2,000 tokens": 3}
"""How many documents of each kind."""
_MATRICES = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::linear", "mkldnn::", "aten::mkldnn")
_ATTENTION = "scaled_dot_product"
_SIDE = 2048
_KINDS = ("matrices", "attention", "other operators", "outside of torch")


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    MODELS.mkdir(parents=True, exist_ok=True)
    source = peer_texts.docstrings()
    report: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/encoding_profile.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": machine(),
        "kinds": {},
    }
    for kind in peer_texts.LENGTHS:
        window = WINDOW if peer_texts.LENGTHS[kind] < WINDOW else peer_texts.LONG
        folder = peer_texts.checkpoint(MODELS, DIM, window)
        encoder = JinaColbertEncoder.from_pretrained(folder, device="cpu")
        number = max(1, round(NUMBERS[kind] * options.share))
        texts = peer_texts.documents(kind, number, counter(encoder), source)
        report["kinds"][kind] = measure(encoder, texts)
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(markdown(report))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the documents")
    return parser.parse_args()


def counter(encoder: JinaColbertEncoder) -> Callable[[str], int]:
    """A function that gives the number of a text's tokens."""
    return lambda text: len(encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def measure(encoder: JinaColbertEncoder, texts: list[str]) -> dict[str, Any]:
    """Shares of the time of a call, and the speed of the backbone's matrices over that of one large product."""
    encoder.encode_document(texts)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        encoder.encode_document(texts)
        total = time.perf_counter() - start
    events = profiler.key_averages()
    seconds = split({event.key: event.self_cpu_time_total / 1e6 for event in events}, total)
    prompt = encoder.prompts["document"]
    ids = encoder.tokenizer([prompt + text for text in texts], verbose=False)["input_ids"]
    tokens = sum(min(len(one), encoder.document_length) for one in ids)
    config = encoder.backbone.config
    weights = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    reached = 2 * tokens * weights * config.num_hidden_layers / seconds["matrices"]
    return {
        "texts": len(texts),
        "tokens": tokens,
        "shares": {name: value / total for name, value in seconds.items()},
        "matrices, of the peak": reached / peak(),
    }


def split(seconds: Mapping[str, float], total: float) -> dict[str, float]:
    """Seconds of operators, by kind; what no operator took is outside of torch."""
    found = dict.fromkeys(_KINDS, 0.0)
    for name, value in seconds.items():
        matrices = name.startswith(_MATRICES)
        found["attention" if _ATTENTION in name else "matrices" if matrices else "other operators"] += value
    found["outside of torch"] = max(0.0, total - sum(found.values()))
    return found


def peak() -> float:
    """Operations a second of one large product in float32: the best of several."""
    one, other = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    taken = []
    for _ in range(10):
        start = time.perf_counter()
        one @ other
        taken.append(time.perf_counter() - start)
    return 2 * float(_SIDE) ** 3 / min(taken)


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
