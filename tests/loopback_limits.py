"""What a Qdrant server refuses and local mode lets through: ids, vectors, and strict mode.

The reasons are worded as the server words them, since our messages are made from them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qdrant_client import models

MAX_FLOATS = 1024 * 1024
DEFAULT_LIMIT = 10

_WRONG_ID = "is not a valid point ID, valid values are either an unsigned integer or a UUID"


class Refused(Exception):
    """The server says no: an HTTP status, its reason, and how long to wait where it says so."""

    def __init__(self, status: int, reason: str, *, retry_after: int | str | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


def strict_error(problem: str, remedy: str) -> Refused:
    """A refusal of strict mode, which always names a remedy."""
    return Refused(400, f"Bad request: {problem}. Help: {remedy}")


def invalid(where: str, problem: str) -> Refused:
    """A body that is of the right form but has a value out of range."""
    return Refused(422, f"Validation error in JSON body: [{where}: {problem}]")


# Ids ------------------------------------------------------------------------------------------------------------


def checked_id(value: Any) -> int | str:
    """A point's id as the server writes it back: UUIDs in lower case with hyphens."""
    if isinstance(value, int):
        if 0 <= value < 2**64:
            return value
    else:
        try:
            return str(uuid.UUID(str(value)))
        except ValueError:
            pass
    raise Refused(400, f"Format error in JSON body: value {value} {_WRONG_ID}")


def conditions(condition_filter: models.Filter | None) -> Iterator[Any]:
    """Every condition of a filter that is no filter itself."""
    if condition_filter is None:
        return
    for group in (condition_filter.must, condition_filter.should, condition_filter.must_not):
        for condition in group if isinstance(group, list) else [] if group is None else [group]:
            yield from conditions(condition) if isinstance(condition, models.Filter) else [condition]


# Vectors --------------------------------------------------------------------------------------------------------


def dense_params(config: models.CreateCollection) -> Mapping[str, models.VectorParams]:
    """The dense vectors of a collection by name, the unnamed one under the empty string."""
    if isinstance(config.vectors, models.VectorParams):
        return {"": config.vectors}
    return config.vectors or {}


def check_vector(config: models.CreateCollection, name: str, vector: Any, path: str) -> None:
    """A vector to store or to search with. Sparse vectors are local mode's to check."""
    if not isinstance(vector, list):
        return
    if vector and isinstance(vector[0], list):
        lengths = [len(row) for row in vector]
        if not all(lengths):
            raise invalid(f"{path}.data", "all vectors must be non-empty")
        if sum(lengths) >= MAX_FLOATS:
            raise invalid(f"{path}.data", f"Total size of all vectors ({sum(lengths)}) must be less than {MAX_FLOATS}")
        length = lengths[0]
    else:
        length = len(vector)
    params = dense_params(config).get(name)
    if params is None:
        raise Refused(400, f"Wrong input: Not existing vector name error: {name}")
    if length != params.size:
        raise Refused(400, f"Wrong input: Vector dimension error: expected dim: {params.size}, got {length}")


def check_point(config: models.CreateCollection, point: models.PointStruct, position: int) -> None:
    """A point to store."""
    if isinstance(point.vector, dict):
        for name, vector in point.vector.items():
            check_vector(config, name, vector, f"points[{position}].vector.?")
    else:
        check_vector(config, "", point.vector, f"points[{position}].vector")


def subqueries(request: models.QueryRequest | models.Prefetch) -> Iterator[models.QueryRequest | models.Prefetch]:
    """A query and its prefetches, at every depth."""
    yield request
    inner = request.prefetch or []
    for prefetch in inner if isinstance(inner, list) else [inner]:
        yield from subqueries(prefetch)


def query_vector(query: Any) -> Any:
    """The vector of a query for the nearest points; anything else of other queries."""
    return query.nearest if isinstance(query, models.NearestQuery) else query


def check_query(config: models.CreateCollection, request: models.QueryRequest) -> None:
    """A query: its numbers and its vectors."""
    for one in subqueries(request):
        if one.limit is not None and one.limit < 1:
            raise invalid("limit", f"value {one.limit} invalid, must be 1 or larger")
        check_vector(config, one.using or "", query_vector(one.query), "query.nearest")


# Strict mode ----------------------------------------------------------------------------------------------------


def _usable_indexes(condition: Any) -> tuple[str, ...]:
    """The kinds of index any of which serves a condition; none where it needs none."""
    if getattr(condition, "range", None) is not None:
        return ("float", "integer")
    match = getattr(condition, "match", None)
    value = match.any[0] if isinstance(match, models.MatchAny) else getattr(match, "value", None)
    return () if value is None else ("keyword",) if isinstance(value, str) else ("integer",)


def kind_of_index(schema: Any) -> str:
    """The kind of a payload index: ``"keyword"``, ``"integer"``, ..."""
    kind = schema if isinstance(schema, models.PayloadSchemaType) else schema.type
    return str(kind.value)


class StrictMode:
    """Strict mode of one collection. Where it is off, nothing is refused."""

    def __init__(self, config: models.CreateCollection, indexes: Mapping[str, Any]) -> None:
        given = config.strict_mode_config
        self._limits = given if given is not None and given.enabled else models.StrictModeConfig()
        self._config = config
        self._indexes = indexes

    def limit(self, value: float | None, setting: str, name: str) -> None:
        """Refuse a number above a limit; ``name`` is what the server calls it."""
        largest = getattr(self._limits, setting)
        if value is not None and largest is not None and value > largest:
            raise strict_error(
                f'Limit exceeded {value} > {largest} for "{name}"',
                f'Reduce the "{name}" parameter to or below {largest}.',
            )

    def read(self, condition_filter: models.Filter | None, *, limit: int | None = None, exact: bool = False) -> None:
        self.limit(limit, "max_query_limit", "limit")
        self._filter(condition_filter, self._limits.unindexed_filtering_retrieve)
        if exact and self._limits.search_allow_exact is False:
            raise strict_error("Exact search disabled!", "Set exact=false.")

    def write(self, condition_filter: models.Filter | None) -> None:
        self._filter(condition_filter, self._limits.unindexed_filtering_update)

    def upsert(self, points: Sequence[models.PointStruct], stored: int) -> None:
        """Check points to store; ``stored`` is the server's estimate of how many there are already."""
        self.limit(len(points), "upsert_max_batchsize", "upsert limit")
        if self._limits.max_points_count is not None and stored >= self._limits.max_points_count:
            raise Refused(400, f"Bad request: Max points count limit of {self._limits.max_points_count} reached!")
        for name, limit in (self._limits.multivector_config or {}).items():
            for point in points:
                vector = point.vector.get(name) if isinstance(point.vector, dict) else point.vector
                rows = len(vector) if isinstance(vector, list) and vector and isinstance(vector[0], list) else 0
                if limit.max_vectors is not None and rows > limit.max_vectors:
                    problem = f"has a limit of {limit.max_vectors} vectors, but {rows} were provided!"
                    raise Refused(400, f"Bad request: Multivector '{name}' {problem}")

    def query(self, request: models.QueryRequest) -> None:
        for one in subqueries(request):
            if isinstance(query_vector(one.query), list) and not one.prefetch:
                self._full_scan(one.using or "")
            self.read(
                one.filter,
                limit=DEFAULT_LIMIT if one.limit is None else one.limit,
                exact=bool(one.params and one.params.exact),
            )
            if one.params is not None:
                self.limit(one.params.hnsw_ef, "search_max_hnsw_ef", "hnsw_ef")

    def _filter(self, condition_filter: models.Filter | None, unindexed: bool | None) -> None:
        for condition in conditions(condition_filter):
            kinds = _usable_indexes(condition)
            if unindexed is not False or not kinds:
                continue
            there = self._indexes.get(condition.key)
            if there is None or kind_of_index(there) not in kinds:
                raise strict_error(
                    f'Index required but not found for "{condition.key}" of one of the following types: '
                    f"[{', '.join(kinds)}]",
                    "Create an index for this key or use a different filter.",
                )

    def _full_scan(self, using: str) -> None:
        """Without exact search a vector that has no graph cannot be searched."""
        params = dense_params(self._config).get(using)
        hnsw = None if params is None else params.hnsw_config
        if self._limits.search_allow_exact is False and hnsw is not None and hnsw.m == 0:
            raise strict_error(
                f"Request is forbidden on '{using}' because global vector indexing is disabled (hnsw_config.m = 0)",
                "Use tenant-specific filter, enable global vector indexing or enable strict mode `search_allow_exact` "
                "option",
            )
