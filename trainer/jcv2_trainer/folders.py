"""Write folders that are either complete or absent."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(out: Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a new folder that replaces ``out`` on success and is deleted on failure.

    Args:
        out: The folder to create or replace.
        check: Called with ``out`` at the start and again before it is replaced. Raises if it must not be replaced.
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
