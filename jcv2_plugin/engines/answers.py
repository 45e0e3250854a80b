"""Checks of what an engine answers. Whatever cannot be right is an error that names the collection and its server."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from jcv2_plugin.documents import ID_KEY, METADATA_KEY, TEXT_KEY, point_id
from jcv2_plugin.engines.base import Record
from jcv2_plugin.engines.first_stage import SparseVector, StageVector
from jcv2_plugin.engines.schema import VECTOR_NAME
from jcv2_plugin.errors import CollectionError


def wrong_answer(where: str, problem: str) -> CollectionError:
    """Return the error for an answer that cannot be right. ``where`` is the engine's title."""
    return CollectionError(
        f"{where}: the answer cannot be right. {problem} Check the server and what stands before it, and the "
        "collection with verify() or jcv2 verify."
    )


def records_of(
    points: Sequence[Any],
    where: str,
    dim: int | None,
    ids: Collection[str] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> list[Record]:
    """Convert an engine's own points to records. Both engines use the same layout.

    Args:
        points: The answer.
        where: The engine's title.
        dim: Dimension of the collection's vectors, if known.
        ids: Ids that were asked for, if the request named them.
        sizes: Dimension of each vector that has another one, by its name.
    """
    records = [_record(point, where, dim, sizes or {}) for point in points]
    # With custom sharding, several shards can contain the same id.
    if len({(record.id, getattr(one, "shard_key", None)) for record, one in zip(records, points, strict=True)}) < len(
        records
    ):
        raise wrong_answer(where, f"A point occurs twice among the {len(records)} of an answer.")
    if ids is not None and (other := sorted({record.id for record in records}.difference(ids))):
        raise wrong_answer(where, f"The point {other[0]} was not asked for.")
    return records


def hits_of(points: Sequence[Any], where: str, limit: int) -> list[Record]:
    """Convert the results of a search to records with scores, best first, if they can be right."""
    records = records_of(points, where, None)
    if len(records) > limit:
        raise wrong_answer(where, f"{len(records)} hits were sent, at most {limit} were asked for.")
    scores = [float(one.score) for one in points]
    if wrong := [score for score in scores if not math.isfinite(score)]:
        raise wrong_answer(where, f"A hit has the score {wrong[0]}.")
    if any(following > score for score, following in pairwise(scores)):
        raise wrong_answer(where, "The hits are not in the order of their scores.")
    check_documents(records, where)
    return [replace(record, score=score) for record, score in zip(records, scores, strict=True)]


def check_documents(records: Sequence[Record], where: str) -> None:
    """Raise CollectionError for a payload that is missing, not written by this package, or another document's."""
    for record in records:
        if problem := payload_problem(record):
            raise wrong_answer(where, problem)


def payload_problem(record: Record) -> str | None:
    """Return why a point's payload cannot be that of a document, or None."""
    texts = [record.payload.get(key) for key in (ID_KEY, TEXT_KEY)]
    if not all(isinstance(one, str) and one for one in texts):
        return f"Point {record.id} has no id or no text: it was not written by this package."
    if not isinstance(record.payload.get(METADATA_KEY, {}), Mapping):
        return f"Point {record.id} has metadata that is not a dict: it was not written by this package."
    if point_id(str(texts[0])) != record.id:
        return f"Document {texts[0]!r} (point {record.id}) is stored under another document's point."
    return None


def _record(point: Any, where: str, dim: int | None, sizes: Mapping[str, int]) -> Record:
    found = point.vector if isinstance(point.vector, Mapping) else {}
    try:
        vectors = {name: _vector(value) for name, value in found.items()}
    except (ValueError, TypeError) as error:  # rows of different lengths
        raise wrong_answer(where, f"The vectors of point {point.id} are unreadable: {error!s:.200}.") from error
    matrix = vectors.pop(VECTOR_NAME, None)
    for name, value, axes in ((VECTOR_NAME, matrix, 2), *((name, value, 1) for name, value in vectors.items())):
        wanted = sizes.get(name, dim)
        if isinstance(value, np.ndarray) and (value.ndim != axes or wanted not in (None, value.shape[-1])):
            size = "" if wanted is None else f" in a collection of {'dim' if wanted == dim else 'size'}={wanted}"
            raise wrong_answer(where, f"Point {point.id} has a vector {name!r} of shape {value.shape}{size}.")
    return Record(str(point.id), dict(point.payload or {}), vectors=matrix, stages=vectors)  # type: ignore[arg-type]


def _vector(value: Any) -> StageVector:
    if hasattr(value, "indices"):
        return SparseVector(list(value.indices), list(value.values))
    return np.asarray(value, dtype=np.float32)
