"""Identify models by their weights, so that a collection is never searched with another model's query vectors."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_SAMPLE = 512


def weights_fingerprint(modules: list[nn.Module]) -> str:
    """Return a short hash of samples of every parameter. It is the same on any device, in float32 and in bfloat16.

    The hash covers each parameter's shape and up to 512 evenly spaced values, rounded to bfloat16. A model stored in
    bfloat16 and loaded in float32 therefore has the same fingerprint. Loaded in float16 it does not, because float16
    cannot represent every bfloat16 value, so the weights do differ.
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, parameter in module.named_parameters():
            if "pooler" in name:  # never used, and random if the checkpoint lacks it
                continue
            flat = parameter.detach().reshape(-1)
            step = max(1, flat.numel() // _SAMPLE)
            sample = flat[::step][:_SAMPLE].to("cpu", torch.bfloat16).contiguous()
            digest.update(str(tuple(parameter.shape)).encode())
            digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
