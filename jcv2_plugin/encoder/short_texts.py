"""Encode single short texts, such as queries, with OpenVINO in float32, next to the torch model.

For one query, torch spends a good part of the time between its operators. OpenVINO runs the same float32 weights as one
compiled network. It replaces the backbone only for one text of up to :data:`MOST_TOKENS` tokens at a time, on a CPU;
batches run in torch, which is about as fast with them. Where anything else differs, torch is used.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor
from torch.nn import functional as F

from jcv2_plugin.encoder.fingerprint import weights_fingerprint
from jcv2_plugin.encoder.openvino_cpu import Network, converted, lost_in_fork, quiet

MOST_TOKENS = 256
"""Longer texts take about as long in torch (docs/benchmarks.md)."""
TOLERANCE = 1e-4
"""Largest difference between components of unit vectors of the two engines."""
_CHECKED_TOKENS = (3, 16, 32)
_CHANGED = -1  # no version of any weights


class ShortTexts:
    """The float32 backbone of an encoder on the CPU as an OpenVINO network, which shares the weights' memory where it
    can.

    It is built for the weights as they are now, and refuses texts once they have changed, until :meth:`check` finds
    them as before.
    """

    def __init__(self, backbone: Transformer) -> None:
        self._model = backbone.model
        self._parameters = list(self._model.parameters())
        self._network: Network | None = None
        if self._parameters[0].dtype != torch.float32 or self._parameters[0].device.type != "cpu":
            return
        self._made_from = weights_fingerprint([self._model])
        self._version = self._versions()
        try:
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tracing warnings; other shapes are compared below
                network = converted(self._model)
                self._network = Network(lambda core: network)
            difference = self._difference()
        except Exception as error:  # whatever a model has that OpenVINO cannot convert
            self._network, problem = None, f"cannot be converted for OpenVINO ({error})"
        else:
            if difference <= TOLERANCE:
                return
            self._network, problem = None, f"has other vectors in OpenVINO (by up to {difference:.2g})"
        warnings.warn(f"This model {problem}. Queries are encoded in torch.", stacklevel=3)

    def check(self) -> None:
        """Compare the weights with those that the network was built from, and use it if they are the same."""
        if self._network is not None:
            same = weights_fingerprint([self._model]) == self._made_from
            self._version = self._versions() if same else _CHANGED

    def takes(self, backbone: Transformer, features: dict[str, Any]) -> bool:
        """Return whether :meth:`run` gives the same states for these features as the backbone would."""
        ids, model = features.get("input_ids"), backbone.model
        return (
            self._network is not None
            and ids is not None
            and "attention_mask" in features
            and ids.shape[0] == 1
            and 0 < ids.shape[1] <= MOST_TOKENS
            and ids.device.type == "cpu"
            and model is self._model
            and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or model.training)
            and not (model.config.output_hidden_states or model._forward_hooks or backbone._forward_hooks)
            and self._parameters[0].dtype == torch.float32
            and not lost_in_fork()
            and self._version == self._versions()
        )

    def run(self, features: dict[str, Any]) -> Tensor:
        """Return the hidden states ``(1, tokens, hidden)`` of features that :meth:`takes` accepts. Thread-safe."""
        assert self._network is not None
        return self._network.run(features["input_ids"], features["attention_mask"])

    def _versions(self) -> int:
        """Return a number that changes whenever torch writes to a weight."""
        return sum(0 if parameter.is_inference() else parameter._version for parameter in self._parameters)

    def _difference(self) -> float:
        """Return the largest difference of the two engines on random tokens, as components of unit vectors."""
        assert self._network is not None
        chance = torch.Generator().manual_seed(0)
        most = 0.0
        for tokens in _CHECKED_TOKENS:
            ids = torch.randint(self._model.config.vocab_size, (1, tokens), generator=chance)
            mask = torch.ones_like(ids)
            for masked in (0, tokens // 2):  # query expansion may be left out of the attention
                mask[:, tokens - masked :] = 0
                with torch.inference_mode():
                    own = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
                    other = self._network.run(ids, mask)
                most = max(most, float((F.normalize(own, dim=-1) - F.normalize(other, dim=-1)).abs().max()))
        return most
