"""Encoders in a forked child process.

torch's OpenMP threads do not survive a fork, and the first operator that needs them in the child waits for ever. That
is so even if the model was only loaded before the fork, and for models loaded after it. A child therefore computes with
one thread, as the workers of torch's ``DataLoader`` do. An accelerator cannot be used in it at all.

Nor do other threads survive that tokenised texts during the fork. The tokenizer's own lock, in Rust, would stay locked
in the child, so a fork waits until they are done.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

import torch

from jcv2_plugin.errors import ForkedProcessError

if TYPE_CHECKING:
    from jcv2_plugin.encoder.model import JinaColbertEncoder

_inherited: weakref.WeakSet[JinaColbertEncoder] = weakref.WeakSet()
"""Encoders that this process has from its parent."""
_own: weakref.WeakSet[JinaColbertEncoder] = weakref.WeakSet()
_threads_may_be_lost = False
_is_child = False
_LONGEST_WAIT = 5.0
"""Seconds that a fork waits for tokenizers. Somebody may hold their locks for another reason."""
_held = threading.local()


def is_child() -> bool:
    """Return whether this process was forked from one that had an encoder. Threads of other libraries are lost."""
    return _is_child


def watch(encoder: JinaColbertEncoder) -> None:
    """Prepare each child that is forked from now on for this encoder."""
    global _threads_may_be_lost
    _threads_may_be_lost = True
    _own.add(encoder)


def check_device(encoder: JinaColbertEncoder) -> None:
    """Raise ForkedProcessError for an encoder on an accelerator that was loaded before this process was forked."""
    if _inherited and encoder in _inherited and encoder.device.type != "cpu":
        raise ForkedProcessError(
            f"{encoder.name!r} was loaded on {encoder.device} before process {os.getpid()} was forked from process "
            f"{os.getppid()}, and an accelerator does not survive a fork. Load the model in each process, after the "
            "fork, or start the processes with the spawn method."
        )


def _before() -> None:
    ends = time.monotonic() + _LONGEST_WAIT
    locks = [encoder.tokenizer_lock for encoder in (*_own, *_inherited)]
    _held.locks = [lock for lock in locks if lock.acquire(timeout=max(0.0, ends - time.monotonic()))]


def _in_parent() -> None:
    for lock in _held.locks:
        lock.release()


def _in_child() -> None:
    global _is_child
    _is_child = _is_child or _threads_may_be_lost
    if _threads_may_be_lost:
        torch.set_num_threads(1)
    _inherited.update(_own)
    _own.clear()
    for encoder in _inherited:
        encoder.tokenizer_lock = threading.RLock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
