"""Qdrant Edge engine: Qdrant in this process, one folder per collection.

A collection's folder contains ``jcv2.json`` (the schema and the name of the current shard), ``lock`` and the shard
(Edge's own files). A migration switches to a new shard atomically by replacing ``jcv2.json``. Only one process can
open a folder at a time.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import qdrant_edge as edge
from filelock import FileLock, Timeout

from jcv2_plugin.engines import forks
from jcv2_plugin.engines.answers import check_documents, hits_of, records_of
from jcv2_plugin.engines.base import Engine, PayloadIndex, Point, Record, SearchRequest, by_bytes
from jcv2_plugin.engines.edge_config import edge_config, edge_query, edge_vectors
from jcv2_plugin.engines.edge_failures import edge_errors
from jcv2_plugin.engines.edge_process import optimize_apart
from jcv2_plugin.engines.first_stage import DenseParams
from jcv2_plugin.engines.schema import VECTOR_NAME, CollectionSchema
from jcv2_plugin.engines.storage import oversampling_of
from jcv2_plugin.errors import (
    CollectionAccessError,
    CollectionCorruptError,
    CollectionError,
    CollectionExistsError,
    CollectionLockedError,
    CollectionNotFoundError,
    DiskFullError,
    Jcv2Error,
)
from jcv2_plugin.files import check_space, naming, read_json, temporary_for, write_atomically

if TYPE_CHECKING:
    from qdrant_client import models

T = TypeVar("T")

DESCRIPTION = "jcv2.json"
DELETION = "deletion"
JOURNAL = "ingest.journal"
"""Default journal of ``jcv2 index``, in a collection's folder."""
_SHARD = "shard"
_LOCK = "lock"
_LOG = "wal"
# All files of a collection except the description and the lock, also those of version 0.1.
_OURS = re.compile(
    rf"{re.escape(DESCRIPTION)}\.tmp|shard-\d+\.pending\.json(\.tmp)?|{re.escape(JOURNAL)}(\.tmp|\.lock)?"
)
# Edge holds the GIL during a call, so other threads and event loops wait for it to finish.
_QUERIES_PER_CALL = 8
_SCROLL_PAGE = 1000
_VECTORS_PAGE = 64
# An update is one write-ahead log record, and several copies of it are in memory during the write. Measured: it takes
# as long a document at 4 MiB as at 16, and stops other threads for a quarter as long.
_BYTES_PER_UPDATE = 4 * 1024 * 1024
# The log keeps what has not been flushed. Flushing takes as long as what it writes, and 0.1 s more.
_BYTES_PER_FLUSH = 128 * 1024 * 1024
# Optimising this much takes less time than closing and opening the shard again for another process.
_BYTES_TO_OPTIMIZE_HERE = 16 * 1024 * 1024
# Edge maps sparse files of 32 MiB, and a full disk ends the process by a signal when it writes to them. Measured:
# opening takes up to 2 MB, an update twice its bytes (the log and the segment), optimising the whole shard again and
# two files.
_SPACE = 16 * 1024 * 1024
_SPACE_TO_CREATE = _SPACE_TO_OPTIMIZE = 64 * 1024 * 1024


def _edge_filter(filter: models.Filter | None) -> edge.Filter | None:
    if filter is None:
        return None
    from jcv2_plugin.engines.edge_filters import to_edge_filter  # needs qdrant-client, see jcv2_plugin.lazy

    return to_edge_filter(filter)


def is_edge_collection(path: Path) -> bool:
    """Return whether a folder is a collection of this package, or what is left of one without its description."""
    if (path / DESCRIPTION).exists():
        return True
    try:
        entries = [entry for entry in path.iterdir() if not _is_trace(entry.name)]
        shards = [entry for entry in entries if _is_shard(entry)]
        # An empty folder of that name may be anyone's, unless there is nothing else.
        return bool(shards) and (len(shards) == len(entries) or any(any(one.iterdir()) for one in shards))
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_ours(name: str) -> bool:
    """Return whether a file of a collection's folder is ours, other than the description and the lock."""
    target = temporary_for(name)
    return target == DESCRIPTION or _OURS.fullmatch(target or name) is not None


class EdgeEngine:
    """A collection in a Qdrant Edge folder. Use :meth:`create` or :meth:`open`."""

    def __init__(
        self, path: Path, name: str, shard: Any, lock: FileLock, storage: str, pending: CollectionSchema | None = None
    ) -> None:
        self.path = path
        self.title = f"The collection in {str(path)!r}"
        self.first_stage_pays = True
        self._name = name
        self._shard: Any = shard
        self._lock = lock
        self._closing = threading.Lock()  # also held while another process has the shard
        self._unflushed = 0  # bytes
        self._unoptimized: int | None = None  # bytes; None: unknown, after a deletion or by whoever had it open before
        self._oversampling = oversampling_of(storage)
        self._pending = pending  # schema of a successor that has not been adopted yet
        forks.watch(self)

    def abandon(self) -> list[object]:
        """Forget the shard and the lock, which belong to the parent of this forked process."""
        given_up: list[object] = [self._shard, self._lock]
        self._shard, self._closing = None, threading.Lock()
        return given_up

    @classmethod
    def create(
        cls,
        path: Path,
        schema: CollectionSchema,
        *,
        overwrite: bool = False,
        indexes: Mapping[str, PayloadIndex] | None = None,
    ) -> EdgeEngine:
        """Create a folder with an empty shard. Until it is complete, ``jcv2.json`` says that it is unfinished."""
        path = path.expanduser().absolute()
        check_free(path, overwrite=overwrite)
        try:
            with naming(path):
                path.mkdir(parents=True, exist_ok=True)
        except PermissionError as error:
            raise CollectionAccessError(_not_writable(path, error)) from error
        lock = _acquire(path)
        try:
            check_free(path, overwrite=overwrite)  # again, now under the lock
            check_space(path, _SPACE_TO_CREATE)
            _write_schema(path / DESCRIPTION, replace(schema, unfinished="creation"), shard=_SHARD)
            for old in _shards(path):
                _remove_shard(path, old)
            engine = cls(path, _SHARD, _new_shard(path, _SHARD, schema), lock, schema.storage)
            for key, kind in (indexes or {}).items():
                engine.create_payload_index(key, kind)
            _write_schema(path / DESCRIPTION, schema, shard=_SHARD)
        except BaseException:
            lock.release()
            raise
        return engine

    @classmethod
    def open(cls, path: Path, *, without_log: bool = False) -> EdgeEngine:
        """Open the collection in a folder.

        With ``without_log``, the write-ahead log is set aside first, to copy the points into a successor. Until that is
        adopted, ``jcv2.json`` says that a repair is unfinished: Edge would ignore most writes, see
        :func:`_load_without_log`. Raises CollectionNotFoundError, CollectionCorruptError, CollectionLockedError or
        CollectionAccessError.
        """
        path = path.expanduser().absolute()
        if not is_edge_collection(path):
            left = sorted(one.name for one in path.iterdir() if _is_trace(one.name)) if path.is_dir() else []
            only = f", only what is left of one: {left}" if left else ""
            raise CollectionNotFoundError(
                f"There is no collection in {str(path)!r}{only}. Create one first, or check the path."
            )
        lock = _acquire(path)
        try:
            described = _read_description(path / DESCRIPTION)
            name = described.get("shard") if isinstance(described, dict) else None
            name = name if isinstance(name, str) and _generation(name) else _SHARD
            if unfinished(path) in ("creation", DELETION):
                CollectionSchema.from_dict(described, f"The collection in {str(path)!r}")  # raises
            if not (path / name).is_dir():
                raise CollectionCorruptError(f"{str(path / name)!r} is missing. Restore the folder from a backup.")
            _refuse_others(path / name)
            if _is_described(path, name, described):
                _remove_leftovers(path, name)
            storage = described.get("storage") if isinstance(described, dict) else None
            check_space(path, _SPACE + _holes(path / name))
            shard = _load_without_log(path, name, described) if without_log else _load_shard(path, name)
            return cls(path, name, shard, lock, str(storage))
        except BaseException:
            lock.release()
            raise

    def describe(self) -> Any:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        if self._pending is not None:
            return self._pending.to_dict()
        described = _read_description(self.path / DESCRIPTION)
        if isinstance(described, dict):
            described.pop("shard", None)
        return described

    def begin_writing(self) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`. Does nothing."""

    def upsert(self, points: Sequence[Point]) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`. The write-ahead log makes writes durable."""
        for batch in by_bytes(points, most=_BYTES_PER_UPDATE, per_float=4):
            self._upsert(batch)

    def _upsert(self, batch: Sequence[Point]) -> None:
        size = sum(point.vectors.nbytes for point in batch)
        with edge_errors(self.title):
            check_space(self.path, _SPACE + 2 * size)
        self._update(
            lambda: edge.UpdateOperation.upsert_points(
                [edge.Point(point.id, edge_vectors(point), point.payload) for point in batch]
            )
        )
        self._unflushed += size
        if self._unoptimized is not None:
            self._unoptimized += size
        if self._unflushed >= _BYTES_PER_FLUSH:
            self._flush()

    def search(
        self,
        requests: Sequence[SearchRequest],
        limit: int,
        *,
        filter: models.Filter | None,
        score_threshold: float | None,
    ) -> list[list[Record]]:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        if not requests:
            return []
        edge_filter = _edge_filter(filter)

        def answer(part: Sequence[SearchRequest]) -> Any:
            batch = [edge_query(one, limit, edge_filter, score_threshold, self._oversampling) for one in part]
            return self._call(lambda shard: shard.query_batch(edge.QueryBatchRequest(batch)))

        starts = range(0, len(requests), _QUERIES_PER_CALL)
        results = [one for start in starts for one in answer(requests[start : start + _QUERIES_PER_CALL])]
        return [hits_of(found, self.title, limit) for found in results]

    def retrieve(
        self, ids: Sequence[str], *, with_payload: bool | list[str], with_vectors: bool | list[str]
    ) -> list[Record]:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        if not ids:
            return []
        points = self._call(lambda shard: shard.retrieve(list(dict.fromkeys(ids)), with_payload, with_vectors))
        found = records_of(points, self.title, None, ids)
        if with_payload is True:
            check_documents(found, self.title)
        return found

    def scroll(
        self, filter: models.Filter | None, *, with_payload: bool | list[str], with_vectors: bool = False
    ) -> Iterator[Record]:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        edge_filter = _edge_filter(filter)

        def page(offset: Any) -> Any:
            request = edge.ScrollRequest(
                offset=offset,
                limit=_VECTORS_PAGE if with_vectors else _SCROLL_PAGE,
                filter=edge_filter,
                with_payload=with_payload,
                with_vector=with_vectors,
            )
            return self._call(lambda shard: shard.scroll(request))

        offset = None
        while True:
            points, offset = page(offset)
            yield from records_of(points, self.title, None)
            if offset is None:
                return

    def delete(self, ids: Sequence[str]) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        if ids:
            self._update(lambda: edge.UpdateOperation.delete_points(list(ids)))
            self._unoptimized = None  # a segment with many deleted points is written anew

    def delete_where(self, filter: models.Filter) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        edge_filter: Any = _edge_filter(filter)
        self._update(lambda: edge.UpdateOperation.delete_points_by_filter(edge_filter))
        self._unoptimized = None

    def count(self, filter: models.Filter | None) -> int:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        request = edge.CountRequest(exact=True, filter=_edge_filter(filter))
        return int(self._call(lambda shard: shard.count(request)))

    def size(self) -> int:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        return int(self._call(lambda shard: shard.info()).points_count)

    def create_payload_index(self, key: str, kind: PayloadIndex) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        index = getattr(edge.PayloadSchemaType, kind.capitalize())
        self._index(key, index)

    def _index(self, key: str, index: Any) -> None:
        self._update(lambda: edge.UpdateOperation.create_field_index(key, index))

    def moved(self) -> Engine | None:
        """See :class:`~jcv2_plugin.engines.base.Engine`. Always None: an open folder cannot be replaced."""
        return None

    def optimize(self) -> None:
        """Merge segments and drop deleted points. Blocks until done, and so do all other calls meanwhile.

        Where there is much to do, another process does it. Edge holds the GIL, which would stop all threads.
        """
        self._flush()
        with edge_errors(self.title):
            files = (file.stat() for file in (self.path / self._name).rglob("*") if file.is_file())
            size = sum(getattr(one, "st_blocks", 0) * 512 for one in files)
            check_space(self.path, _SPACE_TO_OPTIMIZE + size)
        written = size if self._unoptimized is None else min(size, self._unoptimized)
        if written < _BYTES_TO_OPTIMIZE_HERE or not self._optimize_apart():
            self._call(lambda shard: shard.optimize())
        self._unoptimized = 0

    def _optimize_apart(self) -> bool:
        with self._closing:
            shard, self._shard = self._shard, None
            if shard is None:
                raise CollectionError(self._closed_message())
            try:
                with edge_errors(self.title):
                    shard.close()
                    return optimize_apart(self.path / self._name)
            finally:
                try:
                    self._shard = _load_shard(self.path, self._name)
                except BaseException:
                    if self._pending is None:
                        self._lock.release()
                    raise

    def _flush(self) -> None:
        self._call(lambda shard: shard.flush())
        self._unflushed = 0

    def drop_replaced(self) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`. :meth:`open` has done so."""

    def successor(self, schema: CollectionSchema, *, keep_old: bool = False) -> Engine:
        """See :class:`~jcv2_plugin.engines.base.Engine`. The successor is in the same folder, under the same lock.

        It gets the same payload indexes.
        """
        name = f"{_SHARD}-{_generation(self._name) + 1}"
        indexes = self._call(lambda shard: shard.info()).payload_schema
        for old in _shards(self.path):
            if old not in (self._name, name):
                _remove_shard(self.path, old)
        shard = _unfinished_shard(self.path, name, schema)
        if shard is None:
            _remove_shard(self.path, name)
            shard = _new_shard(self.path, name, schema)
            _write_schema(_pending_file(self.path, name), schema)
        made = EdgeEngine(self.path, name, shard, self._lock, schema.storage, schema)
        for key, index in indexes.items():
            made._index(key, index.data_type)
        return made

    def adopt(self, successor: Engine, *, keep_old: bool) -> str | None:
        """See :class:`~jcv2_plugin.engines.base.Engine`. Always removes the old shard: nobody else can have it open."""
        if not isinstance(successor, EdgeEngine) or successor._pending is None:
            raise CollectionError(f"{self.title} can only adopt what its own successor() created.")
        successor._call(lambda shard: shard.flush())
        _write_schema(self.path / DESCRIPTION, successor._pending, shard=successor._name)
        successor._pending = None
        with self._closing:
            shard, self._shard = self._shard, None  # what is written to it from now on would be lost
        with edge_errors(self.title):
            shard.close()
        _pending_file(self.path, successor._name).unlink(missing_ok=True)
        _remove_shard(self.path, self._name)
        return None

    def close(self) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`. A successor does not release the folder's lock."""
        with self._closing:
            shard, self._shard = self._shard, None
        if shard is not None:
            with edge_errors(self.title):
                try:
                    shard.flush()
                finally:
                    try:
                        shard.close()
                    finally:
                        if self._pending is None:
                            self._lock.release()

    def _update(self, operation: Callable[[], Any]) -> None:
        self._call(lambda shard: shard.update(operation()))

    def _call(self, act: Callable[[Any], T]) -> T:
        """Act on the shard. Raise if it is closed, even by another thread meanwhile, and translate Edge's errors."""
        while True:
            shard = self._shard
            if shard is None:
                with self._closing:  # until another process has optimised it
                    shard = self._shard
            if shard is None:
                raise CollectionError(self._closed_message())
            try:
                with edge_errors(self.title):
                    return act(shard)
            except Jcv2Error:
                if self._shard is shard:
                    raise

    def _closed_message(self) -> str:
        return f"{self.title} is closed. Open it again with ColbertCollection.open(...)."


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise CollectionExistsError unless a collection can be created in a folder."""
    if not path.exists() or (path.is_dir() and all(_is_trace(entry.name) for entry in path.iterdir())):
        return
    if not path.is_dir() or not is_edge_collection(path):
        raise CollectionExistsError(f"{str(path)!r} exists and is no collection. Choose another folder.")
    if not overwrite and unfinished(path) != "creation":
        raise CollectionExistsError(
            f"There is already a collection in {str(path)!r}. Open it, choose another folder, or set overwrite to "
            "replace it."
        )


def _is_trace(name: str) -> bool:
    """Return whether a file holds no documents, and may be left of a collection that is gone or not yet there."""
    return name == _LOCK or is_ours(name)


def _is_shard(folder: Path) -> bool:
    names = {_LOG, f"{_LOG}.unreadable", "segments", "edge_config.json"}
    if _generation(folder.name) < 1 or folder.is_symlink() or not folder.is_dir():
        return False
    return {one.name for one in folder.iterdir()} <= names


def unfinished(path: Path) -> str:
    """Return what was interrupted before the collection in a folder could be used, or an empty string."""
    try:
        described = _read_description(path / DESCRIPTION)
    except CollectionCorruptError:
        return ""
    return str(described.get("unfinished") or "") if isinstance(described, dict) else ""


def _shards(path: Path) -> list[str]:
    """Return the names of the shards in a folder, including those of unfinished migrations."""
    names = [entry.name for entry in path.iterdir() if entry.is_dir()]
    return sorted(name for name in names if name == _SHARD or _generation(name) > 1)


def _refuse_others(folder: Path) -> None:
    """Raise CollectionAccessError for a shard with links, through which Edge would write to files elsewhere, or pipes,
    which it would wait for.
    """
    for root, folders, files in os.walk(folder):
        for name in ("", *folders, *files):
            entry = os.path.join(root, name) if name else root
            if stat.S_ISLNK(mode := os.lstat(entry).st_mode):
                raise CollectionAccessError(
                    f"{entry!r} is a link, and Qdrant Edge would write to the file that it points to. Copy the "
                    "collection with the files themselves (cp -rL) if you trust it, and open the copy."
                )
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise CollectionAccessError(
                    f"{entry!r} is not a regular file, and Qdrant Edge would wait for it. Remove it if the collection "
                    "is yours, and restore the file from a backup."
                )


def _generation(name: str) -> int:
    """Return the generation of a shard, starting at 1, or 0 if the name is not a shard name."""
    if name == _SHARD:
        return 1
    stem, _, number = name.partition("-")
    return int(number) if stem == _SHARD and number.isdecimal() and len(number) < 19 else 0


def _pending_file(path: Path, name: str) -> Path:
    return path / f"{name}.pending.json"


def _new_shard(path: Path, name: str, schema: CollectionSchema) -> Any:
    (path / name).mkdir()
    with edge_errors(f"The shard in {str(path / name)!r} cannot be created"):
        return edge.EdgeShard.create(str(path / name), edge_config(schema))


def _unfinished_shard(path: Path, name: str, schema: CollectionSchema) -> Any:
    """Load the shard of an unfinished migration to the same schema, or return None if there is none."""
    try:
        if (path / name).is_dir() and _read_description(_pending_file(path, name)) == schema.to_dict():
            return _load_shard(path, name)
    except CollectionCorruptError:
        pass
    return None


def _remove_shard(path: Path, name: str) -> None:
    # Remove this file first: the next open() deletes any shard that a crash leaves without it.
    _pending_file(path, name).unlink(missing_ok=True)
    shutil.rmtree(path / name, ignore_errors=True)


def _holes(shard: Path) -> int:
    """Return how many bytes a file system in memory allocates when the holes of a shard's files are only read."""
    device = os.stat(shard).st_dev
    number = f"{os.major(device)}:{os.minor(device)}" if hasattr(os, "major") else ""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return 0
    if not any(f" {number} " in line and " - tmpfs " in line for line in mounts):
        return 0
    files = (file.stat() for file in shard.rglob("*") if file.is_file())
    return sum(max(one.st_size - one.st_blocks * 512, 0) for one in files)


def _write_schema(file: Path, schema: CollectionSchema, **more: str) -> None:
    write_atomically(file, json.dumps({**schema.to_dict(), **more}, indent=2) + "\n")


def _load_shard(path: Path, name: str) -> Any:
    repair = (
        f"If that is its write-ahead log (WAL), repair the folder: jcv2 verify --repair -c {shlex.quote(str(path))}. "
        "Otherwise restore it from a backup."
    )
    with edge_errors(f"The shard in {str(path / name)!r} cannot be loaded", (CollectionCorruptError, repair)):
        try:
            return edge.EdgeShard.load(str(path / name))
        except Exception as error:
            if "WouldBlock" in str(error):
                raise CollectionLockedError(_locked_message(path)) from error
            raise


def _is_described(path: Path, name: str, described: Any) -> bool:
    """Return whether a description can be read. Then its shard must be as it says; otherwise CollectionCorruptError."""
    try:
        schema = CollectionSchema.from_dict({**described, "unfinished": ""}, "")
        config = read_json(path / name / "edge_config.json")
        found = {vector: params["size"] for vector, params in config["vectors"].items()}
        found.update(dict.fromkeys(config.get("sparse_vectors") or {}))
        dim = found.pop(VECTOR_NAME)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CollectionCorruptError):  # said later
        return False
    sizes = {stage: params.size if isinstance(params, DenseParams) else None for stage, params in schema.stages.items()}
    if (dim, found) != (schema.dim, sizes):
        raise CollectionCorruptError(
            f"{str(path / DESCRIPTION)!r} is damaged: it says dim={schema.dim} and first_stage={schema.first_stage!r} "
            f"with vectors of {sizes}, and {str(path / name)!r} has dim={dim} and vectors of {found}. Restore the file "
            "from a backup."
        )
    return True


def _remove_leftovers(path: Path, name: str) -> None:
    """Delete what a migration left that was interrupted after the switch to its shard."""
    for old in _shards(path):
        if old != name and not _pending_file(path, old).exists():
            _remove_shard(path, old)
    if _pending_file(path, name).exists():
        _pending_file(path, name).unlink()


def _load_without_log(path: Path, name: str, described: Any) -> Any:
    """Load a shard after its write-ahead log was set aside, or put the log back if that does not help.

    Edge numbers operations by the log. With a new one it starts at 1 again, and ignores updates and deletions of points
    that have higher numbers. So such a shard may only be read.
    """
    if unfinished(path) not in ("", "repair"):
        CollectionSchema.from_dict(described, f"The collection in {str(path)!r}")  # raises
    log, aside = path / name / _LOG, path / name / f"{_LOG}.unreadable"
    write_atomically(path / DESCRIPTION, json.dumps({**described, "unfinished": "repair"}, indent=2) + "\n")
    if not aside.exists():
        log.rename(aside)
    try:
        return _load_shard(path, name)
    except BaseException:
        shutil.rmtree(log, ignore_errors=True)
        aside.rename(log)
        write_atomically(path / DESCRIPTION, json.dumps({**described, "unfinished": ""}, indent=2) + "\n")
        raise


def _acquire(path: Path) -> FileLock:
    # Use our own lock: Edge's error for a second open is untyped, and its text is not a stable interface.
    # Not thread-local, so that one thread can close what another opened.
    lock = FileLock(str(path / _LOCK), thread_local=False)
    try:
        with naming(path):
            lock.acquire(timeout=0)
    except Timeout as error:
        raise CollectionLockedError(_locked_message(path)) from error
    except OSError as error:
        if isinstance(error, DiskFullError):
            raise
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CollectionAccessError(_not_writable(path, error)) from error
        raise CollectionAccessError(
            f"{str(path / _LOCK)!r} cannot be locked ({error.strerror}). Remove it if it is not a regular file."
        ) from error
    return lock


def _not_writable(path: Path, error: OSError) -> str:
    return (
        f"The folder {str(path)!r} is not writable ({error.strerror}), and Qdrant Edge writes to a collection's folder "
        "even to read it. Copy the folder to a writable one, such as a temporary folder, and open the copy; or use a "
        "Qdrant server."
    )


def _locked_message(path: Path) -> str:
    return (
        f"The collection in {str(path)!r} is already open, in this process or another. Only one process can "
        "open a folder at a time. Close it there, share one ColbertCollection between threads, or use a Qdrant server."
    )


def _read_description(file: Path) -> Any:
    try:
        return read_json(file)
    except FileNotFoundError as error:
        raise CollectionCorruptError(
            f"{str(file)!r} is missing: creating the collection did not finish, or the file was lost. Restore it "
            "from a backup, overwrite the collection with a new one, or drop it."
        ) from error
    except (OSError, ValueError) as error:
        raise CollectionCorruptError(
            f"{str(file)!r} is unreadable ({error}). Restore it from a backup, or overwrite the collection with a new "
            "one."
        ) from error
