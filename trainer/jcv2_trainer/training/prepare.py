"""Prepare an encoder for training: its projection heads, LoRA (by peft), and which parameters are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save
from torch import Tensor, nn

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.loading import keep_heads
from jcv2_plugin.errors import Jcv2Error
from jcv2_trainer.errors import TrainingError
from jcv2_trainer.heads.matryoshka import TiedHeads, with_dims
from jcv2_trainer.heads.principal import second_moment
from jcv2_trainer.recipes.settings import TrainingRecipe

_MOMENT_TEXTS = 1000


def prepare(encoder: JinaColbertEncoder, settings: TrainingRecipe, rows: Dataset) -> tuple[int, ...]:
    """Add or tie heads, and add LoRA or freeze the backbone, as the recipe says, in place. Return the added dimensions.

    If heads are added or tied, the hidden states of a sample of the training rows determine how.

    Raises:
        TrainingError: The encoder has no linear heads, or a dimension is too large for it.
    """
    heads = encoder.heads
    if heads is None:
        raise TrainingError(f"{encoder.name!r} has no linear heads to train. Give a model of jcv2-finetune assemble.")
    dims = settings.dims or heads.dims
    if max(dims) > heads.in_features:
        raise TrainingError(
            f"dims: {max(dims)} is more than the {heads.in_features} components of {encoder.name!r}'s token states. "
            f"Give --dims of at most {heads.in_features}."
        )
    added = tuple(dim for dim in dims if dim not in heads.dims)
    tied = settings.heads == "tied"
    if added or tied:
        moment = second_moment(encoder.backbone, _sample(rows))
        new = with_dims(heads, dims, moment)
        encoder.set_heads(TiedHeads.of(new, moment) if tied else new)
    elif tuple(dims) != heads.dims:
        encoder.set_heads(keep_heads(heads, dims))
    _choose_trained(encoder, settings)
    return added


def interpolate(encoder: JinaColbertEncoder, start: Mapping[str, Tensor], share: float) -> None:
    """Interpolate between the initial and the trained parameters, in place (WiSE-FT, arXiv 2109.01903).

    A ``share`` of 0 gives the initial model, 1 the trained one. For LoRA, only the second matrices are interpolated.
    They are zero at the start, so their products move along the same line.
    """
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name in start and ".lora_A." not in name:
                parameter.copy_(torch.lerp(start[name].to(parameter), parameter, share))


def finish(encoder: JinaColbertEncoder, settings: TrainingRecipe) -> None:
    """Merge LoRA and untie the heads in place, which leaves a regular encoder."""
    if settings.lora:
        merge_lora(encoder.backbone.model)
    if isinstance(heads := encoder.heads, TiedHeads):
        encoder.set_heads(heads.untied())
    for parameter in encoder.parameters():
        parameter.requires_grad_(True)


def _choose_trained(encoder: JinaColbertEncoder, settings: TrainingRecipe) -> None:
    for name, parameter in encoder.named_parameters():
        # A pooler does not affect token vectors, and distributed training fails on parameters without gradients.
        parameter.requires_grad_("pooler" not in name)
    backbone = encoder.backbone.model
    if settings.freeze_backbone:
        for parameter in backbone.parameters():
            parameter.requires_grad_(False)
    if settings.lora:
        add_lora(backbone, settings.lora_rank, settings.lora_dropout)
    if settings.head_weights is not None and encoder.heads is not None and settings.heads == "untied":
        for dim, weight in zip(encoder.heads.dims, settings.head_weights, strict=True):
            encoder.heads.get_submodule(f"linears.{dim}").requires_grad_(weight > 0)


def _sample(rows: Dataset) -> Sequence[str]:
    step = max(1, len(rows) * 2 // _MOMENT_TEXTS)
    chosen = rows.select(range(0, len(rows), step))
    return [*chosen["positive"], *chosen["query"]]


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
    """Write the LoRA matrices in peft's layout, before they are merged."""
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
