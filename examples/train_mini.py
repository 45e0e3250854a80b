"""Train the model ``mini`` further: LoRA and heads on all-MiniLM-L6-v2, as ``make train-mini``.

    python examples/train_mini.py --data FOLDER/train --out build/mini

The start is the backbone as its authors trained it, with principal-component heads fitted anew. The result (heads,
adapter in half precision, card) is put into the package only with ``--ship``. The data are the English
rows of pairs.jsonl.xz (for the start) and triplets.jsonl.xz; the dev set is drawn from the latter. The shipped heads
are the untrained start: see docs/training.md for what training gains and loses.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import torch

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.heads import MatryoshkaHeads
from jcv2_plugin.shipped import shipped_model
from jcv2_trainer.data import sample_texts
from jcv2_trainer.principal_heads import load_backbone, principal_heads, second_moment
from jcv2_trainer.recipes import load_recipe
from jcv2_trainer.report import Report
from jcv2_trainer.requests import Request
from jcv2_trainer.settings import TrainingRecipe
from jcv2_trainer.training import train

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("JCV2_DATA") or ROOT / ".." / "shared" / "data") / "train"
RECIPE = Path(__file__).with_name("mini.yaml")
SHIPPED = ROOT / "jcv2_plugin" / "models" / "mini"
DIMS = (128, 32, 64, 96, 256, 384)
REVISION = "heads-2"
TEXTS, SEED = 3000, 13
_LARGEST = 4_000_000  # bytes of heads and adapter together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of pairs.jsonl.xz and triplets.jsonl.xz")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mini", help="folder for start and result")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--ship", action="store_true", help="write the result to jcv2_plugin/models/mini")
    options = parser.parse_args()
    start = options.out / "start"
    if not (start / "modules.json").is_file():
        write_start(options.data / "pairs.jsonl.xz", start)
    report = train(
        Request(
            data=[options.data / "triplets.jsonl.xz"],
            model=str(start),
            out=options.out / "trained",
            settings=load_recipe(TrainingRecipe, "train", RECIPE),
            languages=["en"],
            resume=options.resume,
            force=True,
            device="cpu" if not torch.cuda.is_available() else None,
        )
    )
    for dim, after in report.after.items():
        print(f"{dim:>5} dims  {report.before[dim]:.4f} -> {after:.4f}")
    if not report.finished:
        raise SystemExit("Stopped; go on with --resume.")
    if options.ship:
        ship(options.out / "trained", report)


def write_start(pairs: Path, folder: Path) -> None:
    """The untrained model: backbone, principal-component heads, and the shipped model's settings."""
    shipped = shipped_model("mini")
    assert shipped is not None
    queries, positives = sample_texts(pairs, TEXTS, SEED, "en")
    heads = principal_heads(second_moment(load_backbone("mini"), [*positives, *queries]), DIMS)
    encoder = JinaColbertEncoder.from_pretrained("mini", device="cpu")
    encoder.backbone.model.load_state_dict(shipped.plain_backbone({}).model.state_dict())
    encoder.set_heads(heads)
    encoder.save_pretrained(str(folder))


def ship(trained: Path, report: Report) -> None:
    """Put heads and adapter in the place of the package's."""
    if (trained / "adapter").is_dir():
        from safetensors.torch import load_file, save

        target = SHIPPED / "adapter"
        target.mkdir(exist_ok=True)
        shutil.copy(trained / "adapter" / "adapter_config.json", target)
        tensors = load_file(trained / "adapter" / "adapter_model.safetensors")
        halves = {name: tensor.half() for name, tensor in tensors.items()}
        (target / "adapter_model.safetensors").write_bytes(save(halves, metadata={"format": "pt"}))
    encoder = JinaColbertEncoder.from_pretrained(str(trained), device="cpu")
    assert isinstance(encoder.heads, MatryoshkaHeads)
    encoder.heads.save(str(SHIPPED / "heads"))
    settings = json.loads((SHIPPED / "model.json").read_text(encoding="utf-8"))
    settings["revision"] = REVISION
    (SHIPPED / "model.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    card = (trained / "README.md").read_text(encoding="utf-8").replace(report.model, settings["repository"])
    card = card.replace("path/to/this/folder", "mini")
    (SHIPPED / "README.md").write_text(card, encoding="utf-8")
    shutil.copy(trained / "curve.svg", SHIPPED / "curve.svg")
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*.safetensors"))
    assert size < _LARGEST, f"{size:,} bytes are too many to ship"
    print(f"{SHIPPED}: {size:,} bytes of weights, dev nDCG@10 {report.after}")


if __name__ == "__main__":
    main()
