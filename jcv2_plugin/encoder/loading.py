"""Build an encoder's modules from each supported checkpoint layout."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Module, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.util import get_device_name
from sentence_transformers.util.misc import import_from_string
from torch import nn

from jcv2_plugin.encoder.dtypes import cpu_dtype
from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_plugin.encoder.hub import ModelSource, resolve_model
from jcv2_plugin.encoder.int8 import QuantizedTransformer
from jcv2_plugin.encoder.official import (
    ColbertMetadata,
    is_official_layout,
    load_backbone,
    load_heads,
    resolve_markers,
)
from jcv2_plugin.encoder.safetensors_io import file_reader, read_header
from jcv2_plugin.encoder.shipped import ShippedModel, shipped_model
from jcv2_plugin.encoder.sizes import MOST_TOKENS, check_length, check_sizes
from jcv2_plugin.encoder.skiplist import Skiplist, skiplist_words
from jcv2_plugin.errors import InvalidOptionError, Jcv2Error, ModelLayoutError
from jcv2_plugin.files import parse_json, read_json, read_settings

LOADING_OPTIONS = ("model_kwargs", "processor_kwargs", "config_kwargs", "backend")
HUB_OPTIONS = ("token", "cache_folder", "local_files_only")
OWN_MODULES: dict[str, type[Any]] = {
    f"{module.__module__}.{module.__name__}": module for module in (MatryoshkaHeads, QuantizedTransformer)
}
"""Our module classes, by the names under which a checkpoint may refer to them."""


@dataclass
class LoadedModel:
    """What a ``JinaColbertEncoder`` is constructed from. ``card`` is the text of the folder's model card."""

    source: ModelSource
    modules: list[nn.Module]
    prompts: dict[str, Any]
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    card: str | None = None

    def settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the encoder's settings. Given ones take precedence, as in sentence-transformers."""
        return {
            "prompts": {**self.prompts, **(given.get("prompts") or {})},
            "default_prompt_name": given.get("default_prompt_name") or self.default_prompt_name,
            "similarity_fn_name": given.get("similarity_fn_name") or self.similarity_fn_name,
        }


def load_model(
    name: str,
    *,
    dims: tuple[int, ...] | None = None,
    device: str | None = None,
    quantized: bool = True,
    revision: str | None = None,
    options: dict[str, Any] | None = None,
    **hub: Any,
) -> LoadedModel:
    """Load a model of any supported layout. See :meth:`~jcv2_plugin.JinaColbertEncoder.from_pretrained`.

    ``dims`` are the heads to load from siblings of an official checkpoint; other layouts load all they have.
    ``options`` may have any of :data:`LOADING_OPTIONS`.
    """
    shipped = shipped_model(name)
    source = shipped.source if shipped is not None else resolve_model(name, revision=revision, **hub)
    device = device or get_device_name()
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise InvalidOptionError(
            f"The device {device!r} cannot be used here: {error}. Use 'cpu', or leave the device out."
        ) from error
    options = options or {}
    with layout_errors(source):
        check_sizes(source.folder)
        kwargs = transformer_kwargs(
            device, options.get("model_kwargs") or {}, None if shipped is not None else source.folder
        )
        if shipped is not None:
            return load_shipped(shipped, kwargs, **hub)
        if is_official_layout(source.folder):
            loaded = load_official(source, dims, kwargs, **hub)
        else:
            options = {**options, "model_kwargs": {**kwargs, "use_safetensors": True}, "local_files_only": True}
            loaded = load_folder(source, options, device, quantized)
        _check_lengths(loaded)
    return loaded


@contextmanager
def layout_errors(source: ModelSource) -> Iterator[None]:
    """Raise ModelLayoutError for whatever goes wrong in other libraries because of a model's files."""
    try:
        yield
    except ModelLayoutError as error:
        if str(source.folder) in str(error):
            raise
        raise ModelLayoutError(f"{source.folder}: {error}") from error
    except (Jcv2Error, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of tokenizers
            raise
        raise ModelLayoutError(
            f"{source.name!r} ({source.folder}) cannot be loaded as a multi-vector model: "
            f"{str(error) or repr(error):.600} "
            "Supported are the layouts of jina-colbert-v2, of this package, and of sentence-transformers' "
            "MultiVectorEncoder (its own, PyLate's and Stanford's), without remote code."
        ) from error


def _check_lengths(loaded: LoadedModel) -> None:
    """Check the size of the vocabulary, and the lengths to which texts are padded or cut."""
    transformer: Any = loaded.modules[0]
    most = getattr(getattr(transformer, "config", None), "max_position_embeddings", None) or MOST_TOKENS
    expansion = getattr(transformer, "query_expansion", None) or {}
    embeddings = getattr(getattr(transformer, "model", None), "get_input_embeddings", lambda: None)()
    tokens, rows = len(transformer.tokenizer), getattr(embeddings, "num_embeddings", None)
    if rows is not None and tokens > rows:
        raise ModelLayoutError(
            f"{loaded.source.folder}: the tokenizer has {tokens:,} tokens, and the model has weights for {rows:,}. The "
            "files are of different models: download all of them again."
        )
    lengths = {
        "query_expansion.length": expansion.get("length"),
        **{name: getattr(transformer, name, None) for name in ("query_length", "document_length", "max_seq_length")},
    }
    check_length("max_position_embeddings", most, 2**24, loaded.source.folder)
    for name, value in lengths.items():
        if value is not None:
            check_length(name, value, most, loaded.source.folder)


def load_official(
    source: ModelSource, dims: tuple[int, ...] | None, model_kwargs: dict[str, Any], **hub: Any
) -> LoadedModel:
    """Load a checkpoint in the layout of jina-colbert-v2; see :mod:`jcv2_plugin.encoder.official`."""
    metadata = ColbertMetadata.read(source.folder)
    transformer, own_dim = load_backbone(source.folder, model_kwargs)
    query_marker, document_marker = resolve_markers(transformer.tokenizer, metadata)
    transformer.document_length = metadata.document_length
    transformer.query_expansion = {
        "strategy": "fixed",
        "attend": metadata.attend_to_mask_tokens,
        "length": metadata.query_length,
    }
    wanted = dims or (own_dim,)
    heads = MatryoshkaHeads(
        transformer.get_embedding_dimension(), wanted, weights=load_heads(source, own_dim, wanted, **hub)
    )
    prompts = {"query": f"{query_marker} ", "document": f"{document_marker} "}
    skiplist: Skiplist | None = "stanford" if metadata.mask_punctuation else None
    return LoadedModel(source, [transformer, heads, _mask(transformer, skiplist)], prompts)


def load_shipped(model: ShippedModel, model_kwargs: dict[str, Any], **hub: Any) -> LoadedModel:
    """Load a bundled model; see :mod:`jcv2_plugin.encoder.shipped`."""
    transformer = model.backbone(model_kwargs, **hub)
    transformer.document_length = model.settings["document_length"]
    transformer.query_expansion = model.settings["query_expansion"]
    modules: list[nn.Module] = [transformer, model.heads(), _mask(transformer, model.settings["skiplist"])]
    return LoadedModel(model.source, modules, dict(model.settings["prompts"]))


def _mask(transformer: Transformer, skiplist: Skiplist | None) -> MultiVectorMask:
    return MultiVectorMask(skiplist_words=skiplist_words(transformer.tokenizer, skiplist))


def load_folder(source: ModelSource, options: dict[str, Any], device: str, quantized: bool) -> LoadedModel:
    """Load a folder in this package's layout, or in one that sentence-transformers' ``MultiVectorEncoder`` loads."""
    folder = source.folder
    modules = parse_json(text) if (text := _text(folder / "modules.json")) else []
    types = [module["type"] for module in modules]
    config = parse_json(_text(folder / "config_sentence_transformers.json") or "{}")
    if modules:
        projects = config.get("model_type") in ("MultiVectorEncoder", "ColBERT") or any(
            name.endswith(".Dense") for name in types
        )
    else:
        architectures = read_json(folder / "config.json").get("architectures")
        projects = "HF_ColBERT" in (architectures or [])
    if not projects:
        raise ModelLayoutError(
            f"{source.name!r} has no late-interaction projection, and a random one would retrieve noise. Use a ColBERT "
            "model, or train heads first."
        )
    for module in modules:
        if not (folder / module["path"]).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"modules.json names the path {module['path']!r}, which is outside the folder.")
    card = _text(folder / "README.md")
    if not OWN_MODULES.keys() & set(types):
        plain = MultiVectorEncoder(str(folder), device=device, **options)
        name = plain.similarity_fn_name
        return LoadedModel(source, list(plain), plain.prompts, plain.default_prompt_name, name, card)
    loaded = [_load_module(folder, module, options, quantized) for module in modules]
    names = config.get("default_prompt_name"), config.get("similarity_fn_name")
    return LoadedModel(source, loaded, config.get("prompts") or {}, *names, card)


def _text(path: Path) -> str | None:
    return read_settings(path) if path.is_file() else None


def _load_module(folder: Path, entry: dict[str, Any], options: dict[str, Any], quantized: bool) -> Any:
    """Load a module of ``modules.json``: a class of ours or of sentence-transformers, and no other."""
    name = entry["type"]
    kind = OWN_MODULES.get(name)
    if kind is QuantizedTransformer and not quantized:
        kind = Transformer
    if kind is None and name.startswith("sentence_transformers."):
        kind = import_from_string(name)
    if not (isinstance(kind, type) and issubclass(kind, Module)):
        raise ValueError(f"modules.json names the class {name!r}, which is not loaded.")
    return kind.load(str(folder), subfolder=entry["path"], **options)


def keep_heads(heads: MatryoshkaHeads, dims: Iterable[int]) -> MatryoshkaHeads:
    """Return only the heads for ``dims``, in that order."""
    wanted = heads.resolve_dims(tuple(dims))
    weights = {dim: heads.weight(dim) for dim in wanted}
    return MatryoshkaHeads(heads.in_features, wanted, normalize=heads.normalize, weights=weights)


def projection_as_heads(modules: list[nn.Module]) -> list[nn.Module]:
    """Convert a plain linear projection (``Dense`` without bias, then ``Normalize``) to a module with one head.

    Pipelines that have heads, or any other final projection, are returned unchanged.
    """
    dense = next((module for module in reversed(modules) if isinstance(module, Dense)), None)
    if dense is None or any(isinstance(module, MatryoshkaHeads) for module in modules):
        return modules
    if dense.bias or dense.use_residual or not isinstance(dense.activation_function, nn.Identity):
        return modules
    if dense.module_input_name != "token_embeddings" or dense.module_output_name != "token_embeddings":
        return modules
    normalizers = [
        module for module in modules if isinstance(module, Normalize) and module.module_input_name == "token_embeddings"
    ]
    heads = MatryoshkaHeads(
        dense.in_features,
        (dense.out_features,),
        normalize=bool(normalizers),
        weights={dense.out_features: dense.linear.weight.detach()},
    )
    return [heads if module is dense else module for module in modules if module not in normalizers]


def transformer_kwargs(device: str, requested: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """Return keyword arguments for transformers' ``from_pretrained``.

    By default, weights have the checkpoint's dtype on CUDA. On a CPU, a checkpoint in bfloat16 stays so if the CPU
    multiplies bfloat16 in hardware. Elsewhere weights are float32. Attention is flash attention if
    it is installed, the device is CUDA and the weights are in half precision, as it requires; otherwise SDPA. The
    ``folder`` tells the dtype of weights if it is ``"auto"``; no folder means float32.
    """
    kwargs = {name: value for name, value in requested.items() if value is not None}
    on_cuda = str(device).startswith("cuda")
    dtype = kwargs.pop("torch_dtype", None) if "dtype" not in kwargs else kwargs["dtype"]
    if dtype is None:
        on_cpu = torch.device(device).type == "cpu"
        dtype = "auto" if on_cuda else getattr(torch, cpu_dtype(folder)) if on_cpu else torch.float32
    installed = on_cuda and importlib.util.find_spec("flash_attn") is not None
    attention = "flash_attention_2" if installed and _is_half(dtype, folder) else "sdpa"
    return {"attn_implementation": attention, **kwargs, "dtype": dtype}


def _is_half(dtype: str | torch.dtype, folder: Path | None) -> bool:
    if dtype == "auto":
        weights = sorted(folder.glob("*.safetensors")) if folder is not None else []
        header = read_header(file_reader(weights[0]), str(weights[0]))[0] if weights else {}
        return any(entry["dtype"] in ("F16", "BF16") for entry in header.values())
    return str(dtype).removeprefix("torch.") in ("float16", "half", "bfloat16")
