"""Journal of a long ingestion: its progress, and the ids given to documents without one.

One JSON line is written after each stored batch. Duplicates are prevented by the document ids, which are the same when
a run is repeated, and not by the journal: documents with their own ids are not stored twice even if the journal is
lost or belongs to another collection.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from jcv2_plugin.documents import Document
from jcv2_plugin.errors import CollectionLockedError, DiskFullError, Jcv2Error
from jcv2_plugin.files import naming, numbered_lines, parse_json, write_atomically

_FORMAT = 1


class JournalError(Jcv2Error, ValueError):
    """The given file is not a journal."""


class IngestJournal:
    """Journal of an ingestion run. Use :meth:`open`. ``seen`` is the number of documents that were processed before."""

    def __init__(self, run: str | None = None, seen: int = 0) -> None:
        self.seen = seen
        self._run = uuid.UUID(run) if run is not None else uuid.uuid4()
        self._position = 0
        self._stored = 0
        self._path: Path | None = None
        self._file: IO[str] | None = None
        self._lock: FileLock | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None) -> IngestJournal:
        """Create a journal or continue an existing one. With None, no journal is kept. Raises JournalError if the file
        is no journal, and CollectionLockedError if another run is using it.
        """
        if path is None:
            return cls()
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{file}.lock", thread_local=False)
        try:
            with naming(file):
                lock.acquire(timeout=0)
        except Timeout as error:
            raise CollectionLockedError(
                f"The journal {str(file)!r} is in use by another run. Wait for it, or choose another journal."
            ) from error
        except OSError as error:
            if isinstance(error, DiskFullError):
                raise
            raise JournalError(f"{str(file)!r} cannot be locked ({error}). Choose another journal.") from error
        try:
            header, seen = _read(file)
            journal = cls(header, seen)
            journal._path, journal._lock = file, lock
            # Written anew: its last line may be cut short, and a link would be written through.
            lines: list[dict[str, Any]] = [
                {"journal": _FORMAT, "run": str(journal._run), "check": _check(journal._run)},
                *([{"seen": seen}] if seen else []),
            ]
            write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))
            journal._file = file.open("a", encoding="utf-8")
            return journal
        except BaseException:
            lock.release()
            raise

    def named(self, documents: Sequence[Document]) -> list[Document]:
        """Return the next documents of the stream. Those without an id get one that stays the same on a rerun."""
        named = []
        for document in documents:
            if document.id is None:
                document = replace(document, id=uuid.uuid5(self._run, str(self._position)).hex)
            named.append(document)
            self._position += 1
        return named

    def stored(self, documents: int) -> None:
        """Record that the next ``documents`` documents of the stream are stored."""
        self._stored += documents
        if self._file is not None and self._stored > self.seen:
            with naming(Path(self._file.name)):
                self._file.write(json.dumps({"seen": self._stored}) + "\n")
                self._file.flush()
                os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Remove the journal after a successful run."""
        self.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            Path(f"{self._path}.lock").unlink(missing_ok=True)

    def close(self) -> None:
        """Close the journal and keep it for the next run. Calling it again has no effect."""
        file, self._file = self._file, None
        try:
            if file is not None:
                with naming(Path(file.name)):
                    file.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> IngestJournal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _check(run: uuid.UUID) -> str:
    """Return a check sum: documents would be stored twice if the run's id were changed unnoticed."""
    return uuid.uuid5(run, "journal").hex[:8]


def _read(file: Path) -> tuple[str | None, int]:
    """Return the run's id and the number of stored documents. The id is None if the file is missing or empty."""
    run: str | None = None
    seen = 0
    try:
        for _, line in numbered_lines(file):
            try:
                row = parse_json(line)
            except ValueError:
                if run is None:
                    raise
                continue  # empty, or truncated when the run was killed
            if run is None:
                if row["journal"] > _FORMAT:
                    raise ValueError("it is of a newer version of this package")
                run = str(uuid.UUID(row["run"]))
                if row.get("check", _check(uuid.UUID(run))) != _check(uuid.UUID(run)):
                    raise ValueError("its first line was changed")
            elif isinstance(row, dict):
                seen = max(seen, int(row.get("seen", 0)))
    except FileNotFoundError:
        return None, 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise JournalError(
            f"{str(file)!r} is no journal of an ingestion ({type(error).__name__}: {error}). Choose another file, or "
            "delete this one."
        ) from error
    return run, seen
