"""The loopback server answers as local mode does, and refuses what a server refuses, in its words."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from loopback_grpc import LoopbackGrpc
from loopback_qdrant import LoopbackQdrant
from loopback_samples import IDS, QUERIES, VECTORS, filled_client, params, points, query, refused, topic
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse


@pytest.fixture
def server() -> Iterator[LoopbackQdrant]:
    with LoopbackQdrant() as running:
        yield running


@pytest.fixture
def client(server: LoopbackQdrant) -> Iterator[QdrantClient]:
    yield from filled_client(server)


@pytest.fixture
def over_grpc(server: LoopbackQdrant, client: QdrantClient) -> Iterator[QdrantClient]:
    """The same collection."""
    with LoopbackGrpc(server) as wire:
        opened = QdrantClient(url=server.url, grpc_port=wire.port, prefer_grpc=True, check_compatibility=False)
        yield opened
        opened.close()


@pytest.fixture
def plain() -> QdrantClient:
    local = QdrantClient(":memory:")
    local.create_collection("c", vectors_config=params())
    local.upsert("c", points())
    return local


def rounded(value: Any, digits: int = 5) -> Any:
    """For comparing: over gRPC numbers travel as 32-bit floats."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return round(value, digits) if isinstance(value, float) else value


def test_reads_are_those_of_local_mode(client: QdrantClient, over_grpc: QdrantClient, plain: QdrantClient) -> None:
    reads: list[Callable[[QdrantClient], Any]] = [
        lambda c: c.query_batch_points("c", [query(0), query(1, filter=topic("t1"), offset=1)]),
        lambda c: c.query_batch_points("c", [query(2, score_threshold=1.0, with_vector=True)]),
        lambda c: c.retrieve("c", [IDS[3], IDS[0]], with_vectors=True),
        lambda c: c.scroll("c", limit=100, scroll_filter=topic("t2"), with_vectors=["colbert"]),
        lambda c: c.scroll("c", limit=3, offset=IDS[7]),
        lambda c: c.count("c", topic("t0")),
        lambda c: c.collection_exists("d"),
        lambda c: c.get_collections(),
        lambda c: c.delete_collection("d"),
    ]
    for read in reads:
        assert read(client) == read(plain)
        assert rounded(read(over_grpc)) == rounded(read(plain))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.delete("c", models.PointIdsList(points=[IDS[0], IDS[0][:-2] + "77"])),
        lambda c: c.delete("c", models.FilterSelector(filter=topic("t1"))),
        lambda c: c.set_payload("c", {"new": 1}, [IDS[1]]),
        lambda c: c.upsert("c", points([IDS[5]])),
    ],
)
@pytest.mark.parametrize("protocol", ["client", "over_grpc"])
def test_changes_are_those_of_local_mode(
    request: pytest.FixtureRequest, plain: QdrantClient, protocol: str, change: Callable[[QdrantClient], Any]
) -> None:
    client = request.getfixturevalue(protocol)
    assert change(client).status == models.UpdateStatus.COMPLETED
    change(plain)
    after = [rounded(one.scroll("c", limit=100, with_vectors=True)) for one in (client, plain)]
    assert after[0] == after[1]


def test_halves_are_kept_as_halves(client: QdrantClient) -> None:
    client.create_collection("h", vectors_config=params(datatype=models.Datatype.FLOAT16))
    client.upsert("h", points(IDS[:1]))
    [stored] = client.retrieve("h", IDS[:1], with_vectors=True)
    assert isinstance(stored.vector, dict)
    assert stored.vector["colbert"] == np.asarray(VECTORS[0], dtype=np.float16).tolist() != VECTORS[0]


@pytest.mark.parametrize("protocol", ["client", "over_grpc"])
def test_collections_are_described_as_they_were_created(request: pytest.FixtureRequest, protocol: str) -> None:
    client = request.getfixturevalue(protocol)
    vectors = params(datatype=models.Datatype.FLOAT16, hnsw_config=models.HnswConfigDiff(m=0), on_disk=True)
    metadata = {"jcv2": {"dim": 4, "revision": None, "deep": [{"a": None}]}}
    client.create_collection(
        "d",
        vectors_config=vectors,
        sparse_vectors_config={"words": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        shard_number=3,
        replication_factor=2,
        on_disk_payload=False,
        strict_mode_config=models.StrictModeConfig(enabled=True, max_query_limit=7),
        metadata=metadata,
    )
    client.create_payload_index("d", "metadata.topic", models.PayloadSchemaType.KEYWORD)
    info = client.get_collection("d")
    assert info.config.params.vectors == vectors
    assert info.config.params.sparse_vectors == {"words": models.SparseVectorParams(modifier=models.Modifier.IDF)}
    assert (info.config.params.shard_number, info.config.params.replication_factor) == (3, 2)
    assert info.config.params.on_disk_payload is False
    assert info.config.strict_mode_config == models.StrictModeConfigOutput(enabled=True, max_query_limit=7)
    assert info.config.metadata == metadata
    assert {key: str(one.data_type) for key, one in info.payload_schema.items()} == {"metadata.topic": "keyword"}


@pytest.mark.parametrize("protocol", ["client", "over_grpc"])
def test_aliases_change_all_at_once_and_delete_nothing(request: pytest.FixtureRequest, protocol: str) -> None:
    client = request.getfixturevalue(protocol)
    client.create_collection("d", vectors_config=params())

    def point(alias: str, target: str) -> models.CreateAliasOperation:
        create = models.CreateAlias(collection_name=target, alias_name=alias)
        return models.CreateAliasOperation(create_alias=create)

    client.update_collection_aliases([point("a", "c")])
    assert client.count("a").count == 12
    with pytest.raises((UnexpectedResponse, grpc.RpcError)):
        client.update_collection_aliases([point("a", "d"), point("b", "nowhere")])
    assert [one.collection_name for one in client.get_aliases().aliases] == ["c"]
    delete = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name="a"))
    client.update_collection_aliases([delete, point("a", "d")])
    assert client.count("a").count == 0
    assert client.delete_collection("a") is False
    assert client.delete_collection("d") is True
    assert not client.collection_exists("a")


@pytest.mark.parametrize(
    ("status", "act", "reason"),
    [
        (400, lambda c: c.upsert("c", points([-1])), "Format error in JSON body: value -1 is not a valid point ID"),
        (400, lambda c: c.retrieve("c", ["art"]), "Format error in JSON body: value art is not a valid point ID"),
        (400, lambda c: c.query_batch_points("c", [query(query=[[1.0, 2.0]])]), "Wrong input: Vector dimension error"),
        (400, lambda c: c.query_batch_points("c", [query(using="x")]), "Wrong input: Not existing vector name error:"),
        (404, lambda c: c.count("x"), "Not found: Collection `x` doesn't exist!"),
        (409, lambda c: c.create_collection("c", vectors_config=params()), "Wrong input: Collection `c` already"),
        (422, lambda c: c.scroll("c", limit=0), "Validation error in JSON body: [limit: value 0 invalid"),
        (400, lambda c: c.create_shard_key("c", "x"), 'Bad request: Shard Key "x" cannot be created with Auto'),
        (400, lambda c: c.upsert("c", points(), shard_key_selector="x"), 'Wrong input: Shard key "x" not found'),
        (
            422,
            lambda c: c.update_collection("c", strict_mode_config=models.StrictModeConfig(max_query_limit=0)),
            "Validation error in JSON body: [strict_mode_config.max_query_limit: value 0 invalid, must be 1 or larger]",
        ),
        (501, lambda c: c.facet("c", "metadata.topic"), "The loopback server has no POST /collections/c/facet"),
    ],
)  # fmt: skip
def test_refusals(client: QdrantClient, status: int, act: Callable[[QdrantClient], Any], reason: str) -> None:
    assert refused(status, lambda: act(client)).startswith(reason)


def test_a_multivector_that_is_too_large(client: QdrantClient) -> None:
    client.create_collection("wide", vectors_config=params(size=1024))
    rows: Any = np.ones((1024, 1024), dtype=np.int8).tolist()  # integers travel in fewer bytes
    point = models.PointStruct.model_construct(id=2, vector={"colbert": rows})
    wanted = "Total size of all vectors (1048576) must be less than 1048576"
    assert wanted in refused(422, lambda: client.upsert("wide", [point]))


def test_grpc_has_codes_of_its_own(server: LoopbackQdrant, over_grpc: QdrantClient) -> None:
    for code, act in (
        ("NOT_FOUND", lambda: over_grpc.count("x")),
        ("ALREADY_EXISTS", lambda: over_grpc.create_collection("c", vectors_config=params())),
        ("INVALID_ARGUMENT", lambda: over_grpc.query_batch_points("c", [query(query=[[1.0, 2.0]])])),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            act()
        assert caught.value.code() == grpc.StatusCode[code]
    server.fail(status=429, retry_after=3)
    with pytest.raises(ResourceExhaustedResponse) as limited:
        over_grpc.count("c")
    assert limited.value.retry_after_s == 3


def test_keys() -> None:
    with LoopbackQdrant(api_key="secret", read_only_api_key="look") as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def opened(key: str | None) -> QdrantClient:
            return QdrantClient(url=server.url, api_key=key, check_compatibility=False)

        opened("secret").create_collection("c", vectors_config=params())
        assert opened("look").query_batch_points("c", [query()])[0].points == []
        reason = refused(403, lambda: opened("look").upsert("c", points()))
        assert reason == "Forbidden: Global manage access is required"
        for key, wanted in (("wrong", "Invalid API key or JWT"), (None, "Must provide an API key or an Authorization")):
            with pytest.raises(UnexpectedResponse) as caught:
                opened(key).collection_exists("c")
            assert (caught.value.status_code, caught.value.content.decode().startswith(wanted)) == (401, True)
            assert opened(key).info().version, "the version is no secret"


def test_shard_keys(client: QdrantClient) -> None:
    best = [[4 * number for number in row] for row in QUERIES[0]]
    client.create_collection("s", vectors_config=params(), sharding_method=models.ShardingMethod.CUSTOM)
    for key in ("one", 2):
        client.create_shard_key("s", key)
    client.upsert("s", points(IDS[:6]), shard_key_selector="one")
    client.upsert("s", [models.PointStruct(id=IDS[0], vector={"colbert": best})], shard_key_selector=2)
    assert [client.count("s", shard_key_selector=key).count for key in (None, "one", 2)] == [7, 6, 1]
    both, second = (client.query_batch_points("s", [query(shard_key=key, limit=9)])[0].points for key in (None, [2]))
    assert [one.id for one in second] == [IDS[0]]
    assert (len(both), both[0].shard_key) == (7, 2), "the best of all is in the second shard"
    page, after = client.scroll("s", limit=3)
    assert [one.id for one in page] == [IDS[0], IDS[0], IDS[1]]
    assert [one.id for one in client.scroll("s", limit=9, offset=after)[0]] == IDS[2:6]
    assert refused(400, lambda: client.upsert("s", points())) == "Wrong input: Shard key not specified"
    assert refused(400, lambda: client.count("s", shard_key_selector=7)) == "Bad request: Shard key 7 not found"
    assert "already exists" in refused(400, lambda: client.create_shard_key("s", "one"))


@pytest.mark.parametrize(
    ("limits", "act", "reason"),
    [
        ({"max_query_limit": 6}, lambda c: c.scroll("c", limit=7), 'Limit exceeded 7 > 6 for "limit". Help: Reduce'),
        ({"upsert_max_batchsize": 6}, lambda c: c.upsert("c", points()), 'exceeded 12 > 6 for "upsert limit"'),
        ({"search_max_batchsize": 1}, lambda c: c.query_batch_points("c", [query()] * 2), '"search batch size"'),
        (
            {"search_max_hnsw_ef": 10},
            lambda c: c.query_batch_points("c", [query(params=models.SearchParams(hnsw_ef=11))]),
            '11 > 10 for "hnsw_ef"',
        ),
        (
            {"multivector_config": {"colbert": models.StrictModeMultivector(max_vectors=3)}},
            lambda c: c.upsert("c", points(IDS[:3])),
            "Bad request: Multivector 'colbert' has a limit of 3 vectors, but 4 were provided!",
        ),
        (
            {"unindexed_filtering_retrieve": False},
            lambda c: c.query_batch_points("c", [query(filter=topic("t1"))]),
            'Index required but not found for "metadata.topic" of one of the following types: [keyword]. Help: Create',
        ),
        (
            {"unindexed_filtering_update": False},
            lambda c: c.delete("c", models.FilterSelector(filter=topic("t1"))),
            "Index required but not found",
        ),
        ({"search_allow_exact": False}, lambda c: c.count("c"), "Exact search disabled!"),
    ],
)
def test_strict_mode(
    client: QdrantClient, limits: dict[str, Any], act: Callable[[QdrantClient], Any], reason: str
) -> None:
    client.update_collection("c", strict_mode_config=models.StrictModeConfig(enabled=True, **limits))
    assert reason in refused(400, lambda: act(client))
    client.update_collection("c", strict_mode_config=models.StrictModeConfig(enabled=False))
    assert act(client)


def test_a_full_collection_is_noticed_a_write_later(client: QdrantClient) -> None:
    """As on a server, which compares with a count that it keeps for a while."""
    client.update_collection("c", strict_mode_config=models.StrictModeConfig(enabled=True, max_points_count=12))
    client.upsert("c", points([20]))
    reason = refused(400, lambda: client.upsert("c", points([21])))
    assert reason == "Bad request: Max points count limit of 12 reached!"


def test_failures_on_demand(server: LoopbackQdrant, client: QdrantClient) -> None:
    server.fail(times=2, status=503)
    for _ in range(2):
        assert "temporarily unavailable" in refused(503, lambda: client.count("c"))
    server.fail(times=1, drop=True, path_contains="/points/delete")
    assert client.count("c").count == 12
    for carried_out, left in ((False, 12), (True, 11)):
        if carried_out:
            server.fail(times=1, drop=True, carried_out=True)
        with pytest.raises(ResponseHandlingException):
            client.delete("c", models.PointIdsList(points=IDS[:1]))
        assert client.count("c").count == left
    server.delay(5)
    server.heal()
    assert client.count("c").count == 11
