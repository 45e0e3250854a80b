"""``JinaColbertEncoder``: Jina-ColBERT-v2 and similar models as a sentence-transformers ``MultiVectorEncoder``."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from sentence_transformers.util import get_device_name
from torch import nn

from jcv2_plugin.encoder import loading
from jcv2_plugin.encoder.batching import default_tokens_per_batch
from jcv2_plugin.encoder.fingerprint import weights_fingerprint
from jcv2_plugin.encoder.heads import MatryoshkaHeads, as_dims
from jcv2_plugin.encoder.hub import ModelSource, resolve_model
from jcv2_plugin.encoder.inference import TokenBudgetInference
from jcv2_plugin.encoder.official import is_official_layout
from jcv2_plugin.encoder.shipped import shipped_model
from jcv2_plugin.encoder.skiplist import SKIPLISTS, Skiplist, skiplist_words
from jcv2_plugin.errors import InvalidOptionError, Jcv2Error, ModelLayoutError

_NO_PROJECTION = (
    "{name!r} has no late-interaction projection, and one made up at random would retrieve noise. Give a ColBERT "
    "model, or train heads first."
)


class JinaColbertEncoder(TokenBudgetInference, MultiVectorEncoder):
    """Encode queries and documents into token vectors at one or several Matryoshka dimensions.

    Load it with :meth:`from_pretrained`. It is a ``MultiVectorEncoder`` with all its features (``similarity``,
    multi-process encoding, evaluators, trainer). In addition, it has an untied projection head per dimension, loads the
    official checkpoint without remote code, and batches by token budget.

    Example:
        >>> encoder = JinaColbertEncoder.from_pretrained("mini")
        >>> query = encoder.encode_query("what is late interaction?", dim=64)
        >>> documents = encoder.encode_document(["Token vectors are compared one by one."], dim=64)
        >>> encoder.similarity([query], documents).shape
        torch.Size([1, 1])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._source: ModelSource | None = None
        self._tokens_per_batch: int | None = None
        self._tokenizer_lock = threading.RLock()
        super().__init__(*args, **kwargs)
        self._forget_derived()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dims: int | Sequence[int] | None = None,
        revision: str | None = None,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        document_length: int | None = None,
        skiplist: Skiplist | Literal["default"] | None = "default",
        tokens_per_batch: int | None = None,
        quantized: bool = True,
        token: bool | str | None = None,
        cache_folder: str | None = None,
        local_files_only: bool = False,
    ) -> JinaColbertEncoder:
        """Load an encoder by name or from a folder. Remote code is never run and pickle is never loaded.

        Args:
            name_or_path: A bundled model (``"mini"``); a folder or hub repository in the layout of
                ``jinaai/jina-colbert-v2``; a folder written by :meth:`save_pretrained`; or any checkpoint that
                sentence-transformers' ``MultiVectorEncoder`` loads (its own, PyLate's and Stanford's layouts), as a
                model with one head.
            dims: Matryoshka dimensions to load; the first is the default. If None, those in the checkpoint. For
                jina-colbert-v2, ``dims=(128, 64)`` also loads the 64-dimensional head, and only that head, from the
                sibling ``-64`` repository or folder.
            revision: Hub revision (branch, tag or commit).
            device: ``"cpu"``, ``"cuda"``, ... If None, the best available device.
            dtype: Dtype of the weights, e.g. ``torch.bfloat16``. If None, that of the checkpoint on CUDA and float32
                elsewhere.
            attn_implementation: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``. If None, flash attention where it
                is installed and can be used, otherwise SDPA.
            document_length: Window for documents in tokens, markers included. If None, the model's default (300 for
                jina-colbert-v2, which supports up to 8,190).
            skiplist: Which document tokens are not scored: ``"stanford"``, ``"pieces"`` (see
                :mod:`jcv2_plugin.encoder.skiplist`) or None. ``"default"`` keeps the model's skip list. For the
                official checkpoint this is ``"stanford"``, which its authors used for evaluation.
            tokens_per_batch: Padded tokens per batch. If None, the default for the device.
            quantized: Whether to encode with the checkpoint's int8 copy on a CPU, if it has one
                (:func:`jcv2_plugin.quantize`).
            token: Hub token.
            cache_folder: Hub cache folder.
            local_files_only: Whether to use only local files and never the hub.

        Raises:
            ModelNotFoundError: If there is no such model, or the hub cannot be reached.
            ModelLayoutError: If the folder is not a multi-vector model, or needs remote code or pickle.
            UnknownDimError: If there is no head for one of ``dims``.
            InvalidOptionError: If ``document_length`` or ``tokens_per_batch`` is out of range.
            MissingPackageError: If the int8 copy would be used, but OpenVINO is not installed.
        """
        wanted = None if dims is None else as_dims(dims)
        device = device or get_device_name()
        hub: dict[str, Any] = {"token": token, "cache_folder": cache_folder, "local_files_only": local_files_only}
        if (shipped := shipped_model(os.fspath(name_or_path))) is not None:
            kwargs = loading.transformer_kwargs(device, dtype, attn_implementation, None)
            parts = loading.load_shipped(shipped, wanted, kwargs, **hub)
            source = ModelSource(shipped.name, shipped.folder, revision=shipped.settings["revision"])
            encoder = cls(modules=parts.modules, prompts=parts.prompts, device=device)
        else:
            source = resolve_model(name_or_path, revision=revision, **hub)
            kwargs = loading.transformer_kwargs(device, dtype, attn_implementation, source.folder)
            if is_official_layout(source.folder):
                parts = loading.load_official(source, wanted, kwargs, **hub)
                encoder = cls(modules=parts.modules, prompts=parts.prompts, device=device)
            else:
                encoder = cls._from_folder(source, wanted, kwargs, device, quantized)
        encoder._source = source
        encoder.tokens_per_batch = tokens_per_batch
        if document_length is not None:
            encoder.document_length = document_length
        if skiplist != "default":
            encoder.skiplist = skiplist
        return encoder

    @classmethod
    def _from_folder(
        cls, source: ModelSource, dims: tuple[int, ...] | None, kwargs: dict[str, Any], device: str, quantized: bool
    ) -> JinaColbertEncoder:
        try:
            encoder: JinaColbertEncoder = cls._load_with_module_classes(
                str(source.folder),
                {} if quantized else loading.FLOAT_MODULES,
                **{"device": device, "local_files_only": True, "model_kwargs": {**kwargs, "use_safetensors": True}},
            )
        except (ValueError, OSError, KeyError, ImportError) as error:
            if isinstance(error, Jcv2Error):
                raise
            raise ModelLayoutError(
                f"{source.name!r} ({source.folder}) cannot be read as a multi-vector model: {error} "
                "Accepted are the layouts of jina-colbert-v2, of this package, and of sentence-transformers' "
                "MultiVectorEncoder (its own, PyLate's, Stanford's), without remote code."
            ) from error
        heads = encoder.heads
        if heads is None:
            loading.check_single_dim(dims, encoder.dims, source.name)
        elif dims is not None:
            encoder.set_heads(loading.keep_heads(heads, dims))
        return encoder

    def _load_modules(self, model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        # The plain constructor also loads only safe files, downloaded if needed.
        names = ("token", "cache_folder", "revision", "local_files_only")
        hub = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        if (shipped := shipped_model(model_name_or_path)) is not None:
            hub.pop("revision", None)
            parts = loading.load_shipped(shipped, None, dict(kwargs.get("model_kwargs") or {}), **hub)
            self._source = ModelSource(shipped.name, shipped.folder, revision=shipped.settings["revision"])
            return parts.modules, {}
        source = resolve_model(model_name_or_path, **hub)
        self._source = self._source or source
        return super()._load_modules(str(source.folder), *args, **{**kwargs, "revision": None})

    def _load_default_modules(
        self, model_name_or_path: str, *args: Any, **kwargs: Any
    ) -> tuple[list[nn.Module], dict[str, Any]]:
        folder = Path(model_name_or_path)
        if folder.is_dir() and is_official_layout(folder):
            source = ModelSource(model_name_or_path, folder)
            parts = loading.load_official(source, None, dict(kwargs.get("model_kwargs") or {}))
            # A prompt passed to the constructor takes precedence, as in sentence-transformers.
            self.prompts.update({role: text for role, text in parts.prompts.items() if self.prompts.get(role) is None})
            return parts.modules, {}
        modules, module_kwargs = super()._load_default_modules(model_name_or_path, *args, **kwargs)
        if not self._legacy.prefixes:
            raise ModelLayoutError(_NO_PROJECTION.format(name=model_name_or_path))
        return modules, module_kwargs

    def _load_converted_modules(self, model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        modules = json.loads((Path(model_name_or_path) / "modules.json").read_text("utf-8"))
        types = [module["type"] for module in modules]
        if not any(name.endswith(".Dense") for name in types):
            raise ModelLayoutError(_NO_PROJECTION.format(name=model_name_or_path))
        return super()._load_converted_modules(model_name_or_path, *args, **kwargs)

    def _load_module_class_from_ref(self, class_ref: str, *args: Any, **kwargs: Any) -> Any:
        known = self._module_classes.get(class_ref) or loading.OWN_MODULES.get(class_ref)
        return known or super()._load_module_class_from_ref(class_ref, *args, **kwargs)

    def _post_init(self) -> None:
        super()._post_init()
        if self.heads is None:
            converted = loading.projection_as_heads(list(self))
            if len(converted) != len(self) or any(new is not old for new, old in zip(converted, self, strict=True)):
                self._modules.clear()
                self._modules.update({str(index): module for index, module in enumerate(converted)})

    def set_heads(self, heads: MatryoshkaHeads) -> None:
        """Replace the model's heads. The new ones are moved to the device and dtype of the old ones.

        Raises:
            ModelLayoutError: If the model has no heads to replace.
        """
        old = self.heads
        if old is None:
            raise ModelLayoutError(f"{self.name!r} has no linear heads, so none can be replaced.")
        name = next(name for name, module in self._modules.items() if module is old)
        parameter = next(old.parameters())
        self._modules[name] = heads.to(parameter.device, parameter.dtype)
        self._forget_derived()

    # Model

    @property
    def backbone(self) -> Transformer:
        """The transformer and its tokenizer, the first module of the pipeline."""
        return loading.backbone_of(self)

    @property
    def heads(self) -> MatryoshkaHeads | None:
        """The projection heads; None if the pipeline does not end in a linear projection."""
        return next((module for module in self if isinstance(module, MatryoshkaHeads)), None)

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions that the model has heads for; the first is the default."""
        if (heads := self.heads) is not None:
            return heads.dims
        return (int(self.get_embedding_dimension() or 0),)

    def resolve_dim(self, dim: int | None) -> int:
        """Return ``dim``, or the default dimension for None.

        Raises:
            UnknownDimError: If the model has no head for it.
        """
        if (heads := self.heads) is not None:
            return heads.resolve_dims(dim)[0]
        loading.check_single_dim((dim,) if dim is not None else None, self.dims, self.name)
        return self.dims[0]

    @property
    def name(self) -> str:
        """Name or folder that the model was loaded from."""
        return self._source.name if self._source else str(self.backbone.config.name_or_path)

    @property
    def reference(self) -> str:
        """Name or absolute path with which :meth:`from_pretrained` loads the model from any working directory."""
        if self._source is None or self._source.is_hub or shipped_model(self._source.name):
            return self.name
        return str(self._source.folder)

    @property
    def revision(self) -> str | None:
        """Hub commit, or revision of a bundled model; None for local folders."""
        return self._source.revision if self._source else None

    def head_fingerprint(self, dim: int) -> str:
        """Return a hash of the weights that produce vectors of ``dim``, independent of the other heads loaded.

        See :mod:`jcv2_plugin.encoder.fingerprint`.
        """
        modules = [module for module in self if not isinstance(module, MatryoshkaHeads)]
        heads = self.heads
        return weights_fingerprint(modules + ([heads.linears[str(dim)]] if heads is not None else []))

    # Tokenisation and batching

    @property
    def document_length(self) -> int:
        """Window for documents in tokens, markers included."""
        return int(self.backbone.document_length or self.max_document_length)

    @document_length.setter
    def document_length(self, value: int) -> None:
        with self._tokenizer_lock:
            shortest = len(self.tokenizer(self.prompts.get("document") or "")["input_ids"]) + 1
        if not shortest <= value <= self.max_document_length:
            raise InvalidOptionError(
                f"document_length must be between {shortest} and {self.max_document_length} for this model, "
                f"got {value!r}."
            )
        self.backbone.document_length = int(value)
        self._forget_derived()

    @property
    def max_document_length(self) -> int:
        """Largest window the backbone supports: 8,190 tokens for jina-colbert-v2 (8,194 positions minus 4)."""
        config = self.backbone.config
        if config.model_type == "jina_embeddings_v3":
            return int(config.max_position_embeddings) - 4
        return int(self.max_seq_length or config.max_position_embeddings)

    @property
    def content_length(self) -> int:
        """Text tokens that fit in a document window next to the marker and special tokens."""
        return self._window_splitter(self.prompts.get("document")).capacity

    @property
    def query_length(self) -> int | None:
        """Fixed number of vectors per query; None if queries are not padded with [MASK]."""
        expansion = self.backbone.query_expansion
        return expansion["length"] if expansion is not None else None

    @property
    def skiplist(self) -> Skiplist | Literal["custom"] | None:
        """Skip list: which document tokens are not scored."""
        mask = self._mask
        words = set(mask.skiplist_words) if mask is not None else set()
        if not words:
            return None
        for kind in SKIPLISTS:
            known = set(self.tokenizer.convert_tokens_to_ids(skiplist_words(self.tokenizer, kind)))
            ids = set(self.tokenizer.convert_tokens_to_ids(sorted(words))) - {self.tokenizer.unk_token_id}
            if ids == known:
                return kind
        return "custom"

    @skiplist.setter
    def skiplist(self, kind: Skiplist | None) -> None:
        mask = self._mask
        if mask is None:
            raise ModelLayoutError(f"{self.name!r} has no MultiVectorMask module, so no skip list can be set.")
        mask.skiplist_words = skiplist_words(self.tokenizer, kind)
        mask.resolve_with_tokenizer(self.tokenizer)

    @property
    def skiplist_ids(self) -> frozenset[int]:
        """Token ids on the skip list."""
        mask = self._mask
        ids = None if mask is None else mask._skiplist_ids
        return frozenset() if ids is None else frozenset(ids.tolist())

    @property
    def _mask(self) -> MultiVectorMask | None:
        return next((module for module in self if isinstance(module, MultiVectorMask)), None)

    @property
    def tokens_per_batch(self) -> int:
        """Default number of padded tokens per batch."""
        return self._tokens_per_batch or default_tokens_per_batch(self.device.type)

    @tokens_per_batch.setter
    def tokens_per_batch(self, value: int | None) -> None:
        if value is not None and value < 1:
            raise InvalidOptionError(f"tokens_per_batch must be positive, got {value!r}.")
        self._tokens_per_batch = value

    # Shortcuts with exact types, used by collections

    def query_vectors(self, texts: Sequence[str], dim: int) -> list[NDArray[np.float32]]:
        """Encode queries into float32 arrays of shape ``(query tokens, dim)``."""
        return self._arrays(self.encode_query(list(texts), dim=dim, convert_to_numpy=True))

    def document_vectors(
        self,
        texts: Sequence[str],
        dim: int,
        long_documents: Literal["truncate", "split", "error"] = "truncate",
        pool_factor: float = 1.0,
    ) -> list[NDArray[np.float32]]:
        """Encode documents into float32 arrays of shape ``(document tokens, dim)``; pooling leaves fewer rows."""
        pooling = HierarchicalTokenPooling(pool_factor) if pool_factor > 1 else None
        return self._arrays(
            self.encode_document(
                list(texts), dim=dim, long_documents=long_documents, convert_to_numpy=True, token_pooling=pooling
            )
        )

    @staticmethod
    def _arrays(arrays: Iterable[NDArray[Any]]) -> list[NDArray[np.float32]]:
        return [np.asarray(array, dtype=np.float32) for array in arrays]

    def save_pretrained(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Save the model with all heads, so that :meth:`from_pretrained` can load it.

        Args:
            path: Folder to write; created if it does not exist.
            *args: Passed to sentence-transformers' ``save_pretrained``.
            **kwargs: Passed to sentence-transformers' ``save_pretrained``.

        Raises:
            ValueError: If ``safe_serialization=False``, which would write pickle.
        """
        if kwargs.get("safe_serialization") is False:
            raise ValueError("safe_serialization=False would write pickle, which this package never reads.")
        super().save_pretrained(str(path), *args, **kwargs)

    def export(self, path: str | os.PathLike[str], dim: int | None = None) -> None:
        """Export the model with one head to a folder that plain sentence-transformers and PyLate can load."""
        from jcv2_plugin.encoder.export import export_single_head

        export_single_head(self, Path(path), self.resolve_dim(dim))
