"""Check the sizes in a model's settings against its weights, before anything of that size is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jcv2_plugin.encoder.safetensors_io import file_reader, read_header
from jcv2_plugin.errors import ModelLayoutError
from jcv2_plugin.files import read_json

MOST_TOKENS = 2**20
"""Maximum length of a query or document, in tokens, whatever a model's settings say."""
_SLACK = 8  # packed weights hold up to eight numbers in a stored one
_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")
_INNER = ("intermediate_size", "d_ff", "n_inner", "hidden_dim")
_LAYERS = ("num_hidden_groups", "num_hidden_layers", "num_layers", "n_layer", "n_layers")  # ALBERT's layers share


def check_sizes(folder: Path) -> None:
    """Raise ModelLayoutError for a ``config.json`` of a network much larger than the weights beside it."""
    for file in sorted(folder.rglob("config.json")):
        weights = sorted(file.parent.glob("*.safetensors"))
        if not weights:
            continue
        stored = sum(_numbers(path) for path in weights)
        try:
            config = read_json(file)
        except (OSError, ValueError) as error:
            raise ModelLayoutError(f"{file} cannot be read ({error}). Download the file again.") from error
        for part in _parts(config):
            if (needed := _least(part)) > _SLACK * stored:
                raise ModelLayoutError(
                    f"{file} describes a network of at least {needed:,} numbers, and the weights beside it have "
                    f"{stored:,}. Download both again."
                )


def check_length(name: str, value: Any, most: int, where: Path) -> None:
    """Raise ModelLayoutError unless a length in tokens from a model's settings is from 1 to the window's."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise ModelLayoutError(
            f"{where}: the model's settings have {name}={value!r:.60}; it must be from 1 to {most}. "
            "Download the model again."
        )


def _numbers(weights: Path) -> int:
    header, _ = read_header(file_reader(weights), str(weights))
    try:
        return sum(math.prod(entry["shape"]) for entry in header.values())
    except (KeyError, TypeError) as error:
        raise ModelLayoutError(f"{weights} is not a readable safetensors file ({error!r}).") from error


def _parts(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the settings, and those of the parts of a composed model."""
    if isinstance(config, dict):
        yield config
        yield from (value for value in config.values() if isinstance(value, dict))


def _least(config: dict[str, Any]) -> int:
    """Return how many numbers a network of these settings has at least, as a projection or as a transformer."""

    def size(*names: str) -> int:
        found = next((config[name] for name in names if config.get(name) is not None), 0)
        return found if isinstance(found, int) else 0

    dims = config.get("dims")
    outputs = sum(one for one in dims if isinstance(one, int)) if isinstance(dims, list) else size("out_features")
    hidden = size(*_HIDDEN)
    positions = size("max_position_embeddings")
    if config.get("position_embedding_type") == "rotary" or any("rope" in str(key) for key in config):
        positions = max(0, positions - MOST_TOKENS)  # rotary positions have no table of weights
    rows = size("vocab_size", "n_vocab") + size("type_vocab_size") + positions
    layers = size(*_LAYERS) * hidden * (hidden + size(*_INNER))
    return max(size("in_features") * outputs, layers + rows * (size("embedding_size") or hidden))
