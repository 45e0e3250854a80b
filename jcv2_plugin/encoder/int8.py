"""Run a backbone in int8 on a CPU with OpenVINO, next to its float weights.

The float weights determine the model's fingerprint, are used for training, and run on accelerators. The int8 copy is
created from them by :func:`~jcv2_plugin.encoder.quantization.quantize` and is only used for encoding.
"""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor

from jcv2_plugin.encoder.fingerprint import weights_fingerprint
from jcv2_plugin.encoder.openvino_cpu import Network, lost_in_fork
from jcv2_plugin.errors import ModelLayoutError
from jcv2_plugin.files import new_file, read_json
from jcv2_plugin.lazy import require_packages

FOLDER = "openvino"
_GRAPH = "openvino_model_qint8_quantized.xml"  # file names of sentence-transformers
_WEIGHTS = "openvino_model_qint8_quantized.bin"
_MADE_FROM = "quantized.json"


class Int8Model:
    """A quantised network in memory, compiled on first use: OpenVINO's XML ``graph``, its constants as ``weights``, and
    the fingerprint of the float weights that it was ``made_from``.
    """

    def __init__(self, graph: bytes, weights: bytes, made_from: str) -> None:
        self.graph, self.weights, self.made_from = graph, weights, made_from
        self._network: Network | None = None
        self._lock = threading.Lock()

    @classmethod
    def read(cls, folder: Path) -> Int8Model:
        """Load the files written by :meth:`write`. Raises ModelLayoutError if one is missing or unreadable."""
        try:
            made_from = read_json(folder / _MADE_FROM)["weights"]
            return cls((folder / _GRAPH).read_bytes(), (folder / _WEIGHTS).read_bytes(), str(made_from))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelLayoutError(
                f"{folder}: the int8 copy cannot be read ({error}). Copy the whole folder again, or load the float "
                "weights with from_pretrained(..., quantized=False)."
            ) from error

    def write(self, folder: Path) -> None:
        """Write the files. Each is replaced atomically, because the model may have been loaded from this folder."""
        folder.mkdir(parents=True, exist_ok=True)
        made_from = json.dumps({"weights": self.made_from}).encode()
        for name, content in ((_GRAPH, self.graph), (_WEIGHTS, self.weights), (_MADE_FROM, made_from)):
            with new_file(folder / name) as stream:
                stream.write(content)

    def run(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the float32 hidden states of tokenised texts on the CPU. Thread-safe."""
        with self._lock:
            if self._network is None:
                require_int8()
                self._network = Network(lambda core: core.read_model(self.graph, self.weights))
            network = self._network
        return network.run(input_ids, attention_mask)

    def __getstate__(self) -> dict[str, Any]:
        return {"graph": self.graph, "weights": self.weights, "made_from": self.made_from}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class QuantizedTransformer(Transformer):
    """A sentence-transformers ``Transformer`` with an int8 copy of itself for encoding on the CPU.

    The float weights are used when gradients are enabled, on any other device, if they have changed since they were
    quantised, and in a process forked from one in which OpenVINO has computed.
    """

    runs_own_threads = True
    """Encoding uses OpenVINO's threads, not torch's."""
    int8: Int8Model
    _is_current: bool | None = None

    @classmethod
    def around(cls, transformer: Transformer, int8: Int8Model) -> QuantizedTransformer:
        """Wrap a transformer. It shares its parts with the new module and must not be used any more."""
        made = cls.__new__(cls)
        made.__dict__.update(transformer.__dict__)
        made.int8, made._is_current = int8, None
        return made

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> QuantizedTransformer:  # type: ignore[override]
        """Load the float and int8 weights from a folder."""
        int8 = Int8Model.read(Path(model_name_or_path, subfolder, FOLDER))
        return cls.around(Transformer.load(model_name_or_path, subfolder=subfolder, **kwargs), int8)

    def on_model_ready(self, model: Any) -> None:
        """Check early that OpenVINO is installed if the model is on the CPU."""
        super().on_model_ready(model)
        if next(self.model.parameters()).device.type == "cpu":
            require_int8()

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the float and int8 weights to a folder."""
        super().save(output_path, *args, **kwargs)
        self.int8.write(Path(output_path, FOLDER))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add hidden states to the features, using OpenVINO if possible and the float weights otherwise."""
        if not self._runs_int8(features):
            return dict(super().forward(features, **kwargs))
        states = self.int8.run(features["input_ids"], features["attention_mask"])
        return {**features, self.module_output_name: states.to(self.model.dtype)}

    def train(self, mode: bool = True) -> QuantizedTransformer:
        """Set the training mode. Afterwards, the int8 copy is checked against the float weights again."""
        super().train(mode)
        self._is_current = None
        return self

    def _runs_int8(self, features: dict[str, Any]) -> bool:
        if self.training or torch.is_grad_enabled() or "attention_mask" not in features or lost_in_fork():
            return False
        ids = features.get("input_ids")
        if ids is None or ids.device.type != "cpu" or self.model.config.output_hidden_states:
            return False
        if self._is_current is None:
            self._is_current = weights_fingerprint([self.model]) == self.int8.made_from
            if not self._is_current:
                warnings.warn(
                    "The float weights have changed since they were quantised, so they are used instead of the int8 "
                    "copy. Quantise the model again: jcv2_plugin.quantize(encoder, texts).",
                    stacklevel=2,
                )
        return self._is_current


def require_int8() -> None:
    """Raise MissingPackageError unless OpenVINO is installed."""
    otherwise = "Load it with JinaColbertEncoder.from_pretrained(..., quantized=False) to use the float weights."
    require_packages("The int8 copy of this model", ("openvino",), "int8", otherwise)
