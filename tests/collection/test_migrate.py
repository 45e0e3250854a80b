"""Migrations: what they keep, what they copy, and that a collection in use never shows that one is going on."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import official_checkpoint
import pytest
from collection_samples import DIM, contents, documents, encoded, expected_contents, group, store, stored_vectors
from loopback_qdrant import LoopbackQdrant
from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.collection import migrate as migration
from jcv2_plugin.documents import point_id
from jcv2_plugin.engines.aliases import collection_names
from jcv2_plugin.engines.base import Candidates, Matrix, NewCollection, Point, SearchRequest
from jcv2_plugin.engines.qdrant import ClientEngine
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.errors import CollectionError, CollectionLockedError, InvalidOptionError, UnknownDimError

ITEMS = documents(30)
NAME = "papers"


@dataclass
class Location:
    """Where a test's collection lives, and how it is opened again."""

    kind: str
    arguments: dict[str, Any]

    def create(self, encoder: Any, **options: Any) -> ColbertCollection:
        return ColbertCollection.create(**self.arguments, encoder=encoder, **{"dim": DIM, **options})

    def open(self, **options: Any) -> ColbertCollection:
        return ColbertCollection.open(**self.arguments, **options)

    @property
    def client(self) -> QdrantClient:
        client = self.arguments["client"]
        assert isinstance(client, QdrantClient)
        return client


@pytest.fixture(params=["edge", "memory", "rest"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    if request.param == "edge":
        yield Location("edge", {"path": tmp_path / "collection"})
        return
    with contextlib.ExitStack() as stack:
        url = {"location": ":memory:"}
        if request.param == "rest":
            url = {"url": stack.enter_context(LoopbackQdrant()).url}
        client = QdrantClient(**url, check_compatibility=False)
        stack.callback(client.close)
        yield Location(request.param, {"client": client, "name": NAME})


on_disk_and_server = pytest.mark.parametrize("location", ["edge", "rest"], indirect=True)
on_servers = pytest.mark.parametrize("location", ["memory", "rest"], indirect=True)
"""Those locations only that several objects may use at a time."""


@pytest.fixture(scope="module")
def vectors(mini: JinaColbertEncoder) -> list[Matrix]:
    return encoded(mini, ITEMS)


@pytest.fixture
def collection(location: Location, mini: JinaColbertEncoder, vectors: list[Matrix]) -> Iterator[ColbertCollection]:
    with location.create(mini) as made:
        store(made, ITEMS, vectors)
        yield made


@pytest.fixture
def encoded_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is encoded as a document."""
    noted: list[str] = []
    original = JinaColbertEncoder.document_vectors

    def document_vectors(self: JinaColbertEncoder, texts: list[str], *rest: Any) -> Any:
        noted.extend(texts)
        return original(self, texts, *rest)

    monkeypatch.setattr(JinaColbertEncoder, "document_vectors", document_vectors)
    return noted


def payloads(collection: ColbertCollection) -> dict[str, Any]:
    """Whole payloads by point."""
    return {record.id: record.payload for record in collection.engine.scroll(None, with_payload=True)}


def leftovers(location: Location) -> list[str]:
    """Collections or files that no collection in use accounts for."""
    if location.kind == "edge":
        folder: Path = location.arguments["path"]
        names = sorted(one.name for one in folder.iterdir())
        return [one for one in names if one not in ("jcv2.json", "lock") and not one.startswith("shard")] + [
            one for one in names if one.startswith("shard") and one != shard_of(folder)
        ]
    known = collection_names(location.client)
    return sorted(set(known) - {NAME})


def shard_of(folder: Path) -> str:
    return str(json.loads((folder / "jcv2.json").read_text())["shard"])


class TestWhatChanges:
    """Each kind of change, on each engine."""

    def check(self, collection: ColbertCollection, before: dict[str, Any]) -> None:
        """All there, found by their own text, and verified."""
        assert payloads(collection) == before
        assert collection.search(ITEMS[11].text, k=1)[0].id == "d11"
        assert [hit.id for hit in collection.search("a map", filter=group("g7"))] == ["d7"]
        assert collection.verify(sample=4).problems == []

    def check_reopened(self, location: Location, collection: ColbertCollection, before: dict[str, Any]) -> None:
        """Likewise after reopening, and nothing is left over."""
        assert leftovers(location) == []
        schema, encoder = collection.schema, collection.encoder
        if location.kind == "edge":
            collection.close()
        with location.open(encoder=encoder) as again:
            assert again.schema == schema
            self.check(again, before)

    def test_dim(self, location: Location, collection: ColbertCollection, encoded_texts: list[str]) -> None:
        before = payloads(collection)
        report = collection.migrate(dim=64)
        assert (report.documents, report.encoded, report.copied, report.old) == (30, 30, 0, None)
        assert sorted(encoded_texts) == sorted(one.text for one in ITEMS)
        assert (collection.dim, collection.schema.first_stage) == (64, "hybrid")
        assert {matrix.shape[1] for matrix in stored_vectors(collection).values()} == {64}
        self.check(collection, before)
        self.check_reopened(location, collection, before)

    def test_dim_of_a_head_that_is_not_loaded(self, location: Location) -> None:
        encoder = JinaColbertEncoder.from_pretrained("mini", dims=DIM, device="cpu", document_length=40)
        with location.create(encoder, long_documents="truncate") as collection:
            collection.add(ITEMS)
            before = payloads(collection)
            collection.migrate(dim=64)
            assert (collection.encoder.dims, collection.encoder.document_length) == ((64,), 40)
            assert (collection.schema.long_documents, collection.schema.document_length) == ("truncate", 40)
            self.check(collection, before)
        self.check_reopened(location, collection, before)

    def test_model(self, location: Location, collection: ColbertCollection, tmp_path: Path) -> None:
        folder = official_checkpoint.write_checkpoint(tmp_path / "model", dim=48)
        before = payloads(collection)
        report = collection.migrate(encoder=JinaColbertEncoder.from_pretrained(folder, device="cpu"))
        assert (report.documents, report.encoded, report.copied) == (30, 30, 0)
        # It has no head for the old dim, so its own default is taken.
        assert (collection.schema.model, collection.dim) == (str(folder), 48)
        self.check(collection, before)
        self.check_reopened(location, collection, before)

    def test_model_with_a_head_for_the_dim(
        self, location: Location, collection: ColbertCollection, tmp_path: Path
    ) -> None:
        folder = official_checkpoint.write_checkpoint(tmp_path / "model", dim=DIM)
        assert collection.migrate(encoder=folder).encoded == 30
        assert (collection.schema.model, collection.dim) == (str(folder), DIM)
        assert collection.search(ITEMS[11].text, k=1)[0].id == "d11"

    def test_storage(self, location: Location, collection: ColbertCollection, encoded_texts: list[str]) -> None:
        """Copied where the new one keeps less than the old: what the old one has lost does not come back that way."""
        before = payloads(collection)
        copying: list[Any] = ["int8", "turbo8", "turbo4"]
        for storage in copying:
            report = collection.migrate(storage=storage)
            assert (report.encoded, report.copied, encoded_texts) == (0, 30, [])
            assert collection.schema.storage == storage
            self.check(collection, before)
            encoded_texts.clear()
        report = collection.migrate(storage="float32")
        assert (report.encoded, report.copied, len(encoded_texts)) == (30, 0, 30)
        self.check(collection, before)
        self.check_reopened(location, collection, before)

    def test_first_stage(self, location: Location, collection: ColbertCollection, encoded_texts: list[str]) -> None:
        before, exact = payloads(collection), stored_vectors(collection)
        stages: list[Any] = ["none", "pooled", "muvera", "bm25", "hybrid"]
        for stage in stages:
            options = {"planes": 2} if stage == "muvera" else None
            report = collection.migrate(first_stage=stage, stage_options=options)
            assert (report.encoded, report.copied, encoded_texts) == (0, 30, [])
            assert all(np.array_equal(exact[one], matrix) for one, matrix in stored_vectors(collection).items())
            assert collection.schema.stage_options.get("planes") == (2 if stage == "muvera" else None)
            if stage != "none":
                assert collection.search(ITEMS[11].text, k=1, candidates=5)[0].id == "d11"
            self.check(collection, before)
            encoded_texts.clear()
        self.check_reopened(location, collection, before)

    def test_pool_factor(self, location: Location, collection: ColbertCollection, encoded_texts: list[str]) -> None:
        before, rows = payloads(collection), sum(map(len, stored_vectors(collection).values()))
        report = collection.migrate(pool_factor=2)
        assert (report.encoded, len(encoded_texts)) == (30, 30)
        assert sum(map(len, stored_vectors(collection).values())) == pytest.approx(rows / 2, rel=0.1)
        self.check(collection, before)
        self.check_reopened(location, collection, before)

    def test_several_at_once_and_back(self, location: Location, collection: ColbertCollection) -> None:
        before, exact = payloads(collection), stored_vectors(collection)
        old = collection.schema
        collection.migrate(dim=64, storage="turbo8", first_stage="muvera", pool_factor=2, long_documents="truncate")
        schema = collection.schema
        assert (schema.dim, schema.storage, schema.first_stage) == (64, "turbo8", "muvera")
        assert (schema.pool_factor, schema.long_documents) == (2, "truncate")
        collection.migrate(dim=DIM, storage="float16", first_stage="hybrid", pool_factor=1, long_documents="split")
        assert collection.schema == old
        for one, matrix in stored_vectors(collection).items():
            np.testing.assert_allclose(matrix, exact[one], atol=1e-3)
        self.check(collection, before)
        self.check_reopened(location, collection, before)

    def test_options_of_the_first_stage_only(self, location: Location, collection: ColbertCollection) -> None:
        collection.migrate(first_stage="muvera")
        collection.migrate(stage_options={"planes": 2, "seed": 4})
        assert collection.schema.stage_options == {"planes": 2, "projected": 16, "repetitions": 20, "seed": 4}
        collection.migrate(storage="turbo8")
        assert collection.schema.stage_options["seed"] == 4
        assert collection.search(ITEMS[11].text, k=1, candidates=5)[0].id == "d11"

    def test_an_empty_collection(self, location: Location, mini: JinaColbertEncoder) -> None:
        with location.create(mini) as collection:
            assert collection.migrate(dim=64).documents == 0
            collection.add(ITEMS[:3])
            assert collection.search(ITEMS[2].text, k=1)[0].id == "d2"

    def test_documents_with_payloads_of_their_own(self, location: Location, mini: JinaColbertEncoder) -> None:
        """All that is stored is kept, and unchanged documents stay unchanged."""
        items = [
            Document("Rice.", "päth/to#1", {"deep": {"list": [1, None, 2.5, "x"]}, "none": None}, {"extra": [1]}),
            Document("Line one\nline two\u2028three \U0001f600", "emoji \U0001f600", {"ключ": "значение"}),
        ]
        with location.create(mini) as collection:
            collection.add(items)
            before = payloads(collection)
            for change in ({"storage": "turbo8"}, {"dim": 64}):
                collection.migrate(**change)
                assert payloads(collection) == before
            assert collection.ingest(items).unchanged == 2


@on_disk_and_server
class TestWhatIsRefused:
    def test_what_it_is_already(self, location: Location, collection: ColbertCollection) -> None:
        same: list[dict[str, Any]] = [
            {},
            {"dim": DIM},
            {"storage": "float16"},
            {"first_stage": "hybrid", "pool_factor": 1},
            {"encoder": "mini", "long_documents": "split"},
        ]
        for options in same:
            with pytest.raises(InvalidOptionError, match=r"is like that already: mini at dim=32"):
                collection.migrate(**options)
        assert leftovers(location) == []

    def test_options_that_are_none(self, location: Location, collection: ColbertCollection) -> None:
        """An empty or zero one is not taken for one that is left out."""
        wrong: list[dict[str, Any]] = [
            {"storage": "float8"},
            {"storage": "", "dim": 64},
            {"first_stage": "second"},
            {"first_stage": "", "dim": 64},
            {"stage_options": {"planes": 2}},
            {"first_stage": "muvera", "stage_options": {"seed": -1}},
            {"pool_factor": 0, "dim": 64},
            {"pool_factor": "2"},
            {"long_documents": "shorten"},
            {"long_documents": "", "dim": 64},
            {"workers": -1, "dim": 64},
        ]
        schema = collection.schema
        for options in wrong:
            with pytest.raises(InvalidOptionError):
                collection.migrate(**options)
        for dim in (17, 0, -1):
            with pytest.raises(UnknownDimError):
                collection.migrate(dim=dim)
        assert (collection.schema, collection.count()) == (schema, 30)
        assert leftovers(location) == []

    def test_a_collection_that_is_closed(self, location: Location, collection: ColbertCollection) -> None:
        collection.close()
        with pytest.raises(CollectionError, match="is closed"):
            collection.migrate(dim=64)


class TestWhileItIsInUse:
    def test_searches_never_fail_and_are_always_right(
        self, location: Location, collection: ColbertCollection, encoded_texts: list[str]
    ) -> None:
        """Several migrations in a row, one copying and one encoding, under readers of every kind."""
        stop, errors, rounds = threading.Event(), [], [0]

        def read() -> None:
            try:
                while not stop.is_set():
                    for one in ITEMS[::10]:
                        assert collection.search(one.text, k=1)[0].id == one.id
                        assert collection.search(one.text, k=1, exact=False)[0].id == one.id
                        assert collection.get([str(one.id)])[0].metadata == one.metadata
                    assert collection.count() == 30
                    assert collection.count(group("g7")) == 1
                    assert sorted(collection.ids()) == sorted(str(one.id) for one in ITEMS)
                    assert collection.explain("bread", "d3").score > 0
                    rounds[0] += 1
            except BaseException as error:
                errors.append(error)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        try:
            for change in ({"storage": "turbo8"}, {"dim": 64}, {"first_stage": "muvera"}):
                collection.migrate(**change)
                after = rounds[0]
                while rounds[0] < after + 2 and not errors:
                    time.sleep(0.01)
        finally:
            stop.set()
            for reader in readers:
                reader.join(timeout=60)
        assert errors == []
        assert leftovers(location) == []

    def test_a_listing_goes_on_over_the_swap(
        self, location: Location, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Begun on the old collection, ended on the new one: each document once."""
        for module in ("edge", "qdrant"):
            monkeypatch.setattr(f"jcv2_plugin.engines.{module}._SCROLL_PAGE", 7)
        listing = collection.scroll()
        first = [next(listing).id for _ in range(10)]
        collection.migrate(storage="turbo8")
        rest = [one.id for one in listing]
        assert sorted(first + rest) == sorted(str(one.id) for one in ITEMS)
        for change, names in (({"dim": 64}, collection.ids()), ({"dim": DIM}, collection.ids(group("g7")))):
            begun = [next(names)]
            collection.migrate(**change)
            begun += list(names)
            assert len(begun) == len(set(begun)) in (30, 1)

    def test_a_search_at_the_very_moment_of_the_swap(
        self, location: Location, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the swap and the end of the migration, whatever is done there, the collection answers."""
        found: list[str] = []
        original = type(collection.engine).adopt

        def adopt(self: Any, *arguments: Any, **options: Any) -> Any:
            found.append(collection.search(ITEMS[5].text, k=1)[0].id)
            result = original(self, *arguments, **options)
            reader = threading.Thread(target=lambda: found.append(collection.search(ITEMS[6].text, k=1)[0].id))
            reader.start()
            reader.join(timeout=60)
            return result

        monkeypatch.setattr(type(collection.engine), "adopt", adopt)
        collection.migrate(storage="turbo8")
        assert found == ["d5", "d6"]

    def test_writes_of_this_object_are_not_lost(self, location: Location, collection: ColbertCollection) -> None:
        """Documents are added, replaced and deleted while the new collection is being filled."""
        written: list[str] = []

        def progress(number: int) -> None:
            if written:
                return
            written.append("once")
            collection.add([Document("A new arrival.", "new"), Document("Replaced text.", "d5", {"new": True})])
            collection.delete(["d6", "d7"])

        report = collection.migrate(dim=64, progress=progress)
        kept = [one for one in ITEMS if one.id not in ("d5", "d6", "d7")]
        expected = expected_contents(
            [*kept, Document("A new arrival.", "new"), Document("Replaced text.", "d5", {"new": True})]
        )
        assert written
        assert report.documents == 29
        assert contents(collection) == expected
        assert collection.verify(sample=8).problems == []

    @on_servers
    def test_writes_of_others_are_caught_up_with(self, location: Location, collection: ColbertCollection) -> None:
        with location.open() as other:
            changes: list[str] = []

            def progress(number: int) -> None:
                if not changes:
                    changes.append("once")
                    other.add([Document("A new arrival.", "new"), Document("Replaced text.", "d5")])
                    other.delete(["d6"])

            for change in ({"first_stage": "pooled"}, {"dim": 64}):
                changes.clear()
                collection.migrate(**change, progress=progress)
                assert collection.get(["new"])[0].text == "A new arrival."
                assert collection.get(["d5"])[0].text == "Replaced text."
                assert collection.get(["d6"]) == []
                assert collection.count() == 30
                assert collection.verify(sample=8).problems == []
                collection.delete(["new"])
                collection.add([ITEMS[5], ITEMS[6]])

    @on_servers
    def test_others_who_write_faster_than_it_encodes(
        self, location: Location, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with location.open() as other:
            original, number = migration._remove_deleted, itertools.count()

            def busy(*arguments: Any) -> int:
                other.add([Document(f"Text {next(number)}.", "busy")])
                return original(*arguments)

            monkeypatch.setattr(migration, "_remove_deleted", busy)
            with pytest.raises(CollectionError, match="written to faster than its documents are encoded"):
                collection.migrate(dim=64)
            monkeypatch.undo()
            assert collection.dim == DIM
            assert collection.count() == other.count() == 31
            # What was encoded is kept: the next try goes on with it.
            assert collection.migrate(dim=64).encoded < 5

    def test_a_second_one_at_the_same_time(self, location: Location, collection: ColbertCollection) -> None:
        refused: list[str] = []

        def progress(number: int) -> None:
            for options in ({"dim": 96}, {"dim": 64}):
                with pytest.raises(CollectionError, match="is being migrated already"):
                    collection.migrate(**options)
                refused.append("once")

        collection.migrate(dim=64, progress=progress)
        assert refused
        assert collection.dim == 64
        assert collection.verify(sample=8).ok
        collection.migrate(dim=DIM)

    def test_an_ingestion_that_is_going_on_is_waited_for(
        self, location: Location, collection: ColbertCollection
    ) -> None:
        done: list[Any] = []

        def stream() -> Iterator[Document]:
            yield from documents(8, start=100)
            migrating = threading.Thread(target=lambda: done.append(collection.migrate(storage="turbo8")))
            migrating.start()
            threads.append(migrating)
            time.sleep(0.3)
            yield from documents(8, start=200)

        threads: list[threading.Thread] = []
        collection.ingest(stream(), batch_documents=4)
        threads[0].join(timeout=60)
        assert done[0].documents == 46
        assert contents(collection) == expected_contents([*ITEMS, *documents(8, start=100), *documents(8, start=200)])


@on_disk_and_server
class TestInterrupted:
    def interrupt(self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
        """Stop a migration after it has stored some documents."""
        stored = itertools.count()

        def progress(number: int) -> None:
            if next(stored) == 1:
                raise error

        monkeypatch.setattr(migration, "BATCH_DOCUMENTS", 8)
        with pytest.raises(type(error)):
            collection.migrate(dim=64, progress=progress)

    @pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
    def test_the_old_collection_is_as_it_was(
        self, location: Location, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        before, schema = payloads(collection), collection.schema
        self.interrupt(collection, monkeypatch, error)
        assert (payloads(collection), collection.schema) == (before, schema)
        assert collection.search(ITEMS[11].text, k=1)[0].id == "d11"
        assert collection.verify().ok

    @pytest.mark.parametrize("reopened", [False, True])
    def test_the_same_call_goes_on_where_it_stopped(
        self,
        location: Location,
        mini: JinaColbertEncoder,
        vectors: list[Matrix],
        monkeypatch: pytest.MonkeyPatch,
        reopened: bool,
    ) -> None:
        collection = location.create(mini)
        store(collection, ITEMS, vectors)
        before = payloads(collection)
        self.interrupt(collection, monkeypatch, OSError("the disk is full"))
        collection.add([Document("Another text since.", "d3")])
        collection.delete(["d4"])
        if reopened:
            if location.kind == "edge":
                collection.close()
            collection = location.open(encoder=mini)
        with collection:
            report = collection.migrate(dim=64)
            assert 0 < report.encoded < 30
            assert report.documents == 29
            assert {one: payload for one, payload in payloads(collection).items() if payload["_id"] != "d3"} == {
                one: payload for one, payload in before.items() if payload["_id"] not in ("d3", "d4")
            }
            assert collection.get(["d3"])[0].text == "Another text since."
            assert collection.verify(sample=8).problems == []
            assert leftovers(location) == []

    def test_another_call_starts_anew(
        self, location: Location, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.interrupt(collection, monkeypatch, OSError("the disk is full"))
        report = collection.migrate(dim=96)
        assert (report.encoded, collection.dim) == (30, 96)
        assert leftovers(location) == []
        assert collection.verify(sample=8).ok

    def test_while_it_swaps(
        self, location: Location, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def adopt(self: Any, *arguments: Any, **options: Any) -> Any:
            raise CollectionError("the server is gone")

        before = payloads(collection)
        with monkeypatch.context() as patch:
            patch.setattr(type(collection.engine), "adopt", adopt)
            with pytest.raises(CollectionError, match="the server is gone"):
                collection.migrate(dim=64)
        assert (collection.dim, payloads(collection)) == (DIM, before)
        assert collection.search(ITEMS[11].text, k=1)[0].id == "d11"
        collection.add([Document("Added after that.", "new")])
        report = collection.migrate(dim=64)
        assert (report.encoded, report.documents) == (1, 31)
        assert leftovers(location) == []


class TestFolder:
    @pytest.fixture
    def folder(self, mini: JinaColbertEncoder, vectors: list[Matrix], tmp_path: Path) -> Path:
        with ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM) as collection:
            store(collection, ITEMS, vectors)
        return tmp_path / "c"

    def test_there_is_one_shard_after_any_number(self, folder: Path, mini: JinaColbertEncoder) -> None:
        with ColbertCollection.open(folder, encoder=mini) as collection:
            for storage in ("turbo8", "int8", "turbo8"):
                with contextlib.suppress(InvalidOptionError):
                    collection.migrate(storage=storage)  # type: ignore[arg-type]
            inside = sorted(one.name for one in folder.iterdir())
        assert inside == ["jcv2.json", "lock", "shard-4"]
        with ColbertCollection.create(folder, encoder=mini, dim=DIM, overwrite=True) as collection:
            assert collection.count() == 0
        assert sorted(one.name for one in folder.iterdir()) == ["jcv2.json", "lock", "shard"]

    def test_payload_indexes_are_kept(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        indexes = {"metadata.group": "keyword", "metadata.n": "integer"}
        with ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM, payload_indexes=indexes) as collection:  # type: ignore[arg-type]
            collection.add(ITEMS[:10])
            before = {key: str(one.data_type) for key, one in collection.engine._shard.info().payload_schema.items()}
            assert set(before) == set(indexes)
            collection.migrate(storage="turbo8")
            after = {key: str(one.data_type) for key, one in collection.engine._shard.info().payload_schema.items()}
            assert after == before
            assert collection.count(group("g7")) == 1

    @pytest.mark.parametrize("damage", ["no shard", "half a shard", "no description"])
    def test_what_a_crash_left_of_an_unfinished_one_is_no_harm(
        self, folder: Path, mini: JinaColbertEncoder, damage: str
    ) -> None:
        with ColbertCollection.open(folder, encoder=mini) as collection:
            schema = replace(collection.schema, storage="turbo8")
            collection.engine.successor(schema).close()
        assert sorted(one.name for one in folder.iterdir() if "shard-2" in one.name) == [
            "shard-2",
            "shard-2.pending.json",
        ]
        if damage == "no shard":
            shutil.rmtree(folder / "shard-2")
        elif damage == "half a shard":
            shutil.rmtree(folder / "shard-2" / "segments")
        else:
            (folder / "shard-2.pending.json").unlink()
        with ColbertCollection.open(folder, encoder=mini) as collection:
            assert collection.count() == 30
            assert collection.migrate(storage="turbo8").copied == 30
            assert collection.verify().ok
        assert sorted(one.name for one in folder.iterdir()) == ["jcv2.json", "lock", "shard-2"]

    def test_a_crash_after_the_swap_leaves_an_old_shard_that_goes_at_the_next_opening(
        self, folder: Path, mini: JinaColbertEncoder, tmp_path: Path
    ) -> None:
        shutil.copytree(folder / "shard", tmp_path / "old")
        with ColbertCollection.open(folder, encoder=mini) as collection:
            collection.migrate(storage="turbo8")
        shutil.copytree(tmp_path / "old", folder / "shard")
        (folder / "shard-2.pending.json").write_text("{}")
        with ColbertCollection.open(folder, encoder=mini) as collection:
            assert collection.schema.storage == "turbo8"
            assert collection.count() == 30
            assert not (folder / "shard").exists()
            collection.migrate(storage="float32")
        assert sorted(one.name for one in folder.iterdir()) == ["jcv2.json", "lock", "shard-3"]

    def test_a_shard_that_another_thread_closes_in_the_middle(self, folder: Path) -> None:
        """What its engine says of that is not known for what it is; ours is, and the work is done again elsewhere."""
        with ColbertCollection.open(folder) as collection:
            engine: Any = collection.engine

            def closing(shard: Any) -> Any:
                engine.close()
                return shard.info()

            with pytest.raises(CollectionError, match="is closed"):
                engine._call(closing)

    def test_other_errors_of_a_shard_are_not_hidden(self, folder: Path) -> None:
        with ColbertCollection.open(folder) as collection:
            engine: Any = collection.engine
            with pytest.raises(ZeroDivisionError):
                engine._call(lambda shard: 1 / 0)

    def test_a_folder_stays_locked_over_a_migration(self, folder: Path, mini: JinaColbertEncoder) -> None:
        with ColbertCollection.open(folder, encoder=mini) as collection:
            collection.migrate(storage="turbo8")
            with pytest.raises(CollectionLockedError):
                ColbertCollection.open(folder)
        ColbertCollection.open(folder).close()


class TestServer:
    @on_servers
    def test_a_second_reader_follows(self, location: Location, collection: ColbertCollection) -> None:
        """Whatever it does first after the one it had open is gone."""
        first_acts: list[Callable[[ColbertCollection], Any]] = [
            lambda one: one.search(ITEMS[11].text, k=1)[0].id,
            lambda one: one.get(["d11"])[0].id,
            lambda one: one.count(),
            lambda one: sorted(one.ids()),
            lambda one: len(list(one.scroll())),
            lambda one: one.add([ITEMS[11]]),
            lambda one: one.ingest([ITEMS[11]]).unchanged,
            lambda one: one.delete(["not there"]),
            lambda one: one.verify(sample=2).ok,
            lambda one: one.explain("bread", "d11").text,
            lambda one: one.migrate(long_documents="truncate").documents,
        ]
        expected = ["d11", "d11", 30, sorted(str(o.id) for o in ITEMS), 30, ["d11"], 1, None, True, ITEMS[11].text, 30]
        changes: Iterator[dict[str, Any]] = itertools.cycle(
            [
                {"dim": 64},
                {"storage": "turbo8"},
                {"first_stage": "bm25"},
                {"storage": "turbo4"},
                {"dim": DIM, "storage": "float16"},
                {"first_stage": "hybrid"},
            ]
        )
        for act, result in zip(first_acts, expected, strict=True):
            with location.open(encoder=collection.encoder) as other:
                collection.migrate(**next(changes))
                schema = collection.schema
                assert act(other) == result
                assert replace(other.schema, long_documents="split") == schema
                assert other.search(ITEMS[12].text, k=1)[0].id == "d12"

    @on_servers
    def test_a_collection_that_is_really_gone(self, location: Location, collection: ColbertCollection) -> None:
        with location.open() as other:
            for alias in location.client.get_aliases().aliases:
                location.client.delete_collection(alias.collection_name)
            with pytest.raises(CollectionError, match=r"not found|doesn't exist"):
                other.count()

    @on_servers
    def test_the_old_one_can_be_kept(self, location: Location, collection: ColbertCollection) -> None:
        with location.open() as other:
            report = collection.migrate(dim=64, keep_old=True)
            assert report.old is not None
            # Who has the old one open goes on with it.
            assert other.search(ITEMS[11].text, k=1)[0].id == "d11"
            assert other.dim == DIM
        with location.open() as new:
            assert new.dim == 64
        with ColbertCollection.open(client=location.client, name=report.old) as old:
            assert (old.dim, old.count()) == (DIM, 30)
            assert old.verify().ok
        assert leftovers(location) == [report.old]
        assert collection.migrate(dim=96).old is None
        assert leftovers(location) == [report.old]

    @on_servers
    def test_who_has_a_kept_old_one_open_cannot_migrate_over_the_new_one(
        self, location: Location, collection: ColbertCollection
    ) -> None:
        with location.open() as stale:
            collection.migrate(dim=64, keep_old=True)
            collection.add([Document("Only in the new one.", "new")])
            with pytest.raises(CollectionError, match=r"has been migrated.*Open it again"):
                stale.migrate(dim=96)
        assert collection.get(["new"])[0].text == "Only in the new one."
        assert collection.search(ITEMS[11].text, k=1)[0].id == "d11"
        with location.open() as again:
            assert (again.dim, again.count()) == (64, 31)

    @on_servers
    def test_other_peoples_collections_are_left_alone(self, location: Location, collection: ColbertCollection) -> None:
        """Also one that has the name that the next collection would get."""
        params = models.VectorParams(size=3, distance=models.Distance.DOT)
        location.client.create_collection(f"{NAME}.2", vectors_config=params)
        location.client.upsert(f"{NAME}.2", [models.PointStruct(id=1, vector=[1.0, 2.0, 3.0])], wait=True)
        collection.migrate(dim=64)
        assert (collection.dim, collection.count()) == (64, 30)
        assert location.client.count(f"{NAME}.2").count == 1
        assert leftovers(location) == [f"{NAME}.2"]
        with location.open() as again:
            assert again.verify().ok

    @on_servers
    def test_creating_over_it_leaves_them_alone_too(
        self, location: Location, collection: ColbertCollection, mini: JinaColbertEncoder
    ) -> None:
        params = models.VectorParams(size=3, distance=models.Distance.DOT)
        location.client.create_collection(f"{NAME}.2", vectors_config=params)
        with location.create(mini, overwrite=True) as new:
            assert new.count() == 0
        assert leftovers(location) == [f"{NAME}.2"]

    def test_layout_and_payload_indexes_are_kept(self, mini: JinaColbertEncoder) -> None:
        with LoopbackQdrant() as loopback:
            client = QdrantClient(url=loopback.url, check_compatibility=False)
            with ColbertCollection.create(
                client=client,
                name=NAME,
                encoder=mini,
                dim=DIM,
                payload_indexes={"metadata.group": "keyword", "metadata.n": "integer"},
                collection_options={"shard_number": 3, "replication_factor": 2},
            ) as collection:
                collection.add(ITEMS[:5])
                collection.migrate(dim=64)
                info = client.get_collection(NAME)
                assert (info.config.params.shard_number, info.config.params.replication_factor) == (3, 2)
                kinds = {key: one.data_type for key, one in info.payload_schema.items()}
                assert kinds == {
                    "metadata.group": models.PayloadSchemaType.KEYWORD,
                    "metadata.n": models.PayloadSchemaType.INTEGER,
                }
            client.close()

    def test_an_old_one_that_cannot_be_dropped_is_no_failure(
        self, mini: JinaColbertEncoder, vectors: list[Matrix], caplog: pytest.LogCaptureFixture
    ) -> None:
        """The new one has replaced the old one by then, so the object goes on with it, and so do others."""
        with LoopbackQdrant() as loopback:
            client = QdrantClient(url=loopback.url, check_compatibility=False)
            with ColbertCollection.create(client=client, name=NAME, encoder=mini, dim=DIM, retries=1) as collection:
                store(collection, ITEMS, vectors)

                def progress(number: int) -> None:
                    loopback.heal()
                    loopback.fail(status=403, path_contains=f"/collections/{NAME}.1", reason="Forbidden: not you")

                original = ClientEngine.adopt

                def adopt(self: ClientEngine, *arguments: Any, **options: Any) -> Any:
                    progress(0)
                    return original(self, *arguments, **options)

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(ClientEngine, "adopt", adopt)
                    collection.migrate(dim=64)
                assert collection.dim == 64
                collection.add([Document("After that.", "new")])
                with ColbertCollection.open(client=client, name=NAME) as other:
                    assert (other.dim, other.count()) == (64, 31)
                assert f"{NAME}.1" in caplog.text
            client.close()

    def test_the_swap_is_tried_again(self, mini: JinaColbertEncoder, vectors: list[Matrix]) -> None:
        """An answer that is lost on its way does not leave this object on another collection than the rest."""
        with LoopbackQdrant() as loopback:
            client = QdrantClient(url=loopback.url, check_compatibility=False)
            with ColbertCollection.create(client=client, name=NAME, encoder=mini, dim=DIM) as collection:
                store(collection, ITEMS, vectors)
                loopback.fail(drop=True, carried_out=True, path_contains="/collections/aliases")
                collection.migrate(storage="turbo8")
                assert loopback.sent("POST", "/collections/aliases")
                with ColbertCollection.open(client=client, name=NAME, encoder=mini) as other:
                    assert other.schema == collection.schema
                    assert other.engine.physical == collection.engine.physical  # type: ignore[attr-defined]
            client.close()

    @on_servers
    @pytest.mark.parametrize("format", [1, 2])
    def test_a_collection_without_an_alias(
        self, location: Location, mini: JinaColbertEncoder, vectors: list[Matrix], format: int
    ) -> None:
        """As versions before made them: under its own name, and without a first stage."""
        schema = CollectionSchema.describe(mini, DIM, "split", "float16")
        described = {**schema.to_dict(), "format": format}
        if format == 1:
            for name in ("first_stage", "stage_options", "pool_factor"):
                del described[name]
        params = models.VectorParams(
            size=DIM,
            distance=models.Distance.DOT,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            datatype=models.Datatype.FLOAT16,
        )
        location.client.create_collection(NAME, vectors_config={"colbert": params}, metadata={"jcv2": described})
        with location.open(encoder=mini) as collection, location.open(encoder=mini) as other:
            store(collection, ITEMS, vectors)
            before = payloads(collection)
            assert collection.search(ITEMS[11].text, k=1)[0].id == "d11"
            report = collection.migrate(first_stage="hybrid")
            assert (report.copied, report.documents) == (30, 30)
            assert payloads(collection) == before
            assert collection.search(ITEMS[11].text, k=1, candidates=3)[0].id == "d11"
            assert other.search(ITEMS[12].text, k=1)[0].id == "d12"
            assert other.schema.first_stage == "hybrid"
        assert leftovers(location) == []
        with location.open(encoder=mini) as again:
            assert again.verify().ok
            assert again.migrate(dim=64).documents == 30

    def test_an_own_client_is_closed_at_the_end_and_not_before(self, mini: JinaColbertEncoder) -> None:
        with LoopbackQdrant() as loopback:
            options = {"check_compatibility": False}
            with ColbertCollection.create(
                url=loopback.url, name=NAME, encoder=mini, dim=DIM, client_options=options
            ) as collection:
                collection.add(ITEMS[:5])
                with ColbertCollection.open(url=loopback.url, name=NAME, client_options=options) as other:
                    collection.migrate(storage="turbo8")
                    collection.migrate(storage="float16")
                    assert collection.count() == other.count() == 5
                    theirs = other.engine.client  # type: ignore[attr-defined]
                ours = collection.engine.client  # type: ignore[attr-defined]
                assert theirs._client.closed
                assert not ours._client.closed
            assert ours._client.closed

    def test_two_objects_on_one_client_may_work_at_a_time(self, mini: JinaColbertEncoder) -> None:
        """Local mode has no locks of its own, so that all objects on a client must share one."""
        client = QdrantClient(":memory:")
        one = ColbertCollection.create(client=client, name=NAME, encoder=mini, dim=DIM, first_stage="pooled")
        other = ColbertCollection.open(client=client, name=NAME, encoder=mini)
        rows = np.ones((3, DIM), dtype=np.float32)
        query = SearchRequest(rows, Candidates({"pooled": rows[0]}, 10))
        errors: list[BaseException] = []

        def write(engine: Any, first: int) -> None:
            for number in range(first, first + 60):
                payload = {"_id": str(number), "page_content": "A text."}
                engine.upsert([Point(str(uuid.UUID(int=number)), rows, payload, {"pooled": rows[0]})])
                if number % 3 == 0:
                    engine.delete([str(uuid.UUID(int=number))])

        def read(engine: Any) -> None:
            for _ in range(60):
                engine.search([SearchRequest(rows), query], 10, filter=None, score_threshold=None)
                list(engine.scroll(None, with_payload=True))
                engine.count(None)

        def work(*job: Any) -> None:
            try:
                job[0](*job[1:])
            except BaseException as error:
                errors.append(error)

        jobs = [(write, one.engine, 300), (write, other.engine, 600), (read, one.engine), (read, other.engine)]
        threads = [threading.Thread(target=work, args=job) for job in jobs]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)  # so that what can go wrong does
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=120)
        finally:
            sys.setswitchinterval(interval)
        assert errors == []
        assert one.count() == other.count() == 80


def test_shards_by_key_are_kept(mini: JinaColbertEncoder) -> None:
    with LoopbackQdrant() as loopback:
        client = QdrantClient(url=loopback.url, check_compatibility=False)
        with ColbertCollection.create(
            client=client,
            name=NAME,
            encoder=mini,
            dim=DIM,
            shard_key="north",
            collection_options={"sharding_method": "custom"},
        ) as collection:
            collection.add(ITEMS[:5])
            collection.migrate(dim=64)
            assert collection.count() == 5
            collection.add(ITEMS[5:8])
            assert collection.search(ITEMS[6].text, k=1)[0].id == "d6"
        client.close()


def test_engines_refuse_what_is_not_their_own(mini: JinaColbertEncoder, tmp_path: Path) -> None:
    client = QdrantClient(":memory:")
    schema = CollectionSchema.describe(mini, DIM, "split", "float16")
    server = ClientEngine.create(client, "one", schema, options=NewCollection())
    with ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM) as collection:
        with pytest.raises(CollectionError, match="can only adopt what its own"):
            collection.engine.adopt(server, keep_old=False)
        with pytest.raises(CollectionError, match="can only adopt what its own"):
            server.adopt(collection.engine, keep_old=False)
        assert point_id("d1") != point_id("d2")
