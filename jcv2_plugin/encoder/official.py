"""Load the official checkpoint, jina-colbert-v2, without remote code.

Jina published it in Stanford ColBERT's layout with their own backbone. The folder contains ``config.json``
(``architectures ["HF_ColBERT"]``, remote code in ``auto_map``, ``model_type`` may be missing), ``artifact.metadata``
(Stanford's ColBERTConfig), one ``model.safetensors`` with ``linear.weight`` and ``roberta.*``, and a tokenizer, but no
``modules.json``. It is loaded into transformers' own ``JinaEmbeddingsV3Model``, which is the same network (rotary
positions, post-norm).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from sentence_transformers.base.modules import Transformer
from sentence_transformers.base.modules.transformer import set_temporary_class_attrs
from transformers import JinaEmbeddingsV3Model

from jcv2_plugin.encoder.backbone import text_transformer
from jcv2_plugin.encoder.hub import HUB_ERRORS, ModelSource
from jcv2_plugin.encoder.safetensors_io import file_reader, hub_reader, read_header, read_tensor
from jcv2_plugin.errors import ModelLayoutError, UnknownDimError
from jcv2_plugin.files import read_json

QUERY_MARKER = "[QueryMarker]"
DOCUMENT_MARKER = "[DocumentMarker]"
HEAD = "linear.weight"
WEIGHTS = "model.safetensors"
DEFAULT_ROPE_THETA = 10000.0
"""Default of Jina's own configuration class. transformers' native class defaults to 20000."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "sentencepiece.bpe.model")
_REQUIRED_KEYS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_CONFIG_KEYS = (
    *_REQUIRED_KEYS,
    *("hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps"),
    *("max_position_embeddings", "type_vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"),
)


@dataclass(frozen=True)
class ColbertMetadata:
    """Settings from ``artifact.metadata``. The defaults are those of the released file."""

    query_length: int = 32
    document_length: int = 300
    attend_to_mask_tokens: bool = True
    mask_punctuation: bool = True
    query_marker: str | None = None
    document_marker: str | None = None

    @classmethod
    def read(cls, folder: Path) -> ColbertMetadata:
        """Parse ``artifact.metadata`` in a folder, or use the defaults if it is missing. Raises ModelLayoutError."""
        path = folder / "artifact.metadata"
        if not path.exists():
            return cls()
        default = cls()
        try:
            raw = read_json(path)
            return cls(
                query_length=int(raw.get("query_maxlen") or default.query_length),
                document_length=int(raw.get("doc_maxlen") or default.document_length),
                attend_to_mask_tokens=bool(raw.get("attend_to_mask_tokens", True)),
                mask_punctuation=bool(raw.get("mask_punctuation", True)),
                query_marker=raw.get("query_token_id"),
                document_marker=raw.get("doc_token_id"),
            )
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ModelLayoutError(
                f"{path} is not valid ColBERT metadata ({error}). Download the file again."
            ) from error


def is_official_layout(folder: Path) -> bool:
    """Return whether the folder has the layout of jina-colbert-v2."""
    if (folder / "modules.json").exists() or not (folder / WEIGHTS).exists():
        return False
    header, _ = read_header(file_reader(folder / WEIGHTS), str(folder / WEIGHTS))
    return any(name.startswith("roberta.encoder.layers.") and ".mixer." in name for name in header)


def tensor_shapes(config: dict[str, Any], dim: int) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor in a checkpoint of the official layout."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    weights: dict[str, tuple[int, ...]] = {"emb_ln": (hidden,), "pooler.dense": (hidden, hidden)}
    for layer in range(config["num_hidden_layers"]):
        weights |= {
            f"encoder.layers.{layer}.mixer.Wqkv": (3 * hidden, hidden),
            f"encoder.layers.{layer}.mixer.out_proj": (hidden, hidden),
            f"encoder.layers.{layer}.mlp.fc1": (inner, hidden),
            f"encoder.layers.{layer}.mlp.fc2": (hidden, inner),
            f"encoder.layers.{layer}.norm1": (hidden,),
            f"encoder.layers.{layer}.norm2": (hidden,),
        }
    return {
        HEAD: (dim, hidden),
        "roberta.embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "roberta.embeddings.token_type_embeddings.weight": (config.get("type_vocab_size", 1), hidden),
        **{f"roberta.{name}.weight": shape for name, shape in weights.items()},
        **{f"roberta.{name}.bias": shape[:1] for name, shape in weights.items()},
    }


def native_config(raw: dict[str, Any]) -> dict[str, Any]:
    """Convert the published ``config.json`` to one for transformers' ``JinaEmbeddingsV3Config``."""
    if absent := [key for key in _REQUIRED_KEYS if raw.get(key) is None]:
        raise ModelLayoutError(f"config.json has no {absent}. Download the file again.")
    if raw.get("position_embedding_type", "rotary") != "rotary":
        raise ModelLayoutError(
            f"config.json has position_embedding_type={raw['position_embedding_type']!r}, this layout needs 'rotary'."
        )
    rope = raw.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or raw.get("rotary_emb_base") or raw.get("rope_theta") or DEFAULT_ROPE_THETA
    config = {key: raw[key] for key in _CONFIG_KEYS if raw.get(key) is not None}
    config.update(
        model_type="jina_embeddings_v3",
        architectures=["JinaEmbeddingsV3Model"],
        rope_parameters={"rope_type": "default", "rope_theta": float(theta)},
    )
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    if dtype:
        config["dtype"] = dtype
    return config


def check_tensors(folder: Path, config: dict[str, Any]) -> int:
    """Check the header of ``model.safetensors`` against the layout and return the head's dimension.

    The pooler may be missing, because late interaction never uses it. Raises ModelLayoutError for anything else.
    """
    source = str(folder / WEIGHTS)
    header, data_start = read_header(file_reader(folder / WEIGHTS), source)
    dim = int(header[HEAD]["shape"][0]) if HEAD in header else 0
    expected = tensor_shapes(config, dim)
    required = {name for name in expected if "pooler" not in name}
    problems = []
    if required - set(header) == {HEAD}:
        raise ModelLayoutError(
            f"{source} has no projection head (missing ['{HEAD}']), and a random one would retrieve noise. Use a "
            "ColBERT model, or train heads on this backbone first."
        )
    if missing := sorted(required - set(header)):
        problems.append(f"missing {missing[:5]} ({len(missing)} in all)")
    if unexpected := sorted(set(header) - set(expected)):
        problems.append(f"unexpected {unexpected[:5]} ({len(unexpected)} in all)")
    shapes = {name: tuple(header[name]["shape"]) for name in set(header) & set(expected)}
    if wrong := sorted(name for name, shape in shapes.items() if shape != expected[name]):
        problems.append(f"{wrong[0]} has shape {shapes[wrong[0]]}, config.json says {expected[wrong[0]]}")
    needed = data_start + max(entry["data_offsets"][1] for entry in header.values())
    if (size := os.path.getsize(source)) < needed:
        problems.append(f"cut short, with {size:,} of {needed:,} bytes")
    if problems:
        raise ModelLayoutError(f"{source} does not fit the layout of jina-colbert-v2: {'; '.join(problems)}.")
    return dim


def load_backbone(folder: Path, model_kwargs: dict[str, Any]) -> tuple[Transformer, int]:
    """Load the backbone as a sentence-transformers module, and return it with the dimension of the stored head.

    transformers loads it from a temporary folder with a converted ``config.json`` and links to the other files.
    """
    try:
        raw = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise ModelLayoutError(f"{folder}/config.json cannot be read ({error}).") from error
    config = native_config(raw)
    dim = check_tensors(folder, config)
    # Without them, transformers fails with an obscure error or, worse, creates a tokenizer with an empty vocabulary.
    for names in (("tokenizer.json", "sentencepiece.bpe.model"), ("tokenizer_config.json",)):
        if not any((folder / name).exists() for name in names):
            raise ModelLayoutError(f"{folder} has no {' or '.join(names)}. Copy the whole folder again.")
    with tempfile.TemporaryDirectory(prefix="jcv2-", ignore_cleanup_errors=True) as staging:
        for name in (WEIGHTS, *_TOKENIZER_FILES):
            if (folder / name).exists():
                _link(folder / name, Path(staging) / name)
        (Path(staging) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        # The header was checked above, so transformers does not need to report the head as unexpected.
        with set_temporary_class_attrs(
            JinaEmbeddingsV3Model,
            _keys_to_ignore_on_load_unexpected=[HEAD],
            _keys_to_ignore_on_load_missing=["pooler"],
        ):
            transformer = text_transformer(staging, model_kwargs)
    transformer.model.config.name_or_path = str(folder)
    tokenizer: Any = transformer.tokenizer
    tokenizer.name_or_path = str(folder)
    return transformer, dim


def _link(source: Path, target: Path) -> None:
    try:
        os.symlink(source.resolve(), target)
    except OSError:  # Windows without permission to create symbolic links
        try:
            os.link(source.resolve(), target)
        except OSError:
            shutil.copyfile(source, target)


def resolve_markers(tokenizer: Any, metadata: ColbertMetadata) -> tuple[str, str]:
    """Return the query and document markers, each registered with the tokenizer as a single token.

    They are specified in ``artifact.metadata``. If one is missing there or not in the vocabulary (Stanford's default
    ``[unused0]`` is <unk> in XLM-R), the model's own marker is used.
    """
    markers: list[str] = []
    vocabulary = tokenizer.get_vocab()
    for named, fallback in ((metadata.query_marker, QUERY_MARKER), (metadata.document_marker, DOCUMENT_MARKER)):
        marker = named if named is not None and named in vocabulary else fallback
        if marker not in vocabulary:
            raise ModelLayoutError(
                f"The tokenizer has neither the marker {named!r} from artifact.metadata nor {fallback!r}. Its files "
                "belong to another checkpoint. Download them again."
            )
        markers.append(marker)
    if to_register := [marker for marker in markers if tokenizer.tokenize(marker) != [marker]]:
        tokenizer.add_special_tokens({"additional_special_tokens": to_register})
    return markers[0], markers[1]


def load_heads(source: ModelSource, own_dim: int, dims: tuple[int, ...], **hub: Any) -> dict[int, torch.Tensor]:
    """Load head weights for ``dims`` from the checkpoint and from sibling repositories or folders.

    ``jina-colbert-v2-64`` is the same backbone with another head. Only that head is loaded, from a folder next to this
    one or by ranged reads from the hub. Raises UnknownDimError if there is no such sibling.
    """
    weights: dict[int, torch.Tensor] = {}
    for dim in dims:
        if dim == own_dim:
            path = source.folder / WEIGHTS
            weights[dim] = read_tensor(file_reader(path), HEAD, str(path))
            continue
        weight = _sibling_head(source, dim, **hub)
        if weight.shape[0] != dim:
            raise UnknownDimError(f"The sibling of {source.name!r} for dim={dim} has a head of {weight.shape[0]}.")
        weights[dim] = weight
    return weights


def _sibling_head(
    source: ModelSource,
    dim: int,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
) -> torch.Tensor:
    tried = []
    own = source.name.rstrip("/") if source.is_hub else str(source.folder)
    base = re.sub(r"-\d+$", "", own)
    for name in [f"{base}-{dim}", *([base] if base != own else [])]:  # the most likely one first
        path = try_to_load_from_cache(name, WEIGHTS, cache_dir=cache_folder) if source.is_hub else Path(name) / WEIGHTS
        if isinstance(path, (str, Path)) and Path(path).exists():
            return read_tensor(file_reader(path), HEAD, str(path))
        if not source.is_hub or local_files_only:
            tried.append(f"{name} (not in the cache, and local_files_only is set)" if source.is_hub else str(path))
            continue
        try:
            return read_tensor(hub_reader(name, WEIGHTS, token=token), HEAD, name)
        except HUB_ERRORS as error:
            tried.append(f"{name} ({str(error).splitlines()[0]})")
    raise UnknownDimError(
        f"{source.name!r} has no head for dim={dim}, and no sibling with one was found: {'; '.join(tried)}."
    )
