"""Write files and folders atomically."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomically(file: Path, content: str) -> None:
    """Replace a file's content atomically: readers see the old or the new content, even after a crash."""
    temporary = file.with_name(file.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def check_new_folder(path: Path) -> None:
    """Check that a new folder can be created.

    Raises:
        FileExistsError: If the path exists and is not an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{str(path)!r} exists and is not empty. Choose a new folder.")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to ``path`` on success.

    If the block raises, the temporary folder is deleted. ``path`` itself never exists half-filled.

    Raises:
        FileExistsError: If the path exists and is not an empty folder.
    """
    path = path.expanduser().resolve()
    check_new_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield staging
        check_new_folder(path)  # again: filling it may have taken hours
        if path.exists():
            path.rmdir()
        staging.rename(path)
        path.chmod(0o755)  # mkdtemp makes it private to its owner
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def parse_json(content: str | bytes) -> Any:
    """Parse JSON that may come from anyone. Whatever is wrong with it is a ``ValueError``.

    Raises:
        ValueError: It is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
