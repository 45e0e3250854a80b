"""Repair a folder whose write-ahead log cannot be read: copy what is stored apart from it into a new shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jcv2_plugin.checks import in_batches
from jcv2_plugin.documents import MAX_DEPTH, StoredDocument, json_value, payload_of
from jcv2_plugin.engines.base import Engine, PayloadIndex, Point, Record
from jcv2_plugin.engines.edge import EdgeEngine, unfinished
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.errors import CollectionCorruptError, CollectionError, InvalidDocumentError
from jcv2_plugin.lazy import models

_COPIED_AT_A_TIME = 64


@dataclass
class RepairReport:
    """Result of :meth:`ColbertCollection.repair`.

    Attributes:
        needed: Whether the log could not be read. If it could, nothing was changed.
        documents: Documents in the repaired collection.
        cut: Ids of documents whose metadata was nested too deeply. The values concerned are gone.
        lost: Ids of points that could not be read. They are gone.
    """

    needed: bool = False
    documents: int = 0
    cut: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def repair(path: Path, progress: Callable[[int], None] | None) -> RepairReport:
    """See :meth:`ColbertCollection.repair`."""
    if unfinished(path) != "repair":
        try:
            EdgeEngine.open(path).close()
            return RepairReport()
        except CollectionCorruptError:
            pass
    report = RepairReport(needed=True)
    engine = EdgeEngine.open(path, without_log=True)

    def readable() -> Iterator[list[Point]]:
        for batch in in_batches(engine.scroll(None, with_payload=False), _COPIED_AT_A_TIME):
            points = _readable(engine, [record.id for record in batch], report)
            report.documents += len(points)
            yield points
            if progress is not None:
                progress(len(batch))

    try:
        schema = CollectionSchema.from_dict({**engine.describe(), "unfinished": ""}, engine.title)
    except BaseException:
        engine.close()
        raise
    refilled(engine, schema, readable(), "the folder's").close()
    return report


def refilled(
    engine: Engine,
    schema: CollectionSchema,
    batches: Iterable[list[Point]],
    whose: str,
    indexes: Mapping[str, PayloadIndex] | None = None,
) -> Engine:
    """Replace the points of a collection with others, at once: they fill a successor, which is returned.

    If that fails, nothing is replaced, and the engine is closed. ``whose`` the points are is for the error message.
    """
    successor, documents = None, 0
    try:
        successor = engine.successor(schema)
        successor.delete_where(models.Filter(must_not=[models.HasIdCondition(has_id=[])]))
        for points in batches:
            successor.upsert(points)
            documents += len(points)
        for key, kind in (indexes or {}).items():
            successor.create_payload_index(key, kind)
        successor.optimize()
        if (stored := successor.count(None)) != documents:
            raise CollectionError(
                f"{engine.title}: {stored} of {whose} {documents} documents were stored, although no write failed. "
                "Nothing was replaced. Check the server's log, and repeat the command."
            )
        engine.adopt(successor, keep_old=False)
        return successor
    except BaseException:
        if successor is not None:
            successor.close()
        engine.close()
        raise


def _readable(engine: Engine, ids: list[str], report: RepairReport) -> list[Point]:
    """Read points, one by one if they cannot be read together."""
    try:
        records = engine.retrieve(ids, with_payload=True, with_vectors=True)
    except CollectionCorruptError:
        if len(ids) == 1:
            report.lost += ids
            return []
        return [point for one in ids for point in _readable(engine, [one], report)]
    return [_point(record, report) for record in records if record.vectors is not None]


def _point(record: Record, report: RepairReport) -> Point:
    """Return a point without values that are nested too deeply. In the new log, they would be unreadable again."""
    document = StoredDocument.from_payload(record.payload).as_document()
    metadata, rest = _flat_enough(document.metadata), _flat_enough(document.payload)
    payload = record.payload
    if (len(metadata), len(rest)) != (len(document.metadata), len(document.payload)):
        report.cut.append(document.id or record.id)
        payload = payload_of(replace(document, metadata=metadata, payload=rest))
    assert record.vectors is not None
    return Point(record.id, record.vectors, payload, record.stages)


def _flat_enough(values: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in values.items():
        try:
            kept[key] = json_value(value, key, MAX_DEPTH - 1)
        except InvalidDocumentError:
            continue
    return kept
