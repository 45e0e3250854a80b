"""Train the heads of the model ``mini-multilingual``, as ``make train-multilingual``.

    python examples/train_multilingual.py --data FOLDER/train --out build/multilingual

Six untied heads over multilingual-e5-small learn from the pairs and triplets of twelve languages and twenty directions
between languages. First they learn on the backbone as its authors trained it, whose token states are computed once.
Then LoRA moves the backbone with them (multilingual.yaml). Then they learn once more, on the states that it gives now.
What was done is kept in ``--out``, and a run that was stopped goes on from there. One in sixteen passages is set aside
with its questions, as a dev set. ``--ship`` writes heads, adapter, card and curve into the package.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from sentence_transformers.base.modules import Transformer
from tqdm import tqdm

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.adapter import CONFIG, WEIGHTS, merge_adapter
from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_plugin.encoder.shipped import shipped_model
from jcv2_trainer.heads.frozen import (
    FrozenTexts,
    dev_ndcg,
    maxsim_scores,
    moment_of,
    train_heads,
    whitened_heads,
)
from jcv2_trainer.heads.principal import TokenStates, half_states, pack, principal_heads, prompts_of
from jcv2_trainer.recipes import load_recipe
from jcv2_trainer.recipes.settings import TrainingRecipe
from jcv2_trainer.training.card import CURVE, curve
from jcv2_trainer.training.requests import Request
from jcv2_trainer.training.runs import versions
from jcv2_trainer.training.train import train as run_training

States = tuple[TokenStates, TokenStates]
"""Of questions and of passages."""
Figures = dict[str, dict[int, float]]
"""nDCG@10 by source and language, then by dimension."""

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("JCV2_DATA") or ROOT / ".." / "shared" / "data") / "train"
MODEL = "mini-multilingual"
SHIPPED = ROOT / "jcv2_plugin" / "models" / MODEL
DIMS = (128, 32, 64, 96, 256, 384)
REVISION = "heads-2"
ROWS, NEGATIVES, DEV_EVERY, DEV_ROWS = 600, 2, 16, 60
TOKENS = 320  # of a passage in training
STEPS, BATCH, LEARNING_RATE, SEED = 500, 48, 1e-3, 13
LORA_ROWS = 180  # of each source and language
RECIPE = Path(__file__).with_name("multilingual.yaml")
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
        train_all(options.data, options.out, getattr(torch, options.dtype))
    if options.ship:
        ship(options.out)


def train_all(data: Path, out: Path, dtype: torch.dtype) -> None:
    """Heads on the backbone as it is, LoRA on the backbone, heads again; all measured on the dev set."""
    files = [data / "triplets.jsonl.xz", data / "pairs.jsonl.xz"]
    texts = FrozenTexts.read(files, rows=ROWS, negatives=NEGATIVES, dev_every=DEV_EVERY, dev_rows=DEV_ROWS, seed=SEED)
    print(f"{len(texts.examples):,} rows and {len(texts.dev):,} of the dev set: {len(texts.queries):,} questions, "
          f"{len(texts.passages):,} passages")  # fmt: skip
    backbone = plain_backbone().to(dtype)
    states = computed(backbone, texts, out / "states")
    moment = moment_of(*states, 1500, SEED)
    components = principal_heads(moment, DIMS)
    save(components, out / "components")
    first = trained(whitened_heads(moment, DIMS), texts, states, out / "frozen-heads")
    figures = {"components": measured(components, texts, states), "frozen": measured(first, texts, states)}
    recipe = load_recipe(TrainingRecipe, "train", RECIPE)
    if not (rows := out / "lora.jsonl").is_file():
        write_rows(rows, first.weight(max(DIMS)), texts, states, float(recipe.scale or 1))
    del states
    if not (out / "adapter" / CONFIG).is_file():
        train_lora(first, recipe, out)
    backbone = plain_backbone()  # anew, so that the matrices are added in float32
    merge_adapter(backbone.model, out / "adapter")
    states = computed(backbone.to(dtype), texts, out / "states-adapted")
    heads = trained(first, texts, states, out / "adapted-heads")
    figures["adapted"] = measured(heads, texts, states)
    for name, one in figures.items():
        print(f"{name:>10}: " + ", ".join(f"{dim} dims {mean_of(one, dim):.4f}" for dim in sorted(DIMS, reverse=True)))
    before, after = ({dim: mean_of(figures[name], dim) for dim in DIMS} for name in ("components", "adapted"))
    save(heads, out / "heads")
    (out / "heads" / CURVE).write_text(curve(before, after), encoding="utf-8")
    (out / "heads" / "README.md").write_text(card(texts, figures), encoding="utf-8")


def plain_backbone() -> Transformer:
    """multilingual-e5-small as its authors trained it."""
    model = shipped_model(MODEL)
    assert model is not None
    return model.plain_backbone({})


def trained(start: MatryoshkaHeads, texts: FrozenTexts, states: States, folder: Path) -> MatryoshkaHeads:
    """Heads trained on states, or those that a run before this one left in the folder."""
    if not (folder / "model.safetensors").is_file():
        options: dict[str, Any] = {"batch_size": BATCH, "learning_rate": LEARNING_RATE, "seed": SEED}
        with tqdm(total=STEPS, unit=" steps", disable=None) as bar:
            save(train_heads(start, texts, *states, steps=STEPS, progress=bar.update, **options), folder)
    return MatryoshkaHeads.load(str(folder))


def save(heads: MatryoshkaHeads, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    heads.save(str(folder))


def measured(heads: MatryoshkaHeads, texts: FrozenTexts, states: States) -> Figures:
    return dev_ndcg({dim: heads.weight(dim) for dim in DIMS}, texts, *states)


def mean_of(figures: Figures, dim: int) -> float:
    return fmean(row[dim] for row in figures.values())


def train_lora(heads: MatryoshkaHeads, recipe: TrainingRecipe, out: Path) -> None:
    """Write ``adapter``: LoRA matrices in half precision, trained with the heads on the rows of ``lora.jsonl``."""
    model = out / "frozen"
    encoder = JinaColbertEncoder.from_pretrained(MODEL, device="cpu")
    encoder.backbone.model.load_state_dict(plain_backbone().model.state_dict())  # without the shipped adapter
    encoder.set_heads(heads)
    # With dropout torch cannot use its fused attention on the CPU, and rank 8 hardly overfits in one epoch.
    encoder.backbone.model.config.update({"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0})
    encoder.save_pretrained(str(model), create_model_card=False)
    resume = (out / "lora.run").is_dir()
    report = run_training(
        Request([out / "lora.jsonl"], str(model), out / "lora", recipe, resume=resume, force=not resume, device="cpu")
    )
    if not report.finished:
        raise SystemExit("Stopped; run the same command to go on.")
    matrices = load_file(out / "lora" / "adapter" / WEIGHTS)
    (out / "adapter").mkdir(exist_ok=True)
    (out / "adapter" / WEIGHTS).write_bytes(save_tensors({name: one.half() for name, one in matrices.items()}))
    shutil.copy(out / "lora" / "adapter" / CONFIG, out / "adapter" / CONFIG)


def write_rows(path: Path, weight: torch.Tensor, texts: FrozenTexts, states: States, scale: float) -> None:
    """Triplets of all sources and languages with the scores that a head over the frozen backbone gives them."""
    queries, passages = states
    counts: Counter[tuple[str, str]] = Counter()
    scratch = path.with_suffix(".new")
    with scratch.open("w", encoding="utf-8") as file, torch.no_grad():
        for one in texts.examples:
            counts[one.source, one.lang] += bool(one.negatives)
            if not one.negatives or counts[one.source, one.lang] > LORA_ROWS:
                continue
            read = [one.positive, *one.negatives]
            packed = (*pack([queries[one.query]]), *pack(passages[place] for place in read))
            scores = maxsim_scores(weight, *packed)[0] * scale
            row = {
                "query": texts.queries[one.query],
                "positive": texts.passages[one.positive],
                "negatives": [texts.passages[place] for place in one.negatives],
                "scores": scores.tolist(),
                "source": one.source,
                "lang": one.lang,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    scratch.rename(path)


def computed(backbone: Transformer, texts: FrozenTexts, folder: Path) -> States:
    """Token states of questions and passages, a file for each two thousand of them."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts, found = prompts_of(MODEL), []
    backbone.max_seq_length = TOKENS
    for role, own in (("query", texts.queries), ("document", texts.passages)):
        parts: list[torch.Tensor] = []
        with tqdm(total=len(own), unit=" texts", desc=role, disable=None) as bar:
            for start in range(0, len(own), _TEXTS_AT_A_TIME):
                file = folder / f"{role}-{start}.pt"
                if not file.is_file():
                    made = half_states(backbone, own[start : start + _TEXTS_AT_A_TIME], prompts[role], 4096, bar.update)
                    torch.save(made, file.with_suffix(".new"))
                    file.with_suffix(".new").rename(file)
                parts += torch.load(file, weights_only=True)
        found.append(parts)
    return found[0], found[1]


def card(texts: FrozenTexts, figures: dict[str, Figures]) -> str:
    """What the heads are, from what, and how good."""
    rows = []
    for dim in sorted(DIMS, reverse=True):
        start, frozen, end = (mean_of(figures[name], dim) for name in ("components", "frozen", "adapted"))
        rows.append(f"| {dim} | {2 * dim} | {start:.4f} | {frozen:.4f} | {end:.4f} | {end - start:+.4f} |")
    shown = (128, 64, 32)
    before, after = figures["components"], figures["adapted"]
    groups = [
        f"| {name} | {' | '.join(f'{before[name][dim]:.3f} | {after[name][dim]:.3f}' for dim in shown)} |"
        for name in after
    ]
    package_versions = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"""# mini-multilingual: six heads over multilingual-e5-small

Linear heads of {", ".join(map(str, sorted(DIMS)))} dimensions over the hidden states of intfloat/multilingual-e5-small
(MIT, about a hundred languages), and a LoRA adapter for it. The heads are trained jointly and are not weight-tied.
They start from principal components, the first of which holds 59% of the states' squared length and is shortened, and
learn from {len(texts.examples):,} pairs and triplets in twelve languages and twenty directions between languages:
{STEPS} steps of {BATCH} questions, each against the passages of its batch, with hard negatives from the triplets. Then
LoRA moves the backbone on up to {LORA_ROWS} triplets of each source and language, with the largest head's scores on the
old backbone as the teacher, and the heads learn once more. `make train-multilingual` makes all of it again.

nDCG@10 on a dev set of {len(texts.dev):,} questions, whose passages are in no training row; the mean over {len(after)}
sources and languages, each searched in its own passages:

| dim | bytes a token (float16) | principal components | trained, frozen backbone | trained, LoRA | change |
|--:|--:|--:|--:|--:|--:|
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
    shutil.copytree(out / "adapter", SHIPPED / "adapter", dirs_exist_ok=True)
    settings = json.loads((SHIPPED / "model.json").read_text(encoding="utf-8"))
    settings["revision"] = REVISION
    (SHIPPED / "model.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    assert MatryoshkaHeads.load(str(SHIPPED / "heads")).dims == DIMS
    print(f"{SHIPPED}: heads {DIMS}, revision {REVISION}")


if __name__ == "__main__":
    main()
