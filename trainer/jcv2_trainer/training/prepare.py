"""Prepare an encoder for training: its projection heads, and which parameters are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from datasets import Dataset
from torch import Tensor

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.loading import keep_heads
from jcv2_trainer.errors import TrainingError
from jcv2_trainer.heads.matryoshka import TiedHeads, with_dims
from jcv2_trainer.heads.principal import second_moment
from jcv2_trainer.recipes.settings import TrainingRecipe
from jcv2_trainer.training.lora import add_lora, merge_lora

_MOMENT_TEXTS = 1000


def prepare(encoder: JinaColbertEncoder, settings: TrainingRecipe, rows: Dataset) -> tuple[int, ...]:
    """Add or tie heads, and add LoRA or freeze the backbone, as the recipe says, in place.

    If heads are added or tied, the hidden states of a sample of the training rows determine how.

    Returns:
        The dimensions that were added.

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

    For LoRA, only the second matrices are interpolated. They are zero at the start, so their products move along the
    same line.

    Args:
        encoder: The trained encoder, before :func:`finish`.
        start: The initial parameters, from :func:`~jcv2_trainer.training.trainer.trainable`.
        share: 0 gives the initial model, 1 the trained one.
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
