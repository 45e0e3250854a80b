"""Train the heads of the model ``mini-multilingual``, as ``make train-multilingual``.

    python examples/train_multilingual.py --data FOLDER/train --out build/multilingual

Six untied heads over multilingual-e5-small, as its authors trained it, learn from the pairs and triplets of twelve
languages and twenty directions between languages. The backbone stays as it is, so its token states are computed once,
and kept in ``--out``: a run that was stopped goes on from there. One in sixteen passages is set aside with its
questions, as a dev set. ``--ship`` writes heads, card and curve into the package.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from tqdm import tqdm

from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_trainer.heads.frozen import FrozenTexts, TokenStates, dev_ndcg, moment_of, train_heads, whitened_heads
from jcv2_trainer.heads.principal import load_backbone, principal_heads, prompts_of
from jcv2_trainer.training.card import CURVE, curve
from jcv2_trainer.training.runs import versions

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("JCV2_DATA") or ROOT / ".." / "shared" / "data") / "train"
MODEL = "mini-multilingual"
SHIPPED = ROOT / "jcv2_plugin" / "models" / MODEL
DIMS = (128, 32, 64, 96, 256, 384)
REVISION = "heads-1"
ROWS, NEGATIVES, DEV_EVERY, DEV_ROWS = 600, 2, 16, 60
TOKENS = 320  # of a passage in training
STEPS, BATCH, LEARNING_RATE, SEED = 500, 48, 1e-3, 13
_TEXTS_AT_A_TIME = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of pairs.jsonl.xz and triplets.jsonl.xz")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "multilingual", help="folder for the results")
    parser.add_argument("--ship", action="store_true", help=f"write heads and card to jcv2_plugin/models/{MODEL}")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of the backbone; bfloat16 is twice as fast on a CPU that multiplies it in hardware",
    )
    options = parser.parse_args()
    if not (options.out / "heads" / "model.safetensors").is_file():
        train(options.data, options.out, getattr(torch, options.dtype))
    if options.ship:
        ship(options.out)


def train(data: Path, out: Path, dtype: torch.dtype) -> None:
    """Compute states, train the heads, measure them on the dev set, and write them with their card."""
    files = [data / "triplets.jsonl.xz", data / "pairs.jsonl.xz"]
    texts = FrozenTexts.read(files, rows=ROWS, negatives=NEGATIVES, dev_every=DEV_EVERY, dev_rows=DEV_ROWS, seed=SEED)
    print(f"{len(texts.examples):,} rows and {len(texts.dev):,} of the dev set: {len(texts.queries):,} questions, "
          f"{len(texts.passages):,} passages")  # fmt: skip
    states = out / "states"
    states.mkdir(parents=True, exist_ok=True)
    queries = computed(texts.queries, "query", states, dtype)
    passages = computed(texts.passages, "document", states, dtype)
    moment = moment_of(queries, passages, 1500, SEED)
    components = principal_heads(moment, DIMS)
    with tqdm(total=STEPS, unit=" steps", disable=None) as bar:
        heads = train_heads(
            whitened_heads(moment, DIMS),
            texts,
            queries,
            passages,
            steps=STEPS,
            batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            seed=SEED,
            progress=bar.update,
        )
    figures = [
        dev_ndcg({dim: one.weight(dim) for dim in DIMS}, texts, queries, passages) for one in (components, heads)
    ]
    for name, one in (("components", components), ("heads", heads)):
        (out / name).mkdir(exist_ok=True)
        one.save(str(out / name))
    before, after = ({dim: fmean(row[dim] for row in one.values()) for dim in DIMS} for one in figures)
    for dim in sorted(DIMS, reverse=True):
        print(f"{dim:>5} dims  nDCG@10 {before[dim]:.4f} -> {after[dim]:.4f}")
    (out / "heads" / CURVE).write_text(curve(before, after), encoding="utf-8")
    (out / "heads" / "README.md").write_text(card(texts, *figures), encoding="utf-8")


def computed(texts: Sequence[str], role: str, folder: Path, dtype: torch.dtype) -> TokenStates:
    """Token states of texts, a file for each two thousand of them."""
    files = [folder / f"{role}-{start}.pt" for start in range(0, len(texts), _TEXTS_AT_A_TIME)]
    if not all(file.is_file() for file in files):
        backbone, prompt = load_backbone(MODEL), prompts_of(MODEL)[role]
        backbone.to(dtype).max_seq_length = TOKENS
        with tqdm(total=len(texts), unit=" texts", desc=role, disable=None) as bar:
            for number, file in enumerate(files):
                part = texts[number * _TEXTS_AT_A_TIME : (number + 1) * _TEXTS_AT_A_TIME]
                if not file.is_file():
                    torch.save(list(TokenStates.of(backbone, part, prompt, bar.update).parts), file.with_suffix(".new"))
                    file.with_suffix(".new").rename(file)
    return TokenStates([one for file in files for one in torch.load(file, weights_only=True)])


def card(texts: FrozenTexts, before: dict[str, dict[int, float]], after: dict[str, dict[int, float]]) -> str:
    """What the heads are, from what, and how good."""
    rows = []
    for dim in sorted(DIMS, reverse=True):
        start, end = (fmean(one[dim] for one in figures.values()) for figures in (before, after))
        rows.append(f"| {dim} | {2 * dim} | {start:.4f} | {end:.4f} | {end - start:+.4f} |")
    shown = (128, 64, 32)
    groups = [
        f"| {name} | {' | '.join(f'{before[name][dim]:.3f} | {after[name][dim]:.3f}' for dim in shown)} |"
        for name in after
    ]
    package_versions = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"""# mini-multilingual: six heads over multilingual-e5-small

Linear heads of {", ".join(map(str, sorted(DIMS)))} dimensions over the token states of intfloat/multilingual-e5-small
(MIT, about a hundred languages), which stays as its authors trained it. The heads are trained jointly and are not
weight-tied. They start from principal components, the first of which holds 59% of the states' squared length and is
shortened, and learn from {len(texts.examples):,} pairs and triplets in twelve languages and twenty directions between
languages: {STEPS} steps of {BATCH} questions, each against the passages of its batch, with hard negatives from the
triplets. `make train-multilingual` makes them again.

nDCG@10 on a dev set of {len(texts.dev):,} questions, whose passages are in no training row; the mean over {len(after)}
sources and languages, each searched in its own passages:

| dim | bytes a token (float16) | principal components | trained | change |
|--:|--:|--:|--:|--:|
{chr(10).join(rows)}

![nDCG@10 by dimension](curve.svg)

Each source and language, principal components and trained heads at {", ".join(map(str, shown[:-1]))} and {shown[-1]}
dimensions. `ar-de` is an Arabic question and a German passage.

| source, language | {" | ".join(f"{dim}, components | {dim}, trained" for dim in shown)} |
|---|{"--:|" * 2 * len(shown)}
{chr(10).join(groups)}

The sources are TyDi QA, Natural Questions (QED), MedQuAD, JaQuAD, CMRC 2018, TQuAD, ARCD, iApp and the test files of
MLQA.
Versions: {package_versions}.
"""


def ship(out: Path) -> None:
    """Put heads, card and curve in the place of the package's."""
    (SHIPPED / "heads").mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(out / "heads" / name, SHIPPED / "heads" / name)
    for name in ("README.md", CURVE):
        shutil.copy(out / "heads" / name, SHIPPED / name)
    settings = json.loads((SHIPPED / "model.json").read_text(encoding="utf-8"))
    settings["revision"] = REVISION
    (SHIPPED / "model.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    assert MatryoshkaHeads.load(str(SHIPPED / "heads")).dims == DIMS
    print(f"{SHIPPED}: heads {DIMS}, revision {REVISION}")


if __name__ == "__main__":
    main()
