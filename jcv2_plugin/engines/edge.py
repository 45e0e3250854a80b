"""Qdrant Edge: Qdrant's engine in this process, in a folder of its own.

A collection's folder holds ``jcv2.json`` (its description), ``lock`` and ``shard/`` (Edge's own files). One
process may have it open at a time.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from filelock import FileLock, Timeout
from qdrant_client import models

from jcv2_plugin.engines.base import Matrix, Point, Record, record_of
from jcv2_plugin.engines.filters import to_edge_filter
from jcv2_plugin.errors import (
    CollectionCorruptError,
    CollectionError,
    CollectionExistsError,
    CollectionLockedError,
    CollectionNotFoundError,
)
from jcv2_plugin.schema import VECTOR_NAME, CollectionSchema

DESCRIPTION = "jcv2.json"
_SHARD = "shard"
_LOCK = "lock"
_SCROLL_PAGE = 1000
_DATATYPES = {
    "float16": edge.VectorStorageDatatype.Float16,
    "float32": edge.VectorStorageDatatype.Float32,
}


def is_edge_collection(path: Path) -> bool:
    """Whether a folder looks like one of our Edge collections."""
    return (path / DESCRIPTION).exists() or (path / _SHARD).exists()


class EdgeEngine:
    """See the module; made by :meth:`create` or :meth:`open`."""

    def __init__(self, path: Path, shard: Any, lock: FileLock) -> None:
        self.path = path
        self.place = f"The collection in {str(path)!r}"
        self._shard: Any = shard
        self._lock = lock
        self._closing = threading.Lock()

    @classmethod
    def create(cls, path: Path, schema: CollectionSchema, *, overwrite: bool = False) -> EdgeEngine:
        """Make a folder and an empty shard in it. The description is written last: without it, it is none.

        Raises:
            CollectionExistsError: The folder holds a collection, or anything else.
            CollectionLockedError: See :meth:`open`.
        """
        path = path.expanduser().absolute()
        check_free(path, overwrite=overwrite)
        path.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path)
        try:
            check_free(path, overwrite=overwrite)  # again: somebody may have been quicker
            (path / DESCRIPTION).unlink(missing_ok=True)
            if (path / _SHARD).exists():
                shutil.rmtree(path / _SHARD)
            (path / _SHARD).mkdir()
            shard = edge.EdgeShard.create(str(path / _SHARD), _edge_config(schema))
            _write_atomically(path / DESCRIPTION, json.dumps(schema.to_dict(), indent=2) + "\n")
        except BaseException:
            lock.release()
            raise
        return cls(path, shard, lock)

    @classmethod
    def open(cls, path: Path) -> EdgeEngine:
        """Open a folder.

        Raises:
            CollectionNotFoundError: There is no collection.
            CollectionCorruptError: The description or the shard is unreadable.
            CollectionLockedError: It is open already, here or in another process.
        """
        path = path.expanduser().absolute()
        if not is_edge_collection(path):
            raise CollectionNotFoundError(
                f"There is no collection in {str(path)!r}. Create one first, or check the path."
            )
        lock = _acquire(path)
        try:
            _read_description(path)
            if not (path / _SHARD).is_dir():
                raise CollectionCorruptError(f"{str(path / _SHARD)!r} is missing. Restore the folder from a backup.")
            return cls(path, _load_shard(path), lock)
        except BaseException:
            lock.release()
            raise

    def describe(self) -> Any:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        return _read_description(self.path)

    def upsert(self, points: Sequence[Point]) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`. The write-ahead log makes it durable."""
        operation = edge.UpdateOperation.upsert_points(
            [edge.Point(point.id, _named(point.vectors), point.payload) for point in points]
        )
        self._open_shard.update(operation)

    def search(
        self,
        queries: Sequence[Matrix],
        limit: int,
        *,
        filter: models.Filter | None,
        score_threshold: float | None,
    ) -> list[list[Record]]:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        if not queries:
            return []
        edge_filter = to_edge_filter(filter)
        requests = [
            edge.QueryRequest(
                limit=limit,
                query=edge.Query.Nearest(_as_vector(query), using=VECTOR_NAME),
                filter=edge_filter,
                score_threshold=score_threshold,
                with_payload=True,
                with_vector=False,
            )
            for query in queries
        ]
        results = self._open_shard.query_batch(edge.QueryBatchRequest(requests))
        return [[record_of(point, score=point.score) for point in found] for found in results]

    def retrieve(self, ids: Sequence[str], *, with_payload: bool | list[str], with_vectors: bool) -> list[Record]:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        if not ids:
            return []
        return [record_of(point) for point in self._open_shard.retrieve(list(ids), with_payload, with_vectors)]

    def scroll(self, filter: models.Filter | None, *, with_payload: bool | list[str]) -> Iterator[Record]:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        edge_filter = to_edge_filter(filter)
        offset = None
        while True:
            request = edge.ScrollRequest(
                offset=offset,
                limit=_SCROLL_PAGE,
                filter=edge_filter,
                with_payload=with_payload,
                with_vector=False,
            )
            points, offset = self._open_shard.scroll(request)
            yield from (record_of(point) for point in points)
            if offset is None:
                return

    def delete(self, ids: Sequence[str]) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        if ids:
            self._open_shard.update(edge.UpdateOperation.delete_points(list(ids)))

    def delete_where(self, filter: models.Filter) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        edge_filter: Any = to_edge_filter(filter)
        self._open_shard.update(edge.UpdateOperation.delete_points_by_filter(edge_filter))

    def count(self, filter: models.Filter | None) -> int:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        return int(self._open_shard.count(edge.CountRequest(exact=True, filter=to_edge_filter(filter))))

    def optimize(self) -> None:
        """Merge segments and drop deleted points; blocks until done."""
        self._open_shard.flush()
        self._open_shard.optimize()

    def close(self) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        with self._closing:
            shard, self._shard = self._shard, None
        if shard is not None:
            try:
                shard.flush()
            finally:
                try:
                    shard.close()
                finally:
                    self._lock.release()

    @property
    def _open_shard(self) -> Any:
        if self._shard is None:
            raise CollectionError(f"{self.place} is closed. Open it again with ColbertCollection.open(...).")
        return self._shard


def _edge_config(schema: CollectionSchema) -> edge.EdgeConfig:
    params = edge.EdgeVectorParams(
        size=schema.dim,
        distance=edge.Distance.Dot,
        multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
        datatype=_DATATYPES[schema.storage],
        # A graph over MaxSim costs minutes to build and finds the wrong documents: m=0 turns it off.
        hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
    )
    return edge.EdgeConfig(vectors={VECTOR_NAME: params})


def _as_vector(matrix: Matrix) -> Any:
    """Edge takes two-dimensional arrays, faster than lists; its type hints know lists only."""
    return matrix


def _named(matrix: Matrix) -> dict[str, Any]:
    return {VECTOR_NAME: _as_vector(matrix)}


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds a collection not to be replaced, or anything that is none.

    Raises:
        CollectionExistsError: Naming the way out.
    """
    if not path.exists() or (path.is_dir() and all(entry.name == _LOCK for entry in path.iterdir())):
        return
    if not path.is_dir() or not is_edge_collection(path):
        raise CollectionExistsError(f"{str(path)!r} exists and is no collection. Choose another folder.")
    if not overwrite:
        raise CollectionExistsError(
            f"There is a collection in {str(path)!r} already. Open it, choose another folder, or pass "
            "overwrite=True to replace it."
        )


def _load_shard(path: Path) -> Any:
    try:
        return edge.EdgeShard.load(str(path / _SHARD))
    except Exception as error:
        if "WouldBlock" in str(error):
            raise CollectionLockedError(_locked_message(path)) from error
        raise CollectionCorruptError(
            f"The shard in {str(path / _SHARD)!r} cannot be loaded: {error}. Restore it from a backup."
        ) from error


def _acquire(path: Path) -> FileLock:
    # A lock of our own: Edge's error for a second opening is untyped, and its text is no interface.
    # Not per thread, so that one thread may close what another opened.
    lock = FileLock(str(path / _LOCK), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CollectionLockedError(_locked_message(path)) from error
    return lock


def _locked_message(path: Path) -> str:
    return (
        f"The collection in {str(path)!r} is open already, in this process or another: an Edge folder has one "
        "user at a time. Close it there, share one ColbertCollection between threads, or use a Qdrant server "
        "(url=...) for several processes."
    )


def _read_description(path: Path) -> Any:
    file = path / DESCRIPTION
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CollectionCorruptError(
            f"{str(file)!r} is missing: creating the collection did not finish, or the file was lost. Restore it "
            "from a backup, or create the collection anew with overwrite=True."
        ) from error
    except (OSError, ValueError) as error:
        raise CollectionCorruptError(
            f"{str(file)!r} is unreadable ({error}). Restore it from a backup, or create the collection anew with "
            "overwrite=True."
        ) from error


def _write_atomically(file: Path, content: str) -> None:
    temporary = file.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
