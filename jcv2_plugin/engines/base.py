"""What a collection asks of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from jcv2_plugin.schema import VECTOR_NAME

Matrix = NDArray[np.float32]
"""A multivector, of shape ``(tokens, dim)``."""


@dataclass(frozen=True)
class Point:
    """A point to write: a UUID, a multivector and a payload."""

    id: str
    vectors: Matrix
    payload: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """A point read back; ``vectors`` only where asked for, ``score`` only from a search."""

    id: str
    payload: dict[str, Any]
    score: float = 0.0
    vectors: Matrix | None = None


def record_of(point: Any, score: float = 0.0) -> Record:
    """A record of an engine's own point, which both engines shape alike."""
    vectors = None
    if isinstance(point.vector, dict) and VECTOR_NAME in point.vector:
        vectors = np.asarray(point.vector[VECTOR_NAME], dtype=np.float32)
    return Record(id=str(point.id), payload=dict(point.payload or {}), score=float(score), vectors=vectors)


class Engine(Protocol):
    """One collection in one engine. Ids are UUID strings; all filters are ``qdrant_client.models.Filter``."""

    place: str
    """Where the collection is, for messages. Never holds a secret."""

    def describe(self) -> Any:
        """The description stored with the collection, unchecked."""

    def upsert(self, points: Sequence[Point]) -> None:
        """Write points, replacing those of the same id; durable when it returns."""

    def search(
        self,
        queries: Sequence[Matrix],
        limit: int,
        *,
        filter: models.Filter | None,
        score_threshold: float | None,
    ) -> list[list[Record]]:
        """For each query the ``limit`` points of the largest MaxSim, best first, exactly."""

    def retrieve(self, ids: Sequence[str], *, with_payload: bool | list[str], with_vectors: bool) -> list[Record]:
        """Those of the points that exist, in any order."""

    def scroll(self, filter: models.Filter | None, *, with_payload: bool | list[str]) -> Iterator[Record]:
        """All points that the filter selects, in order of their UUIDs."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points; those that do not exist are no error."""

    def delete_where(self, filter: models.Filter) -> None:
        """Remove the points that a filter selects."""

    def count(self, filter: models.Filter | None) -> int:
        """How many points the filter selects, exactly."""

    def optimize(self) -> None:
        """Tidy up after many writes, where the engine does not do so by itself."""

    def close(self) -> None:
        """Release everything; a second call does nothing."""
