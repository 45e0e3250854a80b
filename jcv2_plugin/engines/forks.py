"""Open folders in a forked child process.

A fork copies the shard but not its threads, and shares the locks of its files. A child that wrote, flushed, closed or
unlocked anything would damage what its parent has open, so it gives up its copy: nothing is called, and the files are
closed without unlocking them. The lock is then free when the parent closes the collection.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from pathlib import Path
from typing import Protocol


class _Open(Protocol):
    path: Path

    def abandon(self) -> list[object]:
        """Forget the objects that belong to the parent process, and return them."""


_open: weakref.WeakSet[_Open] = weakref.WeakSet()


def watch(engine: _Open) -> None:
    """Give up an engine's objects and files in each child that is forked from now on."""
    _open.add(engine)


def _in_child() -> None:
    engines = list(_open)
    _open.clear()
    for engine in engines:
        for one in engine.abandon():
            # Never freed, since that would close or unlock it.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))
    _close_files_below([os.path.realpath(engine.path) for engine in engines])


def _close_files_below(folders: list[str]) -> None:
    """Close this process's files in some folders. Only Linux can name them; elsewhere forks are rare."""
    for entry in os.listdir("/proc/self/fd") if folders and os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{entry}")
            if any(target.startswith(folder + os.sep) for folder in folders):
                os.close(int(entry))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
