"""An encoder of XLM-RoBERTa-large's size on a GPU: attention alike, documents a second, share of the matrix peak.

The weights are random, in the layout of jina-colbert-v2: what they find is worth nothing, what they cost is what the
real ones cost. Texts are docstrings, at most 300 tokens of each.

- alike: vectors of each implementation of attention in bfloat16, compared with eager attention in float32;
- speed: documents a second beside sentence-transformers' loop at its default batch size and at others, in rounds that
  take turns, and at other budgets of ours;
- peak: the arithmetic of the backbone over that of one large multiplication of matrices, measured in the same run.

    python benchmarks/accelerator.py
    python benchmarks/accelerator.py --device cpu --size tiny --texts 40 --batch-sizes 8    # only shows that it runs
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peer_texts
import torch
from arithmetic import matrix_operations, matrix_peak, seconds, token_counts
from machine import machine
from peer_measures import spread, turns
from sentence_transformers import MultiVectorEncoder

from jcv2_plugin import JinaColbertEncoder

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "accelerator.json"
PACKAGES = ("torch", "transformers", "sentence-transformers")
SIZES = {
    "large": {"layers": 24, "hidden": 1024, "heads": 16, "inner": 4096},
    "tiny": {"layers": 2, "hidden": 64, "heads": 4, "inner": 128},
}
OURS = "ours"
_SIDE = {"cuda": 8192, "cpu": 1024}


def main() -> None:
    options = parse_options()
    sys.path.append(str(ROOT / "tests"))
    from official_checkpoint import write_checkpoint

    texts = peer_texts.docstrings()[: options.texts]
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_checkpoint(Path(scratch, "model"), **SIZES[options.size])
        exported = Path(scratch, "exported")
        load(folder, options, "sdpa").export(exported)
        report: dict[str, Any] = {
            "command": shlex.join(["python", "benchmarks/accelerator.py", *sys.argv[1:]]),
            "size": SIZES[options.size],
            "versions": {name: version(name) for name in PACKAGES},
            "machine": {**machine(), "device": device_name(options.device)},
            "alike": alike(folder, texts[:64], options),
            **speed(folder, exported, texts, options),
        }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(SIZES), default="large")
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[16, 64, 128, 256], help="of the other")
    parser.add_argument("--budgets", type=int, nargs="*", default=[], help="tokens a batch of ours, beside the default")
    return parser.parse_args()


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def load(
    folder: Path, options: argparse.Namespace, attention: str, dtype: torch.dtype = torch.bfloat16
) -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained(folder, device=options.device, dtype=dtype, attn_implementation=attention)


def implementations(device: str) -> list[str]:
    """Those that run here; torch's own flash kernels are SDPA's."""
    flash = device.startswith("cuda") and importlib.util.find_spec("flash_attn") is not None
    return ["eager", "sdpa", *(["flash_attention_2"] if flash else [])]


def alike(folder: Path, texts: list[str], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """For each implementation the least and the mean cosine of a vector with float32's."""
    exact = torch.cat(load(folder, options, "eager", torch.float32).encode_document(texts)).cpu().double()
    found = {}
    for attention in implementations(options.device):
        vectors = torch.cat(load(folder, options, attention).encode_document(texts)).cpu().double()
        cosines = torch.nn.functional.cosine_similarity(exact, vectors)
        found[attention] = {"least": float(cosines.min()), "mean": float(cosines.mean())}
    return found


def speed(folder: Path, exported: Path, texts: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Documents a second of each engine, its ratio to ours, and the share of the matrix peak that ours reaches."""
    attention = implementations(options.device)[-1]
    ours = load(folder, options, attention)
    kwargs = {"dtype": torch.bfloat16, "attn_implementation": attention}
    theirs = MultiVectorEncoder(str(exported), device=options.device, model_kwargs=kwargs)
    runs: dict[str, Callable[[], Any]] = {OURS: lambda: ours.encode_document(texts)}
    for budget in options.budgets:
        runs[f"{OURS}, {budget} tokens"] = lambda budget=budget: ours.encode_document(texts, tokens_per_batch=budget)
    runs["sentence-transformers"] = lambda: theirs.encode_document(texts)
    for size in options.batch_sizes:
        runs[f"sentence-transformers, {size}"] = lambda size=size: theirs.encode_document(texts, batch_size=size)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        seconds(run, options.device)  # to warm up
    for order in turns(list(runs), options.rounds):
        for name in order:
            times[name].append(seconds(runs[name], options.device))
    lengths = token_counts(ours, texts)
    operations = sum(text_operations(ours, length) for length in lengths)
    reached = operations / sorted(times[OURS])[len(times[OURS]) // 2]
    side = _SIDE["cuda" if options.device.startswith("cuda") else "cpu"]
    peak = matrix_peak(side, torch.bfloat16, options.device, repeats=20)
    return {
        "attention": attention,
        "texts": len(texts),
        "tokens": sum(lengths),
        "documents_per_second": {name: spread([len(texts) / one for one in taken]) for name, taken in times.items()},
        "over_ours": {
            name: spread([other / own for other, own in zip(taken, times[OURS], strict=True)])
            for name, taken in times.items()
        },
        "tflops": {"reached": reached / 1e12, "peak": peak / 1e12, "share": reached / peak},
    }


def text_operations(encoder: JinaColbertEncoder, tokens: int) -> float:
    """Floating point operations of the backbone for a text: its matrices, and attention."""
    config = encoder.backbone.config
    attention = 4 * tokens**2 * config.hidden_size * config.num_hidden_layers
    return float(tokens * matrix_operations(encoder) + attention)


if __name__ == "__main__":
    main()
