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
from collection_samples import DIM, contents, documents, encoded, expected_contents, store
from loopback_qdrant import LoopbackQdrant
from qdrant_client import QdrantClient

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.collection import snapshot as snapshots
from jcv2_plugin.collection.snapshot import SnapshotError, check_snapshot, read_info, read_points
from jcv2_plugin.documents import point_id
from jcv2_plugin.engines.base import Matrix, Point
from jcv2_plugin.engines.first_stage import SparseVector
from jcv2_plugin.errors import CollectionCorruptError, CollectionExistsError

ITEMS = [
    *documents(40),
    Document(
        "Line one\nline two\u2028three\x85 \U0001f600 \x00", "päth/to#1 \U0001f600", {"ключ": [None, 1.5, {"a": True}]}
    ),
    Document("With keys of its own.", "own", {}, {"extra": {"list": [1, 2]}, "none": None}),
]


@pytest.fixture(scope="module")
def vectors(mini: JinaColbertEncoder) -> list[Matrix]:
    return encoded(mini, ITEMS)


@pytest.fixture(scope="module")
def edge(
    mini: JinaColbertEncoder, vectors: list[Matrix], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ColbertCollection]:
    """A collection on Edge, only read."""
    with ColbertCollection.create(tmp_path_factory.mktemp("edge") / "c", encoder=mini, dim=DIM) as made:
        store(made, ITEMS, vectors)
        yield made


@pytest.fixture(scope="module")
def file(edge: ColbertCollection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot in several parts, only read."""
    path = tmp_path_factory.mktemp("snapshot") / "snapshot.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "_FLOATS_A_PART", 8000)
        info = edge.snapshot(path)
    assert info.documents == len(ITEMS)
    assert info.parts > 2
    return path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JinaColbertEncoder, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.setattr(JinaColbertEncoder, "document_vectors", lambda *a, **k: pytest.fail("something was encoded"))


def points_of(collection: ColbertCollection) -> dict[str, Point]:
    return {
        one.id: Point(one.id, one.vectors, one.payload, one.stages)  # type: ignore[arg-type]
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
            if isinstance(vector, SparseVector):
                found = other.stages[name]
                assert isinstance(found, SparseVector)
                assert dict(zip(found.indices, found.values, strict=True)) == pytest.approx(
                    dict(zip(vector.indices, vector.values, strict=True)), abs=1e-5
                )
            else:
                np.testing.assert_allclose(other.stages[name], vector, atol=1e-5)


class TestRoundTrips:
    @pytest.mark.usefixtures("no_model")
    def test_from_edge_to_memory_to_a_server_and_back(
        self, edge: ColbertCollection, file: Path, tmp_path: Path
    ) -> None:
        original = points_of(edge)
        seen: list[int] = []
        with ColbertCollection.restore(file, ":memory:", progress=seen.append) as memory:
            assert sum(seen) == len(ITEMS)
            assert memory.schema == edge.schema
            assert_same(original, points_of(memory))
            memory.snapshot(tmp_path / "second")
        with LoopbackQdrant() as loopback:
            options = {"check_compatibility": False}
            with ColbertCollection.restore(
                tmp_path / "second", url=loopback.url, name="papers", client_options=options
            ) as server:
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
        with ColbertCollection.restore(file, tmp_path / "c") as restored:
            for query in ("who sells bread?", ITEMS[11].text):
                for options in ({}, {"candidates": 8}):
                    ours, theirs = (one.search(query, k=5, **options) for one in (edge, restored))
                    assert [(hit.id, hit.score) for hit in theirs] == [(hit.id, hit.score) for hit in ours]
            assert restored.verify(sample=50).problems == []
            assert restored.ingest(ITEMS).unchanged == len(ITEMS)
            restored.add(["The ferry sails at noon."], ids=["ferry"])
            assert restored.search("The ferry sails at noon.", k=1)[0].id == "ferry"

    @pytest.mark.parametrize(
        ("storage", "atol"), [("float32", 0.0), ("float16", 0.0), ("int8", 0.0), ("turbo8", 2e-3), ("turbo4", 0.05)]
    )
    def test_each_storage(
        self, mini: JinaColbertEncoder, vectors: list[Matrix], tmp_path: Path, storage: Any, atol: float
    ) -> None:
        with ColbertCollection.create(
            tmp_path / "c", encoder=mini, dim=DIM, storage=storage, first_stage="none"
        ) as collection:
            store(collection, ITEMS[:8], vectors[:8])
            collection.snapshot(tmp_path / "file")
            with ColbertCollection.restore(tmp_path / "file", tmp_path / "again") as again:
                assert again.schema == collection.schema
                assert_same(points_of(collection), points_of(again), atol=atol)

    @pytest.mark.parametrize("stage", ["none", "pooled", "muvera", "bm25"])
    def test_each_first_stage(
        self, mini: JinaColbertEncoder, vectors: list[Matrix], tmp_path: Path, stage: Any
    ) -> None:
        with ColbertCollection.create(":memory:", encoder=mini, dim=DIM, first_stage=stage) as collection:
            store(collection, ITEMS[:8], vectors[:8])
            collection.snapshot(tmp_path / "file")
            with ColbertCollection.restore(tmp_path / "file", ":memory:") as again:
                assert again.schema == collection.schema
                assert_same(points_of(collection), points_of(again))

    def test_a_document_that_lacks_its_first_stage_still_does(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        with ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM) as collection:
            collection.add(ITEMS[:4])
            point = points_of(collection)[point_id("d2")]
            kept = {"bm25": point.stages["bm25"]}
            collection.engine.upsert([Point(point.id, point.vectors, point.payload, kept)])
            collection.snapshot(tmp_path / "file")
            with ColbertCollection.restore(tmp_path / "file", ":memory:") as again:
                assert_same(points_of(collection), points_of(again))
                assert len(again.verify().problems) == 1

    def test_an_empty_collection(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        with ColbertCollection.create(":memory:", encoder=mini, dim=DIM) as collection:
            info = collection.snapshot(tmp_path / "file")
        assert (info.documents, info.parts) == (0, 0)
        with ColbertCollection.restore(tmp_path / "file", tmp_path / "c") as again:
            assert again.count() == 0
            again.add(["A text."])
            assert again.count() == 1

    def test_payload_indexes_are_made_as_asked(self, file: Path, tmp_path: Path) -> None:
        with ColbertCollection.restore(
            file, tmp_path / "c", payload_indexes={"metadata.group": "keyword"}
        ) as collection:
            assert set(collection.engine._shard.info().payload_schema) == {"metadata.group"}  # type: ignore[attr-defined]

    def test_what_it_holds_can_be_read_without_restoring(self, edge: ColbertCollection, file: Path) -> None:
        info = read_info(file)
        assert (info.schema, info.documents) == (edge.schema, len(ITEMS))
        assert zipfile.ZipFile(file).testzip() is None


class TestWriting:
    def test_a_file_that_is_there_is_kept(self, edge: ColbertCollection, tmp_path: Path) -> None:
        (tmp_path / "thesis").write_text("years of work")
        for path in (tmp_path / "thesis", tmp_path):
            with pytest.raises(SnapshotError, match="is there already"):
                edge.snapshot(path)
        assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("thesis", "years of work")]

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is full")])
    def test_an_interrupted_one_leaves_nothing(
        self, edge: ColbertCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        monkeypatch.setattr(snapshots, "_FLOATS_A_PART", 8000)
        parts: list[int] = []

        def progress(number: int) -> None:
            parts.append(number)
            if len(parts) == 2:
                assert [one.name for one in tmp_path.iterdir()] == ["snapshot.tmp"]
                raise error

        with pytest.raises(type(error)):
            edge.snapshot(tmp_path / "snapshot", progress=progress)
        assert list(tmp_path.iterdir()) == []
        edge.snapshot(tmp_path / "snapshot")
        assert [one.name for one in tmp_path.iterdir()] == ["snapshot"]

    def test_folders_are_made(self, edge: ColbertCollection, tmp_path: Path) -> None:
        edge.snapshot(tmp_path / "new" / "folder" / "snapshot")
        assert read_info(tmp_path / "new" / "folder" / "snapshot").documents == len(ITEMS)

    @pytest.mark.parametrize("engine", ["edge", "memory"])
    def test_writers_wait_and_readers_do_not(
        self, mini: JinaColbertEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
    ) -> None:
        monkeypatch.setattr(snapshots, "_FLOATS_A_PART", 2000)
        location = ":memory:" if engine == "memory" else tmp_path / "c"
        with ColbertCollection.create(location, encoder=mini, dim=DIM) as collection:
            collection.add(ITEMS[:20])
            threads: list[threading.Thread] = []
            found: list[str] = []

            def progress(number: int) -> None:
                if threads:
                    return
                threads.append(threading.Thread(target=lambda: collection.add([Document("Late.", "late")])))
                threads[0].start()
                reader = threading.Thread(target=lambda: found.append(collection.search(ITEMS[3].text, k=1)[0].id))
                reader.start()
                reader.join(timeout=60)
                assert found == ["d3"]
                threads[0].join(timeout=0.1)
                assert threads[0].is_alive()

            info = collection.snapshot(tmp_path / "file", progress=progress)
            threads[0].join(timeout=60)
            assert (info.documents, collection.count()) == (20, 21)


class TestDamage:
    @pytest.fixture
    def there(self, mini: JinaColbertEncoder, tmp_path: Path) -> Path:
        """A collection that a restoration is to replace."""
        with ColbertCollection.create(tmp_path / "there", encoder=mini, dim=DIM) as collection:
            collection.add(["Not to be lost."], ids=["here"])
        return tmp_path / "there"

    def test_nothing_is_replaced_without_leave(self, file: Path, there: Path) -> None:
        with pytest.raises(CollectionExistsError, match="overwrite=True"):
            ColbertCollection.restore(file, there)
        with ColbertCollection.open(there) as collection:
            assert list(collection.ids()) == ["here"]
        with ColbertCollection.restore(file, there, overwrite=True) as collection:
            assert collection.count() == len(ITEMS)

    @pytest.mark.parametrize(
        ("engine", "error"), [("edge", KeyboardInterrupt()), ("memory", OSError("the disk is full"))]
    )
    def test_one_that_is_stopped_replaces_nothing(
        self, mini: JinaColbertEncoder, file: Path, there: Path, engine: str, error: BaseException
    ) -> None:
        client = QdrantClient(":memory:")
        location: dict[str, Any] = {"path": there} if engine == "edge" else {"client": client, "name": "papers"}
        if engine == "memory":
            with ColbertCollection.create(**location, encoder=mini, dim=DIM) as collection:
                collection.add(["Not to be lost."], ids=["here"])
        parts: list[int] = []

        def progress(number: int) -> None:
            parts.append(number)
            if len(parts) == 2:
                raise error

        with pytest.raises(type(error)):
            ColbertCollection.restore(file, **location, overwrite=True, progress=progress)
        with ColbertCollection.open(**location, encoder=mini) as collection:
            assert list(collection.ids()) == ["here"]
            assert collection.verify().ok
        with ColbertCollection.restore(file, **location, overwrite=True) as collection:
            assert contents(collection) == expected_contents(ITEMS)
        with ColbertCollection.open(**location, encoder=mini) as collection:
            assert collection.verify(sample=4).problems == []

    def test_a_damaged_one_replaces_nothing(self, file: Path, there: Path, tmp_path: Path) -> None:
        whole = file.read_bytes()
        damaged = tmp_path / "damaged"
        with zipfile.ZipFile(file) as archive:
            offsets = {info.filename: info.header_offset + 30 + len(info.filename) + 20 for info in archive.infolist()}
        assert {name.rpartition("/")[2] for name in offsets} >= {"payloads.jsonl", "vectors.npy", "snapshot.json"}
        for offset in [offsets[name] for name in list(offsets)[:8]] + [offsets["snapshot.json"]]:
            damaged.write_bytes(
                whole[:offset] + bytes(255 - one for one in whole[offset : offset + 4]) + whole[offset + 4 :]
            )
            with pytest.raises(SnapshotError, match="damaged"):
                ColbertCollection.restore(damaged, there, overwrite=True)
        damaged.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SnapshotError, match="is no snapshot, or is damaged"):
            ColbertCollection.restore(damaged, there, overwrite=True)
        with ColbertCollection.open(there) as collection:
            assert list(collection.ids()) == ["here"]

    def test_any_length_it_may_be_cut_to(self, file: Path, tmp_path: Path) -> None:
        whole = file.read_bytes()
        cut = tmp_path / "cut"
        for length in [0, 1, 21, 22, 100, *range(200, len(whole), len(whole) // 60), len(whole) - 1]:
            cut.write_bytes(whole[:length])
            with pytest.raises(SnapshotError, match="is no snapshot, or is damaged"):
                check_snapshot(cut)

    def test_any_byte_that_may_be_changed(self, file: Path, tmp_path: Path) -> None:
        """It is refused, or (a date in the archive, say) it changes nothing of what is restored."""
        whole = file.read_bytes()
        original = [one for part in read_points(file) for one in part]
        damaged, chance = tmp_path / "damaged", random.Random(3)
        directory = whole.index(b"PK\x01\x02")
        offsets = [chance.randrange(len(whole)) for _ in range(60)]
        offsets += [chance.randrange(directory, len(whole)) for _ in range(140)]
        refused = 0
        for offset in offsets:
            changed = bytearray(whole)
            changed[offset] ^= 1 << chance.randrange(8)
            damaged.write_bytes(changed)
            try:
                check_snapshot(damaged)
            except (SnapshotError, CollectionCorruptError):
                refused += 1
                continue
            points = [one for part in read_points(damaged) for one in part]
            assert_same({one.id: one for one in original}, {one.id: one for one in points})
        assert 100 < refused < 200

    def test_other_files(self, there: Path, tmp_path: Path) -> None:
        for content in (b"", b"years of work", b"PK\x05\x06" + bytes(18)):
            (tmp_path / "other").write_bytes(content)
            with pytest.raises(SnapshotError, match="is no snapshot, or is damaged"):
                ColbertCollection.restore(tmp_path / "other", there, overwrite=True)
        with ColbertCollection.open(there) as collection:
            assert collection.count() == 1

    def test_other_archives(self, tmp_path: Path) -> None:
        for number, described in enumerate(("{}", "[]", "null", "{", '{"format": 1}', '{"format": "1"}')):
            path = tmp_path / f"{number}.zip"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("snapshot.json", described)
            with pytest.raises(SnapshotError, match="is no snapshot, or is damaged"):
                ColbertCollection.restore(path, ":memory:")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(SnapshotError, match="There is no snapshot"):
            ColbertCollection.restore(tmp_path / "missing", ":memory:")
        with pytest.raises(SnapshotError, match="is no snapshot"):
            ColbertCollection.restore(tmp_path, ":memory:")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": 2}, "has format 2, too new"),
            ({"parts": 99}, "is damaged"),
            ({"documents": 7}, "is damaged"),
            ({"schema": {}}, "description is damaged"),
            ({"schema": None}, "no description of ours"),
        ],
    )
    def test_a_description_that_does_not_fit(
        self, file: Path, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        with zipfile.ZipFile(file) as whole, zipfile.ZipFile(tmp_path / "changed", "w") as archive:
            for name in whole.namelist():
                content = whole.read(name)
                if name == "snapshot.json":
                    content = json.dumps({**json.loads(content), **change}).encode()
                archive.writestr(name, content)
        with pytest.raises((SnapshotError, CollectionCorruptError), match=message):
            ColbertCollection.restore(tmp_path / "changed", tmp_path / "c")
        assert not (tmp_path / "c").exists()

    def test_a_member_that_is_missing(self, file: Path, there: Path, tmp_path: Path) -> None:
        names = {"payloads.jsonl", "vectors.npy", "rows.npy", "bm25.values.npy", "bm25.places.npy", "pooled.dense.npy"}
        for lost in names:
            with zipfile.ZipFile(file) as whole, zipfile.ZipFile(tmp_path / "changed", "w") as archive:
                for name in whole.namelist():
                    if name != f"000001/{lost}":
                        archive.writestr(name, whole.read(name))
                assert len(archive.namelist()) == len(whole.namelist()) - 1
            with pytest.raises(SnapshotError, match="is damaged"):
                ColbertCollection.restore(tmp_path / "changed", there, overwrite=True)
        with ColbertCollection.open(there) as collection:
            assert list(collection.ids()) == ["here"]
