"""Choose the dtype of a model on a CPU. Imports no torch, so that ``jcv2 info`` stays quick."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

_CPU_INFO = Path("/proc/cpuinfo")
_FLAGS = {"amx_bf16", "avx512_bf16", "svebf16"}
_MODELS = Path(__file__).parents[1] / "models"


@cache
def multiplies_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware, which others emulate. False if that is unknown."""
    if not _CPU_INFO.is_file():
        return False
    return any(
        _FLAGS & set(flags.split()) for flags in re.findall(r"(?m)^(?:flags|Features)\s*:(.*)", _CPU_INFO.read_text())
    )


def own_dtype(folder: Path) -> str | None:
    """Return the dtype of the tensors of a folder's first weight file, such as ``"BF16"``; None if they differ."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return None
    try:
        with safe_open(weights[0], framework="numpy") as file:
            names = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 -- no mapping
    except (OSError, SafetensorError):  # whoever loads the file says what is wrong with it
        return None
    return names.pop() if len(names) == 1 else None


def cpu_dtype(folder: Path | None) -> str:
    """Return the default dtype on this CPU of the weights in a folder; no folder means those of a bundled model."""
    keep = folder is not None and multiplies_bfloat16() and own_dtype(folder) == "BF16"
    return "bfloat16" if keep else "float32"


def cpu_dtype_of(model: str, revision: str | None = None) -> str | None:
    """Return the default dtype of a model on this CPU by its name or folder; None if it is not on this machine."""
    if (_MODELS / model / "model.json").is_file():
        return cpu_dtype(None)
    folder = Path(model) if Path(model).is_dir() else _cached(model, revision)
    return None if folder is None else cpu_dtype(folder)


def _cached(model: str, revision: str | None) -> Path | None:
    try:
        found = try_to_load_from_cache(model, "model.safetensors", revision=revision)
    except HFValidationError:  # a folder that is elsewhere
        return None
    return Path(found).parent if isinstance(found, str) else None
