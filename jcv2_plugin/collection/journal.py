"""The journal of a long ingestion: how far it has got, and what ids it gives to documents that have none.

A line of JSON for each batch that is stored, written after it. That a document is not stored twice does not hang on
the journal but on its id, which is the same whenever the run is repeated; a journal that is lost costs nothing, one
of another collection neither.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from filelock import FileLock, Timeout

from jcv2_plugin.documents import Document
from jcv2_plugin.errors import CollectionLockedError, Jcv2Error
from jcv2_plugin.files import write_atomically

_FORMAT = 1


class JournalError(Jcv2Error, ValueError):
    """A file is to be used as a journal and is none."""


class IngestJournal:
    """See the module; made by :meth:`open`.

    Attributes:
        seen: Documents that the run had got through when it was opened.
    """

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
        """Start a journal, or go on with one that is there; None keeps none.

        Raises:
            JournalError: The file is something else.
            CollectionLockedError: Another run is using it.
        """
        if path is None:
            return cls()
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{file}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise CollectionLockedError(
                f"The journal {str(file)!r} is in use by another run. Wait for it, or give another journal."
            ) from error
        try:
            header, seen = _read(file)
            journal = cls(header, seen)
            journal._path, journal._lock = file, lock
            if header is None:
                # Whole or not at all: a header that is cut off would be no journal's.
                write_atomically(file, json.dumps({"journal": _FORMAT, "run": str(journal._run)}))
            journal._file = file.open("a", encoding="utf-8")
            # A line that was cut off ends here, so that the next one stands alone.
            journal._file.write("\n")
            return journal
        except BaseException:
            lock.release()
            raise

    def named(self, documents: Sequence[Document]) -> list[Document]:
        """The next documents of the stream; those without an id get one that is the same in each try of the run."""
        named = []
        for document in documents:
            if document.id is None:
                document = replace(document, id=uuid.uuid5(self._run, str(self._position)).hex)
            named.append(document)
            self._position += 1
        return named

    def stored(self, documents: int) -> None:
        """Note that so many more are stored, of those in the order of the stream."""
        self._stored += documents
        if self._file is not None and self._stored > self.seen:
            self._write({"seen": self._stored})

    def finish(self) -> None:
        """The run has ended well: the journal is removed."""
        self.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            Path(f"{self._path}.lock").unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the journal for the next try; a second call does nothing."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> IngestJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def _read(file: Path) -> tuple[str | None, int]:
    """The run's id and how many documents were stored; nothing of a file that is not there or empty."""
    run: str | None = None
    seen = 0
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except ValueError:
                    if run is None:
                        raise
                    continue  # empty, or cut off when the run was killed
                if run is None:
                    if row["journal"] > _FORMAT:
                        raise ValueError("it is of a newer version of this package")
                    run = str(uuid.UUID(row["run"]))
                elif isinstance(row, dict):
                    seen = max(seen, int(row.get("seen", 0)))
    except FileNotFoundError:
        return None, 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise JournalError(
            f"{str(file)!r} is no journal of an ingestion ({type(error).__name__}: {error}). Give another file, or "
            "remove this one."
        ) from error
    return run, seen
