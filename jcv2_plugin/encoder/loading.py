"""Build an encoder's modules from each of the layouts we read."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.util import get_device_name
from torch import nn

from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_plugin.encoder.hub import ModelSource
from jcv2_plugin.encoder.int8 import QuantizedTransformer
from jcv2_plugin.encoder.official import ColbertMetadata, load_backbone, load_heads, resolve_markers
from jcv2_plugin.encoder.safetensors_io import file_reader, read_header
from jcv2_plugin.encoder.shipped import ShippedModel
from jcv2_plugin.encoder.skiplist import Skiplist, skiplist_words
from jcv2_plugin.errors import UnknownDimError

OWN_MODULES: dict[str, type[nn.Module]] = {
    f"{module.__module__}.{module.__name__}": module for module in (MatryoshkaHeads, QuantizedTransformer)
}
"""Classes that a folder may name, and that are code of ours, not the folder's."""
FLOAT_MODULES: dict[str, type[nn.Module]] = {
    f"{QuantizedTransformer.__module__}.{QuantizedTransformer.__name__}": Transformer
}
"""What reads a quantised folder as if it were not one."""


@dataclass
class LoadedParts:
    """What ``JinaColbertEncoder`` is constructed from."""

    modules: list[nn.Module]
    prompts: dict[str, str] = field(default_factory=dict)


def load_official(
    source: ModelSource, dims: tuple[int, ...] | None, model_kwargs: dict[str, Any], **hub: Any
) -> LoadedParts:
    """The layout of jina-colbert-v2; see :mod:`jcv2_plugin.encoder.official`."""
    metadata = ColbertMetadata.read(source.folder)
    if not (model_kwargs.get("dtype") or model_kwargs.get("torch_dtype")):  # as in the plain constructor
        model_kwargs = {**model_kwargs, "dtype": transformer_kwargs(get_device_name(), None, None, None)["dtype"]}
    transformer, own_dim = load_backbone(source.folder, model_kwargs)
    query_marker, document_marker = resolve_markers(transformer.tokenizer, metadata)
    transformer.document_length = metadata.document_length
    transformer.query_expansion = {
        "strategy": "fixed",
        "attend": metadata.attend_to_mask_tokens,
        "length": metadata.query_length,
    }
    wanted = dims or (own_dim,)
    weights = load_heads(source, own_dim, wanted, **hub)
    heads = MatryoshkaHeads(transformer.get_embedding_dimension(), wanted, weights=weights)
    kind: Skiplist | None = "stanford" if metadata.mask_punctuation else None
    mask = MultiVectorMask(skiplist_words=skiplist_words(transformer.tokenizer, kind))
    return LoadedParts(
        modules=[transformer, heads, mask],
        prompts={"query": f"{query_marker} ", "document": f"{document_marker} "},
    )


def load_shipped(
    model: ShippedModel, dims: tuple[int, ...] | None, model_kwargs: dict[str, Any], **hub: Any
) -> LoadedParts:
    """A model that ships with the package; see :mod:`jcv2_plugin.encoder.shipped`."""
    transformer = model.backbone(model_kwargs, **hub)
    transformer.document_length = model.settings["document_length"]
    transformer.query_expansion = model.settings["query_expansion"]
    heads = keep_heads(model.heads(), dims)
    mask = MultiVectorMask(skiplist_words=skiplist_words(transformer.tokenizer, model.settings["skiplist"]))
    return LoadedParts(modules=[transformer, heads, mask], prompts=dict(model.settings["prompts"]))


def keep_heads(heads: MatryoshkaHeads, dims: Iterable[int] | None) -> MatryoshkaHeads:
    """The heads for ``dims`` only, in that order; all of them for None.

    Raises:
        UnknownDimError: If there is none for one of them.
    """
    if dims is None:
        return heads
    wanted = heads.resolve_dims(tuple(dims))
    weights = {dim: heads.weight(dim) for dim in wanted}
    return MatryoshkaHeads(heads.in_features, wanted, normalize=heads.normalize, weights=weights)


def projection_as_heads(modules: list[nn.Module]) -> list[nn.Module]:
    """Turn a plain linear projection (``Dense`` without bias, then ``Normalize``) into a one-head module.

    Pipelines whose last projection is anything else are left as they are.
    """
    dense = next((module for module in reversed(modules) if isinstance(module, Dense)), None)
    if dense is None or dense.bias or dense.use_residual or not isinstance(dense.activation_function, nn.Identity):
        return modules
    if dense.module_input_name != "token_embeddings" or dense.module_output_name != "token_embeddings":
        return modules
    normalizers = [
        module for module in modules if isinstance(module, Normalize) and module.module_input_name == "token_embeddings"
    ]
    weight = dense.linear.weight.detach()
    heads = MatryoshkaHeads(
        dense.in_features,
        (dense.out_features,),
        normalize=bool(normalizers),
        weights={dense.out_features: weight},
    )
    return [heads if module is dense else module for module in modules if module not in normalizers]


def check_single_dim(dims: Iterable[int] | None, available: tuple[int, ...], name: str) -> None:
    """For models without our heads: refuse dims they do not have.

    Raises:
        UnknownDimError: Listing what there is.
    """
    for dim in dims or ():
        if dim not in available:
            raise UnknownDimError(f"{name!r} has no head for dim={dim!r}; it has {list(available)}.")


def transformer_kwargs(
    device: str, dtype: str | torch.dtype | None, attn_implementation: str | None, folder: Path | None
) -> dict[str, Any]:
    """What to ask of transformers' ``from_pretrained``.

    Without a wish, weights are in the checkpoint's type on CUDA and float32 elsewhere; attention is SDPA, or
    flash attention where it is installed, the device is CUDA and the weights will be half precision, which it
    needs.

    Args:
        device: Where the model will be.
        dtype: The caller's wish, a torch type or its name, or None.
        attn_implementation: The caller's wish, or None.
        folder: The checkpoint, whose weights' type ``"auto"`` means; None where it is float32.
    """
    on_cuda = str(device).startswith("cuda")
    if dtype is None:
        dtype = "auto" if on_cuda else torch.float32
    if attn_implementation is None:
        installed = on_cuda and importlib.util.find_spec("flash_attn") is not None
        half = installed and _is_half(dtype, folder)
        attn_implementation = "flash_attention_2" if half else "sdpa"
    return {"dtype": dtype, "attn_implementation": attn_implementation}


def _is_half(dtype: str | torch.dtype, folder: Path | None) -> bool:
    if dtype == "auto":
        weights = sorted(folder.glob("*.safetensors")) if folder is not None else []
        header = read_header(file_reader(weights[0]), str(weights[0]))[0] if weights else {}
        return any(entry["dtype"] in ("F16", "BF16") for entry in header.values())
    return str(dtype).removeprefix("torch.") in ("float16", "half", "bfloat16")


def backbone_of(modules: Iterable[nn.Module]) -> Transformer:
    """The pipeline's transformer.

    Raises:
        TypeError: If the first module is none.
    """
    first: Any = next(iter(modules))
    if not isinstance(first, Transformer):
        raise TypeError(f"The first module must be a Transformer, got {type(first).__name__}.")
    transformer: Transformer = first
    return transformer
