"""Quantise an encoder to int8 for CPUs, calibrated on sample texts.

The torch model is converted to OpenVINO. NNCF then runs it on some texts and chooses the int8 range of each weight and
activation, after SmoothQuant has evened out the transformer's channels.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import random
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jcv2_plugin.checks import check_integer
from jcv2_plugin.documents import has_text
from jcv2_plugin.encoder.fingerprint import weights_fingerprint
from jcv2_plugin.encoder.int8 import Int8Model, QuantizedTransformer
from jcv2_plugin.encoder.openvino_cpu import converted, in_own_thread, quiet
from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.lazy import require_packages

if TYPE_CHECKING:
    from jcv2_plugin.encoder.model import JinaColbertEncoder

PACKAGES = ("openvino", "nncf")
LEAST_TEXTS = 10
"""Minimum number of texts; fewer do not cover the range of activations."""
SAMPLES = 100
_TEXTS_A_QUERY = 4
_QUERY_SHARE = 3  # text fills a third of a query, [MASK] the rest


def quantize(encoder: JinaColbertEncoder, texts: Iterable[str], *, samples: int = SAMPLES) -> JinaColbertEncoder:
    """Return a copy of an encoder that also runs in int8 on a CPU.

    Save it with ``save_pretrained(folder)`` and load it with ``from_pretrained(folder)``. It has the same fingerprint
    as the original encoder, so a collection created with either can be searched with the other.

    Args:
        encoder: Any encoder. It is not modified; the copy is in float32 and on the CPU.
        texts: Passages like those to be encoded, as passed to
            :meth:`~jcv2_plugin.JinaColbertEncoder.encode_document`. If there are more than ``samples``, a fixed random
            sample is used.
        samples: Number of texts to calibrate on. More take longer and change little.

    Raises:
        InvalidOptionError: If ``samples`` or the number of texts is too small.
        TypeError: If a text is not a string.
        MissingPackageError: If OpenVINO or NNCF is not installed.
    """
    if isinstance(texts, str):
        raise TypeError(f"quantize takes several texts, not the single string {texts!r:.60}.")
    samples = check_integer(samples, "samples", least=LEAST_TEXTS)
    require_packages("Quantising", PACKAGES, "int8")
    drawn = _draw(texts, samples)
    if len(drawn) < LEAST_TEXTS:
        raise InvalidOptionError(
            f"Calibration needs at least {LEAST_TEXTS} texts that are not empty, got {len(drawn)}. Give more texts of "
            "the kind that will be encoded; 100 are enough."
        )
    made = copy.deepcopy(encoder).to("cpu", torch.float32).eval()
    made.source = None  # the name refers to the original encoder
    backbone = made.backbone
    backbone.model.set_attn_implementation("sdpa")
    backbone.unpad_inputs = None if backbone.unpad_inputs else backbone.unpad_inputs
    batches = [
        {name: features[name].numpy() for name in ("input_ids", "attention_mask")}
        for features in _calibration_batches(made, drawn)
    ]
    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warnings; a test checks that other shapes work
        network = calibrated(converted(backbone.model), batches)
    made[0] = QuantizedTransformer.around(backbone, _in_memory(network, weights_fingerprint([backbone.model])))
    made.forget_derived()
    return made


def calibrated(network: Any, batches: list[dict[str, Any]]) -> Any:
    """Quantise an OpenVINO model to int8, with ranges calibrated on ``batches``."""
    import nncf

    stopped = threading.Event()

    def unless_stopped(batch: dict[str, Any]) -> dict[str, Any]:
        if stopped.is_set():
            raise InterruptedError("Quantising was interrupted.")
        return batch

    def work() -> Any:
        given = nncf.Dataset(batches, unless_stopped)
        return nncf.quantize(network, given, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches))

    return in_own_thread(work, stop=stopped.set)


def _calibration_batches(encoder: JinaColbertEncoder, texts: list[str]) -> Iterator[dict[str, Any]]:
    """Yield one text per batch, so that padding is not part of the calibration."""
    roles = {"document": texts}
    if encoder.query_length is not None:
        # Documents never contain attended [MASK] tokens, so calibrate on the beginnings of some as queries too.
        some, tokens = texts[::_TEXTS_A_QUERY], encoder.query_length // _QUERY_SHARE
        encodings = encoder.plain_tokenizer.encode_batch(some, add_special_tokens=False)
        ends = [encoding.offsets[:tokens][-1][1] if encoding.offsets else None for encoding in encodings]
        roles["query"] = [text[:end] for text, end in zip(some, ends, strict=True)]
    for role, given in roles.items():
        for _, features in encoder.feature_batches(given, 1, 1, prompt=encoder.prompts.get(role), task=role):
            yield features


def _draw(texts: Iterable[str], samples: int) -> list[str]:
    """Draw a uniform random sample of the non-empty texts, with a fixed seed."""
    chance = random.Random(0)
    drawn: list[str] = []
    seen = 0
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"Texts must be str, got {type(text).__name__}: {text!r:.80}.")
        if not has_text(text):
            continue
        seen += 1
        if len(drawn) < samples:
            drawn.append(text)
        elif (index := chance.randrange(seen)) < samples:
            drawn[index] = text
    return drawn


def _in_memory(network: Any, made_from: str) -> Int8Model:
    import openvino

    with tempfile.TemporaryDirectory(prefix="jcv2-int8-") as folder:
        graph, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
        openvino.serialize(network, graph, weights)
        return Int8Model(graph.read_bytes(), weights.read_bytes(), made_from)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and logs of OpenVINO and NNCF, and disable their telemetry."""
    logger_class = logging.getLoggerClass()
    with quiet():
        import nncf  # noqa: F401  # changes the global logger class

        logging.setLoggerClass(logger_class)
        yield
