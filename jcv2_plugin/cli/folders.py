"""What is in an Edge collection's folder: which of its files are ours, who has it open, and how it is removed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jcv2_plugin.engines.edge import DESCRIPTION
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.errors import CollectionCorruptError, CollectionLockedError, CollectionNotFoundError

_JOURNAL = "ingest.journal"
_LOCK = "lock"
_DROPPED = ".dropped"
_SHARD = re.compile(rf"shard(-\d+)?({re.escape(_DROPPED)})?")
# But the description and the lock, which go last.
_OURS = re.compile(
    rf"{re.escape(DESCRIPTION)}\.tmp|shard-\d+\.pending\.json(\.tmp)?|{re.escape(_JOURNAL)}(\.tmp|\.lock)?"
)


def journal_of(folder: Path) -> Path:
    """Where the journal of indexing runs into a folder is kept, unless another path is given."""
    return folder / _JOURNAL


def is_described(folder: Path) -> bool:
    """Whether a folder has a collection's description. One that may not be looked into has none."""
    return os.path.isfile(folder / DESCRIPTION)


def read_schema(folder: Path) -> CollectionSchema:
    """A folder's description, read without opening the collection.

    Raises:
        CollectionCorruptError: It is unreadable.
    """
    title = f"The collection in {str(folder)!r}"
    try:
        raw: Any = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CollectionCorruptError(f"{title}: {DESCRIPTION} is unreadable ({error}).") from error
    return CollectionSchema.from_dict(raw, title)


@contextmanager
def locked(folder: Path) -> Iterator[FileLock]:
    """Keep everybody else out of a collection.

    Raises:
        CollectionNotFoundError: The folder has none, or one that cannot be told from other people's files.
        CollectionLockedError: It is in use.
    """
    if not is_described(folder):
        raise CollectionNotFoundError(
            f"There is no collection in {str(folder)!r} (no {DESCRIPTION}). Check the path; a folder of other files "
            "is not ours to remove."
        )
    lock = FileLock(str(folder / _LOCK), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CollectionLockedError(
            f"The collection in {str(folder)!r} is in use, by this process or another. Close it there first."
        ) from error
    try:
        yield lock
    finally:
        lock.release()


def remove(folder: Path, lock: FileLock) -> list[str]:
    """Remove a collection whose lock is held, and its folder if nothing else is in it; what else there is.

    Whatever moment it is killed at, nobody opens half a collection, and it can be done again: a shard is renamed
    before it is removed, and the description goes last.
    """
    for entry in list(folder.iterdir()):
        if _SHARD.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry.rename(entry.with_name(entry.name.removesuffix(_DROPPED) + _DROPPED)))
        elif _OURS.fullmatch(entry.name) and not entry.is_dir():
            entry.unlink()
    (folder / DESCRIPTION).unlink()
    _remove_lock(folder / _LOCK, lock)
    others = sorted(entry.name for entry in folder.iterdir())
    if not others:
        # Somebody may have been quicker, or the folder is a link: then it stays.
        with suppress(OSError):
            folder.rmdir()
    return others


def _remove_lock(file: Path, lock: FileLock) -> None:
    try:
        file.unlink(missing_ok=True)
    except PermissionError:
        # Windows removes no file that is open.
        lock.release()
        file.unlink(missing_ok=True)
