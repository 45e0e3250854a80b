"""Snapshots: from any engine to any other without a model, whole or not at all."""

from __future__ import annotations

import json
import random
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_samples import (
    DIM,
    Create,
    Place,
    both_engines,
    contents,
    documents,
    expected_contents,
    fail,
    in_threads,
    on_call,
    store,
)
from full import FULL
from loopback_qdrant import LoopbackQdrant

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.collection import snapshot as snapshots
from jcv2_plugin.collection.snapshot import SnapshotError, check_snapshot, read_info, read_points
from jcv2_plugin.documents import point_id
from jcv2_plugin.engines.base import Matrix, Point
from jcv2_plugin.engines.first_stage import SparseVector
from jcv2_plugin.errors import CollectionCorruptError, CollectionExistsError
from jcv2_plugin.files import temporary_for

ITEMS = [
    *documents(40),
    Document(
        "Line one\nline two\u2028three\x85 \U0001f600 \x00", "päth/to#1 \U0001f600", {"ключ": [None, 1.5, {"a": True}]}
    ),
    Document("With keys of its own.", "own", {}, {"extra": {"list": [1, 2]}, "none": None}),
]


@pytest.fixture(scope="module")
def edge(
    mini: JinaColbertEncoder, vectors: list[Matrix], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ColbertCollection]:
    """A collection on Edge, only read."""
    with ColbertCollection.create(tmp_path_factory.mktemp("edge") / "c", encoder=mini, dim=DIM) as made:
        store(made, ITEMS[:40], vectors[:40])
        made.add(ITEMS[40:])
        yield made


@pytest.fixture(scope="module")
def file(edge: ColbertCollection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot in several parts, only read."""
    path = tmp_path_factory.mktemp("snapshot") / "new" / "folders" / "snapshot.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "_FLOATS_A_PART", 8000)
        info = edge.snapshot(path)
    assert read_info(path) == info
    assert (info.schema, info.documents) == (edge.schema, len(ITEMS))
    assert info.parts > 2
    return path


def points_of(collection: ColbertCollection) -> dict[str, Point]:
    return {
        one.id: Point(one.id, one.vectors, one.payload, one.stages)
        for one in collection.engine.scroll(None, with_payload=True, with_vectors=True)
    }


def assert_same(ours: dict[str, Point], theirs: dict[str, Point], *, atol: float = 0.0) -> None:
    """Payloads to the byte, all vectors within a tolerance."""
    assert set(ours) == set(theirs)
    for one, point in ours.items():
        other = theirs[one]
        assert json.dumps(point.payload, sort_keys=True) == json.dumps(other.payload, sort_keys=True)
        np.testing.assert_allclose(other.vectors, point.vectors, atol=atol, rtol=0)
        assert set(other.stages) == set(point.stages)
        for name, vector in point.stages.items():
            found = other.stages[name]
            if isinstance(vector, SparseVector):
                assert isinstance(found, SparseVector)
                weights = dict(zip(vector.indices, vector.values, strict=True))
                assert dict(zip(found.indices, found.values, strict=True)) == pytest.approx(weights, abs=1e-5)
            else:
                np.testing.assert_allclose(found, vector, atol=1e-5)


def changed(file: Path, to: Path, *, lost: str = "", described: dict[str, Any] | None = None) -> Path:
    """A snapshot without one of its members, or with another description."""
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(to, "w") as archive:
        for name in whole.namelist():
            content = whole.read(name)
            if name == "snapshot.json":
                content = json.dumps({**json.loads(content), **(described or {})}).encode()
            if name != lost:
                archive.writestr(name, content)
        assert len(archive.namelist()) == len(whole.namelist()) - bool(lost)
    return to


class TestRoundTrips:
    def test_from_edge_to_memory_to_a_server_and_back(
        self, edge: ColbertCollection, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("from_pretrained", "document_vectors"):
            monkeypatch.setattr(JinaColbertEncoder, name, lambda *a, **k: pytest.fail("a model was used"))
        original = points_of(edge)
        seen: list[int] = []
        with ColbertCollection.restore(file, ":memory:", progress=seen.append) as memory:
            assert sum(seen) == len(ITEMS)
            assert memory.schema == edge.schema
            assert_same(original, points_of(memory))
            memory.snapshot(tmp_path / "second")
        with LoopbackQdrant() as loopback:
            place: Place = {"url": loopback.url, "client_options": {"check_compatibility": False}}
            with ColbertCollection.restore(tmp_path / "second", name="papers", **place) as server:
                assert_same(original, points_of(server), atol=1e-3)
                server.snapshot(tmp_path / "third")
        with ColbertCollection.restore(tmp_path / "third", tmp_path / "again") as again:
            assert again.schema == edge.schema
            assert_same(original, points_of(again), atol=1e-3)
        with ColbertCollection.open(tmp_path / "again") as opened:
            assert contents(opened) == expected_contents(ITEMS)

    def test_what_is_restored_is_searched_and_added_to(
        self, edge: ColbertCollection, file: Path, tmp_path: Path
    ) -> None:
        """And its payload indexes are made as asked."""
        indexes: Any = {"metadata.group": "keyword"}
        with ColbertCollection.restore(file, tmp_path / "c", payload_indexes=indexes) as restored:
            engine: Any = restored.engine
            assert set(engine._shard.info().payload_schema) == {"metadata.group"}
            for query in ("who sells bread?", ITEMS[11].text):
                for candidates in (None, 8):
                    ours, theirs = (one.search(query, k=5, candidates=candidates) for one in (edge, restored))
                    assert [(hit.id, hit.score) for hit in theirs] == [(hit.id, hit.score) for hit in ours]
            assert restored.verify(sample=50).problems == []
            assert restored.ingest(ITEMS).unchanged == len(ITEMS)
            restored.add(["The ferry sails at noon."], ids=["ferry"])
            assert restored.search("The ferry sails at noon.", k=1)[0].id == "ferry"

    @pytest.mark.parametrize(
        ("engine", "storage", "stage", "atol"),
        [
            ("edge", "float32", "none", 0.0),
            ("memory", "float16", "pooled", 0.0),
            ("edge", "int8", "bm25", 0.0),
            ("edge", "turbo8", "none", 2e-3),
            ("edge", "turbo4", "none", 0.05),
        ],
    )
    def test_each_storage_and_first_stage(
        self, create: Create, tmp_path: Path, storage: str, stage: str, atol: float
    ) -> None:
        collection = create(8, storage=storage, first_stage=stage)
        collection.snapshot(tmp_path / "file")
        with ColbertCollection.restore(tmp_path / "file", tmp_path / "again") as again:
            assert again.schema == collection.schema
            assert_same(points_of(collection), points_of(again), atol=atol)

    def test_an_empty_collection_and_a_document_that_lacks_its_first_stage(
        self, create: Create, tmp_path: Path
    ) -> None:
        """The one can be added to, and the other still lacks it."""
        collection = create()
        info = collection.snapshot(tmp_path / "empty")
        assert (info.documents, info.parts) == (0, 0)
        with ColbertCollection.restore(tmp_path / "empty", tmp_path / "c") as again:
            assert again.count() == 0
            again.add(["A text."])
            assert again.count() == 1
        collection.add(ITEMS[:4])
        point = points_of(collection)[point_id("d2")]
        collection.engine.upsert([Point(point.id, point.vectors, point.payload, {"bm25": point.stages["bm25"]})])
        collection.snapshot(tmp_path / "file")
        with ColbertCollection.restore(tmp_path / "file", ":memory:") as again:
            assert_same(points_of(collection), points_of(again))
            assert len(again.verify().problems) == 1


class TestWriting:
    def test_a_file_that_is_there_is_kept(self, edge: ColbertCollection, tmp_path: Path) -> None:
        (tmp_path / "thesis").write_text("years of work")
        for path in (tmp_path / "thesis", tmp_path):
            with pytest.raises(SnapshotError, match=str(path)):
                edge.snapshot(path)
        assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("thesis", "years of work")]

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is full")])
    def test_an_interrupted_one_leaves_nothing(
        self, edge: ColbertCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        monkeypatch.setattr(snapshots, "_FLOATS_A_PART", 8000)

        def stop() -> None:
            assert [temporary_for(one.name) for one in tmp_path.iterdir()] == ["snapshot"]
            raise error

        with pytest.raises(type(error)):
            edge.snapshot(tmp_path / "snapshot", progress=on_call(2, stop))
        assert list(tmp_path.iterdir()) == []
        edge.snapshot(tmp_path / "snapshot")
        assert [one.name for one in tmp_path.iterdir()] == ["snapshot"]

    def test_two_at_one_file(self, edge: ColbertCollection, tmp_path: Path) -> None:
        def meanwhile(documents: int) -> None:
            (tmp_path / "s.snap").write_text("the other one")

        with pytest.raises(SnapshotError, match="written meanwhile by another process"):
            edge.snapshot(tmp_path / "s.snap", progress=meanwhile)
        assert [one.read_text() for one in tmp_path.iterdir()] == ["the other one"]

    def test_what_could_not_be_restored_is_named(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        """Such as metadata that version 0.1 took."""
        deep: dict[str, Any] = {}
        for _ in range(50):
            deep = {"a": deep}
        with ColbertCollection.create(":memory:", encoder=mini, dim=DIM) as collection:
            collection.add(ITEMS[:5])
            [record] = collection.engine.retrieve([point_id("d3")], with_payload=True, with_vectors=True)
            assert record.vectors is not None
            payload = {**record.payload, "metadata": deep}
            collection.engine.upsert([Point(record.id, record.vectors, payload, record.stages)])
            with pytest.raises(SnapshotError, match=r"more than 32 levels deep.*No snapshot of it could be restored"):
                collection.snapshot(tmp_path / "s.snap")
            large = np.full_like(record.vectors, 1e6)  # infinite as float16
            collection.engine.upsert([Point(record.id, large, record.payload, record.stages)])
            with pytest.raises(SnapshotError, match=r"'d3' .* not finite .*No snapshot of it could be restored"):
                collection.snapshot(tmp_path / "s.snap")
            assert list(tmp_path.iterdir()) == []
            collection.delete(["d3"])
            collection.snapshot(tmp_path / "s.snap")
        check_snapshot(tmp_path / "s.snap")

    def test_no_link_is_followed(self, edge: ColbertCollection, tmp_path: Path) -> None:
        for name in ("s.snap.tmp", "dangling"):
            (tmp_path / name).symlink_to(tmp_path / "victim")
        edge.snapshot(tmp_path / "s.snap")
        with pytest.raises(SnapshotError, match="is there already"):
            edge.snapshot(tmp_path / "dangling")
        assert not (tmp_path / "victim").exists()

    @both_engines
    def test_writers_wait_and_readers_do_not(
        self, create: Create, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(snapshots, "_FLOATS_A_PART", 2000)
        collection = create(20)
        writer = threading.Thread(target=lambda: collection.add([Document("Late.", "late")]))
        found: list[str] = []

        def use() -> None:
            writer.start()
            found.extend(in_threads(lambda: collection.search(ITEMS[3].text, k=1)[0].id))
            writer.join(timeout=0.1)
            assert writer.is_alive()

        info = collection.snapshot(tmp_path / "file", progress=on_call(1, use))
        writer.join(timeout=60)
        assert (info.documents, collection.count(), found) == (20, 21, ["d3"])


class TestDamage:
    """None of these replaces what is there."""

    @pytest.fixture(autouse=True)
    def there(self, mini: JinaColbertEncoder, place: Place) -> Iterator[None]:
        """A collection that a restoration is to replace."""
        with ColbertCollection.create(**place, encoder=mini, dim=DIM) as collection:
            collection.add(["Not to be lost."], ids=["here"])
        yield
        with ColbertCollection.open(**place, encoder=mini) as collection:
            assert list(collection.ids()) == ["here"]
            assert collection.verify().ok

    @both_engines
    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is full")])
    def test_one_that_is_stopped(self, file: Path, place: Place, error: BaseException) -> None:
        with pytest.raises(type(error)):
            ColbertCollection.restore(file, **place, overwrite=True, progress=on_call(2, lambda: fail(error)))

    def test_damaged_members(self, file: Path, place: Place, tmp_path: Path) -> None:
        whole = file.read_bytes()
        damaged = tmp_path / "damaged"
        with zipfile.ZipFile(file) as archive:
            offsets = {info.filename: info.header_offset + 30 + len(info.filename) + 20 for info in archive.infolist()}
        assert {name.rpartition("/")[2] for name in offsets} >= {"payloads.jsonl", "vectors.npy", "snapshot.json"}
        for offset in [offsets[name] for name in list(offsets)[:8]] + [offsets["snapshot.json"]]:
            inverted = bytes(255 - one for one in whole[offset : offset + 4])
            damaged.write_bytes(whole[:offset] + inverted + whole[offset + 4 :])
            with pytest.raises(SnapshotError, match="damaged"):
                ColbertCollection.restore(damaged, **place, overwrite=True)
        for lost in ("payloads.jsonl", "vectors.npy", "rows.npy", "bm25.values.npy", "bm25.places.npy"):
            with pytest.raises(SnapshotError, match="is damaged"):
                ColbertCollection.restore(changed(file, damaged, lost=f"000001/{lost}"), **place, overwrite=True)

    def test_other_files(self, file: Path, place: Place, tmp_path: Path) -> None:
        other = tmp_path / "other"
        whole = file.read_bytes()
        for content in (b"", b"years of work", b"PK\x05\x06" + bytes(18), whole[: len(whole) // 2]):
            other.write_bytes(content)
            with pytest.raises(SnapshotError, match="is no snapshot, or is damaged"):
                ColbertCollection.restore(other, **place, overwrite=True)
        for described in ("{}", "[]", "null", "{", '{"format": 1}', '{"format": "1"}'):
            with zipfile.ZipFile(other, "w") as archive:
                archive.writestr("snapshot.json", described)
            with pytest.raises(SnapshotError, match="is no snapshot, or is damaged"):
                ColbertCollection.restore(other, **place, overwrite=True)
        for path, message in ((tmp_path / "missing", "There is no snapshot"), (tmp_path, "is no snapshot")):
            with pytest.raises(SnapshotError, match=message):
                ColbertCollection.restore(path, **place, overwrite=True)

    @pytest.mark.parametrize(
        ("described", "message"),
        [
            ({"format": 2}, "has format 2, too new"),
            ({"parts": 99}, "is damaged"),
            ({"documents": 7}, "is damaged"),
            ({"schema": {}}, "description is damaged"),
            ({"schema": None}, "no description of ours"),
        ],
    )
    def test_a_description_that_does_not_fit(
        self, file: Path, place: Place, tmp_path: Path, described: dict[str, Any], message: str
    ) -> None:
        other = changed(file, tmp_path / "changed", described=described)
        with pytest.raises((SnapshotError, CollectionCorruptError), match=message):
            ColbertCollection.restore(other, **place, overwrite=True)
        with pytest.raises((SnapshotError, CollectionCorruptError), match=message):
            ColbertCollection.restore(other, tmp_path / "c")
        assert not (tmp_path / "c").exists()


def test_restoring_over_one(file: Path, mini: JinaColbertEncoder, create: Create, tmp_path: Path) -> None:
    """Not without leave."""
    create(3).close()
    there = tmp_path / "collection-0"
    with pytest.raises(CollectionExistsError, match="set overwrite"):
        ColbertCollection.restore(file, there)
    with ColbertCollection.open(there) as collection:
        assert collection.count() == 3
    with ColbertCollection.restore(file, there, overwrite=True) as collection:
        assert contents(collection) == expected_contents(ITEMS)
    with ColbertCollection.open(there, encoder=mini) as collection:
        assert collection.verify(sample=4).problems == []


def test_any_length_it_may_be_cut_to(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    cut = tmp_path / "cut"
    for length in [0, 1, 21, 22, 100, *range(200, len(whole), len(whole) // 60), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(SnapshotError, match="is no snapshot, or is damaged"):
            check_snapshot(cut)


def test_any_byte_that_may_be_changed(file: Path, tmp_path: Path) -> None:
    """It is refused, or (a date in the archive, say) it changes nothing of what is restored."""
    whole = file.read_bytes()
    original = {one.id: one for part in read_points(file) for one in part}
    damaged, chance = tmp_path / "damaged", random.Random(3)
    directory = whole.index(b"PK\x01\x02")
    times = 10 if FULL else 2
    offsets = [chance.randrange(len(whole)) for _ in range(6 * times)]
    offsets += [chance.randrange(directory, len(whole)) for _ in range(14 * times)]
    refused = 0
    for offset in offsets:
        damaged_bytes = bytearray(whole)
        damaged_bytes[offset] ^= 1 << chance.randrange(8)
        damaged.write_bytes(damaged_bytes)
        try:
            check_snapshot(damaged)
        except (SnapshotError, CollectionCorruptError):
            refused += 1
            continue
        assert_same(original, {one.id: one for part in read_points(damaged) for one in part})
    assert 10 * times < refused < 20 * times
