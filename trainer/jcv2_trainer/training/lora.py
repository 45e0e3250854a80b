"""LoRA on a backbone, using peft: low-rank matrices beside every linear layer, merged into it at the end."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from jcv2_plugin.errors import Jcv2Error


def add_lora(backbone: nn.Module, rank: int, dropout: float = 0.0) -> list[str]:
    """Freeze a transformers model and add LoRA matrices of scale 1 to its linear layers, except a pooler's, in place.

    Returns:
        Names of the layers.

    Raises:
        Jcv2Error: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise Jcv2Error("LoRA needs peft: pip install 'jcv2-plugin[train]', or train without --lora.") from error
    names = [
        name for name, module in backbone.named_modules() if isinstance(module, nn.Linear) and "pooler" not in name
    ]
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=names)
    inject_adapter_in_model(config, backbone)
    return names


def merge_lora(backbone: nn.Module) -> None:
    """Merge the LoRA matrices into their layers and remove them, which leaves a plain model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in backbone.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in layers.items():
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, layer.get_base_layer())


def save_lora(backbone: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the LoRA matrices in peft's layout, before they are merged.

    The files are ``adapter_config.json`` and ``adapter_model.safetensors``.
    """
    from peft import LoraConfig

    tensors = {
        f"base_model.model.{name.replace('.default.', '.')}": parameter.detach().to("cpu", dtype).contiguous()
        for name, parameter in backbone.named_parameters()
        if ".lora_" in name
    }
    layers = sorted({name.split("base_model.model.")[1].split(".lora_")[0] for name in tensors})
    rank = next(tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name)
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=layers, task_type="FEATURE_EXTRACTION", inference_mode=True
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    (folder / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
