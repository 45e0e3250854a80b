"""Which runtime in fewer bits encodes faster, and what of nDCG@10 it costs: torch, ONNX Runtime, OpenVINO.

The backbone of ``mini`` is run by each in turn; batches, heads and MaxSim stay the same. Documents a second are ratios
to torch in float32, of alternating rounds on docstrings; nDCG@10 is by exact MaxSim on whole retrieval sets.

    python benchmarks/int8.py
    python benchmarks/int8.py --sets xquad-en --texts 100 --rounds 2 --backends 'torch float32' 'torch int8'

Runs in an environment of its own (build/peers/int8-tools), made on the first run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoded import DATA, ROOT, say
from machine import machine
from torch import nn

sys.path.append(str(Path(__file__).resolve().parent / "peers"))

import peer_texts
from int8_backends import BACKENDS, Setting
from peer_environments import FOLDER, PEERS, python_of
from peer_measures import ratios, spread, turns
from peer_storing import exact_top
from peer_tables import int8
from worker import timed

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.metrics import evaluate_run

OUTPUT = ROOT / "build" / "int8.json"
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "nncf")
BASE = "torch float32"
KINDS = ("short", "100 tokens")
DEPTH = 100
_SAMPLES = 100


def main() -> None:
    python = python_of(PEERS["int8"])
    if Path(sys.prefix) != python.parent.parent:
        sys.exit(subprocess.run([str(python), *sys.argv], check=False).returncode)
    options = parse_options()
    torch.set_num_threads(options.threads)
    encoder = JinaColbertEncoder.from_pretrained("mini", dims=options.dim, device="cpu")
    source = peer_texts.docstrings()
    calibration = source[-_SAMPLES:]  # none of them is timed
    setting = Setting(
        encoder,
        FOLDER / "models" / f"int8-{encoder.head_fingerprint(options.dim)[:8]}",
        options.threads,
        calibration,
    )
    models, unavailable = {}, {}
    for name in options.backends:
        try:
            models[name] = BACKENDS[name](setting)
        except Exception as error:
            traceback.print_exc()
            unavailable[name] = f"{type(error).__name__}: {error}"[:600]
            say(f"{name} is left out: {unavailable[name]}")
    sets = {name: BeirDataset.read(options.data / name) for name in options.sets}
    report: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/int8.py", *sys.argv[1:]]),
        "dim": options.dim,
        "versions": {name: version(name) for name in PACKAGES},
        "machine": {**machine(), "load": os.getloadavg()[0]},
        "unavailable": unavailable,
        "speed": speeds(encoder, models, options, source),
        "ndcg@10": {name: qualities(encoder, model, sets, options.dim) for name, model in models.items()},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(int8(report))
    say(f"Written to {options.json}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", choices=list(BACKENDS), default=list(BACKENDS))
    parser.add_argument("--sets", nargs="*", default=["xquad-en", "cranfield"], help="folders of --data")
    parser.add_argument("--data", type=Path, default=DATA, help="default: $JCV2_DATA, or ../shared/data")
    parser.add_argument("--texts", type=int, default=200, help="short ones a round, and half as many of 100 tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--json", type=Path, default=OUTPUT)
    chosen = parser.parse_args()
    if BASE not in chosen.backends:
        parser.error(f"--backends must have {BASE!r}, which the others are compared with")
    return chosen


def speeds(
    encoder: JinaColbertEncoder, models: dict[str, nn.Module], options: argparse.Namespace, source: list[str]
) -> dict[str, Any]:
    """For each kind of text and backend: speed over the base, documents a second, and how like vectors are."""
    count = _token_counter(encoder)
    figures: dict[str, Any] = {}
    for kind, number in zip(KINDS, (options.texts, options.texts // 2), strict=True):
        texts = peer_texts.documents(kind, number, count, source)
        vectors = {name: np.concatenate(encode(encoder, model, texts, options.dim)) for name, model in models.items()}
        times: dict[str, list[dict[str, float]]] = {name: [] for name in models}
        for order in turns(list(models), options.rounds):
            for name in order:
                model = models[name]
                times[name].append(timed(lambda model=model: encode(encoder, model, texts, options.dim))[1])  # noqa: B023
        figures[kind] = {
            name: {
                "base_over_this": ratios(times[BASE], measured),
                "documents_per_second": spread([number / one["clock"] for one in measured]),
                "least_cosine": float((vectors[name] * vectors[BASE]).sum(axis=1).min()),
            }
            for name, measured in times.items()
        }
        for name, row in figures[kind].items():
            say(f"{kind}: {name}: {row}")
    return figures


def _token_counter(encoder: JinaColbertEncoder) -> Any:
    return lambda text: len(encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def encode(encoder: JinaColbertEncoder, model: nn.Module, texts: list[str], dim: int, role: str = "document") -> Any:
    """The encoder's vectors with another backbone in it."""
    backbone: Any = encoder.backbone
    own = backbone.model
    backbone.model = model
    backbone.runs_own_threads = getattr(model, "runs_own_threads", False)
    try:
        return encoder.query_vectors(texts, dim) if role == "query" else encoder.document_vectors(texts, dim)
    finally:
        backbone.model = own
        del backbone.runs_own_threads


def qualities(
    encoder: JinaColbertEncoder, model: nn.Module, sets: dict[str, BeirDataset], dim: int
) -> dict[str, float]:
    """nDCG@10 of each set, queries and documents encoded by this backbone."""
    figures = {}
    for name, data in sets.items():
        documents = list(data.documents())
        vectors = encode(encoder, model, [one.text for one in documents], dim)
        queries = encode(encoder, model, list(data.queries.values()), dim, "query")
        run = {
            query: {str(documents[index].id): score for index, score in best.items()}
            for query, best in zip(data.queries, exact_top(queries, vectors, DEPTH), strict=True)
        }
        figures[name] = evaluate_run(run, data.qrels)["ndcg@10"]
        say(f"{name}: {type(model).__name__}, nDCG@10 {figures[name]:.4f}")
    return figures


if __name__ == "__main__":
    main()
