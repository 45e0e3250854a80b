"""Write files and folders that are either complete or absent, whoever else writes to the same place.

Until it is complete, a file or folder ``NAME`` is beside its place as ``.NAME-<random>.tmp``. It is created
exclusively, so that no link is followed, and locked, so that the next writer can tell what a killed process left and
delete it.
"""

from __future__ import annotations

import errno
import glob
import itertools
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from jcv2_plugin.errors import DiskFullError, Jcv2Error

try:
    import fcntl
except ImportError:  # Windows, where no file in use can be deleted
    fcntl = None  # type: ignore[assignment]

MOST_AT_ONCE = 64 * 2**20
"""Bytes of a settings file, and of a line of any other, that are read at once."""
_TEMPORARY = re.compile(r"\.(.+)-[0-9a-f]{16}\.(tmp|old)", re.DOTALL)
_NO_SPACE = re.compile(r"no space left|os error 28\b|disk quota|not enough space|PytorchStreamWriter", re.IGNORECASE)


def write_atomically(file: Path, content: str) -> None:
    """Replace a file's content atomically: readers see the old or the new content, even after a crash."""
    with new_file(file) as stream:
        stream.write(content.encode())


@contextmanager
def new_file(path: Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """Yield a new file that becomes ``path`` on success, and is deleted on failure. A link at the path is replaced.

    Raises FileExistsError without ``replace`` if there is a file at the end, OSError if the path is not that of a
    regular file, such as ``/dev/stdout``, and DiskFullError.
    """
    if (path.exists() and not path.is_file()) or path.absolute().parent == Path("/dev"):
        raise OSError(f"{str(path)!r} is not a regular file, and is not replaced by one. Choose another name.")
    sweep(path)
    with naming(path):
        temporary, stream = _create(path)
        try:
            with stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                if fcntl is not None:  # while it is locked
                    _rename_file(temporary, path, replace)
            if fcntl is None:  # an open file cannot be renamed
                _rename_file(temporary, path, replace)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def check_new_folder(path: Path) -> None:
    """Raise FileExistsError if the path exists and is not an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{str(path)!r} exists and is not empty. Choose a new folder.")


@contextmanager
def new_folder(path: Path, may_replace: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a new folder that becomes ``path`` on success, and is deleted on failure. Its parents are created.

    ``may_replace`` is called with the path at the start and before it is replaced, and raises if it must not be. By
    default, only an empty folder is replaced.
    """
    path = path.expanduser().resolve()
    check = may_replace or check_new_folder
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    check(path)
    with _staging(path) as staging:
        yield staging
        check(path)  # again: filling it may have taken hours
        _rename_folder(staging, path, replaces=may_replace is not None)


@contextmanager
def filled_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder. On success, it becomes ``path``, or its files replace those of the same names in ``path``.

    Other files in ``path`` stay. Links in it are replaced, not followed; a folder that is a link raises
    FileExistsError.
    """
    path = path.expanduser().resolve()
    if not path.exists():
        with new_folder(path) as folder:
            yield folder
        return
    # Inside: beside it may be another disk, and renaming would lose the lock of a folder that is being written itself.
    with _staging(path / "model") as staging:
        yield staging
        for file in sorted(one for one in staging.rglob("*") if not one.is_dir()):
            inside = file.relative_to(staging)
            for parent in reversed([path / one for one in inside.parents[:-1]]):
                if parent.is_symlink():
                    raise FileExistsError(f"{str(parent)!r} is a link, which is not followed. Remove it.")
                parent.mkdir(exist_ok=True)
            file.replace(path / inside)
        shutil.rmtree(staging)


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """Yield a new, locked folder beside ``path``, which the caller renames or empties. It is deleted on failure."""
    sweep(path)
    staging = _beside(path, "tmp")
    staging.mkdir()
    lock = _hold(staging)
    try:
        with naming(path):
            yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def temporary_for(name: str) -> str | None:
    """Return the name of the file or folder that a temporary one is for, or None if it is not a temporary one."""
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else None


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error means that the disk is full, or the user's share of it."""
    if isinstance(error, Jcv2Error):
        return isinstance(error, DiskFullError)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return _NO_SPACE.search(str(error)) is not None


def check_space(folder: Path, need: int) -> None:
    """Raise DiskFullError unless the disk of a folder has so many bytes free. Edge crashes if it is full."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise DiskFullError(
            f"The disk of {str(folder)!r} has {free / 2**20:,.0f} MiB free, and {need / 2**20:,.0f} MiB are needed. "
            "Nothing of this step was written. Free some space, or use a folder on another disk."
        )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise ``DiskFullError`` with a path for whatever says that the disk is full."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        raise DiskFullError(
            f"The disk is full: {str(path)!r} could not be written, and is as it was. Free some space, or choose "
            "another disk."
        ) from error


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}-{secrets.token_hex(8)}.{kind}")


def _create(path: Path) -> tuple[Path, IO[bytes]]:
    temporary = _beside(path, "tmp")
    stream = temporary.open("xb")
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
            if not os.fstat(stream.fileno()).st_nlink:  # deleted by another process, which was faster
                stream.close()
                return _create(path)
    return temporary, stream


def _hold(path: Path) -> int | None:
    """Lock a file or folder until the descriptor is closed. Return None if it is in use, or cannot be locked."""
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def sweep(path: Path) -> None:
    """Delete what killed processes left of a file or folder, and put back what was about to be replaced."""
    for left in path.parent.glob(f".{glob.escape(path.name)}-*"):
        if temporary_for(left.name) != path.name:
            continue
        with suppress(OSError):
            if left.suffix == ".old" and not path.exists():
                left.rename(path)
            elif (lock := _hold(left)) is not None:
                try:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                finally:
                    os.close(lock)


def _rename_file(temporary: Path, path: Path, replace: bool) -> None:
    if replace:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)  # unlike a rename, fails if the file exists
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(f"{str(path)!r} exists. Choose another name.") from None
        temporary.replace(path)
    else:
        temporary.unlink()


def _rename_folder(staging: Path, path: Path, *, replaces: bool) -> None:
    try:
        path.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        if not replaces:
            raise
        old = _beside(path, "old")
        path.rename(old)
        try:
            staging.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
        return
    staging.rename(path)


def read_settings(path: Path) -> str:
    """Return the text of a small file that may come from anyone: a description, a state, a configuration.

    Raises ValueError unless it is a regular file (a FIFO blocks, a device may never end), of up to 64 MiB, in UTF-8.
    """
    with open_regular(path) as stream:
        content = stream.read(MOST_AT_ONCE + 1)
    if len(content) > MOST_AT_ONCE:
        raise ValueError(f"it is larger than {MOST_AT_ONCE // 2**20} MiB")
    return content.decode("utf-8")


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file, with their numbers from 1. ValueError for one of more than 64 MiB."""
    with open_regular(path) as stream:
        for number in itertools.count(1):
            if not (line := stream.readline(MOST_AT_ONCE + 1)):
                return
            if len(line) > MOST_AT_ONCE:
                raise ValueError(f"line {number} is longer than {MOST_AT_ONCE // 2**20} MiB")
            yield number, line


def open_regular(path: Path) -> IO[bytes]:
    """Open a file to read it. Raises ValueError if it is not a regular file."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is not a regular file")
    return open(descriptor, "rb")


def read_json(path: Path) -> Any:
    """Parse a small JSON file that may come from anyone, see :func:`read_settings` and :func:`parse_json`."""
    return parse_json(read_settings(path))


def parse_json(content: str | bytes) -> Any:
    """Parse JSON that may come from anyone. Whatever is wrong with it is a ``ValueError``."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
