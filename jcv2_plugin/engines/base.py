"""What a collection asks of an engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from jcv2_plugin.engines.first_stage import SparseVector, StageVector
from jcv2_plugin.engines.schema import VECTOR_NAME, CollectionSchema
from jcv2_plugin.errors import InvalidOptionError

PayloadIndex = Literal["keyword", "integer", "float", "bool", "datetime", "geo", "text", "uuid"]
PAYLOAD_INDEXES: tuple[PayloadIndex, ...] = get_args(PayloadIndex)
"""Kinds of payload index, as Qdrant names them."""

Matrix = NDArray[np.float32]
"""A multivector, of shape ``(tokens, dim)``."""


@dataclass(frozen=True)
class Point:
    """A point to write: a UUID, a multivector, a payload, and the first stage's vectors by name."""

    id: str
    vectors: Matrix
    payload: dict[str, Any]
    stages: Mapping[str, StageVector] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidates:
    """A first stage: the ``limit`` points that its vectors rank highest, by reciprocal rank where there are several."""

    stages: Mapping[str, StageVector]
    limit: int


@dataclass(frozen=True)
class SearchRequest:
    """A query's token vectors, and its first stage; without one all points are ranked by MaxSim."""

    vectors: Matrix
    candidates: Candidates | None = None


@dataclass(frozen=True)
class Record:
    """A point read back; ``vectors`` and ``stages`` only where asked for, ``score`` only from a search."""

    id: str
    payload: dict[str, Any]
    score: float = 0.0
    vectors: Matrix | None = None
    stages: Mapping[str, StageVector] = field(default_factory=dict)


def record_of(point: Any, score: float = 0.0) -> Record:
    """A record of an engine's own point, which both engines shape alike."""
    vectors: Matrix | None = None
    stages: dict[str, StageVector] = {}
    for name, value in (point.vector or {}).items() if isinstance(point.vector, dict) else ():
        if name == VECTOR_NAME:
            vectors = np.asarray(value, dtype=np.float32)
        elif hasattr(value, "indices"):
            stages[name] = SparseVector(list(value.indices), list(value.values))
        else:
            stages[name] = np.asarray(value, dtype=np.float32)
    return Record(str(point.id), dict(point.payload or {}), float(score), vectors, stages)


def by_bytes(points: Sequence[Point], *, most: int, per_float: int) -> Iterator[list[Point]]:
    """Points in batches of at most that many bytes, of which a float takes ``per_float``; a larger one goes alone."""
    batch: list[Point] = []
    filled = 0
    for point in points:
        floats = point.vectors.size + sum(_floats(vector) for vector in point.stages.values())
        size = floats * per_float + len(json.dumps(point.payload).encode())
        if batch and filled + size > most:
            yield batch
            batch, filled = [], 0
        batch.append(point)
        filled += size
    if batch:
        yield batch


def _floats(vector: StageVector) -> int:
    return 2 * len(vector.indices) if isinstance(vector, SparseVector) else vector.size


@dataclass(frozen=True)
class NewCollection:
    """Further wishes for a collection to be created.

    Attributes:
        payload_indexes: Kinds of payload index by payload key, such as ``{"metadata.topic": "keyword"}``.
        shard_key: The shard to read and write, of a server's collection with custom sharding.
        retries: Attempts at each request to a server.
        engine_options: For ``QdrantClient.create_collection``.
    """

    payload_indexes: Mapping[str, PayloadIndex] = field(default_factory=dict)
    shard_key: str | int | None = None
    retries: int = 5
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what no engine takes.

        Raises:
            InvalidOptionError: Naming it and the way out.
        """
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 1:
            raise InvalidOptionError(f"retries must be a positive integer (1 tries once), got {self.retries!r}.")
        for key, kind in self.payload_indexes.items():
            if kind not in PAYLOAD_INDEXES:
                raise InvalidOptionError(f"payload_indexes: {key!r} must be one of {PAYLOAD_INDEXES}, got {kind!r}.")


class Engine(Protocol):
    """One collection in one engine. Ids are UUID strings; all filters are ``qdrant_client.models.Filter``."""

    title: str
    """What to call the collection in messages. Never holds a secret."""

    first_stage_pays: bool
    """Whether searching with a first stage is any quicker here than without."""

    def describe(self) -> Any:
        """The description stored with the collection, unchecked."""

    def begin_writing(self) -> None:
        """Make what is needed before documents are compared with those stored, and written."""

    def upsert(self, points: Sequence[Point]) -> None:
        """Write points, replacing those of the same id; durable when it returns."""

    def search(
        self,
        requests: Sequence[SearchRequest],
        limit: int,
        *,
        filter: models.Filter | None,
        score_threshold: float | None,
    ) -> list[list[Record]]:
        """For each request the ``limit`` points of the largest MaxSim, of all points or of its candidates; best first.

        A filter applies to the candidates too: what it leaves out does not count towards their limit.
        """

    def retrieve(
        self, ids: Sequence[str], *, with_payload: bool | list[str], with_vectors: bool | list[str]
    ) -> list[Record]:
        """Those of the points that exist, in any order; with all vectors, the first stage's too, or those named."""

    def scroll(
        self, filter: models.Filter | None, *, with_payload: bool | list[str], with_vectors: bool = False
    ) -> Iterator[Record]:
        """All points that the filter selects, in order of their UUIDs."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points; those that do not exist are no error."""

    def delete_where(self, filter: models.Filter) -> None:
        """Remove the points that a filter selects."""

    def count(self, filter: models.Filter | None) -> int:
        """How many points the filter selects, exactly."""

    def size(self) -> int:
        """About how many points there are, quickly."""

    def create_payload_index(self, key: str, kind: PayloadIndex) -> None:
        """Index a payload field, so that filters on it are quick; one that is there already is no error."""

    def optimize(self) -> None:
        """Tidy up after many writes, where the engine does not do so by itself."""

    def close(self) -> None:
        """Release everything; a second call does nothing."""

    def moved(self) -> Engine | None:
        """What this one's name stands for by now, if another process has replaced this one."""

    def successor(self, schema: CollectionSchema) -> Engine:
        """A collection beside this one, to be filled and then adopted.

        An earlier successor of the same schema is gone on with; one of another schema is dropped.
        """

    def adopt(self, successor: Engine, *, keep_old: bool) -> str | None:
        """Replace this one by a successor, at once for all who open it from then on.

        It raises only if this one was not replaced: an old one that cannot be removed after that is left.

        Returns:
            What the old one can be found by, where it was kept.
        """
