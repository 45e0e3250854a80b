"""Files and folders written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(file: Path, content: str) -> None:
    """Replace a file's content in one step: whoever reads it, or a crash, finds the old or the new one."""
    temporary = file.with_name(file.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def check_new_folder(path: Path) -> None:
    """Raise where a new folder cannot be made.

    Raises:
        FileExistsError: Something is there, and it is not an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{str(path)!r} exists and is not empty. Choose a new folder.")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is full: a crash or an error leaves no half of one behind.

    Raises:
        FileExistsError: As :func:`check_new_folder`.
    """
    path = path.expanduser().resolve()
    check_new_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield staging
        check_new_folder(path)  # filling it may have taken hours
        if path.exists():
            path.rmdir()
        staging.rename(path)
        path.chmod(0o755)  # mkdtemp gives it to its owner alone
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
