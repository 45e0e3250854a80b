"""Crash a function at one of its writes: by an exception that nobody expects, or by a signal in a forked child."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as edge
from qdrant_client import QdrantClient

from jcv2_plugin.engines.edge import EdgeEngine

_NAMED = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_EDGE = (edge.EdgeShard.update, edge.EdgeShard.flush, edge.EdgeShard.optimize)
_REQUESTS = (
    "upsert",
    "delete",
    "create_collection",
    "delete_collection",
    "update_collection_aliases",
    "create_payload_index",
)
_LONGEST = 120.0


class Crash(BaseException):
    """Ends a command in this process."""


class _Watch:
    """What is counted now: writes below a folder. ``act`` is called before the one with the number ``at``."""

    def __init__(self) -> None:
        self.folder = ""
        self.count = 0
        self.at = 0
        self.act: Callable[[], None] = lambda: None

    def point(self) -> None:
        if self.folder:
            self.count += 1
            if self.count == self.at:
                self.act()


_watch = _Watch()


def _hook(event: str, args: tuple[Any, ...]) -> None:
    """Python tells of each operation on a file before it is done. Reading, and what lies elsewhere, is not counted."""
    if not _watch.folder or not (event == "open" or event in _NAMED) or isinstance(args[0], int):
        return
    if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITING):
        return
    path = os.fsdecode(args[0])
    # shutil.rmtree gives names relative to an open folder.
    if path.startswith(_watch.folder) or (not os.path.isabs(path) and event != "open"):
        _watch.point()


sys.addaudithook(_hook)


def _around(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*arguments: Any, **options: Any) -> Any:
        _watch.point()
        done = original(*arguments, **options)
        _watch.point()
        return done

    return call


@contextlib.contextmanager
def watched(folder: Path, at: int = 0, act: Callable[[], None] = lambda: None) -> Iterator[_Watch]:
    """Count the writes below a folder, and call a function before one of them.

    Python's own operations on files are counted, and before and after each: Edge's updates, flushes and optimisations,
    and requests to a server that write.
    """
    original = EdgeEngine._call

    def call(engine: EdgeEngine, method: Callable[..., Any], *arguments: Any) -> Any:
        return (_around(original) if method in _EDGE else original)(engine, method, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EdgeEngine, "_call", call)
        for name in _REQUESTS:
            patch.setattr(QdrantClient, name, _around(getattr(QdrantClient, name)))
        _watch.folder, _watch.count, _watch.at, _watch.act = str(folder), 0, at, act
        try:
            yield _watch
        finally:
            _watch.folder = ""


def writes_of(run: Callable[[], None], folder: Path) -> int:
    """How many writes below a folder a function makes."""
    with watched(folder) as watch:
        run()
    return watch.count


def raised(run: Callable[[], None], folder: Path, at: int) -> bool:
    """Raise :class:`Crash` before a write. Return False if the function ended before."""

    def act() -> None:
        raise Crash

    try:
        with watched(folder, at, act):
            run()
    except Crash:
        return True
    return False


def killed(run: Callable[[], None], folder: Path, at: int, delay: float) -> bool:
    """Run in a child, and kill it so many seconds after it reached a write. Return False if it ended before.

    During a call of Edge no thread of Python runs, so the kernel's timer ends the child.
    """

    def act() -> None:
        if delay:
            signal.setitimer(signal.ITIMER_REAL, delay)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        status = 3
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            with watched(folder, at, act):
                run()
            status = 0
        finally:
            os._exit(status)
    until = time.monotonic() + _LONGEST
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail(f"The child did not end: write {at}, delay {delay}.")
        time.sleep(0.001)
    if os.WIFEXITED(ended[1]):
        assert os.WEXITSTATUS(ended[1]) == 0
        return False
    assert os.WTERMSIG(ended[1]) in (signal.SIGKILL, signal.SIGALRM)
    return True
