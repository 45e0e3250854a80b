"""How much a backbone computes, and how fast the machine can at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from jcv2_plugin import JinaColbertEncoder


def token_counts(encoder: JinaColbertEncoder, texts: list[str]) -> list[int]:
    """Tokens of each text as a document, as many of them as are encoded."""
    prompt = encoder.prompts["document"]
    ids = encoder.tokenizer([prompt + text for text in texts], verbose=False)["input_ids"]
    return [min(len(one), encoder.document_length) for one in ids]


def matrix_operations(encoder: JinaColbertEncoder) -> int:
    """Floating point operations for a token in the backbone's matrices: two for each of their weights."""
    config = encoder.backbone.config
    weights = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    return int(2 * weights * config.num_hidden_layers)


def matrix_peak(side: int, dtype: torch.dtype, device: str, repeats: int) -> float:
    """Operations a second of one large product of matrices: the best of several."""
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * float(side) ** 3 / min(seconds(lambda: one @ other, device) for _ in range(repeats))


def seconds(run: Callable[[], Any], device: str) -> float:
    """What a call takes by the clock, until the device is done with it."""
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start
