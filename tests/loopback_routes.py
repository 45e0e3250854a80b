"""What the loopback server does with points, and which request does what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from urllib.parse import unquote

import numpy as np
from loopback_collections import Collections, Held, wrong_input
from loopback_limits import (
    DEFAULT_LIMIT,
    Refused,
    check_point,
    check_query,
    checked_id,
    dense_params,
    invalid,
    query_vector,
)
from pydantic import TypeAdapter, ValidationError
from qdrant_client import models

# qdrant_client.models.QueryResponse is another class, of fastembed's.
from qdrant_client.http.models import QueryResponse

P = TypeVar("P", models.Record, models.ScoredPoint)


class Store(Collections):
    """The operations of a server, on models that are of the right form. The caller holds ``lock``."""

    # Changes ----------------------------------------------------------------------------------------------------

    def upsert(self, name: str, request: models.PointsList) -> models.UpdateResult:
        held = self.get(name)
        for position, point in enumerate(points := request.points):
            point.id = checked_id(point.id)
            check_point(held.config, point, position)
        held.strict.upsert(points, held.estimate)
        held.estimate = self._points(held)
        stored = [
            models.PointStruct(id=one.id, vector=_as_stored(held, one.vector), payload=one.payload) for one in points
        ]
        for shard in self._to_write(held, request.shard_key):
            with wrong_input():
                self.local.upsert(shard, stored)
        return self._done()

    def delete_points(self, name: str, selector: Any) -> models.UpdateResult:
        """Remove points by id or by filter; those that are not there are no error."""
        held, chosen = self._selected(name, selector)
        for shard in self._to_write(held, selector.shard_key):
            with wrong_input():
                self.local.delete(shard, chosen)
        return self._done()

    def set_payload(self, name: str, request: models.SetPayload) -> models.UpdateResult:
        held, chosen = self._selected(name, request)
        for shard in self._to_write(held, request.shard_key):
            with wrong_input():
                self.local.set_payload(shard, request.payload, chosen)
        return self._done()

    def _selected(self, name: str, request: Any) -> tuple[Held, Any]:
        held = self.get(name)
        by_filter = getattr(request, "filter", None)
        if by_filter is not None:
            held.strict.write(by_filter)
            return held, by_filter
        return held, [checked_id(one) for one in request.points]

    # Reads ------------------------------------------------------------------------------------------------------

    def retrieve(self, name: str, request: models.PointRequest) -> list[models.Record]:
        held = self.get(name)
        ids = [checked_id(one) for one in request.ids]
        shown = {"with_payload": _or(request.with_payload, True), "with_vectors": _or(request.with_vector, False)}
        with wrong_input():
            return [
                one
                for key, shard in self._to_read(held, request.shard_key)
                for one in _tagged(key, self.local.retrieve(shard, ids, **shown))
            ]

    def scroll(self, name: str, request: models.ScrollRequest) -> models.ScrollResult:
        """A page of points in the order of their ids, those of all shards together."""
        held = self.get(name)
        limit = _or(request.limit, DEFAULT_LIMIT)
        if limit < 1:
            raise invalid("limit", f"value {limit} invalid, must be 1 or larger")
        held.strict.read(request.filter, limit=limit)
        points: list[models.Record] = []
        for key, shard in self._to_read(held, request.shard_key):
            with wrong_input():
                page, _ = self.local.scroll(
                    shard,
                    scroll_filter=request.filter,
                    limit=limit + 1,
                    offset=None if request.offset is None else checked_id(request.offset),
                    with_payload=_or(request.with_payload, True),
                    with_vectors=_or(request.with_vector, False),
                )
            points += _tagged(key, page)
        points.sort(key=lambda one: (isinstance(one.id, str), one.id))
        after = points[limit].id if len(points) > limit else None
        return models.ScrollResult(points=points[:limit], next_page_offset=after)

    def count(self, name: str, request: models.CountRequest) -> models.CountResult:
        held = self.get(name)
        held.strict.read(request.filter, exact=request.exact is not False)
        shards = self._to_read(held, request.shard_key)
        with wrong_input():
            counts = [self.local.count(shard, count_filter=request.filter).count for _, shard in shards]
        return models.CountResult(count=sum(counts))

    def query(self, name: str, request: models.QueryRequest) -> QueryResponse:
        held = self.get(name)
        check_query(held.config, request)
        held.strict.query(request)
        shards = self._to_read(held, request.shard_key)
        if len(shards) > 1 and (request.prefetch or not isinstance(query_vector(request.query), list)):
            raise Refused(501, "The loopback server merges shards only for queries by a vector")
        limit, offset = _or(request.limit, DEFAULT_LIMIT), _or(request.offset, 0)
        # Local mode searches exactly whatever the parameters say, and would warn of each but the one it knows.
        known = request.params if request.params is not None and request.params.idf is not None else None
        wide = request.model_copy(update={"limit": limit + offset, "offset": 0, "params": known})
        found: list[models.ScoredPoint] = []
        for key, shard in shards:
            with wrong_input():
                found += _tagged(key, self.local.query_batch_points(shard, [wide])[0].points)
        if len(shards) > 1:
            found.sort(key=lambda one: one.score, reverse=True)
        return QueryResponse(points=found[offset : offset + limit])

    def query_batch(self, name: str, batch: models.QueryRequestBatch) -> list[QueryResponse]:
        held = self.get(name)
        held.strict.limit(len(batch.searches), "search_max_batchsize", "search batch size")
        return [self.query(name, request) for request in batch.searches]


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _tagged(key: int | str | None, points: list[P]) -> list[P]:
    """Points with the key of the shard that they are in."""
    for point in points:
        point.shard_key = key
    return points


def _as_stored(held: Held, vector: Any) -> Any:
    """A server keeps halves where it was told so; local mode ignores the datatype."""
    params = dense_params(held.config)

    def rounded(name: str, value: Any) -> Any:
        datatype = params[name].datatype if name in params else None
        if datatype != models.Datatype.FLOAT16 or not isinstance(value, list):
            return value
        return np.asarray(value, dtype=np.float16).astype(np.float32).tolist()

    return {name: rounded(name, value) for name, value in vector.items()} if isinstance(vector, dict) else vector


# Which request does what -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Route:
    """A kind of request: its method, its path with ``{}`` for names, the form of its body, and what it does."""

    method: str
    path: str
    body: Any
    run: Callable[..., Any]

    def match(self, method: str, path: str) -> list[str] | None:
        """The names in a path of this kind, unquoted; None for another kind."""
        ours, theirs = self.path.split("/"), path.split("/")
        if method != self.method or len(ours) != len(theirs):
            return None
        pairs = list(zip(ours, theirs, strict=True))
        if any(our not in ("{}", their) for our, their in pairs):
            return None
        return [unquote(their) for our, their in pairs if our == "{}"]


_C = "/collections/{}"
ROUTES = (
    Route("GET", "/collections", None, lambda store: _listed(store)),
    Route("GET", "/aliases", None, lambda store: store.aliases()),
    Route("POST", "/collections/aliases", models.ChangeAliasesOperation, Store.change_aliases),
    Route("GET", _C, None, Store.info),
    Route("PUT", _C, models.CreateCollection, Store.create),
    Route("PATCH", _C, models.UpdateCollection, Store.update),
    Route("DELETE", _C, None, Store.delete),
    Route("GET", f"{_C}/exists", None, lambda store, name: models.CollectionExistence(exists=store.exists(name))),
    Route("GET", f"{_C}/shards", None, Store.shard_keys),
    Route("PUT", f"{_C}/shards", models.CreateShardingKey, Store.create_shard_key),
    Route("PUT", f"{_C}/index", models.CreateFieldIndex, Store.create_index),
    Route("PUT", f"{_C}/points", models.PointsList, Store.upsert),
    Route("POST", f"{_C}/points", models.PointRequest, Store.retrieve),
    Route("POST", f"{_C}/points/delete", models.PointsSelector, Store.delete_points),
    Route("POST", f"{_C}/points/scroll", models.ScrollRequest, Store.scroll),
    Route("POST", f"{_C}/points/count", models.CountRequest, Store.count),
    Route("POST", f"{_C}/points/query/batch", models.QueryRequestBatch, Store.query_batch),
    Route("POST", f"{_C}/points/payload", models.SetPayload, Store.set_payload),
)
_READS = ("/points", "/points/scroll", "/points/count", "/points/query/batch")


def is_read(method: str, path: str) -> bool:
    """Whether a read-only key may do this."""
    return method == "GET" or (method == "POST" and path.endswith(_READS))


def answer(store: Store, method: str, path: str, params: Mapping[str, str], body: bytes) -> Any:
    """Carry out a request.

    Raises:
        Refused: With the server's status and reason.
    """
    for route in ROUTES:
        names = route.match(method, path)
        if names is not None:
            given = () if route.body is None else (_parsed(route.body, body),)
            with store.lock:
                result = route.run(store, *names, *given)
            if isinstance(result, models.UpdateResult) and params.get("wait") != "true":
                # A change that is not waited for is only taken note of.
                result.status = models.UpdateStatus.ACKNOWLEDGED
            return result
    raise Refused(501, f"The loopback server has no {method} {path}")


def _listed(store: Store) -> models.CollectionsResponse:
    return models.CollectionsResponse(collections=[models.CollectionDescription(name=name) for name in store.names()])


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _parsed(kind: Any, body: bytes) -> Any:
    try:
        return _adapter(kind).validate_json(body)
    except ValidationError as error:
        # Of a union every alternative complains; the one that got furthest is the one that was meant.
        deepest = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
        where = ".".join(map(str, deepest["loc"]))
        raise Refused(400, f"Format error in JSON body: {where}: {deepest['msg']}") from error
