"""Folders that are whole or not there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(out: Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A new folder beside ``out`` that replaces it when all went well, and vanishes when not.

    Args:
        out: The folder to make or replace.
        check: Called with ``out`` at the start and again before it is replaced; raises if it must not be.
    """
    out = out.expanduser().resolve()
    if check is not None:
        check(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        if check is not None:
            check(out)
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
