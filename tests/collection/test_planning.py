from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.collection.planning import Workload, measured, parse_number, plan, vector_bytes
from jcv2_plugin.documents import Document, payload_of, point_id
from jcv2_plugin.engines.base import Point
from jcv2_plugin.errors import InvalidOptionError

SIZES = {
    "vector_bytes": {
        "float32": {"per_dim": 4, "fixed": 0},
        "float16": {"per_dim": 2, "fixed": 0},
        "turbo8": {"per_dim": 1, "fixed": 4},
        "turbo4": {"per_dim": 0.5, "fixed": 4},
    },
    "int8_copy_bytes": {"per_dim": 1, "fixed": 4},
    "dense_bytes": {"per_dim": 4, "fixed": 40},
    "bm25_bytes_a_token": 8,
    "payload_bytes_a_token": 5,
    "id_bytes": 30,
}
GIB = 2**30


@pytest.mark.parametrize(
    ("text", "number"),
    [("7000", 7000), ("100M", 100_000_000), ("2.5k", 2500), ("1B", 10**9), ("1,000", 1000), ("3m", 3_000_000)],
)
def test_numbers_as_people_write_them(text: str, number: int) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["", "M", "-5", "0", "ten", "1e400", "5X", "nan"])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(InvalidOptionError, match="not a positive number"):
        parse_number(text)


class TestSums:
    def test_each_part_is_counted(self) -> None:
        made = plan(Workload(documents=1000, tokens=100, dim=64, storage="float16"), SIZES)
        assert made.vectors == 100_000
        assert made.disk == {
            "token vectors": 100_000 * 128,
            "pooled": 1000 * (64 * 4 + 40),
            "bm25": 1000 * 800,
            "texts and metadata": 1000 * 500,
            "ids": 30_000,
        }
        assert made.memory == {name: made.disk[name] for name in ("pooled", "bm25", "ids")}
        assert made.total_disk == sum(made.disk.values())
        assert made.encoding_hours is None

    def test_int8_keeps_a_copy_in_memory_beside_the_originals(self) -> None:
        made = plan(Workload(documents=1000, tokens=100, dim=64, storage="int8", first_stage="none"), SIZES)
        assert made.disk["token vectors"] == 100_000 * 128
        assert made.disk["int8 copy"] == made.memory["int8 copy"] == 100_000 * 68

    def test_pooling_divides_the_vectors_and_not_the_text(self) -> None:
        whole = plan(Workload(documents=1000, tokens=100, dim=64), SIZES)
        halved = plan(Workload(documents=1000, tokens=100, dim=64, pool_factor=2), SIZES)
        assert halved.vectors == whole.vectors / 2
        assert halved.disk["token vectors"] == whole.disk["token vectors"] / 2
        assert halved.disk["texts and metadata"] == whole.disk["texts and metadata"]
        assert halved.query_bytes == whole.query_bytes / 2

    def test_hours_are_those_of_all_encoders(self) -> None:
        work = Workload(documents=3_600_000, tokens=100, dim=64, tokens_per_second=10_000, workers=2)
        assert plan(work, SIZES).encoding_hours == pytest.approx(5.0)

    def test_shards_by_disk_and_by_memory(self) -> None:
        disk = Workload(documents=10**7, tokens=120, dim=128, node_disk=100 * GIB)
        made = plan(disk, SIZES)
        assert made.limited_by == "disk"
        assert made.shards == -(-made.total_disk // int(100 * GIB * 0.7))
        memory = plan(
            Workload(documents=10**7, tokens=120, dim=128, storage="int8", node_memory=16 * GIB, replicas=3), SIZES
        )
        assert memory.limited_by == "memory"
        assert memory.nodes == 3 * memory.shards > 3

    def test_a_small_collection_is_one_shard(self) -> None:
        made = plan(Workload(documents=10, tokens=10, dim=64), SIZES)
        assert (made.shards, made.nodes) == (1, 1)
        assert made.query_bytes == 10 * 10 * 128

    def test_what_will_not_work_is_said(self) -> None:
        too_long = plan(Workload(documents=10, tokens=8192, dim=128), SIZES)
        assert "1,048,576" in too_long.warnings[0]
        assert plan(Workload(documents=10, tokens=8191, dim=128), SIZES).warnings == []
        exact = plan(Workload(documents=10**6, tokens=100, dim=128, first_stage="none"), SIZES)
        assert "first stage" in exact.warnings[0]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"documents": 0}, "documents must be a positive integer"),
            ({"documents": "3"}, "documents must be a positive integer, got '3'"),
            ({"dim": True}, "dim must be a positive integer, got True"),
            ({"dim": 10**300}, "dim must be a number from 1 "),
            ({"workers": 1.0}, "workers must be a positive integer, got 1.0"),
            ({"pool_factor": 0.5}, "pool_factor must be a number from 1"),
            ({"pool_factor": float("nan")}, "pool_factor must be a number from 1 .* got nan"),
            ({"tokens": 0.5}, "tokens must be a number from 1 to 1e\\+18, got 0.5"),
            ({"tokens": float("inf")}, "tokens must be a number from 1 to 1e\\+18, got inf"),
            ({"node_memory": None}, "node_memory must be a number, got None"),
            ({"node_memory": 1e-300}, "node_memory must be a number from 0.001"),
            ({"text_bytes": "3"}, "text_bytes must be a number, got '3'"),
            ({"storage": "int3"}, "storage must be one of"),
            ({"first_stage": "magic"}, "first_stage must be one of"),
            ({"node_disk": 0}, "node_disk must be a number from 0.001"),
            ({"tokens_per_second": -1}, "tokens_per_second must be a number from 0.001"),
        ],
    )
    def test_bad_input(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(InvalidOptionError, match=message):
            Workload(**{"documents": 10, "tokens": 10, "dim": 64, **options})

    def test_numbers_of_numpy_do_not_overflow(self) -> None:
        small: dict[str, Any] = {"documents": np.int8(100), "tokens": np.float16(100), "dim": np.uint8(128)}
        assert plan(Workload(**small), SIZES) == plan(Workload(documents=100, tokens=100, dim=128), SIZES)


class TestMeasuredSizes:
    def test_they_say_where_they_come_from(self) -> None:
        source = measured()["source"]
        assert source["command"].startswith("python benchmarks/")
        assert source["versions"]["qdrant-edge-py"]
        assert source["machine"]["cpu"]

    @pytest.mark.parametrize(
        "storage", ["float32", "float16", "turbo8", "turbo4"] if os.environ.get("JCV2_TEST_ALL") else ["turbo4"]
    )
    def test_they_are_what_a_collection_takes(self, storage: str, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        rows, dim, documents = 120, 32, 1500  # a dim that was not measured
        chance = np.random.default_rng(0)
        options: dict[str, object] = {"encoder": mini, "dim": dim, "storage": storage, "first_stage": "none"}
        with ColbertCollection.create(tmp_path / "c", **options) as collection:
            vectors = chance.standard_normal((documents, rows, dim)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
            payload = payload_of(Document("text", "1"))
            collection.engine.upsert([Point(point_id(str(n)), one, payload) for n, one in enumerate(vectors)])
            collection.optimize()
        files = (tmp_path / "c" / "shard" / "segments").glob("*/vector_storage-colbert/**/*")
        taken = sum(file.stat().st_blocks * 512 for file in files if file.is_file())
        assert taken / (documents * rows) == pytest.approx(vector_bytes(storage, dim), rel=0.1)
