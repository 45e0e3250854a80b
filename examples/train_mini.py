"""Train the heads of the model ``mini``, as ``make train-mini``; with ``--lora`` its backbone too.

    python examples/train_mini.py --data FOLDER/train --out build/mini

Six heads over all-MiniLM-L6-v2 as its authors trained it are fitted to queries and passages of pairs.jsonl.xz, without
labels: they learn to rank as the whole token states do. The dev set is drawn from triplets.jsonl.xz. ``--ship`` writes
heads and card into the package. ``--lora`` goes on with contrastive training of LoRA and heads (examples/mini.yaml),
which gains on questions like those trained on and loses elsewhere (docs/training.md), so its result is not shipped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_plugin.encoder.shipped import shipped_model
from jcv2_trainer.data.reading import read_rows, sample_texts
from jcv2_trainer.heads.principal import load_backbone
from jcv2_trainer.heads.score_keeping import FittedHeads, fit_heads
from jcv2_trainer.recipes import load_recipe
from jcv2_trainer.recipes.settings import TrainingRecipe
from jcv2_trainer.training.card import CURVE, curve
from jcv2_trainer.training.dev import DevEvaluator, DevSet
from jcv2_trainer.training.requests import Request
from jcv2_trainer.training.runs import versions
from jcv2_trainer.training.train import train

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("JCV2_DATA") or ROOT / ".." / "shared" / "data") / "train"
RECIPE = Path(__file__).with_name("mini.yaml")
SHIPPED = ROOT / "jcv2_plugin" / "models" / "mini"
DIMS = (128, 32, 64, 96, 256, 384)
REVISION = "heads-2"
TEXTS, STEPS, SEED = 6000, 500, 13
DEV_EVERY = 40  # one in 40 English triplets is in the dev set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of pairs.jsonl.xz and triplets.jsonl.xz")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mini", help="folder for the results")
    parser.add_argument("--ship", action="store_true", help="write heads and card to jcv2_plugin/models/mini")
    parser.add_argument("--lora", action="store_true", help="train LoRA and heads on triplets afterwards")
    parser.add_argument("--resume", action="store_true", help="go on with a LoRA run that was stopped")
    options = parser.parse_args()
    folder = options.out / "heads-only"
    if not (folder / "modules.json").is_file():
        write_heads(options.data, folder)
    if options.ship:
        ship(options.out)
    if options.lora:
        train_lora(options.data, folder, options.out / "trained", resume=options.resume)


def write_heads(data: Path, folder: Path) -> None:
    """Fit the heads, measure them beside the principal components, and write the encoder and its card."""
    queries, positives = sample_texts(data / "pairs.jsonl.xz", TEXTS, SEED, "en")
    fitted = fit_heads(load_backbone("mini"), queries, positives, DIMS, steps=STEPS, seed=SEED)
    encoder = plain_encoder()
    rows = (row for row in read_rows(data / "triplets.jsonl.xz") if row.lang == "en")
    dev = dev_set(row for index, row in enumerate(rows) if index % DEV_EVERY == 0)
    figures = []
    for heads in (fitted.components, fitted.heads):
        encoder.set_heads(heads)
        figures.append(DevEvaluator(dev, DIMS).ndcg(encoder))
    before, after = figures
    for dim in DIMS:
        print(f"{dim:>5} dims  nDCG@10 {before[dim]:.4f} -> {after[dim]:.4f}, error of MaxSim "
              f"{fitted.component_errors[dim]:.2%} -> {fitted.errors[dim]:.2%}")  # fmt: skip
    encoder.save_pretrained(str(folder), create_model_card=False)
    heads_folder = folder.with_name("heads")
    heads_folder.mkdir(parents=True, exist_ok=True)
    fitted.heads.save(str(heads_folder))
    (heads_folder / CURVE).write_text(curve(before, after), encoding="utf-8")
    (heads_folder / "README.md").write_text(card(fitted, before, after, dev), encoding="utf-8")


def plain_encoder() -> JinaColbertEncoder:
    """The shipped model's settings over the backbone as its authors trained it."""
    shipped = shipped_model("mini")
    assert shipped is not None
    encoder = JinaColbertEncoder.from_pretrained("mini", device="cpu")
    encoder.backbone.model.load_state_dict(shipped.plain_backbone({}).model.state_dict())
    return encoder


def dev_set(rows: Iterable[Any]) -> DevSet:
    return DevSet.of_rows({"query": row.query, "positive": row.positive, "negatives": row.negatives} for row in rows)


def card(fitted: FittedHeads, before: dict[int, float], after: dict[int, float], dev: DevSet) -> str:
    """What the heads are, from what, and how good."""
    rows = [
        f"| {dim} | {2 * dim} | {fitted.component_errors[dim]:.2%} | {fitted.errors[dim]:.2%} | {before[dim]:.4f} | "
        f"{after[dim]:.4f} |"
        for dim in sorted(DIMS, reverse=True)
    ]
    package_versions = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"""# mini: six heads over all-MiniLM-L6-v2

Linear heads of {", ".join(map(str, sorted(DIMS)))} dimensions over the token states of
sentence-transformers/all-MiniLM-L6-v2 (English, Apache-2.0), which is as its authors trained it. They were fitted
without labels, to rank as the whole states do: principal components of {TEXTS // 2:,} queries and {TEXTS // 2:,}
passages of the English training pairs, then {STEPS} steps of `jcv2_trainer.heads.score_keeping` (arXiv 2407.20243 for
whole texts). `make train-mini` makes them again.

| dim | bytes a token (float16) | error, principal components | error, trained | nDCG@10, principal | nDCG@10, trained |
|--:|--:|--:|--:|--:|--:|
{chr(10).join(rows)}

The error is that of the differences of MaxSim between passages, as a share of their variance, on batches that were not
trained on. nDCG@10 is on a dev set of {len(dev.queries):,} English questions and {len(dev.documents):,} passages drawn
from the training triplets (medical, Natural Questions, TyDi), no label of which was used.

![nDCG@10 by dimension](curve.svg)

Versions: {package_versions}.
"""


def ship(out: Path) -> None:
    """Replace the package's heads and card."""
    heads = out / "heads"
    (SHIPPED / "heads").mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(heads / name, SHIPPED / "heads" / name)
    for name in ("README.md", CURVE):
        shutil.copy(heads / name, SHIPPED / name)
    settings = json.loads((SHIPPED / "model.json").read_text(encoding="utf-8"))
    settings["revision"] = REVISION
    (SHIPPED / "model.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    assert MatryoshkaHeads.load(str(SHIPPED / "heads")).dims == DIMS
    print(f"{SHIPPED}: heads {DIMS}, revision {REVISION}")


def train_lora(data: Path, model: Path, out: Path, *, resume: bool) -> None:
    """Contrastive training of LoRA and heads on the English triplets."""
    report = train(
        Request(
            data=[data / "triplets.jsonl.xz"],
            model=str(model),
            out=out,
            settings=load_recipe(TrainingRecipe, "train", RECIPE),
            languages=["en"],
            resume=resume,
            force=True,
            device="cpu" if not torch.cuda.is_available() else None,
        )
    )
    for dim, after in report.after.items():
        print(f"{dim:>5} dims  {report.before[dim]:.4f} -> {after:.4f}")
    if not report.finished:
        raise SystemExit("Stopped; go on with --resume.")


if __name__ == "__main__":
    main()
