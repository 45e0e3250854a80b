"""Inspect, lock and delete the folder of a Qdrant Edge collection."""

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
# All our files except the description and the lock, which are deleted last.
_OURS = re.compile(
    rf"{re.escape(DESCRIPTION)}\.tmp|shard-\d+\.pending\.json(\.tmp)?|{re.escape(_JOURNAL)}(\.tmp|\.lock)?"
)


def journal_of(folder: Path) -> Path:
    """Return the default path of the journal for indexing runs into a folder."""
    return folder / _JOURNAL


def is_described(folder: Path) -> bool:
    """Return whether a folder contains a collection's description. False if the folder cannot be read."""
    return os.path.isfile(folder / DESCRIPTION)


def read_schema(folder: Path) -> CollectionSchema:
    """Read a collection's description without opening the collection.

    Raises:
        CollectionCorruptError: If it is unreadable.
    """
    title = f"The collection in {str(folder)!r}"
    try:
        raw: Any = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CollectionCorruptError(f"{title}: {DESCRIPTION} is unreadable ({error}).") from error
    return CollectionSchema.from_dict(raw, title)


@contextmanager
def locked(folder: Path) -> Iterator[FileLock]:
    """Lock a collection's folder.

    Raises:
        CollectionNotFoundError: If the folder has no collection description, so its files may not be ours.
        CollectionLockedError: If the collection is in use.
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
    """Delete a collection whose lock is held, and its folder if it is empty then. Return the names of other files.

    If the process is killed, the rest cannot be opened as a collection, and the deletion can be repeated: a shard is
    renamed before it is deleted, and the description is deleted last.
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
        # Keep the folder if it is a link, or another process has just written to it.
        with suppress(OSError):
            folder.rmdir()
    return others


def _remove_lock(file: Path, lock: FileLock) -> None:
    try:
        file.unlink(missing_ok=True)
    except PermissionError:
        # Windows cannot delete an open file.
        lock.release()
        file.unlink(missing_ok=True)
