"""Run a transformer on a CPU with OpenVINO. Used for int8 copies and for single short texts in float32."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Result = TypeVar("Result")

_started_in: int | None = None
"""The process that OpenVINO first computed in."""


def lost_in_fork() -> bool:
    """Return whether OpenVINO was started in the parent of this process.

    Its threads do not survive a fork, and if they were computing during it, the child waits for them for ever.
    """
    return _started_in not in (None, os.getpid())


class Network:
    """A compiled network with ids and mask as inputs and one inference request per thread. ``read`` returns the
    OpenVINO model to compile, given an ``openvino.Core``.
    """

    def __init__(self, read: Callable[[Any], Any]) -> None:
        import openvino

        global _started_in
        _started_in = _started_in or os.getpid()
        options = {
            "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
            # Without a PERFORMANCE_HINT: with LATENCY, networks of any shape ran on one core of two (OpenVINO 2026.4).
            "NUM_STREAMS": "1",
            # Keep layers that are not quantised in float32; the default is bfloat16 on CPUs that support it.
            "INFERENCE_PRECISION_HINT": "f32",
        }

        def compiled() -> Any:
            core = openvino.Core()
            return core.compile_model(read(core), "CPU", options)

        self._compiled = in_own_thread(compiled)
        self._requests = threading.local()

    def run(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the float32 hidden states of tokenised texts on the CPU. Thread-safe."""
        request = getattr(self._requests, "own", None)
        if request is None:
            request = self._requests.own = self._compiled.create_infer_request()
        states = request.infer({"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()})[0]
        # Copy, because the request reuses this memory for its next result.
        return torch.from_numpy(np.array(states))


class HiddenStates(nn.Module):
    """A transformer with only the two inputs and one output to convert."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the last hidden states."""
        states: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


def converted(model: nn.Module) -> Any:
    """Convert a transformer to an OpenVINO model of ids and mask of any shape, which shares the weights' memory."""
    import openvino

    # Two texts, one of them padded, so that the trace includes the mask.
    ids = torch.ones(2, 16, dtype=torch.int64)
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[1, 9:] = 0
    with torch.no_grad():
        return openvino.convert_model(
            HiddenStates(model).eval(), example_input={"input_ids": ids, "attention_mask": mask}
        )


def in_own_thread(work: Callable[[], Result], stop: Callable[[], object] = lambda: None) -> Result:
    """Call ``work`` in a short-lived thread and return its result. ``stop`` is called if waiting for it is interrupted.

    Use it for everything that makes OpenVINO load its CPU plugin. The plugin installs a signal stack in the thread that
    loads it, and unmaps that stack when the plugin is released, even from another thread or after a later plugin was
    loaded. After that, any signal, including Ctrl-C, crashes the process with a segmentation fault (OpenVINO 2026.4,
    SigAltStackSetup in its intel_cpu plugin; added in openvinotoolkit/openvino#11894).
    """
    with ThreadPoolExecutor(1, "jcv2-openvino") as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except BaseException:
            stop()
            raise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what transformers and OpenVINO print while a model is converted, and disable telemetry."""
    from transformers.utils import logging as its_logging

    transformers_logging: Any = its_logging
    before, verbosity = os.environ.get("CI"), transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    os.environ["CI"] = "true"  # disables telemetry if set at first use
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
