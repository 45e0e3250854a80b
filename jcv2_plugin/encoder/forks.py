"""Encoders in a forked child process.

A fork copies neither PyTorch's threads nor those that hold a lock, so a child that encoded would wait for them for
ever. It gets locks of its own, and encodes in one thread.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

import torch


class _Locked(Protocol):
    tokenizer_lock: threading.RLock


_encoders: weakref.WeakSet[_Locked] = weakref.WeakSet()
_loaded = False


def watch(encoder: _Locked) -> None:
    """Make an encoder usable in each child that is forked from now on."""
    global _loaded
    _loaded = True
    _encoders.add(encoder)


def _in_child() -> None:
    for encoder in list(_encoders):
        encoder.tokenizer_lock = threading.RLock()
    if _loaded:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
