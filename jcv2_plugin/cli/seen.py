"""Keep track of the ids that an indexing run has seen and the documents it will delete, on disk."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from types import TracebackType

_BUFFERED = 1000
_CACHE_KIB = 8 * 1024


class SeenIds:
    """A temporary database of ids, used as a context manager.

    SQLite stores it in an unnamed file, so nothing is left on disk even if the process is killed. Each id is stored as
    a 16-byte digest. Only up to ``buffered`` ids are in memory.
    """

    def __init__(self, buffered: int = _BUFFERED) -> None:
        self._buffered = buffered
        self._new: dict[bytes, int] = {}
        self._gone: list[str] = []
        self._database = sqlite3.connect(":memory:", isolation_level=None)
        # Attach a database, because whether a temporary main database is on disk depends on how SQLite was compiled.
        self._database.execute("PRAGMA temp_store = FILE")
        self._database.execute("ATTACH DATABASE '' AS run")
        # No journal, because the database is useless after a crash anyway.
        self._database.execute("PRAGMA run.journal_mode = OFF")
        self._database.execute(f"PRAGMA run.cache_size = -{_CACHE_KIB}")
        self._database.execute("CREATE TABLE run.seen (id BLOB PRIMARY KEY, file INTEGER NOT NULL) WITHOUT ROWID")
        self._database.execute("CREATE TABLE run.gone (id TEXT NOT NULL)")

    def add(self, own_id: str, file: int) -> int | None:
        """Add an id found in file number ``file``. Return the file it was first found in, if it is a duplicate."""
        digest = _digest(own_id)
        before = self._file_of(digest)
        if before is None:
            self._new[digest] = file
            if len(self._new) >= self._buffered:
                self._write()
        return before

    def __contains__(self, own_id: object) -> bool:
        return isinstance(own_id, str) and self._file_of(_digest(own_id)) is not None

    def __len__(self) -> int:
        (stored,) = self._database.execute("SELECT count(*) FROM run.seen").fetchone()
        return int(stored) + len(self._new)

    def note_gone(self, own_id: str) -> None:
        """Add the id of a document to delete."""
        self._gone.append(own_id)
        if len(self._gone) >= self._buffered:
            self._write()

    def gone(self) -> Iterator[list[str]]:
        """Yield the ids of the documents to delete, in batches."""
        self._write()
        rows = self._database.execute("SELECT id FROM run.gone")
        while batch := rows.fetchmany(self._buffered):
            yield [own_id for (own_id,) in batch]

    def close(self) -> None:
        """Delete the database. Can be called repeatedly."""
        self._database.close()

    def __enter__(self) -> SeenIds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _file_of(self, digest: bytes) -> int | None:
        if (file := self._new.get(digest)) is not None:
            return file
        row = self._database.execute("SELECT file FROM run.seen WHERE id = ?", (digest,)).fetchone()
        return None if row is None else int(row[0])

    def _write(self) -> None:
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO run.seen VALUES (?, ?)", self._new.items())
        self._database.executemany("INSERT INTO run.gone VALUES (?)", ((own_id,) for own_id in self._gone))
        self._database.execute("COMMIT")
        self._new.clear()
        self._gone.clear()


def _digest(own_id: str) -> bytes:
    return hashlib.blake2b(own_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
