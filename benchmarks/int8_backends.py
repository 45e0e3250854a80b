"""A backbone's arithmetic by other runtimes and in fewer bits; what is around it stays this package's encoder.

Each backend is a module with a transformer's ``forward``, that replaces it: batches, heads, masks are the same.
Needs onnx, onnxruntime, openvino and nncf (benchmarks/peers/int8.txt).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx_export import export_onnx
from torch import Tensor, nn
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutput

from jcv2_plugin import JinaColbertEncoder, quantize
from jcv2_plugin.encoder.int8 import Int8Model
from jcv2_plugin.encoder.openvino_cpu import HiddenStates

Features = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What backends are made from.

    Attributes:
        encoder: Of which the backbone is run, in float32.
        folder: Where exported and quantised files go.
        threads: Of each runtime.
        texts: To calibrate on.
    """

    encoder: JinaColbertEncoder
    folder: Path
    threads: int
    texts: list[str]

    @property
    def model(self) -> Any:
        """The backbone."""
        return self.encoder.backbone.model

    def onnx(self) -> Path:
        """The backbone as ONNX in float32, exported once."""
        file = self.folder / "float32.onnx"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            weights = self.folder / "weights"
            self.model.save_pretrained(weights)
            export_onnx(HiddenStates(AutoModel.from_pretrained(weights, attn_implementation="eager")), file)
        return file


class Runtime(nn.Module):
    """A function of two arrays instead of a transformer."""

    runs_own_threads = True

    def __init__(self, config: Any, run: Callable[[Features], Any]) -> None:
        super().__init__()
        self.config = config
        self.run = run

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **ignored: Any) -> BaseModelOutput:
        states = self.run({"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()})
        return BaseModelOutput(last_hidden_state=torch.from_numpy(np.asarray(states)))


def torch_float32(setting: Setting) -> nn.Module:
    """As the package runs it."""
    return setting.model


class _Bfloat16(nn.Module):
    """The model in bfloat16, states handed on in float32, so that heads and MaxSim stay exact."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.config = model.config
        self.model = copy.deepcopy(model).to(torch.bfloat16)

    def forward(self, **features: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.model(**features).last_hidden_state.float())


def torch_bfloat16(setting: Setting) -> nn.Module:
    """Half the bits, no calibration; fast where the processor has AVX512-BF16 or AMX."""
    return _Bfloat16(setting.model)


def torch_int8(setting: Setting) -> nn.Module:
    """Linear layers by torch's dynamic quantisation: int8 weights by channel, activations quantised as they come."""
    torch.backends.quantized.engine = "onednn"  # "x86" keeps weights to 7 bits where the processor has no VNNI
    by_channel = {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(setting.model), by_channel)


def onnx_float32(setting: Setting) -> nn.Module:
    """ONNX Runtime, nothing quantised."""
    return _onnx_session(setting, setting.onnx())


def onnx_int8(setting: Setting) -> nn.Module:
    """ONNX Runtime's dynamic quantisation, weights by channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    file = setting.folder / "int8.onnx"
    if not file.exists():
        prepared = setting.folder / "prepared.onnx"
        quant_pre_process(str(setting.onnx()), str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(str(prepared), str(file), weight_type=QuantType.QInt8, per_channel=True)
    return _onnx_session(setting, file)


def _onnx_session(setting: Setting, file: Path) -> nn.Module:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return Runtime(setting.model.config, lambda features: session.run(None, features)[0])


def openvino_float32(setting: Setting) -> nn.Module:
    """OpenVINO, nothing quantised."""
    return _openvino(setting, _read(setting), {"INFERENCE_PRECISION_HINT": "f32"})


def openvino_bfloat16(setting: Setting) -> nn.Module:
    """OpenVINO in bfloat16, which it takes by itself where the processor has it."""
    return _openvino(setting, _read(setting), {"INFERENCE_PRECISION_HINT": "bf16"})


def openvino_dynamic_int8(setting: Setting) -> nn.Module:
    """Weights compressed to int8 by NNCF; activations quantised as they come, by groups of 32."""
    import nncf

    model = nncf.compress_weights(_read(setting), mode=nncf.CompressWeightsMode.INT8_SYM)
    return _openvino(setting, model, {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"})


class _Packaged(nn.Module):
    """What ``jcv2_plugin.quantize`` makes, instead of a transformer."""

    runs_own_threads = True

    def __init__(self, config: Any, int8: Int8Model) -> None:
        super().__init__()
        self.config = config
        self.int8 = int8

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **ignored: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.int8.run(input_ids, attention_mask))


def openvino_int8(setting: Setting) -> nn.Module:
    """Weights and activations by calibration on texts: this package's own."""
    backbone: Any = quantize(setting.encoder, setting.texts, samples=len(setting.texts)).backbone
    return _Packaged(setting.model.config, backbone.int8)


def _read(setting: Setting) -> Any:
    import openvino

    return openvino.Core().read_model(setting.onnx())


def _openvino(setting: Setting, model: Any, options: dict[str, str]) -> nn.Module:
    import openvino

    fixed = {"INFERENCE_NUM_THREADS": str(setting.threads), "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(model, "CPU", {**fixed, **options})
    request = compiled.create_infer_request()
    return Runtime(setting.model.config, lambda features: request.infer(features)[compiled.output(0)].copy())


BACKENDS: dict[str, Callable[[Setting], nn.Module]] = {
    "torch float32": torch_float32,
    "torch bfloat16": torch_bfloat16,
    "torch int8": torch_int8,
    "ONNX Runtime float32": onnx_float32,
    "ONNX Runtime int8": onnx_int8,
    "OpenVINO float32": openvino_float32,
    "OpenVINO bfloat16": openvino_bfloat16,
    "OpenVINO int8, dynamic": openvino_dynamic_int8,
    "OpenVINO int8, calibrated": openvino_int8,
}
