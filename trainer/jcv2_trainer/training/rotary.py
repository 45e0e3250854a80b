"""Convert a BERT or (XLM-)RoBERTa to rotary positions, the architecture of jina-colbert-v2's backbone.

The two architectures differ in their positions only: absolute positions are added to the embeddings, and rotary
positions rotate each attention head's queries and keys. All weights except the position table are therefore kept
unchanged. The result has never seen rotary positions, and needs masked-language training
(:mod:`jcv2_trainer.training.mlm`) before it is useful.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from jcv2_plugin.encoder.hub import refuse_pickles
from jcv2_plugin.errors import InvalidOptionError, ModelLayoutError, ModelNotFoundError
from jcv2_plugin.files import new_folder, read_json

ACCEPTED = ("bert", "camembert", "roberta", "xlm-roberta")
"""Values of ``model_type`` that can be converted: post-norm encoders with absolute positions."""

LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError)
"""Errors that transformers and safetensors raise for a folder that is not a model."""

_ROTARY = ("jina_embeddings_v3", "modernbert", "modernbert-decoder", "nomic_bert", "eurobert", "gte", "new", "roformer")
_TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")
_KEPT = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "type_vocab_size", "initializer_range", "layer_norm_eps"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"),
)
_LAYER = r"^(?:bert|roberta)\.encoder\.layer\.(\d+)\."
_NAMES = {
    r"^(?:bert|roberta)\.embeddings\.": r"roberta.embeddings.",
    _LAYER + r"attention\.self\.query\.": r"roberta.layers.\1.self_attn.q_proj.",
    _LAYER + r"attention\.self\.key\.": r"roberta.layers.\1.self_attn.k_proj.",
    _LAYER + r"attention\.self\.value\.": r"roberta.layers.\1.self_attn.v_proj.",
    _LAYER + r"attention\.output\.dense\.": r"roberta.layers.\1.self_attn.o_proj.",
    _LAYER + r"attention\.output\.LayerNorm\.": r"roberta.layers.\1.post_attention_layernorm.",
    _LAYER + r"intermediate\.dense\.": r"roberta.layers.\1.mlp.fc1.",
    _LAYER + r"output\.dense\.": r"roberta.layers.\1.mlp.fc2.",
    _LAYER + r"output\.LayerNorm\.": r"roberta.layers.\1.post_mlp_layernorm.",
    r"^cls\.predictions\.transform\.dense\.": r"lm_head.dense.",
    r"^cls\.predictions\.transform\.LayerNorm\.": r"lm_head.layer_norm.",
    r"^cls\.predictions\.": r"lm_head.",
}
"""Patterns of BERT's and RoBERTa's weight names, and what replaces them."""


@dataclass(frozen=True)
class Conversion:
    """Result of :func:`to_rotary`.

    ``model_type`` is that of the source, which had no masked-language head if ``fresh_head``. ``notes`` are for the
    user.
    """

    out: Path
    model_type: str
    parameters: int
    fresh_head: bool
    notes: tuple[str, ...]


def to_rotary(source: Path, out: Path, *, rope_theta: float = 10000.0, max_positions: int = 8194) -> Conversion:
    """Convert ``source`` to a masked-language model with rotary positions (``JinaEmbeddingsV3ForMaskedLM``).

    Weights keep their values and dtype. No remote code is run and no pickle is read. The output folder is either
    complete or absent.

    Args:
        source: Folder of a BERT, RoBERTa, CamemBERT or XLM-RoBERTa, with or without a masked-language head.
        out: A new or empty folder.
        rope_theta: Base of the rotary frequencies.
        max_positions: Maximum text length of the model and its tokenizer, in tokens.

    Raises:
        ModelNotFoundError: ``source`` is not a folder.
        ModelLayoutError: ``source`` has another architecture, rotary positions already, pickled weights or missing
            ones.
        FileExistsError: ``out`` exists and is not empty.
        InvalidOptionError: ``rope_theta`` is not above 1, or ``max_positions`` is not above 2.
    """
    if rope_theta <= 1 or max_positions <= 2:
        raise InvalidOptionError(
            f"rope_theta must be above 1 and max_positions above 2, got {rope_theta} and {max_positions}."
        )
    source = source.expanduser()
    raw = _checked_config(source)
    with new_folder(out) as folder:
        old, tokenizer, missing = load_masked_lm(source)
        refuse_lost(source, (name for name in missing if not name.startswith(("lm_head.", "cls."))))
        if (width := old.config.hidden_size // old.config.num_attention_heads) % 2:
            raise ModelLayoutError(
                f"{source}: its attention heads have {width} components, and rotation needs an even number."
            )
        config = AutoConfig.for_model(
            "jina_embeddings_v3",
            **{key: getattr(old.config, key, None) for key in _KEPT},
            max_position_embeddings=max_positions,
            # Explicit, as transformers' own default of 20000 is that of jina-embeddings-v3.
            rope_parameters={"rope_type": "default", "rope_theta": float(rope_theta)},
        )
        untyped: Any = AutoModelForMaskedLM
        new = untyped.from_config(config, dtype=old.dtype)
        kept = (one for one in old.state_dict().items() if not one[0].endswith("position_embeddings.weight"))
        new.load_state_dict({_renamed(name): weight for name, weight in kept})
        new.save_pretrained(folder)
        tokenizer.model_max_length = max_positions
        tokenizer.save_pretrained(folder)
    notes: tuple[str, ...] = ()
    if missing:
        tied = "tied to the embeddings" if old.config.tie_word_embeddings else "with weights of its own"
        notes = (f"The source has no masked-language head, so an untrained one, {tied}, was added.",)
    elif raw["model_type"] == "bert" and old.config.hidden_act != "gelu":
        # RoBERTa's head, which Jina's model uses, has exact GELU, whatever the layers have.
        notes = (f"The masked-language head now has exact GELU, where the source had {old.config.hidden_act!r}.",)
    parameters = sum(parameter.numel() for parameter in new.parameters())
    return Conversion(out, raw["model_type"], parameters, bool(missing), notes)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a local folder, without remote code. One that cannot be read is a ``ModelLayoutError``."""
    # Without these files, transformers would create a tokenizer without a vocabulary.
    if not any((folder / name).exists() for name in _TOKENIZERS):
        raise ModelLayoutError(f"{folder} has no tokenizer ({', '.join(_TOKENIZERS)}). Copy its files there.")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise ModelLayoutError(f"{folder}: the tokenizer cannot be read ({first_line(error)}).") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a model folder, after checking that its weights are not pickled.

    Raises:
        ModelNotFoundError: The folder does not exist.
        ModelLayoutError: There is no such file, it is not a JSON object, or there are only pickled weights.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"{folder} is not a folder. Give the folder of a transformers model (config.json, model.safetensors, "
            "tokenizer)."
        )
    refuse_pickles(folder)
    try:
        raw = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise ModelLayoutError(
            f"{folder}/config.json cannot be read ({error}). Give the folder of a transformers model."
        ) from error
    if not isinstance(raw, dict):
        raise ModelLayoutError(f"{folder}/config.json is not a JSON object. Give the folder of a transformers model.")
    return raw


def _checked_config(source: Path) -> dict[str, Any]:
    """Read the configuration of a model, and check that the model can be converted."""
    raw = read_config(source)
    kind, positions = raw.get("model_type"), raw.get("position_embedding_type") or "absolute"
    if positions == "rotary" or kind in _ROTARY:
        problem = f"model_type {kind!r} already has rotary positions"
    elif kind not in ACCEPTED:
        problem = f"model_type {kind!r} cannot be converted"
    elif positions != "absolute":
        problem = f"position_embedding_type {positions!r} cannot be converted"
    elif raw.get("is_decoder") or raw.get("add_cross_attention"):
        problem = "a decoder cannot be converted"
    else:
        return raw
    raise ModelLayoutError(
        f"{source}: {problem}. Give an encoder of type {', '.join(ACCEPTED)}, with absolute positions."
    )


def load_masked_lm(folder: Path, dtype: Any = "auto") -> tuple[Any, Any, set[str]]:
    """Load a masked-language model without remote code, its tokenizer, and the names of the weights that it lacks.

    These are drawn at random, the same at each call.

    Raises:
        ModelLayoutError: One of them cannot be read, or they do not belong together.
    """
    tokenizer = load_tokenizer(folder)
    model, missing = load_weights(AutoModelForMaskedLM, folder, dtype=dtype)
    if len(tokenizer) > model.config.vocab_size:
        raise ModelLayoutError(
            f"{folder}: the tokenizer has {len(tokenizer):,} tokens, and the model embeddings of only "
            f"{model.config.vocab_size:,}. They do not belong together. Copy the folder again."
        )
    return model, tokenizer, missing


def load_weights(kind: Any, folder: Path, **options: Any) -> tuple[Any, set[str]]:
    """Load a model by a transformers class, and return the names of the weights that the folder lacks too."""
    options |= {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    except LOADING_ERRORS as error:
        raise ModelLayoutError(f"{folder} cannot be read as a transformers model: {first_line(error)}") from error
    return model, set(info["missing_keys"])


def refuse_lost(folder: Path, names: Iterable[str]) -> None:
    """Raise ``ModelLayoutError`` if there are names of weights that a folder lacks."""
    if lost := sorted(names):
        raise ModelLayoutError(
            f"{folder} lacks weights: {', '.join(lost[:3])} ({len(lost)} in all). Copy the whole folder again."
        )


def _renamed(name: str) -> str:
    """Return the name of a weight in the rotary model."""
    for pattern, replacement in _NAMES.items():
        new, found = re.subn(pattern, replacement, name)
        if found:
            return new
    return name


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
