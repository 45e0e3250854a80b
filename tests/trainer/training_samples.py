"""Rows, tiny encoders and settings for the tests of training."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from official_checkpoint import SENTENCES, write_checkpoint
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from jcv2_plugin import JinaColbertEncoder
from jcv2_trainer.data.check import text_key
from jcv2_trainer.recipes import load_recipe
from jcv2_trainer.recipes.settings import TrainingRecipe

WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})


def tiny_encoder(
    folder: Path, dims: Sequence[int] = (16, 8), seed: int = 0, dropout: float = 0.0
) -> JinaColbertEncoder:
    """A random encoder in the official layout's architecture, with a head for each of ``dims``, in float32."""
    from jcv2_plugin.encoder.heads import MatryoshkaHeads

    if not folder.exists():
        write_checkpoint(folder, max(dims), dtype=torch.float32, seed=seed)
    encoder = JinaColbertEncoder.from_pretrained(str(folder), device="cpu", dtype=torch.float32)
    torch.manual_seed(seed)
    assert encoder.heads is not None
    encoder.set_heads(MatryoshkaHeads(encoder.heads.in_features, dims))
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
    return encoder


def write_word_bert(
    folder: Path, pieces: Sequence[str], kind: Any = BertForMaskedLM, *, spare: int = 0, **config: Any
) -> Path:
    """A random BERT whose tokenizer knows these words and pieces, with so many rows of embeddings to spare."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {piece: index for index, piece in enumerate([*specials, *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    BertTokenizer(tokenizer_object=tokenizer, model_max_length=config["max_position_embeddings"]).save_pretrained(
        folder
    )
    torch.manual_seed(3)
    kind(BertConfig(vocab_size=len(vocabulary) + spare, **config)).save_pretrained(folder)
    return folder


def text(generator: random.Random, words: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(words))


def make_rows(
    count: int, negatives: int = 2, *, scores: bool = False, seed: int = 0, source: str = "toy"
) -> list[dict[str, Any]]:
    """Rows of random words, of mixed lengths."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        row: dict[str, Any] = {
            "query": text(generator, generator.randint(3, 7)),
            "positive": text(generator, generator.randint(5, 40)),
            "negatives": [text(generator, generator.randint(5, 40)) for _ in range(negatives)],
            "scores": [generator.uniform(-3, 6) for _ in range(1 + negatives)] if scores else [],
            "lang": "en",
            "source": source,
        }
        rows.append(with_keys(row))
    return rows


def with_keys(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "query_key": text_key(row["query"]), "positive_key": text_key(row["positive"])}


def as_dataset(rows: Sequence[dict[str, Any]]) -> Dataset:
    return Dataset.from_list(list(rows))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """As JSON lines, without what only the dataset has."""
    lines = []
    for row in rows:
        plain = {name: value for name, value in row.items() if not name.endswith("_key") and value not in ([], "")}
        lines.append(json.dumps(plain))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """A line for each row; bytes are taken as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def settings(name: str = "triplets", **changes: Any) -> TrainingRecipe:
    """The packaged recipe with changes; None stays None."""
    return load_recipe(TrainingRecipe, name, None, changes)
