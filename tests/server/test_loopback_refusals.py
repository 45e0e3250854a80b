"""The loopback server refuses what a server refuses, in its words, and fails on demand."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, cast

import numpy as np
import pytest
from loopback_qdrant import LoopbackQdrant
from loopback_samples import IDS, QUERIES, params, points, query, refused, remote, topic
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

BEST = [[4 * number for number in row] for row in QUERIES[0]]


@pytest.fixture
def server() -> Iterator[LoopbackQdrant]:
    with LoopbackQdrant() as running:
        yield running


@pytest.fixture
def client(server: LoopbackQdrant) -> Iterator[QdrantClient]:
    opened = QdrantClient(url=server.url, check_compatibility=False, timeout=10)
    yield opened
    opened.close()


@pytest.fixture
def filled(client: QdrantClient) -> QdrantClient:
    client.create_collection("c", vectors_config=params())
    client.upsert("c", points())
    return client


class TestRefusals:
    @pytest.mark.parametrize("bad", [-1, "art_92", "1"])
    def test_ids_that_are_none(self, filled: QdrantClient, bad: Any) -> None:
        wanted = f"Format error in JSON body: value {bad} is not a valid point ID"
        assert refused(400, lambda: filled.upsert("c", points([bad]))).startswith(wanted)
        assert refused(400, lambda: filled.retrieve("c", [bad])).startswith(wanted)
        assert refused(400, lambda: filled.delete("c", models.PointIdsList(points=[bad]))).startswith(wanted)
        assert refused(400, lambda: filled.scroll("c", offset=bad)).startswith(wanted)
        has_id = models.Filter(must_not=[models.Filter(should=[models.HasIdCondition(has_id=[bad])])])
        assert refused(400, lambda: filled.count("c", has_id)).startswith(wanted)

    def test_vectors_of_another_dimension(self, filled: QdrantClient) -> None:
        wanted = "Wrong input: Vector dimension error: expected dim: 4, got 2"
        wrong = models.PointStruct(id=1, vector={"colbert": [[1.0, 2.0]]})
        assert refused(400, lambda: filled.upsert("c", [*points([2]), wrong])) == wanted
        assert refused(400, lambda: filled.query_batch_points("c", [query(query=[[1.0, 2.0]])])) == wanted
        assert filled.count("c").count == 12, "all points of a request or none"

    def test_vectors_of_another_name(self, filled: QdrantClient) -> None:
        wanted = "Wrong input: Not existing vector name error: x"
        assert refused(400, lambda: filled.upsert("c", [models.PointStruct(id=1, vector={"x": [[1.0] * 4]})])) == wanted
        assert refused(400, lambda: filled.query_batch_points("c", [query(using="x")])) == wanted

    def test_a_multivector_that_is_too_large(self, client: QdrantClient) -> None:
        client.create_collection("c", vectors_config=params(size=1024))
        rows: Any = np.ones((1024, 1024), dtype=np.int8).tolist()  # integers travel in fewer bytes
        point = models.PointStruct.model_construct(id=2, vector={"colbert": rows})
        small = models.PointStruct(id=1, vector={"colbert": [[1.0] * 1024]})
        assert refused(422, lambda: client.upsert("c", [small, point])) == (
            "Validation error in JSON body: [points[1].vector.?.data: Total size of all vectors (1048576) must be "
            "less than 1048576]"
        )
        point.vector = {"colbert": rows[1:]}
        client.upsert("c", [point])
        assert client.count("c").count == 1

    def test_a_body_that_is_too_large(self) -> None:
        for status in (400, 413):
            with LoopbackQdrant(max_body_bytes=2000, oversize_status=status) as server:
                client = QdrantClient(url=server.url, check_compatibility=False)
                client.create_collection("c", vectors_config=params())
                reason = refused(status, lambda: client.upsert("c", points()))  # noqa: B023
                size = server.requests[-1].size
                assert size > 2000
                assert reason == (
                    f"Payload error: JSON payload ({size} bytes) is larger than allowed (limit: 2000 bytes)."
                )
                client.upsert("c", points(IDS[:2]))

    def test_bodies_of_another_form(self, server: LoopbackQdrant, filled: QdrantClient) -> None:
        http = remote(filled).http.client
        for method, path, body in (
            ("POST", "/collections/c/points/query", '{"limit": "many"}'),
            ("POST", "/collections/c/points/scroll", '{"limits": 3}'),
            ("POST", "/collections/c/points/delete", "{}"),
            ("PUT", "/collections/c/points", '{"points": [{"id": 1.5, "vector": {}}]}'),
            ("PUT", "/collections/e", "no json"),
        ):
            reason = refused(400, lambda: http.request(type_=None, method=method, url=path, content=body))  # noqa: B023
            assert reason.startswith("Format error in JSON body: ")
        assert refused(422, lambda: filled.scroll("c", limit=0)).startswith("Validation error in JSON body: [limit: ")
        assert refused(422, lambda: filled.create_collection("e", vectors_config=params(), shard_number=0))
        never = "/collections/c/points/count?timeout=0"
        reason = refused(422, lambda: http.request(type_=None, method="POST", url=never, content="{}"))
        assert reason.startswith("Validation error in query parameters: ")
        assert refused(400, lambda: filled.upsert("c", points([3]), ordering=cast(Any, "soon"))).startswith(
            "Deserialize error"
        )

    def test_keys(self) -> None:
        with LoopbackQdrant(api_key="secret", read_only_api_key="look") as server, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = {
                key: QdrantClient(url=server.url, api_key=key, check_compatibility=False)
                for key in ("secret", "look", "wrong", None)
            }
            opened["secret"].create_collection("c", vectors_config=params())
            assert opened["look"].collection_exists("c")
            assert opened["look"].query_batch_points("c", [query()])[0].points == []
            reason = refused(403, lambda: opened["look"].upsert("c", points()))
            assert reason == "Forbidden: Global manage access is required"
            for key, wanted in (
                ("wrong", "Invalid API key or JWT"),
                (None, "Must provide an API key or an Authorization bearer token"),
            ):
                with pytest.raises(UnexpectedResponse) as caught:
                    opened[key].collection_exists("c")
                assert (caught.value.status_code, caught.value.content.decode()) == (401, wanted)
                assert opened[key].info().version, "the version is no secret"
            bearer = QdrantClient(url=server.url, auth_token_provider=lambda: "secret", check_compatibility=False)
            assert bearer.collection_exists("c")


class TestShardKeys:
    @pytest.fixture
    def sharded(self, client: QdrantClient) -> QdrantClient:
        client.create_collection("c", vectors_config=params(), sharding_method=models.ShardingMethod.CUSTOM)
        client.create_shard_key("c", "one")
        client.create_shard_key("c", 2)
        client.upsert("c", points(IDS[:6]), shard_key_selector="one")
        client.upsert("c", [models.PointStruct(id=IDS[0], vector={"colbert": BEST})], shard_key_selector=2)
        return client

    def test_they_are_listed_and_dropped(self, sharded: QdrantClient) -> None:
        assert [one.key for one in sharded.list_shard_keys("c").shard_keys or []] == ["one", 2]
        reason = refused(400, lambda: sharded.create_shard_key("c", "one"))
        assert reason == 'Bad request: Sharding key "one" already exists for collection c'
        assert sharded.delete_shard_key("c", "one")
        assert [one.key for one in sharded.list_shard_keys("c").shard_keys or []] == [2]
        assert sharded.count("c").count == 1
        assert "does not exist" in refused(400, lambda: sharded.delete_shard_key("c", "one"))

    def test_an_id_may_be_in_each(self, sharded: QdrantClient) -> None:
        assert sharded.count("c").count == 7
        assert sharded.count("c", shard_key_selector="one").count == 6
        [one] = sharded.retrieve("c", [IDS[0]], with_vectors=True, shard_key_selector=2)
        assert (one.vector, one.shard_key) == ({"colbert": BEST}, 2)
        assert len(sharded.retrieve("c", [IDS[0]])) == 2
        sharded.delete("c", models.PointIdsList(points=[IDS[0]]), shard_key_selector=2)
        assert [one.shard_key for one in sharded.retrieve("c", [IDS[0]])] == ["one"]

    def test_reads_see_the_shards_they_name(self, sharded: QdrantClient) -> None:
        both, second = (
            sharded.query_batch_points("c", [query(shard_key=key, limit=9)])[0].points for key in (None, [2])
        )
        assert [one.id for one in second] == [IDS[0]]
        assert len(both) == 7
        assert both[0].shard_key == 2, "the best of all is in the second shard"
        assert [one.score for one in both] == sorted((one.score for one in both), reverse=True)
        few = sharded.query_batch_points("c", [query(limit=2, offset=1)])[0].points
        assert few == both[1:3]
        page, after = sharded.scroll("c", limit=3)
        assert [one.id for one in page] == [IDS[0], IDS[0], IDS[1]]
        rest, end = sharded.scroll("c", limit=9, offset=after)
        assert ([one.id for one in rest], end) == (IDS[2:6], None)
        fallback = models.ShardKeyWithFallback(target="new", fallback="one")
        assert sharded.count("c", shard_key_selector=fallback).count == 6

    def test_writes_name_one(self, sharded: QdrantClient) -> None:
        wanted = "Wrong input: Shard key not specified"
        assert refused(400, lambda: sharded.upsert("c", points())) == wanted
        assert refused(400, lambda: sharded.delete("c", models.PointIdsList(points=IDS[:1]))) == wanted
        unknown = refused(400, lambda: sharded.upsert("c", points(), shard_key_selector="x"))
        assert unknown == 'Wrong input: Shard key "x" not found'
        unknown = refused(400, lambda: sharded.query_batch_points("c", [query(shard_key=7)]))
        assert unknown == "Bad request: Shard key 7 not found"
        neither = models.ShardKeyWithFallback(target="x", fallback="y")
        assert "Neither target shard key" in refused(404, lambda: sharded.count("c", shard_key_selector=neither))

    def test_they_are_for_custom_sharding(self, filled: QdrantClient) -> None:
        assert "Auto sharding method" in refused(400, lambda: filled.create_shard_key("c", "one"))
        assert "not found" in refused(400, lambda: filled.upsert("c", points(), shard_key_selector="one"))
        assert filled.list_shard_keys("c").shard_keys == []


class TestStrictMode:
    @pytest.fixture
    def strict(self, client: QdrantClient) -> Callable[..., QdrantClient]:
        def create(vectors: dict[str, models.VectorParams] | None = None, **limits: Any) -> QdrantClient:
            config = models.StrictModeConfig(enabled=True, **limits)
            client.create_collection("c", vectors_config=vectors or params(), strict_mode_config=config)
            return client

        return create

    def test_a_filter_for_reading_needs_an_index(self, strict: Callable[..., QdrantClient]) -> None:
        client = strict(unindexed_filtering_retrieve=False)
        client.upsert("c", points())
        wanted = (
            'Bad request: Index required but not found for "metadata.topic" of one of the following types: '
            "[keyword]. Help: Create an index for this key or use a different filter."
        )
        assert refused(400, lambda: client.query_batch_points("c", [query(filter=topic("t1"))])) == wanted
        assert refused(400, lambda: client.scroll("c", topic("t1"))) == wanted
        assert refused(400, lambda: client.count("c", topic("t1"))) == wanted
        client.delete("c", models.FilterSelector(filter=topic("t0")))
        client.create_payload_index("c", "metadata.topic", models.PayloadSchemaType.INTEGER)
        assert refused(400, lambda: client.count("c", topic("t1"))) == wanted, "an index of another kind is none"
        client.create_payload_index("c", "metadata.topic", models.PayloadSchemaType.KEYWORD)
        assert client.count("c", topic("t1")).count == 4

    def test_a_filter_for_changing_needs_an_index(self, strict: Callable[..., QdrantClient]) -> None:
        client = strict(unindexed_filtering_update=False)
        client.upsert("c", points())
        assert client.count("c", topic("t1")).count == 4
        selector = models.FilterSelector(filter=topic("t1"))
        assert "Index required but not found" in refused(400, lambda: client.delete("c", selector))
        assert "Index required but not found" in refused(400, lambda: client.set_payload("c", {}, topic("t1")))
        client.create_payload_index("c", "metadata.topic", models.PayloadSchemaType.KEYWORD)
        client.delete("c", selector)
        assert client.count("c").count == 8

    @pytest.mark.parametrize(
        ("condition", "kinds"),
        [
            ({"match": models.MatchValue(value=3)}, "integer"),
            ({"match": models.MatchValue(value=True)}, "bool"),
            ({"match": models.MatchValue(value=IDS[0])}, "keyword, uuid"),
            ({"match": models.MatchAny(any=["a", IDS[0]])}, "keyword"),
            ({"match": models.MatchExcept(**{"except": [1]})}, "integer"),
            ({"match": models.MatchText(text="a b")}, "text"),
            ({"range": models.Range(gte=2)}, "float, integer"),
            ({"range": models.DatetimeRange(gte=datetime(2024, 1, 1))}, "datetime"),
            ({"geo_radius": models.GeoRadius(center=models.GeoPoint(lat=1, lon=1), radius=1)}, "geo"),
            ({"is_empty": True}, "bool, datetime, float, geo, integer, keyword, text, uuid"),
        ],
    )
    def test_each_condition_names_the_indexes_that_serve_it(
        self, strict: Callable[..., QdrantClient], condition: dict[str, Any], kinds: str
    ) -> None:
        client = strict(unindexed_filtering_retrieve=False)
        inner = models.Filter(should=[models.FieldCondition(key="year", **condition)])
        nested = models.NestedCondition(nested=models.Nested(key="metadata", filter=inner))
        wanted = f'"metadata[].year" of one of the following types: [{kinds}].'
        assert wanted in refused(400, lambda: client.count("c", models.Filter(must=[nested])))

    def test_numbers_have_limits(self, strict: Callable[..., QdrantClient]) -> None:
        client = strict(
            max_query_limit=6,
            upsert_max_batchsize=6,
            search_max_batchsize=2,
            max_timeout=8,
            filter_max_conditions=1,
            condition_max_size=2,
            max_points_count=7,
            search_max_hnsw_ef=10,
            multivector_config={"colbert": models.StrictModeMultivector(max_vectors=3)},
        )
        assert refused(400, lambda: client.query_batch_points("c", [query(limit=7)])) == (
            'Bad request: Limit exceeded 7 > 6 for "limit". Help: Reduce the "limit" parameter to or below 6.'
        )
        assert "10 > 6" in refused(
            400, lambda: remote(client).http.search_api.query_points("c", query_request=query(limit=None))
        )
        assert "7 > 6" in refused(400, lambda: client.scroll("c", limit=7))
        assert '12 > 6 for "upsert limit"' in refused(400, lambda: client.upsert("c", points()))
        assert '3 > 2 for "search batch size"' in refused(400, lambda: client.query_batch_points("c", [query()] * 3))
        assert '9 > 8 for "timeout"' in refused(400, lambda: client.count("c", timeout=9))
        two = models.Filter(must=[*topic("a").must, *topic("b").must])  # type: ignore[misc]
        assert "Filter condition limit reached (2 > 1)" in refused(400, lambda: client.count("c", two))
        many = models.Filter(must=[models.FieldCondition(key="a", match=models.MatchAny(any=["a", "b", "c"]))])
        assert "Condition size limit reached (3 > 2)" in refused(400, lambda: client.count("c", many))
        deep = query(params=models.SearchParams(hnsw_ef=11))
        assert '11 > 10 for "hnsw_ef"' in refused(400, lambda: client.query_batch_points("c", [deep]))
        assert refused(400, lambda: client.upsert("c", points(IDS[:3]))) == (
            "Bad request: Multivector 'colbert' has a limit of 3 vectors, but 4 were provided!"
        )
        short = [points()[number] for number in (0, 1, 3, 4, 6, 7, 9)]
        client.upsert("c", short[:6])
        client.upsert("c", short[6:])
        assert "Max points count limit of 7 reached!" in refused(400, lambda: client.upsert("c", short[:1]))
        assert len(client.query_batch_points("c", [query(limit=6), query()])[0].points) == 6

    def test_without_exact_search_a_vector_without_a_graph_cannot_be_searched(
        self, strict: Callable[..., QdrantClient]
    ) -> None:
        client = strict(params(hnsw_config=models.HnswConfigDiff(m=0)), search_allow_exact=False)
        client.upsert("c", points())
        assert refused(400, lambda: client.query_batch_points("c", [query()])).startswith(
            "Bad request: Request is forbidden on 'colbert' because global vector indexing is disabled "
            "(hnsw_config.m = 0). Help: "
        )
        assert "Exact search disabled!" in refused(400, lambda: client.count("c", exact=True))
        assert client.count("c", exact=False).count == 12
        client.update_collection(
            "c", vectors_config={"colbert": models.VectorParamsDiff(hnsw_config=models.HnswConfigDiff(m=16))}
        )
        assert client.query_batch_points("c", [query()])[0].points

    def test_it_may_be_off(self, client: QdrantClient) -> None:
        config = models.StrictModeConfig(enabled=False, max_query_limit=1, unindexed_filtering_retrieve=False)
        client.create_collection("c", vectors_config=params(), strict_mode_config=config)
        client.upsert("c", points())
        assert len(client.query_batch_points("c", [query(filter=topic("t1"))])[0].points) == 4

    def test_a_server_may_have_one_for_all(self) -> None:
        default = models.StrictModeConfig(enabled=True, max_query_limit=3, upsert_max_batchsize=2)
        with LoopbackQdrant(strict_mode=default) as server:
            client = QdrantClient(url=server.url, check_compatibility=False)
            client.create_collection(
                "c", vectors_config=params(), strict_mode_config=models.StrictModeConfig(upsert_max_batchsize=20)
            )
            client.upsert("c", points())
            assert "5 > 3" in refused(400, lambda: client.query_batch_points("c", [query()]))


class TestFailuresOnDemand:
    def test_a_status(self, server: LoopbackQdrant, filled: QdrantClient) -> None:
        server.fail(times=2, status=503)
        for _ in range(2):
            assert "temporarily unavailable" in refused(503, lambda: filled.count("c"))
        assert filled.count("c").count == 12

    def test_a_page_of_a_proxy(self, server: LoopbackQdrant, filled: QdrantClient) -> None:
        server.fail(status=502)
        with pytest.raises(UnexpectedResponse, match="502") as caught:
            filled.count("c")
        assert caught.value.content.startswith(b"<html>")

    def test_no_answer(self, server: LoopbackQdrant, filled: QdrantClient) -> None:
        server.fail(times=1, drop=True, path_contains="/points/delete")
        assert filled.count("c").count == 12
        with pytest.raises(ResponseHandlingException) as caught:
            filled.delete("c", models.PointIdsList(points=IDS[:1]))
        assert "disconnected" in str(caught.value.source)
        assert filled.count("c").count == 12
        server.fail(times=1, drop=True, carried_out=True)
        with pytest.raises(ResponseHandlingException):
            filled.delete("c", models.PointIdsList(points=IDS[:1]))
        assert filled.count("c").count == 11

    def test_a_rate_limit(self, server: LoopbackQdrant, filled: QdrantClient) -> None:
        server.fail(times=1, status=429, retry_after=3)
        with pytest.raises(ResourceExhaustedResponse, match="Rate limiting exceeded") as caught:
            filled.count("c")
        assert caught.value.retry_after_s == 3

    def test_a_delay(self, server: LoopbackQdrant) -> None:
        client = QdrantClient(url=server.url, check_compatibility=False, timeout=1)
        server.delay(1.4, times=1, path_contains="/exists")
        started = time.perf_counter()
        with pytest.raises(ResponseHandlingException) as caught:
            client.collection_exists("c")
        assert "timed out" in str(caught.value.source)
        assert 0.9 < time.perf_counter() - started < 1.4
        server.delay(5)
        server.heal()
        assert client.collection_exists("c") is False

    def test_it_must_be_one_kind(self, server: LoopbackQdrant) -> None:
        with pytest.raises(ValueError, match="either a status or drop"):
            server.fail(status=500, drop=True)
