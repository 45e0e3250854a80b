"""Build an encoder's modules from each supported checkpoint layout."""

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
"""Our module classes, by the names under which a checkpoint may refer to them."""
FLOAT_MODULES: dict[str, type[nn.Module]] = {
    f"{QuantizedTransformer.__module__}.{QuantizedTransformer.__name__}": Transformer
}
"""Replacement classes that load a quantised folder without its int8 copy."""


@dataclass
class LoadedParts:
    """Modules and prompts to construct a ``JinaColbertEncoder`` from."""

    modules: list[nn.Module]
    prompts: dict[str, str] = field(default_factory=dict)


def load_official(
    source: ModelSource, dims: tuple[int, ...] | None, model_kwargs: dict[str, Any], **hub: Any
) -> LoadedParts:
    """Load a checkpoint in the layout of jina-colbert-v2; see :mod:`jcv2_plugin.encoder.official`."""
    metadata = ColbertMetadata.read(source.folder)
    if not (model_kwargs.get("dtype") or model_kwargs.get("torch_dtype")):  # when called by the plain constructor
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
    """Load a bundled model; see :mod:`jcv2_plugin.encoder.shipped`."""
    transformer = model.backbone(model_kwargs, **hub)
    transformer.document_length = model.settings["document_length"]
    transformer.query_expansion = model.settings["query_expansion"]
    heads = keep_heads(model.heads(), dims)
    mask = MultiVectorMask(skiplist_words=skiplist_words(transformer.tokenizer, model.settings["skiplist"]))
    return LoadedParts(modules=[transformer, heads, mask], prompts=dict(model.settings["prompts"]))


def keep_heads(heads: MatryoshkaHeads, dims: Iterable[int] | None) -> MatryoshkaHeads:
    """Return only the heads for ``dims``, in that order, or all heads for None.

    Raises:
        UnknownDimError: If there is no head for one of them.
    """
    if dims is None:
        return heads
    wanted = heads.resolve_dims(tuple(dims))
    weights = {dim: heads.weight(dim) for dim in wanted}
    return MatryoshkaHeads(heads.in_features, wanted, normalize=heads.normalize, weights=weights)


def projection_as_heads(modules: list[nn.Module]) -> list[nn.Module]:
    """Convert a plain linear projection (``Dense`` without bias, then ``Normalize``) to a module with one head.

    Pipelines with any other final projection are returned unchanged.
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
    """Check the dims requested from a model without :class:`MatryoshkaHeads`.

    Raises:
        UnknownDimError: If one is not available. The message lists the available ones.
    """
    for dim in dims or ():
        if dim not in available:
            raise UnknownDimError(f"{name!r} has no head for dim={dim!r}; it has {list(available)}.")


def transformer_kwargs(
    device: str, dtype: str | torch.dtype | None, attn_implementation: str | None, folder: Path | None
) -> dict[str, Any]:
    """Return keyword arguments for transformers' ``from_pretrained``.

    By default, weights have the checkpoint's dtype on CUDA and are float32 elsewhere. Attention is flash attention if
    it is installed, the device is CUDA and the weights are in half precision, as it requires; otherwise SDPA.

    Args:
        device: Device of the model.
        dtype: Requested dtype (a torch dtype or its name), or None.
        attn_implementation: Requested attention implementation, or None.
        folder: Checkpoint folder, to find the dtype of its weights if ``dtype`` is ``"auto"``. None means float32.
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
    """Return the pipeline's transformer.

    Raises:
        TypeError: If the first module is not a transformer.
    """
    first: Any = next(iter(modules))
    if not isinstance(first, Transformer):
        raise TypeError(f"The first module must be a Transformer, got {type(first).__name__}.")
    transformer: Transformer = first
    return transformer
