"""The loopback server answers as local mode does, and describes collections as a server does."""

from __future__ import annotations

import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from loopback_qdrant import LoopbackQdrant
from loopback_samples import IDS, QUERIES, VECTORS, params, points, query, refused, remote, topic
from qdrant_client import QdrantClient, models


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


@pytest.fixture
def plain() -> QdrantClient:
    local = QdrantClient(":memory:")
    local.create_collection("c", vectors_config=params())
    local.upsert("c", points())
    return local


class TestAnswers:
    """What local mode answers comes out the same over HTTP."""

    @pytest.mark.parametrize(
        "read",
        [
            lambda c: c.query_batch_points("c", [query(0), query(1, filter=topic("t1"), offset=1)]),
            lambda c: c.query_batch_points("c", [query(2, score_threshold=1.0, with_vector=True)]),
            lambda c: c.query_points("c", QUERIES[3], using="colbert", limit=3, with_payload=["metadata.topic"]),
            lambda c: c.query_points("c", IDS[4], using="colbert", limit=3),
            lambda c: c.retrieve("c", [IDS[3], IDS[0], str(uuid.UUID(int=99))], with_vectors=True),
            lambda c: c.retrieve("c", [IDS[5]], with_payload=False),
            lambda c: c.scroll("c", limit=5),
            lambda c: c.scroll("c", limit=100, scroll_filter=topic("t2"), with_vectors=["colbert"]),
            lambda c: c.scroll("c", limit=3, offset=IDS[7]),
            lambda c: c.count("c"),
            lambda c: c.count("c", topic("t0")),
            lambda c: c.collection_exists("c"),
            lambda c: c.collection_exists("d"),
            lambda c: c.get_collections(),
            lambda c: c.delete_collection("d"),
        ],
    )
    def test_reads(self, filled: QdrantClient, plain: QdrantClient, read: Callable[[QdrantClient], Any]) -> None:
        assert read(filled) == read(plain)

    @pytest.mark.parametrize(
        "change",
        [
            lambda c: c.delete("c", models.PointIdsList(points=[IDS[0], str(uuid.UUID(int=77))])),
            lambda c: c.delete("c", models.FilterSelector(filter=topic("t1"))),
            lambda c: c.delete("c", models.FilterSelector(filter=models.Filter(must=[
                models.HasIdCondition(has_id=[IDS[2], IDS[3]])]))),
            lambda c: c.set_payload("c", {"new": 1}, [IDS[1]]),
            lambda c: c.set_payload("c", {"deep": 1}, topic("t0"), key="metadata"),
            lambda c: c.overwrite_payload("c", {"only": [1, None]}, [IDS[1], IDS[2]]),
            lambda c: c.delete_payload("c", ["metadata"], [IDS[1]]),
            lambda c: c.clear_payload("c", models.PointIdsList(points=[IDS[1]])),
            lambda c: c.upsert("c", points([IDS[5]])),
            lambda c: c.upsert("c", models.Batch(
                ids=IDS[:2], vectors={"colbert": VECTORS[4:6]}, payloads=[{}, {"a": 1}])),
        ],
    )  # fmt: skip
    def test_changes(self, filled: QdrantClient, plain: QdrantClient, change: Callable[[QdrantClient], Any]) -> None:
        before = filled.scroll("c", limit=100, with_vectors=True)
        assert change(filled).status == models.UpdateStatus.COMPLETED
        change(plain)
        after = filled.scroll("c", limit=100, with_vectors=True)
        assert after == plain.scroll("c", limit=100, with_vectors=True)
        assert after != before

    def test_a_change_not_waited_for_is_acknowledged(self, filled: QdrantClient) -> None:
        assert filled.upsert("c", points(IDS[:1]), wait=False).status == models.UpdateStatus.ACKNOWLEDGED

    def test_ids_are_written_in_one_way(self, client: QdrantClient) -> None:
        client.create_collection("c", vectors_config=params())
        client.upsert("c", points([uuid.UUID(IDS[0]).hex.upper(), 7]))
        assert [one.id for one in client.scroll("c")[0]] == [7, IDS[0]]
        assert [one.id for one in client.retrieve("c", [uuid.UUID(IDS[0]).hex])] == [IDS[0]]

    def test_halves_are_kept_as_halves(self, client: QdrantClient) -> None:
        client.create_collection("c", vectors_config=params(datatype=models.Datatype.FLOAT16))
        client.upsert("c", points(IDS[:1]))
        [stored] = client.retrieve("c", IDS[:1], with_vectors=True)
        assert isinstance(stored.vector, dict)
        assert stored.vector["colbert"] == np.asarray(VECTORS[0], dtype=np.float16).tolist()
        assert stored.vector["colbert"] != VECTORS[0]

    def test_threads_may_share_it(self, filled: QdrantClient, plain: QdrantClient) -> None:
        wanted = plain.query_batch_points("c", [query()])
        seen: list[Any] = []
        threads = [
            threading.Thread(target=lambda: seen.append(filled.query_batch_points("c", [query()]))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [wanted] * 8

    def test_a_new_client_finds_its_version_compatible(self, server: LoopbackQdrant) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            opened = QdrantClient(url=server.url, check_compatibility=False)
            # What a new client does in a thread of its own, where no test would see the warning.
            remote(opened)._check_compatibility(server.url, {}, None, 5)
            assert opened.info().title == "qdrant - vector search engine"
            opened.close()

    def test_requests_are_recorded(self, server: LoopbackQdrant, filled: QdrantClient) -> None:
        filled.delete("c", models.PointIdsList(points=IDS[:1]), ordering=models.WriteOrdering.STRONG)
        [sent] = server.sent("POST", "/points/delete")
        assert (sent.path, sent.params) == ("/collections/c/points/delete", {"wait": "true", "ordering": "strong"})
        assert sent.body == {"points": IDS[:1]}
        assert sent.size == len(sent.raw)
        assert sent.headers["user-agent"].startswith("python-client/")
        assert [one.method for one in server.requests] == ["PUT", "PUT", "POST"]

    def test_what_it_cannot_do_it_says(self, filled: QdrantClient) -> None:
        assert "has no POST /collections/c/facet" in refused(501, lambda: filled.facet("c", "metadata.topic"))


class TestCollections:
    def test_it_is_described_as_it_was_created(self, client: QdrantClient) -> None:
        vectors = params(datatype=models.Datatype.FLOAT16, hnsw_config=models.HnswConfigDiff(m=0), on_disk=True)
        quantization = models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))
        metadata = {"jcv2": {"dim": 4, "revision": None, "deep": [{"a": None}]}}
        client.create_collection(
            "c",
            vectors_config=vectors,
            sparse_vectors_config={"words": models.SparseVectorParams(modifier=models.Modifier.IDF)},
            shard_number=3,
            replication_factor=2,
            write_consistency_factor=2,
            on_disk_payload=False,
            hnsw_config=models.HnswConfigDiff(ef_construct=200),
            quantization_config=quantization,
            sharding_method=models.ShardingMethod.AUTO,
            strict_mode_config=models.StrictModeConfig(enabled=True, max_query_limit=7),
            metadata=metadata,
        )
        info = client.get_collection("c")
        assert info.config.params.vectors == vectors
        assert info.config.params.sparse_vectors == {"words": models.SparseVectorParams(modifier=models.Modifier.IDF)}
        assert (info.config.params.shard_number, info.config.params.replication_factor) == (3, 2)
        assert (info.config.params.write_consistency_factor, info.config.params.on_disk_payload) == (2, False)
        assert info.config.params.sharding_method == models.ShardingMethod.AUTO
        assert (info.config.hnsw_config.m, info.config.hnsw_config.ef_construct) == (16, 200)
        assert info.config.quantization_config == quantization
        assert info.config.strict_mode_config == models.StrictModeConfigOutput(enabled=True, max_query_limit=7)
        assert info.config.metadata == metadata
        assert info.points_count == 0

    def test_it_can_be_changed(self, filled: QdrantClient) -> None:
        filled.update_collection("c", metadata={"a": 1, "b": 2})
        filled.update_collection(
            "c",
            metadata={"a": None, "c": 3},
            vectors_config={"colbert": models.VectorParamsDiff(hnsw_config=models.HnswConfigDiff(m=8))},
            collection_params=models.CollectionParamsDiff(replication_factor=2),
            strict_mode_config=models.StrictModeConfig(enabled=True, max_query_limit=3),
        )
        info = filled.get_collection("c")
        assert info.config.metadata == {"b": 2, "c": 3}
        assert isinstance(info.config.params.vectors, dict)
        assert info.config.params.vectors["colbert"].hnsw_config == models.HnswConfigDiff(m=8)
        assert info.config.params.replication_factor == 2
        assert info.points_count == 12
        assert "Limit exceeded" in refused(400, lambda: filled.query_batch_points("c", [query(limit=4)]))
        reason = refused(400, lambda: filled.update_collection("c", vectors_config={"x": models.VectorParamsDiff()}))
        assert reason == "Wrong input: Not existing vector name error: x"

    def test_one_that_is_there_cannot_be_created(self, filled: QdrantClient) -> None:
        reason = refused(409, lambda: filled.create_collection("c", vectors_config=params()))
        assert reason == "Wrong input: Collection `c` already exists!"

    @pytest.mark.parametrize(
        "act",
        [
            lambda c: c.get_collection("x"),
            lambda c: c.upsert("x", points()),
            lambda c: c.query_batch_points("x", [query()]),
            lambda c: c.scroll("x"),
            lambda c: c.retrieve("x", IDS[:1]),
            lambda c: c.count("x"),
            lambda c: c.delete("x", models.PointIdsList(points=IDS[:1])),
            lambda c: c.update_collection("x", metadata={}),
            lambda c: c.create_payload_index("x", "a", models.PayloadSchemaType.KEYWORD),
        ],
    )
    def test_one_that_is_not_there(self, client: QdrantClient, act: Callable[[QdrantClient], Any]) -> None:
        assert refused(404, lambda: act(client)) == "Not found: Collection `x` doesn't exist!"

    def test_aliases_lead_to_it(self, filled: QdrantClient) -> None:
        create = models.CreateAlias(collection_name="c", alias_name="a")
        assert filled.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
        assert filled.collection_exists("a")
        assert filled.get_collection("a").points_count == 12
        filled.upsert("a", points([99]))
        assert filled.count("c").count == 13
        assert filled.query_batch_points("a", [query()]) == filled.query_batch_points("c", [query()])
        assert [one.alias_name for one in filled.get_aliases().aliases] == ["a"]
        assert [one.alias_name for one in filled.get_collection_aliases("c").aliases] == ["a"]
        assert [one.name for one in filled.get_collections().collections] == ["c"]

    def test_aliases_change_all_at_once(self, filled: QdrantClient) -> None:
        filled.create_collection("d", vectors_config=params())
        new = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="d", alias_name="a"))
        old = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="c", alias_name="a"))
        filled.update_collection_aliases([old])
        wrong = models.RenameAliasOperation(rename_alias=models.RenameAlias(old_alias_name="x", new_alias_name="y"))
        assert (
            refused(404, lambda: filled.update_collection_aliases([new, wrong]))
            == "Not found: Alias x does not exists!"
        )
        assert filled.get_aliases().aliases[0].collection_name == "c"
        filled.update_collection_aliases(
            [models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name="a")), new]
        )
        assert filled.get_collection("a").points_count == 0
        rename = models.RenameAlias(old_alias_name="a", new_alias_name="b")
        filled.update_collection_aliases([models.RenameAliasOperation(rename_alias=rename)])
        assert (filled.collection_exists("a"), filled.collection_exists("b")) == (False, True)
        taken = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="c", alias_name="d"))
        assert "`d` already exists" in refused(409, lambda: filled.update_collection_aliases([taken]))
        assert "Alias with the same name" in refused(
            400, lambda: filled.create_collection("b", vectors_config=params())
        )

    def test_an_alias_deletes_nothing(self, filled: QdrantClient) -> None:
        create = models.CreateAlias(collection_name="c", alias_name="a")
        filled.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
        assert filled.delete_collection("a") is False
        assert filled.collection_exists("c")
        assert filled.delete_collection("c") is True
        assert not filled.collection_exists("a")

    def test_payload_indexes_are_remembered(self, filled: QdrantClient) -> None:
        filled.create_payload_index("c", "metadata.topic", models.PayloadSchemaType.KEYWORD)
        tenant = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
        filled.create_payload_index("c", "metadata.group/1", tenant)
        schema = filled.get_collection("c").payload_schema
        assert {key: str(one.data_type) for key, one in schema.items()} == {
            "metadata.topic": "keyword",
            "metadata.group/1": "keyword",
        }
        assert schema["metadata.group/1"].params == tenant
        filled.delete_payload_index("c", "metadata.group/1")
        assert list(filled.get_collection("c").payload_schema) == ["metadata.topic"]
