"""What token pooling costs with heads trained for it and without: nDCG@10 at 128 dims, exact MaxSim in float32.

Two sets of heads are trained on the same texts by the same steps, from the same start: without pooling and with
``--pool-factors``. ``mini`` is trained as ``make train-mini`` does (its heads without pooling are the shipped ones),
``mini-multilingual`` as ``jcv2-finetune heads`` does, on the backbone with its adapter. Then each set of texts is
encoded once (heads are matrices on the token states, to which the largest shipped head leads back), and passages are
pooled as a collection stores them. ``--cost`` times steps of all weights and six heads instead.

    python benchmarks/pooled_heads.py --model mini --sets xquad-en tydi-en scifact cosqa-dev
    python benchmarks/pooled_heads.py --model mini-multilingual --rows 30 --sets xquad-en xquad-de tydi-sw
    python benchmarks/pooled_heads.py --cost

What was done is kept in build/pooled_heads, so that a run may be stopped and repeated.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from torch import Tensor
from torch.nn import functional as F

from jcv2_plugin import JinaColbertEncoder, MatryoshkaHeads
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.metrics import evaluate_run, run_of
from jcv2_trainer.data.reading import sample_texts
from jcv2_trainer.heads.frozen import FrozenTexts, TokenStates, moment_of, train_heads, whitened_heads
from jcv2_trainer.heads.principal import half_states, mean_outer_product, principal_heads, prompts_of
from jcv2_trainer.heads.score_keeping import keep_scores
from jcv2_trainer.loss.pooling import pooled

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("JCV2_DATA") or ROOT / ".." / "shared" / "data")
FOLDER = ROOT / "build" / "pooled_heads"
OUTPUT = ROOT / "build" / "pooled_heads.json"
DIM = 128
MEASURED = (1.0, 2.0, 4.0)
PACKAGES = ("torch", "sentence-transformers", "transformers", "pytrec-eval-terrier")
PLAIN, SHIPPED = "without pooling", "shipped"
TEXTS, STEPS, SEED = 6000, 500, 13
"""As in examples/train_mini.py."""
_DOCUMENTS_AT_A_TIME = 256


def main() -> None:
    options = parse_options()
    report: dict[str, Any] = json.loads(OUTPUT.read_text("utf-8")) if OUTPUT.exists() else {"models": {}}
    report |= {
        "versions": {one: importlib.metadata.version(one) for one in PACKAGES},
        "machine": machine(),
    }
    if options.cost:
        report["cost of a step"] = step_cost(options)
        write(report)
        return
    encoder = JinaColbertEncoder.from_pretrained(options.model, device="cpu")
    found = report["models"].setdefault(options.model, {"seconds a step": {}, "sets": {}})
    heads = trained(encoder, options, found)
    write(report)
    for name in options.sets:
        if name not in found["sets"]:
            found["sets"][name] = measure(BeirDataset.read(options.data / name), encoder, heads, options)
            say(f"{name}: {found['sets'][name]}")
            commands = [*report.get("command", "").split("; "), shlex.join(["python", *sys.argv])]
            report["command"] = "; ".join(dict.fromkeys(filter(None, commands)))  # of all that is kept
            write(report)
    print(markdown(report))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", choices=["mini", "mini-multilingual"])
    parser.add_argument("--pool-factors", nargs="+", type=float, default=[1.0, 2.0, 4.0], help="to train for")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rows", type=int, default=600, help="of each source and language, for mini-multilingual")
    parser.add_argument("--sets", nargs="*", default=["xquad-en", "tydi-en", "scifact", "cosqa-dev"])
    parser.add_argument("--queries", type=int, default=10**9, help="of each set, at most")
    parser.add_argument("--documents", type=int, default=10**9, help="of each set, at most; more if they are judged")
    parser.add_argument("--cost", action="store_true", help="time steps of LoRA and six heads with and without")
    parser.add_argument("--data", type=Path, default=DATA, help="default: $JCV2_DATA, or ../shared/data")
    return parser.parse_args()


def trained(
    encoder: JinaColbertEncoder, options: argparse.Namespace, found: dict[str, Any]
) -> dict[str, MatryoshkaHeads]:
    """Return the shipped heads, and those trained with and without pooling."""
    assert encoder.heads is not None
    heads = {SHIPPED: encoder.heads}
    train: Callable[[Sequence[float]], MatryoshkaHeads] | None = None
    for name, factors in {
        PLAIN: [1.0],
        " ".join(f"{one:g}" for one in options.pool_factors): options.pool_factors,
    }.items():
        folder = FOLDER / options.model / name.replace(" ", "-")
        if not (folder / "model.safetensors").is_file():
            train = train or (score_keeping if options.model == "mini" else contrastive)(encoder, options, found)
            start = time.process_time()
            made = train(factors)
            found["seconds a step"][name] = (time.process_time() - start) / options.steps
            say(f"{name}: {found['seconds a step'][name]:.3f} s of the processor a step")
            folder.mkdir(parents=True, exist_ok=True)
            made.save(str(folder))
        heads[name] = MatryoshkaHeads.load(str(folder))
    return heads


def score_keeping(
    encoder: JinaColbertEncoder, options: argparse.Namespace, found: dict[str, Any]
) -> Callable[[Sequence[float]], MatryoshkaHeads]:
    """Training without labels, as of ``mini``."""
    prompts = prompts_of(options.model)
    queries, passages = sample_texts(options.data / "train" / "pairs.jsonl.xz", TEXTS, SEED, "en")
    texts = [prompts.get("document", "") + text for text in passages]
    texts += [prompts.get("query", "") + text for text in queries]
    states = cached(encoder, options.model, texts, encoder.backbone.max_seq_length)
    start = principal_heads(mean_outer_product(one.float() for one in states), [DIM])
    read, asked = states[: len(passages)], states[len(passages) :]
    found |= {"texts": len(texts), "steps": options.steps}
    return lambda factors: keep_scores(start, asked, read, steps=options.steps, seed=SEED, pool_factors=factors)


def contrastive(
    encoder: JinaColbertEncoder, options: argparse.Namespace, found: dict[str, Any]
) -> Callable[[Sequence[float]], MatryoshkaHeads]:
    """Training on pairs and triplets, as of ``mini-multilingual``."""
    prompts = prompts_of(options.model)
    files = [options.data / "train" / f"{kind}.jsonl.xz" for kind in ("triplets", "pairs")]
    texts = FrozenTexts.read(files, rows=options.rows, negatives=2, dev_every=0, dev_rows=1, seed=SEED)
    everything = [prompts.get("query", "") + text for text in texts.queries]
    everything += [prompts.get("document", "") + text for text in texts.passages]
    states = cached(encoder, options.model, everything, 320)
    queries, passages = TokenStates(states[: len(texts.queries)]), TokenStates(states[len(texts.queries) :])
    start = whitened_heads(moment_of(queries, passages, 1500, SEED), (DIM, encoder.heads.in_features))
    found |= {"texts": len(everything), "steps": options.steps}
    more = {"steps": options.steps, "seed": SEED}
    return lambda factors: train_heads(start, texts, queries, passages, pool_factors=factors, **more)


def cached(encoder: JinaColbertEncoder, model: str, texts: list[str], length: int | None) -> list[Tensor]:
    """Token states of texts in half precision, computed in parts that are kept."""
    backbone = encoder.backbone
    usual, backbone.max_seq_length = backbone.max_seq_length, length
    states: list[Tensor] = []
    for start in range(0, len(texts), 1000):
        file = FOLDER / model / f"states-{len(texts)}-{start}.pt"
        if not file.is_file():
            say(f"encoding texts {start} to {start + 1000} of {len(texts)}")
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(half_states(backbone, texts[start : start + 1000], 4096), file)
        states += torch.load(file, weights_only=True)
    backbone.max_seq_length = usual
    return states


def measure(
    dataset: BeirDataset, encoder: JinaColbertEncoder, heads: dict[str, MatryoshkaHeads], options: argparse.Namespace
) -> dict[str, Any]:
    """nDCG@10 by heads and factor, of passages cut to the model's window."""
    assert encoder.heads is not None
    largest = max(encoder.heads.dims)
    back = torch.linalg.inv(encoder.heads.weight(largest).double()).float()
    weights = {name: own.weight(DIM) @ back for name, own in heads.items()}
    texts = dict(list(dataset.queries.items())[: options.queries])
    qrels = {query: dataset.qrels[query] for query in texts}
    judged = {document for own in qrels.values() for document in own}
    others = [key for key in dataset.corpus if key not in judged]
    step = max(1, math.ceil(len(others) / max(1, options.documents - len(judged))))
    kept = judged.union(others[::step])
    queries = [torch.as_tensor(one) for one in encoder.encode_query(list(texts.values()), dim=largest)]
    keys = [key for key in dataset.corpus if key in kept]
    passages = [dataset.corpus[key].full_text for key in keys]
    shape = (len(queries), len(keys))
    scores = {(name, factor): np.empty(shape, np.float32) for name in weights for factor in MEASURED}
    for start in range(0, len(keys), _DOCUMENTS_AT_A_TIME):
        vectors = encoder.encode_document(passages[start : start + _DOCUMENTS_AT_A_TIME], dim=largest)
        documents = [torch.as_tensor(one) for one in vectors]
        flat = torch.cat(documents)
        for name, weight in weights.items():
            asked = [F.normalize(query @ weight.T, dim=-1) for query in queries]
            read = F.normalize(flat @ weight.T, dim=-1)
            each = pooled(read, [len(one) for one in documents], MEASURED)
            for factor, (own, lengths) in zip(MEASURED, each, strict=True):
                bounds = np.cumsum([0, *lengths])[:-1]
                for row, query in enumerate(asked):
                    best = np.maximum.reduceat((query @ own.T).numpy(), bounds, axis=1).sum(axis=0)
                    scores[name, factor][row, start : start + len(documents)] = best
    figures: dict[str, Any] = {"queries": len(queries), "documents": len(keys)}
    for (name, factor), matrix in scores.items():
        run = run_of(torch.from_numpy(matrix), list(texts), keys)
        figures.setdefault(name, {})[f"{factor:g}"] = evaluate_run(run, qrels)["ndcg@10"]
    return figures


def step_cost(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the processor that a step of all weights and six heads takes, by the factors trained for."""
    from training_throughput import SIX, ours, triplets
    from training_throughput import measure as timed

    rows = argparse.Namespace(batch_size=4, negatives=7, steps=1, document_length=300, lang="en", rounds=2)
    chosen = {"1": (1.0,), " ".join(f"{one:g}" for one in options.pool_factors): tuple(options.pool_factors)}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as scratch:
        for chunk in triplets(options.data / "train" / "triplets.jsonl.xz", rows):
            for name, factors in chosen.items():
                more = {**vars(rows), "output": f"{scratch}/output", "pool_factors": factors}
                seconds[name].append(timed(ours("mini", SIX, chunk, more))["processor"] / rows.steps)
                say(f"factors {name}: {seconds[name][-1]:.2f} s a step")
    return {
        "dims": SIX,
        "passages": rows.batch_size * (1 + rows.negatives),
        "seconds": {name: statistics.median(own) for name, own in seconds.items()},
    }


def markdown(report: dict[str, Any]) -> str:
    """A row for each model, set and heads: nDCG@10 without pooling, and the share of it lost by each factor."""
    factors = [f"{one:g}" for one in MEASURED[1:]]
    head = ["model", "set", "heads trained for", "nDCG@10", *(f"lost, pool {one}" for one in factors)]
    lines = [head, ["---"] * 3 + ["--:"] * (1 + len(factors))]
    for model, found in report["models"].items():
        sets = {
            f"{name} ({own['queries']:,} queries, {own['documents']:,} passages)": own
            for name, own in found["sets"].items()
        }
        for name, figures in {**sets, "mean": mean(list(sets.values()))}.items():
            for heads, own in figures.items():
                if isinstance(own, dict):
                    lost = [f"{1 - own[one] / own['1']:.2%}" for one in factors]
                    lines.append([model, name, heads, f"{own['1']:.4f}", *lost])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def mean(sets: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the sets, by heads and factor."""
    kinds = [name for name, own in sets[0].items() if isinstance(own, dict)] if sets else []
    return {
        kind: {factor: statistics.fmean(one[kind][factor] for one in sets) for factor in sets[0][kind]}
        for kind in kinds
    }


def write(report: dict[str, Any]) -> None:
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
