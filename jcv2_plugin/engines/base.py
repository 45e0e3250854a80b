"""The engine interface, with the points, requests and records that it exchanges."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.checks import check_integer
from jcv2_plugin.engines.first_stage import SparseVector, StageVector
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.filters import check_payload_key

if TYPE_CHECKING:
    from qdrant_client import models

PayloadIndex = Literal["keyword", "integer", "float", "bool", "datetime", "geo", "text", "uuid"]
PAYLOAD_INDEXES: tuple[PayloadIndex, ...] = get_args(PayloadIndex)
"""Payload index types, as named by Qdrant."""

Matrix = NDArray[np.float32]
"""A multivector, of shape ``(tokens, dim)``."""


@dataclass(frozen=True)
class Point:
    """A point to write: UUID, multivector, payload and first-stage vectors by name."""

    id: str
    vectors: Matrix
    payload: dict[str, Any]
    stages: Mapping[str, StageVector] = field(default_factory=dict)


RRF_K = 2
"""Default constant of reciprocal rank fusion, Qdrant's own."""


@dataclass(frozen=True)
class Fusion:
    """Reciprocal rank fusion: a point scores ``1 / (k - 1 + rank / weight)`` for each vector, ranks counted from 1.

    Weights are by the vector's name, 1 where none is given. Points found only by vectors of weight 0 come last.
    """

    k: int = RRF_K
    weights: Mapping[str, float] = field(default_factory=dict)

    def of(self, stages: Mapping[str, Any]) -> list[float] | None:
        """Return the weight of each stage in order, or None if no weights are given."""
        return [float(self.weights.get(name, 1.0)) for name in stages] if self.weights else None


@dataclass(frozen=True)
class Candidates:
    """First-stage query: the top ``limit`` points, by reciprocal rank fusion if there are several vectors."""

    stages: Mapping[str, StageVector]
    limit: int
    fusion: Fusion | None = None


@dataclass(frozen=True)
class SearchRequest:
    """Query token vectors and the first stage. Without a first stage, MaxSim ranks all points."""

    vectors: Matrix
    candidates: Candidates | None = None


@dataclass(frozen=True)
class Record:
    """A stored point. ``vectors`` and ``stages`` are set only if requested, ``score`` only by a search."""

    id: str
    payload: dict[str, Any]
    score: float = 0.0
    vectors: Matrix | None = None
    stages: Mapping[str, StageVector] = field(default_factory=dict)


def by_bytes(points: Sequence[Point], *, most: int, per_float: int) -> Iterator[list[Point]]:
    """Yield batches of at most ``most`` bytes, at ``per_float`` bytes per float. A larger point gets its own batch."""
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
    """Options for creating a collection: payload index types by payload key, the shard to read and write on a server
    with custom sharding, attempts per request to a server, and arguments of ``QdrantClient.create_collection``.
    """

    payload_indexes: Mapping[str, PayloadIndex] = field(default_factory=dict)
    shard_key: str | int | None = None
    retries: int = 5
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Check the options that apply to every engine. Raises InvalidOptionError."""
        check_integer(self.retries, "retries")
        for key, kind in self.payload_indexes.items():
            check_payload_key(key)
            if kind not in PAYLOAD_INDEXES:
                raise InvalidOptionError(f"payload_indexes: {key!r} must be one of {PAYLOAD_INDEXES}, got {kind!r}.")


class Engine(Protocol):
    """A collection in an engine. Point ids are UUID strings; filters are ``qdrant_client.models.Filter``."""

    title: str
    """Name of the collection in messages. Never contains a secret."""

    first_stage_pays: bool
    """Whether a first stage makes searches faster on this engine."""

    def describe(self) -> Any:
        """Return the schema stored with the collection, unchecked."""

    def begin_writing(self) -> None:
        """Create what is needed before stored documents are compared and new ones written."""

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert points or replace those with the same id. The write is durable on return."""

    def search(
        self,
        requests: Sequence[SearchRequest],
        limit: int,
        *,
        filter: models.Filter | None,
        score_threshold: float | None,
    ) -> list[list[Record]]:
        """Return the top ``limit`` points by MaxSim for each request, from all points or its candidates, best first.

        The filter also applies to the candidates: points that it excludes do not count towards their limit.
        """

    def retrieve(
        self, ids: Sequence[str], *, with_payload: bool | list[str], with_vectors: bool | list[str]
    ) -> list[Record]:
        """Return the points that exist, in any order.

        ``with_vectors=True`` includes all vectors, also those of the first stage; a list includes the named ones.
        """

    def scroll(
        self, filter: models.Filter | None, *, with_payload: bool | list[str], with_vectors: bool = False
    ) -> Iterator[Record]:
        """Iterate over all points that match the filter, ordered by UUID."""

    def delete(self, ids: Sequence[str]) -> None:
        """Delete points. Missing ids are ignored."""

    def delete_where(self, filter: models.Filter) -> None:
        """Delete the points that match a filter."""

    def count(self, filter: models.Filter | None) -> int:
        """Return the exact number of points that match the filter."""

    def size(self) -> int:
        """Return the approximate number of points. Faster than :meth:`count`."""

    def create_payload_index(self, key: str, kind: PayloadIndex) -> None:
        """Index a payload field to speed up filters. Does nothing if the index exists."""

    def optimize(self) -> None:
        """Optimise storage after many writes, if the engine does not do so itself."""

    def close(self) -> None:
        """Release all resources. Calling it again has no effect."""

    def moved(self) -> Engine | None:
        """Return the collection that the name points to now, if another process has replaced this one."""

    def successor(self, schema: CollectionSchema, *, keep_old: bool = False) -> Engine:
        """Create a second collection to be filled and then adopted.

        An unfinished successor with the same schema is reused; one with another schema is dropped. ``keep_old`` is
        that of :meth:`adopt`.
        """

    def drop_replaced(self) -> None:
        """Delete the collection that this one has replaced, if a crash came before that."""

    def adopt(self, successor: Engine, *, keep_old: bool) -> str | None:
        """Replace this collection with its successor, atomically for everyone who opens it afterwards.

        Raises only if this collection was not replaced. If the old collection cannot be deleted afterwards, it is
        left in place.

        Returns:
            Name of the old collection, if it was kept.
        """
