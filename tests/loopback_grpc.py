"""The gRPC side of the loopback server: the same collections, limits and failures, for ``prefer_grpc=True``.

    with LoopbackQdrant() as server, LoopbackGrpc(server) as wire:
        client = QdrantClient(url=server.url, grpc_port=wire.port, prefer_grpc=True)

Requests are converted with qdrant-client's own converters, and recorded in ``server.requests`` with the method
``"GRPC"`` and paths such as ``/qdrant.Points/Upsert``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc
from loopback_limits import Refused
from loopback_qdrant import Denied, LoopbackQdrant, Recorded
from loopback_routes import Store
from qdrant_client import grpc as wire
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest as ToRest
from qdrant_client.conversions.conversion import RestToGrpc as ToGrpc
from qdrant_client.conversions.conversion import grpc_field_type_to_payload_schema
from qdrant_client.grpc import collections_service_pb2_grpc, points_service_pb2_grpc, qdrant_pb2_grpc

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ALREADY_EXISTS,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_READS = ("Get", "List", "CollectionExists", "Scroll", "Count", "Query", "HealthCheck")


def _has(request: Any, name: str, convert: Callable[[Any], Any] = lambda value: value) -> Any:
    """A field that may be missing."""
    return convert(getattr(request, name)) if request.HasField(name) else None


def _shard_key(request: Any) -> Any:
    return _has(request, "shard_key_selector", ToRest.convert_shard_key_selector)


def _shown(request: Any) -> dict[str, Any]:
    return {
        "with_payload": _has(request, "with_payload", ToRest.convert_with_payload_interface),
        "with_vector": _has(request, "with_vectors", ToRest.convert_with_vectors_selector),
        "shard_key": _shard_key(request),
    }


# Collections ------------------------------------------------------------------------------------------------------


def _done(change: Callable[[Store, Any], Any]) -> Callable[[Store, Any], Any]:
    return lambda store, request: wire.CollectionOperationResponse(result=change(store, request))


def _create(store: Store, request: Any) -> Any:
    sparse = _has(request, "sparse_vectors_config", ToRest.convert_sparse_vector_config)
    metadata = ToRest.convert_payload(request.metadata) if request.metadata else None
    config = models.CreateCollection(
        vectors=_has(request, "vectors_config", ToRest.convert_vectors_config),
        sparse_vectors=sparse,
        sharding_method=_has(request, "sharding_method", ToRest.convert_sharding_method),
        strict_mode_config=_has(request, "strict_mode_config", ToRest.convert_strict_mode_config),
        shard_number=_has(request, "shard_number"),
        replication_factor=_has(request, "replication_factor"),
        write_consistency_factor=_has(request, "write_consistency_factor"),
        on_disk_payload=_has(request, "on_disk_payload"),
        metadata=metadata,
    )
    return store.create(request.collection_name, config)


def _shard_keys(store: Store, request: Any) -> Any:
    keys = store.shard_keys(request.collection_name).shard_keys or []
    shown = [wire.ShardKeyDescription(key=ToGrpc.convert_shard_key(one.key)) for one in keys]
    return wire.ListShardKeysResponse(shard_keys=shown)


_COLLECTIONS: Mapping[str, Callable[[Store, Any], Any]] = {
    "Create": _done(_create),
    "Update": _done(lambda s, r: s.update(r.collection_name, ToRest.convert_update_collection(r))),
    "Delete": _done(lambda s, r: s.delete(r.collection_name)),
    "UpdateAliases": _done(
        lambda s, r: s.change_aliases(
            models.ChangeAliasesOperation(actions=[ToRest.convert_alias_operations(one) for one in r.actions])
        )
    ),
    "Get": lambda s, r: wire.GetCollectionInfoResponse(
        result=ToGrpc.convert_collection_info(s.info(r.collection_name))
    ),
    "List": lambda s, r: wire.ListCollectionsResponse(
        collections=[wire.CollectionDescription(name=name) for name in s.names()]
    ),
    "CollectionExists": lambda s, r: wire.CollectionExistsResponse(
        result=wire.CollectionExists(exists=s.exists(r.collection_name))
    ),
    "ListAliases": lambda s, r: wire.ListAliasesResponse(
        aliases=[ToGrpc.convert_alias_description(one) for one in s.aliases().aliases]
    ),
    "ListShardKeys": _shard_keys,
    "CreateShardKey": lambda s, r: wire.CreateShardKeyResponse(
        result=s.create_shard_key(r.collection_name, ToRest.convert_create_shard_key(r.request))
    ),
}

# Points -----------------------------------------------------------------------------------------------------------


def _changed(change: Callable[[Store, Any], models.UpdateResult]) -> Callable[[Store, Any], Any]:
    def run(store: Store, request: Any) -> Any:
        result = change(store, request)
        if not request.wait:
            result.status = models.UpdateStatus.ACKNOWLEDGED
        return wire.PointsOperationResponse(result=ToGrpc.convert_update_result(result))

    return run


def _upsert(store: Store, request: Any) -> models.UpdateResult:
    points = models.PointsList(
        points=[ToRest.convert_point_struct(one) for one in request.points],
        shard_key=_shard_key(request),
    )
    return store.upsert(request.collection_name, points)


def _delete(store: Store, request: Any) -> models.UpdateResult:
    selector = ToRest.convert_points_selector(request.points)
    selector.shard_key = _shard_key(request)
    return store.delete_points(request.collection_name, selector)


def _set_payload(store: Store, request: Any) -> models.UpdateResult:
    selector = ToRest.convert_points_selector(request.points_selector)
    change = models.SetPayload(
        payload=ToRest.convert_payload(request.payload),
        points=getattr(selector, "points", None),
        filter=getattr(selector, "filter", None),
        shard_key=_shard_key(request),
    )
    return store.set_payload(request.collection_name, change)


def _create_index(store: Store, request: Any) -> models.UpdateResult:
    def kind(value: Any) -> Any:
        return ToRest.convert_payload_schema_type(grpc_field_type_to_payload_schema(value))

    index = models.CreateFieldIndex(field_name=request.field_name, field_schema=_has(request, "field_type", kind))
    return store.create_index(request.collection_name, index)


def _record(record: models.Record) -> Any:
    """Where no payload was asked for, it is empty in gRPC; the converter stumbles over None."""
    return ToGrpc.convert_retrieved_point(record.model_copy(update={"payload": record.payload or {}}))


def _get(store: Store, request: Any) -> Any:
    ids = [ToRest.convert_point_id(one) for one in request.ids]
    found = store.retrieve(request.collection_name, models.PointRequest(ids=ids, **_shown(request)))
    return wire.GetResponse(result=[_record(one) for one in found])


def _scroll(store: Store, request: Any) -> Any:
    page = store.scroll(
        request.collection_name,
        models.ScrollRequest(
            filter=_has(request, "filter", ToRest.convert_filter),
            offset=_has(request, "offset", ToRest.convert_point_id),
            limit=_has(request, "limit"),
            **_shown(request),
        ),
    )
    after = None if page.next_page_offset is None else ToGrpc.convert_extended_point_id(page.next_page_offset)
    return wire.ScrollResponse(result=[_record(one) for one in page.points], next_page_offset=after)


def _count(store: Store, request: Any) -> Any:
    found = store.count(
        request.collection_name,
        models.CountRequest(
            filter=_has(request, "filter", ToRest.convert_filter),
            exact=_has(request, "exact"),
            shard_key=_shard_key(request),
        ),
    )
    return wire.CountResponse(result=ToGrpc.convert_count_result(found))


def _query_batch(store: Store, request: Any) -> Any:
    searches = [ToRest.convert_query_points(one) for one in request.query_points]
    found = store.query_batch(request.collection_name, models.QueryRequestBatch(searches=searches))
    return wire.QueryBatchResponse(
        result=[wire.BatchResult(result=[ToGrpc.convert_scored_point(hit) for hit in one.points]) for one in found]
    )


_POINTS: Mapping[str, Callable[[Store, Any], Any]] = {
    "Upsert": _changed(_upsert),
    "Delete": _changed(_delete),
    "SetPayload": _changed(_set_payload),
    "CreateFieldIndex": _changed(_create_index),
    "Get": _get,
    "Scroll": _scroll,
    "Count": _count,
    "QueryBatch": _query_batch,
}

# The server -------------------------------------------------------------------------------------------------------


class LoopbackGrpc:
    """See the module."""

    def __init__(self, server: LoopbackQdrant) -> None:
        self._owner = server
        # A server of Qdrant's puts no limit of its own on messages.
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._server = grpc.server(ThreadPoolExecutor(max_workers=8), options=unlimited)
        for name, generated, table in (
            ("Collections", collections_service_pb2_grpc, _COLLECTIONS),
            ("Points", points_service_pb2_grpc, _POINTS),
            ("Qdrant", qdrant_pb2_grpc, {"HealthCheck": self._health}),
        ):
            calls = {rpc: self._call(f"/qdrant.{name}/{rpc}", run) for rpc, run in table.items()}
            base, register = (getattr(generated, one) for one in (f"{name}Servicer", f"add_{name}Servicer_to_server"))
            register(type(name, (base,), calls)(), self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> LoopbackGrpc:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(grace=None)

    def _call(self, path: str, run: Callable[[Store, Any], Any]) -> Callable[[Any, Any, Any], Any]:
        def answer(_: Any, request: Any, context: Any) -> Any:
            headers = {name.lower(): str(value) for name, value in context.invocation_metadata()}
            recorded = Recorded("GRPC", path, {}, headers, request.ByteSize(), b"")
            fault = self._owner.next_fault(recorded)
            result, refused = None, None
            if fault is None or fault.carried_out:
                try:
                    self._owner.check_key(recorded, reads=path.rsplit("/", 1)[1].startswith(_READS))
                    with self._owner.store.lock:
                        result = run(self._owner.store, request)
                except Denied as denied:
                    refused = Refused(401, str(denied))
                except Refused as error:
                    refused = error
                except Exception as error:
                    refused = Refused(500, f"Service internal error: the loopback server failed: {error!r}")
            if fault is not None:
                refused = Refused(503, "Socket closed") if fault.drop else fault.refusal()
            if refused is None:
                return result
            if refused.retry_after is not None:
                context.set_trailing_metadata((("retry-after", str(refused.retry_after)),))
            context.abort(_CODES.get(refused.status, grpc.StatusCode.INTERNAL), refused.reason)

        return answer

    def _health(self, store: Store, request: Any) -> Any:
        return wire.HealthCheckReply(title="qdrant - vector search engine", version=self._owner.version)
