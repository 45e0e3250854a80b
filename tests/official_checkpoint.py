"""Tiny random checkpoints in the layout in which jinaai/jina-colbert-v2 is published.

Their vocabulary is a tiny one, unless another is given: :mod:`xlm_roberta` has the real one.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import string
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jcv2_plugin.encoder.official import tensor_shapes

QUERY_MARKER = "[QueryMarker]"
DOCUMENT_MARKER = "[DocumentMarker]"
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
MAX_POSITIONS = 514
REMOTE_CODE = "jinaai/xlm-roberta-flash-implementation"

SENTENCES = (
    "Late interaction compares every query token with every document token.",
    "A query is short, and its vector is compared with many documents.",
    "The score of a document is the sum of the largest similarities.",
    "Paris is the capital of France; Berlin is the capital of Germany.",
    "Wie viele Einwohner hat die Stadt Berlin?",
    "La tour Eiffel est un monument de Paris.",
    "Punctuation is dropped (mostly), because it carries little meaning!",
    "How do I store token vectors in a database?",
    "Rivers, lakes and mountains: the country has them all.",
    "The match ended 3 - 2, after a long second half.",
)
TEXTS = (
    "What is the capital of France?",
    "late interaction",
    "",
    "...",
    "  Zoë's café costs $5 - (about 6 dollars) ... and ~ that's #all!  ",
    "The ﬁrst Ｑuery; an unknown word: xylophone, 東京.",
    " ".join(SENTENCES[:4]),
    "!?",
)
"""Short, long, empty, punctuation only, unknown characters, characters that the tokenizer normalises."""

_UNKNOWN_SYMBOLS = "~^`"  # punctuation that the vocabulary lacks
_PREFIXED_SYMBOLS = "(-$"  # punctuation with a piece of its own at the start of a word
_NORMALISED = {"ﬁ": "fi", "Ｑ": "Q"}


@dataclass(frozen=True)
class Vocabulary:
    """Pieces with their scores in the order of their ids (``<mask>`` is the last), and what replaces characters."""

    pieces: Sequence[tuple[str, float]]
    normalised: Mapping[str, str]


def tiny_vocabulary() -> Vocabulary:
    """The words of :data:`SENTENCES`, letters and punctuation."""
    words = sorted({word for sentence in SENTENCES for word in re.findall(r"\w+", sentence)})
    letters = set("".join(SENTENCES)) | set(string.ascii_letters + string.digits + string.punctuation)
    letters -= {" ", ",", "."} | set(_UNKNOWN_SYMBOLS)
    pieces = [(special, 0.0) for special in SPECIALS]
    pieces += [(",", -3.5), (".", -3.6), ("▁", -4.0)]  # ids 4, 5 and 6, as in XLM-R
    pieces += [(f"▁{word}", -6.0 - 0.01 * rank) for rank, word in enumerate(words)]
    pieces += [(f"▁{symbol}", -7.0) for symbol in _PREFIXED_SYMBOLS]
    pieces += [(letter, -10.0) for letter in sorted(letters)]
    pieces += [("<mask>", 0.0)]
    return Vocabulary(pieces, _NORMALISED)


def precompiled_charsmap(replacements: Mapping[str, str]) -> bytes:
    """SentencePiece's normalisation table: a double-array trie over UTF-8 bytes, then the replacements."""
    targets = {source.encode(): target.encode() for source, target in replacements.items()}
    parents = list(dict.fromkeys(source[:end] for source in targets for end in range(len(source))))
    # Where a state's value lies, and 256 units from there its children. One without children needs its value only.
    bases = {prefix: 256 * number for number, prefix in enumerate(parents, start=1)}
    childless = [source for source in targets if source not in bases]
    bases.update(zip(childless, itertools.count(256 * (len(parents) + 1))))
    units = [0] * (256 * (max(bases.values()) // 256 + 1))
    units[0] = bases[b""] << 10
    blob = b""
    for prefix, own in bases.items():
        if prefix:
            position = bases[prefix[:-1]] ^ prefix[-1]
            units[position] = (position ^ own) << 10 | (prefix in targets) << 8 | prefix[-1]
        if prefix in targets:
            units[own] = 1 << 31 | len(blob)
            blob += targets[prefix] + b"\0"
    trie = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(trie)) + trie + blob


def build_tokenizer(vocabulary: Vocabulary | None = None) -> Tokenizer:
    """A Unigram tokenizer with XLM-R's pipeline, special ids and the two markers as the last tokens."""
    vocabulary = vocabulary or tiny_vocabulary()
    tokenizer = Tokenizer(models.Unigram(list(vocabulary.pieces), unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Precompiled(precompiled_charsmap(vocabulary.normalised))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "</s>"],
        pair=["<s>", "$A", "</s>", "</s>", "$B", "</s>"],
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.add_special_tokens([AddedToken(special, normalized=False) for special in SPECIALS])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    tokenizer.add_special_tokens([AddedToken(marker, normalized=False) for marker in (QUERY_MARKER, DOCUMENT_MARKER)])
    return tokenizer


def write_tokenizer(folder: Path, vocabulary: Vocabulary | None = None) -> int:
    """Write ``tokenizer.json`` and its two companions; give the vocabulary's size."""
    tokenizer = build_tokenizer(vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = {
        str(token_id): {key: getattr(token, key) for key in keys}
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    names = {"bos": "s", "cls": "s", "eos": "/s", "mask": "mask", "pad": "pad", "sep": "/s", "unk": "unk"}
    roles = {f"{role}_token": f"<{name}>" for role, name in names.items()}
    by_content = {entry["content"]: {key: entry[key] for key in entry if key != "special"} for entry in added.values()}
    special_map: dict[str, Any] = {role: by_content[content] for role, content in roles.items()}
    special_map["additional_special_tokens"] = [by_content[QUERY_MARKER], by_content[DOCUMENT_MARKER]]
    config: dict[str, Any] = {
        "added_tokens_decoder": added,
        "additional_special_tokens": [QUERY_MARKER, DOCUMENT_MARKER],
        "clean_up_tokenization_spaces": True,
        "model_max_length": MAX_POSITIONS,
        "tokenizer_class": "XLMRobertaTokenizer",
        **roles,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special_map)
    return tokenizer.get_vocab_size()


def random_tensors(
    *, dim: int, vocab: int, layers: int, hidden: int, inner: int, with_pooler: bool, seed: int
) -> dict[str, torch.Tensor]:
    """Every tensor under its published name, large enough for each to show in the output."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, mean: float = 0.0, std: float) -> torch.Tensor:
        return mean + std * torch.randn(*shape, generator=generator)

    def linear(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        weight = normal(rows, columns, std=1.5 / columns**0.5)
        return {f"{name}.weight": weight, f"{name}.bias": normal(rows, std=0.3)}

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": normal(hidden, mean=1.0, std=0.2), f"{name}.bias": normal(hidden, std=0.2)}

    tensors = {
        "linear.weight": normal(dim, hidden, std=hidden**-0.5),
        **norm("roberta.emb_ln"),
        "roberta.embeddings.word_embeddings.weight": normal(vocab, hidden, std=1.0),
        "roberta.embeddings.token_type_embeddings.weight": normal(1, hidden, std=0.5),
    }
    for layer in range(layers):
        prefix = f"roberta.encoder.layers.{layer}"
        tensors |= linear(f"{prefix}.mixer.Wqkv", 3 * hidden, hidden)
        tensors |= linear(f"{prefix}.mixer.out_proj", hidden, hidden)
        tensors |= norm(f"{prefix}.norm1")
        tensors |= linear(f"{prefix}.mlp.fc1", inner, hidden)
        tensors |= linear(f"{prefix}.mlp.fc2", hidden, inner)
        tensors |= norm(f"{prefix}.norm2")
    if with_pooler:
        tensors |= linear("roberta.pooler.dense", hidden, hidden)
    return tensors


def write_checkpoint(
    folder: Path,
    dim: int = 128,
    *,
    dtype: torch.dtype = torch.bfloat16,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    inner: int = 128,
    seed: int = 0,
    rotary_emb_base: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    with_model_type: bool = False,
    with_pooler: bool = True,
    backbone_from: Path | None = None,
    vocabulary: Vocabulary | None = None,
) -> Path:
    """Write a random checkpoint in the official layout.

    ``metadata`` are changes to ``artifact.metadata``; ``backbone_from`` is a folder written before, to take everything
    but the head from; no ``vocabulary`` is the tiny one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab = write_tokenizer(folder, vocabulary)
    tensors = random_tensors(
        dim=dim, vocab=vocab, layers=layers, hidden=hidden, inner=inner, with_pooler=with_pooler, seed=seed
    )
    if backbone_from is not None:
        tensors = {
            **load_file(backbone_from / "model.safetensors"),
            "linear.weight": tensors["linear.weight"],
        }
        shutil.copy(backbone_from / "config.json", folder)
    else:
        config = official_config(vocab, layers, hidden, heads, inner, dtype)
        if rotary_emb_base is not None:
            config["rotary_emb_base"] = rotary_emb_base
        if with_model_type:
            config["model_type"] = "xlm-roberta"
        write_json(folder / "config.json", config)
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "artifact.metadata", {**official_metadata(), **(metadata or {})})
    return folder


def write_sibling(folder: Path, backbone_from: Path, dim: int = 64) -> Path:
    """The same backbone with a head of its own, as jina-colbert-v2-64 is to jina-colbert-v2."""
    hidden = load_json(backbone_from / "config.json")["hidden_size"]
    return write_checkpoint(folder, dim, hidden=hidden, seed=dim, backbone_from=backbone_from)


def official_config(vocab: int, layers: int, hidden: int, heads: int, inner: int, dtype: torch.dtype) -> dict[str, Any]:
    """``config.json`` as published, with the sizes given."""
    return {
        "architectures": ["HF_ColBERT"],
        "attention_probs_dropout_prob": 0.1,
        "auto_map": {
            "AutoConfig": f"{REMOTE_CODE}--configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModel": f"{REMOTE_CODE}--modeling_xlm_roberta.XLMRobertaModel",
        },
        "bos_token_id": 0,
        "classifier_dropout": None,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": MAX_POSITIONS,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "position_embedding_type": "rotary",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "type_vocab_size": 1,
        "use_cache": True,
        "use_flash_attn": True,
        "vocab_size": vocab,
    }


def official_metadata() -> dict[str, Any]:
    """``artifact.metadata`` as published."""
    return {
        "query_token_id": QUERY_MARKER,
        "doc_token_id": DOCUMENT_MARKER,
        "query_token": "[Q]",
        "doc_token": "[D]",
        "reranker": False,
        "distillation_alpha": 1.0,
        "ignore_scores": True,
        "model_name": "jinaai/jina-colbert-v2",
        "query_maxlen": 32,
        "attend_to_mask_tokens": True,
        "interaction": "colbert",
        "doc_maxlen": 300,
        "mask_punctuation": True,
    }


def edit_tensors(folder: Path, changes: Mapping[str, torch.Tensor | None]) -> None:
    """Rewrite ``model.safetensors`` with tensors replaced, added, or (None) left out."""
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, value: Any) -> None:
    """Write JSON as the hub's files are written."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def load_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def file_size(shapes: dict[str, tuple[int, ...]]) -> tuple[bytes, int]:
    """A bfloat16 safetensors file's first bytes, up to the data, and its size, as the library writes it."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(shapes.items()):
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded, 8 + len(encoded) + end


def write_full_size(folder: Path, vocabulary: Vocabulary, dim: int = 128) -> None:
    """A checkpoint with the published sizes, of random numbers."""
    write_tokenizer(folder, vocabulary)
    tokenizer_config = load_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {**tokenizer_config, "model_max_length": 8194})
    config = {**official_config(250_004, 24, 1024, 16, 4096, torch.bfloat16), "max_position_embeddings": 8194}
    write_json(folder / "config.json", config)
    write_json(folder / "artifact.metadata", official_metadata())
    shapes = tensor_shapes(config, dim)
    generator = torch.Generator().manual_seed(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(file_size(shapes)[0])
        for name, shape in sorted(shapes.items()):
            tensor = torch.ones(shape, dtype=torch.bfloat16)
            if not name.endswith(("norm1.weight", "norm2.weight", "emb_ln.weight")):
                tensor.normal_(std=0.02, generator=generator)
            file.write(tensor.view(torch.int16).numpy().tobytes())
