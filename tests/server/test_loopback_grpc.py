"""The loopback server answers over gRPC what it answers over REST, and refuses with gRPC's codes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from loopback_grpc import LoopbackGrpc
from loopback_qdrant import LoopbackQdrant
from loopback_samples import IDS, params, points, query, topic
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse

from jcv2_plugin.engines.retries import Retry, translated_errors
from jcv2_plugin.errors import CollectionAccessError, CollectionNotFoundError, ServerBusyError, ServerLimitError


@pytest.fixture
def server() -> Iterator[LoopbackQdrant]:
    with LoopbackQdrant() as running:
        yield running


@pytest.fixture
def port(server: LoopbackQdrant) -> Iterator[int]:
    with LoopbackGrpc(server) as wire:
        yield wire.port


@pytest.fixture
def rest(server: LoopbackQdrant) -> Iterator[QdrantClient]:
    opened = QdrantClient(url=server.url, check_compatibility=False)
    yield opened
    opened.close()


@pytest.fixture
def client(server: LoopbackQdrant, port: int) -> Iterator[QdrantClient]:
    opened = QdrantClient(url=server.url, grpc_port=port, prefer_grpc=True, check_compatibility=False, timeout=10)
    opened.create_collection("c", vectors_config=params(hnsw_config=models.HnswConfigDiff(m=0)), metadata={"a": [None]})
    opened.upsert("c", points())
    yield opened
    opened.close()


def plain(value: Any, digits: int = 5) -> Any:
    """For comparing: numbers travel as 32-bit floats."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return round(value, digits) if isinstance(value, float) else value


class TestAnswers:
    @pytest.mark.parametrize(
        "read",
        [
            lambda c: c.query_batch_points("c", [query(0), query(1, filter=topic("t1"), offset=1)]),
            lambda c: c.query_batch_points("c", [query(2, score_threshold=1.0, with_vector=True)]),
            lambda c: c.query_points("c", IDS[4], using="colbert", limit=3).points,
            lambda c: c.retrieve("c", [IDS[3], IDS[0]], with_vectors=True),
            lambda c: c.scroll("c", limit=5),
            lambda c: [one.id for one in c.scroll("c", limit=5, with_payload=False)[0]],
            lambda c: c.scroll("c", limit=3, offset=IDS[7], scroll_filter=topic("t2"), with_payload=["metadata.year"]),
            lambda c: c.count("c", topic("t0")),
            lambda c: c.collection_exists("c"),
            lambda c: c.collection_exists("d"),
            lambda c: c.get_collection("c").config.params.vectors,
            lambda c: c.get_collection("c").config.metadata,
            lambda c: c.get_collections(),
            lambda c: c.delete_collection("d"),
        ],
    )
    def test_reads(self, client: QdrantClient, rest: QdrantClient, read: Callable[[QdrantClient], Any]) -> None:
        assert plain(read(client)) == plain(read(rest))

    def test_changes(self, server: LoopbackQdrant, client: QdrantClient, rest: QdrantClient) -> None:
        client.delete("c", models.PointIdsList(points=IDS[:1]))
        client.delete("c", models.FilterSelector(filter=topic("t1")))
        client.set_payload("c", {"new": 1}, [IDS[2]])
        client.overwrite_payload("c", {"only": 1}, [IDS[3]])
        assert rest.count("c").count == 7
        assert rest.retrieve("c", [IDS[2]])[0].payload == {**(points()[2].payload or {}), "new": 1}
        assert rest.retrieve("c", [IDS[3]])[0].payload == {"only": 1}
        assert {one.path for one in server.sent("GRPC")} >= {"/qdrant.Points/Upsert", "/qdrant.Points/Delete"}
        assert client.upsert("c", points(IDS[:1]), wait=False).status == models.UpdateStatus.ACKNOWLEDGED

    def test_collections(self, client: QdrantClient, rest: QdrantClient) -> None:
        client.create_payload_index("c", "metadata.topic", models.PayloadSchemaType.KEYWORD)
        tenant = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
        client.create_payload_index("c", "group", tenant)
        schema = rest.get_collection("c").payload_schema
        assert [str(one.data_type) for one in schema.values()] == ["keyword", "keyword"]
        assert schema["group"].params == tenant
        client.delete_payload_index("c", "group")
        client.update_collection("c", metadata={"b": 2})
        assert list(client.get_collection("c").payload_schema) == ["metadata.topic"]
        assert rest.get_collection("c").config.metadata == {"a": [None], "b": 2}
        create = models.CreateAlias(collection_name="c", alias_name="x")
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
        assert client.get_aliases() == rest.get_aliases() == client.get_collection_aliases("c")
        assert client.count("x").count == 12

    def test_shard_keys(self, client: QdrantClient) -> None:
        client.create_collection("s", vectors_config=params(), sharding_method=models.ShardingMethod.CUSTOM)
        assert client.create_shard_key("s", "one")
        assert client.create_shard_key("s", 2)
        client.upsert("s", points(), shard_key_selector="one")
        client.upsert("s", points(IDS[:1]), shard_key_selector=2)
        assert [client.count("s", shard_key_selector=key).count for key in ("one", 2, None)] == [12, 1, 13]
        assert [one.key for one in client.list_shard_keys("s").shard_keys or []] == ["one", 2]
        assert client.delete_shard_key("s", "one")
        assert client.count("s").count == 1

    def test_it_takes_messages_that_rest_does_not(self) -> None:
        with LoopbackQdrant(max_body_bytes=500) as server, LoopbackGrpc(server) as wire:
            client = QdrantClient(url=server.url, grpc_port=wire.port, prefer_grpc=True, check_compatibility=False)
            client.create_collection("c", vectors_config=params())
            client.upsert("c", points())
            assert server.requests[-1].size > 500
            assert client.count("c").count == 12


class TestRefusals:
    def test_codes(self, client: QdrantClient) -> None:
        for code, act in (
            ("NOT_FOUND", lambda: client.count("x")),
            ("ALREADY_EXISTS", lambda: client.create_collection("c", vectors_config=params())),
            ("INVALID_ARGUMENT", lambda: client.query_batch_points("c", [query(query=[[1.0, 2.0]])])),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                act()
            assert caught.value.code() == grpc.StatusCode[code]

    def test_they_are_translated_as_those_of_rest(self, server: LoopbackQdrant, client: QdrantClient) -> None:
        limits = models.StrictModeConfig(enabled=True, unindexed_filtering_retrieve=False, max_query_limit=6)
        client.update_collection("c", strict_mode_config=limits)
        with pytest.raises(ServerLimitError, match="create_payload_index"), translated_errors(server.url):
            client.query_batch_points("c", [query(filter=topic("t1"))])
        with pytest.raises(ServerLimitError, match="max_query_limit=6"), translated_errors(server.url):
            client.scroll("c", limit=7)
        with pytest.raises(CollectionNotFoundError, match="`x` doesn't exist"), translated_errors(server.url):
            client.get_collection("x")
        server.fail(status=429, retry_after=3)
        with pytest.raises(ServerBusyError, match="in 3 seconds"), translated_errors(server.url):
            client.count("c")

    def test_keys(self) -> None:
        with LoopbackQdrant(api_key="secret") as server, LoopbackGrpc(server) as wire, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for key in ("wrong", None):
                client = QdrantClient(
                    url=server.url, grpc_port=wire.port, prefer_grpc=True, api_key=key, check_compatibility=False
                )
                with pytest.raises(CollectionAccessError, match="QDRANT_API_KEY"), translated_errors(server.url):
                    client.get_collections()
            client = QdrantClient(
                url=server.url, grpc_port=wire.port, prefer_grpc=True, api_key="secret", check_compatibility=False
            )
            assert client.get_collections().collections == []

    def test_failures_on_demand(self, server: LoopbackQdrant, client: QdrantClient) -> None:
        server.fail(status=429, retry_after=3, path_contains="Points/Count")
        assert client.collection_exists("c")
        with pytest.raises(ResourceExhaustedResponse) as caught:
            client.count("c")
        assert caught.value.retry_after_s == 3
        server.fail(status=503)
        server.fail(drop=True, carried_out=True)
        Retry(first_wait=0.001, longest_wait=0.002).call(client.upsert, "c", points([99]))
        assert len(server.sent("GRPC", "Points/Upsert")) == 4, "one of the fixture, two that failed, one that did not"
        assert client.count("c").count == 13
