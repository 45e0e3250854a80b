"""Merge LoRA adapters in peft's layout into a backbone, without peft."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from jcv2_plugin.errors import ModelLayoutError
from jcv2_plugin.files import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def merge_adapter(backbone: nn.Module, folder: Path) -> None:
    """Add a LoRA adapter to a backbone's linear layers, in place: ``W + (alpha / r) B A``.

    The folder has ``adapter_config.json`` and ``adapter_model.safetensors``, as written by peft and ``jcv2-finetune``.
    Raises ModelLayoutError if a file is missing, or a matrix does not fit any layer.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelLayoutError(f"{folder / name} is missing. Copy the whole adapter again.")
    try:
        config = read_json(folder / CONFIG)
        scale = float(config["lora_alpha"]) / float(config["r"])
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, TypeError, KeyError, ArithmeticError, SafetensorError) as error:
        raise ModelLayoutError(f"{folder} is no adapter, or is damaged ({error!r}). Copy it again.") from error
    for name, down in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        layer = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        up = tensors.get(name.replace(".lora_A.", ".lora_B."))
        try:
            weight = backbone.get_parameter(f"{layer}.weight")
        except AttributeError as error:
            raise ModelLayoutError(
                f"{folder}: the backbone has no layer {layer!r}, so the adapter belongs to another one."
            ) from error
        if up is None or tuple(weight.shape) != (up.shape[0], down.shape[1]):
            raise ModelLayoutError(f"{folder}: the matrices of {layer!r} do not fit its shape {tuple(weight.shape)}.")
        with torch.no_grad():
            # In float32, because the product of two half-precision matrices would be rounded twice.
            weight.add_((scale * (up.float() @ down.float())).to(weight))
