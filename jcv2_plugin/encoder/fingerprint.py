"""Tell models apart by their weights, so that a collection is never searched with another model's queries."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_SAMPLE = 512


def weights_fingerprint(modules: list[nn.Module]) -> str:
    """A short hash over samples of every parameter; the same on any device, in float32 and in bfloat16.

    Each parameter adds its shape and up to 512 evenly spaced values, rounded to bfloat16: a model stored in
    bfloat16 and loaded in float32 is the same model. Loaded in float16 it is not: that type cannot hold every
    bfloat16, so the weights really are others.
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, parameter in module.named_parameters():
            if "pooler" in name:  # never used, and random where a checkpoint leaves it out
                continue
            flat = parameter.detach().reshape(-1)
            step = max(1, flat.numel() // _SAMPLE)
            sample = flat[::step][:_SAMPLE].to("cpu", torch.bfloat16).contiguous()
            digest.update(str(tuple(parameter.shape)).encode())
            digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
