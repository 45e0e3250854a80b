"""First stages with the models of sentence-transformers: dense embeddings and sparse encoders such as SPLADE.

Both follow :class:`~jcv2_plugin.engines.first_stage.FirstStage`. Their models are loaded when they are first needed.
"""

from __future__ import annotations

import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.checks import check_positive
from jcv2_plugin.engines.first_stage import DenseParams, Distance, SparseParams, SparseVector
from jcv2_plugin.errors import InvalidOptionError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SparseEncoder

_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")


class _ModelStage(ABC):
    """A model that is loaded on first use. One thread at a time encodes, since tokenizers are not thread-safe."""

    kind: ClassVar[str]

    def __init__(
        self, model: Any, name: str | None, device: str | None, batch_size: int, model_options: dict[str, Any]
    ) -> None:
        self._source: str | None = None
        self._model: Any = None
        if isinstance(model, (str, os.PathLike)):
            self._source = os.fspath(model)
        else:
            self._model = model
            if model_options or device is not None:
                given = sorted({*model_options, *(["device"] if device is not None else [])})
                raise InvalidOptionError(f"The {self.kind} is loaded: {given} can no longer be chosen. Leave them out.")
            if name is None:
                raise InvalidOptionError(
                    f"Give the stage of a loaded {self.kind} a name, such as name='minilm'. It is stored with the "
                    "collection and stands for this model."
                )
        self._name = name if name is not None else _name_of(str(self._source))
        self._device = device
        self._batch_size = check_positive(batch_size, "batch_size", InvalidOptionError)
        self._options = model_options
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self._name!r}, model={self._source or type(self._model).__name__!r})"

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in vars(self).items() if key != "_lock"}
        if self._source is not None:
            state["_model"] = None  # loaded again from its source
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """See :class:`~jcv2_plugin.FirstStage`."""
        return self._name

    @property
    def model(self) -> Any:
        """The model, loaded on first use."""
        with self._lock:
            if self._model is None:
                self._model = self._load()
            return self._model

    def _load(self) -> Any:
        import sentence_transformers

        return getattr(sentence_transformers, self.kind)(self._source, device=self._device, **self._options)

    def encode_documents(self, texts: Sequence[str]) -> Any:
        """See :class:`~jcv2_plugin.FirstStage`."""
        return self._encode(self.model.encode_document, texts)

    def encode_queries(self, texts: Sequence[str]) -> Any:
        """See :class:`~jcv2_plugin.FirstStage`."""
        return self._encode(self.model.encode_query, texts)

    @abstractmethod
    def _encode(self, encode: Any, texts: Sequence[str]) -> Any:
        """Return the vectors of texts by a method of the model."""


class SentenceTransformerStage(_ModelStage):
    """First stage with a dense sentence-transformers model.

    Queries are encoded by ``encode_query`` and documents by ``encode_document``, with the model's own prompts.

    Args:
        model: A ``SentenceTransformer``, or the name or folder of one, which is loaded when it is first needed.
        name: Name of the stored vector. Defaults to the last part of the model's name.
        distance: How vectors are compared: ``"cosine"``, ``"dot"`` or ``"euclid"``.
        batch_size: Number of texts per batch.
        device: Device to load the model on.
        **model_options: Other keyword arguments of ``SentenceTransformer``: ``revision``, ``truncate_dim``, ...

    Raises:
        InvalidOptionError: A loaded model has no name, or options of loading.
    """

    kind = "SentenceTransformer"

    def __init__(
        self,
        model: SentenceTransformer | str | os.PathLike[str],
        *,
        name: str | None = None,
        distance: Distance = "cosine",
        batch_size: int = 32,
        device: str | None = None,
        **model_options: Any,
    ) -> None:
        super().__init__(model, name, device, batch_size, model_options)
        self._distance: Distance = distance

    @property
    def params(self) -> DenseParams:
        """See :class:`~jcv2_plugin.FirstStage`. Loads the model for its dimension."""
        size = self.model.get_embedding_dimension()
        if size is None:
            raise InvalidOptionError(f"The model of the first stage {self.name!r} does not say its dimension.")
        return DenseParams(int(size), self._distance)

    def _encode(self, encode: Any, texts: Sequence[str]) -> NDArray[np.float32]:
        with self._lock:
            found = encode(list(texts), batch_size=self._batch_size, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)


class SparseEncoderStage(_ModelStage):
    """First stage with a sparse encoder of sentence-transformers, such as a SPLADE model.

    Queries are encoded by ``encode_query`` and documents by ``encode_document``, with the model's own prompts. Values
    of 0 are not stored.

    Args:
        model: A ``SparseEncoder``, or the name or folder of one, which is loaded when it is first needed.
        name: Name of the stored vector. Defaults to the last part of the model's name.
        idf: Whether Qdrant multiplies query values by the inverse document frequency of their dimensions. SPLADE models
            have learnt their own weights and need none.
        batch_size: Number of texts per batch.
        device: Device to load the model on.
        **model_options: Other keyword arguments of ``SparseEncoder``: ``revision``, ``max_active_dims``, ...

    Raises:
        InvalidOptionError: A loaded model has no name, or options of loading.
    """

    kind = "SparseEncoder"

    def __init__(
        self,
        model: SparseEncoder | str | os.PathLike[str],
        *,
        name: str | None = None,
        idf: bool = False,
        batch_size: int = 32,
        device: str | None = None,
        **model_options: Any,
    ) -> None:
        super().__init__(model, name, device, batch_size, model_options)
        self._params = SparseParams(idf)

    @property
    def params(self) -> SparseParams:
        """See :class:`~jcv2_plugin.FirstStage`."""
        return self._params

    def _encode(self, encode: Any, texts: Sequence[str]) -> list[SparseVector]:
        options = {"convert_to_tensor": False, "convert_to_sparse_tensor": True, "save_to_cpu": True}
        with self._lock:
            found = encode(list(texts), batch_size=self._batch_size, show_progress_bar=False, **options)
        return [_sparse(tensor.coalesce()) for tensor in found]


def _sparse(tensor: Any) -> SparseVector:
    places, values = tensor.indices()[0].numpy(), tensor.values().float().numpy()
    kept = values != 0
    return SparseVector(places[kept].tolist(), values[kept].tolist())


def _name_of(source: str) -> str:
    """Return the last part of a model's name or folder, as the name of a vector."""
    name = _UNFIT.sub("-", source.rstrip("/\\").replace("\\", "/").rpartition("/")[2]).strip("-_")[:64]
    if not name:
        raise InvalidOptionError(f"The model {source!r} makes no name for its vectors. Give one, such as name='dense'.")
    return name
