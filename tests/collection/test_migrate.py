"""Migrations: what they keep, what they copy, and that a collection in use never shows that one is going on."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import official_checkpoint
import pytest
from collection_samples import (
    DIM,
    NAME,
    Place,
    both_engines,
    contents,
    copied,
    documents,
    expected_contents,
    fail,
    first,
    group,
    in_threads,
    on_call,
    store,
    stored_vectors,
)
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
OTHERS = models.VectorParams(size=3, distance=models.Distance.DOT)


@pytest.fixture
def collection(place: Place, mini: JinaColbertEncoder, vectors: list[Matrix]) -> Iterator[ColbertCollection]:
    with ColbertCollection.create(**place, encoder=mini, dim=DIM) as made:
        store(made, ITEMS, vectors[:30])
        yield made


def reopened(collection: ColbertCollection, place: Place) -> ColbertCollection:
    encoder = collection.encoder
    if "path" in place:
        collection.close()
    return ColbertCollection.open(**place, encoder=encoder)


def payloads(collection: ColbertCollection) -> dict[str, Any]:
    """Whole payloads by point."""
    return {record.id: record.payload for record in collection.engine.scroll(None, with_payload=True)}


def leftovers(place: Place) -> list[str]:
    """Collections or files that no collection in use accounts for."""
    if "path" not in place:
        return sorted(set(collection_names(place["client"])) - {NAME})
    shard = json.loads((place["path"] / "jcv2.json").read_text())["shard"]
    return sorted({one.name for one in place["path"].iterdir()} - {"jcv2.json", "lock", shard})


def check(collection: ColbertCollection, before: dict[str, Any]) -> None:
    """All there, found by their own text, and verified."""
    assert payloads(collection) == before
    assert collection.search(ITEMS[11].text, k=1)[0].id == "d11"
    assert [hit.id for hit in collection.search("a map", filter=group("g7"))] == ["d7"]
    assert collection.verify(sample=4).problems == []


class TestWhatChanges:
    @pytest.mark.parametrize("engine", ["edge", "rest"])
    def test_each_kind_of_change(
        self, place: Place, collection: ColbertCollection, encoded_texts: list[list[str]]
    ) -> None:
        """Copied where the new one keeps less than the old: what the old one has lost does not come back that way."""
        before, exact, original = payloads(collection), stored_vectors(collection), collection.schema
        rows = sum(map(len, exact.values()))
        changes: list[tuple[dict[str, Any], bool]] = [
            ({"first_stage": "none"}, True),
            ({"first_stage": "pooled"}, True),
            ({"first_stage": "bm25"}, True),
            ({"first_stage": "hybrid"}, True),
            ({"storage": "int8"}, True),
            ({"storage": "turbo8"}, True),
            ({"storage": "turbo4"}, True),
            ({"storage": "float32"}, False),
            ({"pool_factor": 2}, False),
            ({"dim": 64, "storage": "turbo8", "pool_factor": 1, "long_documents": "truncate"}, False),
            ({"dim": DIM, "storage": "float16", "long_documents": "split"}, False),
        ]
        for change, is_copied in changes:
            encoded_texts.clear()
            report = collection.migrate(**change)
            assert (report.encoded, report.copied) == ((0, 30) if is_copied else (30, 0))
            assert (report.documents, report.old) == (30, None)
            texts = sorted(itertools.chain(*encoded_texts))
            assert texts == ([] if is_copied else sorted(one.text for one in ITEMS))
            assert {name: getattr(collection.schema, name) for name in change} == change
            after = stored_vectors(collection)
            assert {matrix.shape[1] for matrix in after.values()} == {collection.dim}
            assert sum(map(len, after.values())) == pytest.approx(rows / collection.schema.pool_factor, rel=0.1)
            if "first_stage" in change:
                assert all(np.array_equal(exact[one], matrix) for one, matrix in after.items())
            if collection.schema.first_stage != "none":
                assert collection.search(ITEMS[11].text, k=1, candidates=5)[0].id == "d11"
            check(collection, before)
        assert collection.schema == original
        for one, matrix in after.items():
            np.testing.assert_allclose(matrix, exact[one], atol=1e-3)
        assert leftovers(place) == []
        with reopened(collection, place) as again:
            assert again.schema == original
            check(again, before)

    def test_dim_of_a_head_that_is_not_loaded(self, place: Place) -> None:
        encoder = JinaColbertEncoder.from_pretrained("mini", dims=DIM, device="cpu", document_length=40)
        with ColbertCollection.create(**place, encoder=encoder, dim=DIM, long_documents="truncate") as collection:
            collection.add(ITEMS)
            before = payloads(collection)
            collection.migrate(dim=64)
            assert (collection.encoder.dims, collection.encoder.document_length) == ((64,), 40)
            assert (collection.schema.long_documents, collection.schema.document_length) == ("truncate", 40)
            check(collection, before)

    @both_engines
    @pytest.mark.parametrize("dim", [48, DIM])
    def test_model(self, place: Place, collection: ColbertCollection, tmp_path: Path, dim: int) -> None:
        """One that has no head for the old dim takes its own default."""
        folder = official_checkpoint.write_checkpoint(tmp_path / "model", dim=dim)
        before = payloads(collection)
        encoder: Any = folder if dim == DIM else JinaColbertEncoder.from_pretrained(folder, device="cpu")
        report = collection.migrate(encoder=encoder)
        assert (report.documents, report.encoded, report.copied) == (30, 30, 0)
        assert (collection.schema.model, collection.dim) == (str(folder), dim)
        check(collection, before)
        assert leftovers(place) == []
        with reopened(collection, place) as again:
            check(again, before)

    @both_engines
    def test_empty_collections_and_payloads_of_their_own(self, place: Place, mini: JinaColbertEncoder) -> None:
        """All that is stored is kept, and unchanged documents stay unchanged."""
        items = [
            Document("Rice.", "päth/to#1", {"deep": {"list": [1, None, 2.5, "x"]}, "none": None}, {"extra": [1]}),
            Document("Line one\nline two\u2028three \U0001f600", "emoji \U0001f600", {"ключ": "значение"}),
        ]
        with ColbertCollection.create(**place, encoder=mini, dim=64) as collection:
            assert collection.migrate(dim=DIM).documents == 0
            collection.add(items)
            before = payloads(collection)
            for change in ({"storage": "turbo8"}, {"dim": 64}):
                collection.migrate(**change)
                assert payloads(collection) == before
            assert collection.ingest(items).unchanged == 2


def test_what_is_refused(place: Place, collection: ColbertCollection) -> None:
    """What it is already, and options that are none: an empty or zero one is not taken for one that is left out."""
    same: list[dict[str, Any]] = [
        {"dim": DIM},
        {"first_stage": "hybrid", "storage": "float16", "pool_factor": 1},
        {"encoder": "mini", "long_documents": "split"},
    ]
    for options in same:
        report = collection.migrate(**options)
        assert (report.needed, report.documents) == (False, collection.count())
    with pytest.raises(InvalidOptionError, match="Say what is to change"):
        collection.migrate()
    wrong: list[dict[str, Any]] = [
        {"storage": "float8"},
        {"storage": "", "dim": 64},
        {"first_stage": "second"},
        {"first_stage": "", "dim": 64},
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
    assert leftovers(place) == []
    collection.close()
    with pytest.raises(CollectionError, match="is closed"):
        collection.migrate(dim=64)


@both_engines
class TestWhileItIsInUse:
    def test_a_listing_goes_on_over_the_swap(
        self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Begun on the old collection, ended on the new one: each document once."""
        for module in ("edge", "qdrant"):
            monkeypatch.setattr(f"jcv2_plugin.engines.{module}._SCROLL_PAGE", 7)
        changes: list[tuple[dict[str, Any], Iterator[str], int]] = [
            ({"storage": "turbo8"}, (one.id for one in collection.scroll()), 30),
            ({"dim": 64}, collection.ids(), 30),
            ({"storage": "float32"}, collection.ids(group("g7")), 1),
        ]
        for change, listing, number in changes:
            begun = list(itertools.islice(listing, min(10, number)))
            collection.migrate(**change)
            begun += list(listing)
            assert len(begun) == len(set(begun)) == number

    def test_a_search_at_the_very_moment_of_the_swap(
        self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the swap and the end of the migration, whatever is done there, the collection answers."""
        found: list[str] = []
        original = type(collection.engine).adopt

        def adopt(self: Any, *arguments: Any, **options: Any) -> Any:
            found.append(collection.search(ITEMS[5].text, k=1)[0].id)
            result = original(self, *arguments, **options)
            in_threads(lambda: found.append(collection.search(ITEMS[6].text, k=1)[0].id))
            return result

        monkeypatch.setattr(type(collection.engine), "adopt", adopt)
        collection.migrate(storage="turbo8")
        assert found == ["d5", "d6"]

    def test_writes_of_this_object_are_not_lost(self, collection: ColbertCollection) -> None:
        """Documents are added, replaced and deleted while the new collection is being filled; it is filled once."""
        new = [Document("A new arrival.", "new"), Document("Replaced text.", "d5", {"new": True})]
        written: list[int] = []

        def write() -> None:
            written.append(len(collection.add(new)))
            collection.delete(["d6", "d7"])
            for dim in (96, 64):
                with pytest.raises(CollectionError, match="already being migrated"):
                    collection.migrate(dim=dim)

        assert collection.migrate(dim=64, progress=on_call(1, write)).documents == 29
        assert written == [2]
        kept = [one for one in ITEMS if one.id not in ("d5", "d6", "d7")]
        assert contents(collection) == expected_contents([*kept, *new])
        assert collection.verify(sample=8).problems == []


def test_an_ingestion_that_is_going_on_is_waited_for(collection: ColbertCollection) -> None:
    done: list[Any] = []
    migrating = threading.Thread(target=lambda: done.append(collection.migrate(storage="turbo8")))

    def stream() -> Iterator[Document]:
        yield from documents(8, start=100)
        migrating.start()
        time.sleep(0.3)
        yield from documents(8, start=200)

    collection.ingest(stream(), batch_documents=4)
    migrating.join(timeout=60)
    assert done[0].documents == 46
    assert contents(collection) == expected_contents([*ITEMS, *documents(8, start=100), *documents(8, start=200)])


@both_engines
class TestInterrupted:
    @pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
    @pytest.mark.parametrize("dim", [64, 96])
    def test_the_same_call_goes_on_where_it_stopped_and_another_starts_anew(
        self, place: Place, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch, error: Any, dim: int
    ) -> None:
        """The old collection is as it was. To go on, this object will do, or one that is opened anew."""
        before, schema = payloads(collection), collection.schema
        monkeypatch.setattr(migration, "BATCH_DOCUMENTS", 8)
        with pytest.raises(type(error)):
            collection.migrate(dim=64, progress=on_call(2, lambda: fail(error)))
        assert collection.schema == schema
        check(collection, before)
        collection.add([Document("Another text since.", "d3")])
        collection.delete(["d4"])
        if isinstance(error, KeyboardInterrupt):
            collection = reopened(collection, place)
        with collection:
            report = collection.migrate(dim=dim)
            assert (report.documents, collection.dim) == (29, dim)
            assert 0 < report.encoded < 29 if dim == 64 else report.encoded == 29
            after = {one: payload for one, payload in payloads(collection).items() if payload["_id"] != "d3"}
            assert after == {one: each for one, each in before.items() if each["_id"] not in ("d3", "d4")}
            assert collection.get(["d3"])[0].text == "Another text since."
            assert collection.verify(sample=8).problems == []
            assert leftovers(place) == []

    def test_while_it_swaps(self, place: Place, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch) -> None:
        before = payloads(collection)
        with monkeypatch.context() as patch:
            gone = CollectionError("the server is gone")
            first(patch, type(collection.engine), "adopt", on_call(1, lambda: fail(gone)))
            with pytest.raises(CollectionError, match="the server is gone"):
                collection.migrate(dim=64)
        assert collection.dim == DIM
        check(collection, before)
        collection.add([Document("Added after that.", "new")])
        report = collection.migrate(dim=64)
        assert (report.encoded, report.documents) == (1, 31)
        assert leftovers(place) == []


class TestFolder:
    @pytest.fixture
    def folder(self, place: Place, collection: ColbertCollection) -> Path:
        collection.close()
        folder: Path = place["path"]
        return folder

    def names(self, folder: Path) -> list[str]:
        return sorted(one.name for one in folder.iterdir())

    def test_there_is_one_shard_and_one_user_after_any_number(self, folder: Path, mini: JinaColbertEncoder) -> None:
        storages: list[Any] = ["turbo8", "int8", "turbo8"]
        with ColbertCollection.open(folder, encoder=mini) as collection:
            for storage in storages:
                collection.migrate(storage=storage)
            with pytest.raises(CollectionLockedError):
                ColbertCollection.open(folder)
            assert self.names(folder) == ["jcv2.json", "lock", "shard-4"]
        with ColbertCollection.create(folder, encoder=mini, dim=DIM, overwrite=True) as collection:
            assert collection.count() == 0
        assert self.names(folder) == ["jcv2.json", "lock", "shard"]

    def test_payload_indexes_are_kept(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        indexes: dict[str, Any] = {"metadata.group": "keyword", "metadata.n": "integer"}
        with ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM, payload_indexes=indexes) as collection:
            engine: Any = collection.engine
            before = {key: str(one.data_type) for key, one in engine._shard.info().payload_schema.items()}
            assert set(before) == set(indexes)
            collection.migrate(storage="turbo8")
            engine = collection.engine
            assert {key: str(one.data_type) for key, one in engine._shard.info().payload_schema.items()} == before

    @pytest.mark.parametrize("damage", ["shard-2", "shard-2/segments", "shard-2.pending.json"])
    def test_what_a_crash_left_of_an_unfinished_one_is_no_harm(
        self, folder: Path, mini: JinaColbertEncoder, damage: str
    ) -> None:
        with ColbertCollection.open(folder, encoder=mini) as collection:
            collection.engine.successor(replace(collection.schema, storage="turbo8")).close()
        assert {"shard-2", "shard-2.pending.json"} < set(self.names(folder))
        lost = folder / damage
        lost.unlink() if lost.is_file() else shutil.rmtree(lost)
        with ColbertCollection.open(folder, encoder=mini) as collection:
            assert collection.count() == 30
            assert collection.migrate(storage="turbo8").copied == 30
            assert collection.verify().ok
        assert self.names(folder) == ["jcv2.json", "lock", "shard-2"]

    def test_a_crash_after_the_swap_leaves_an_old_shard_that_goes_at_the_next_opening(
        self, folder: Path, mini: JinaColbertEncoder, tmp_path: Path
    ) -> None:
        copied(folder / "shard", tmp_path / "old")
        with ColbertCollection.open(folder, encoder=mini) as collection:
            collection.migrate(storage="turbo8")
        copied(tmp_path / "old", folder / "shard")
        (folder / "shard-2.pending.json").write_text("{}")
        with ColbertCollection.open(folder, encoder=mini) as collection:
            assert (collection.schema.storage, collection.count()) == ("turbo8", 30)
            assert not (folder / "shard").exists()
            collection.migrate(storage="float32")
        assert self.names(folder) == ["jcv2.json", "lock", "shard-3"]

    def test_errors_of_a_shard(self, collection: ColbertCollection) -> None:
        """If another thread has closed it, what its engine says is not known for that: the work is done elsewhere."""
        engine: Any = collection.engine

        def closing(shard: Any) -> Any:
            engine.close()
            return shard.info()

        with pytest.raises(CollectionError, match="division by zero"):
            engine._call(lambda shard: 1 / 0)
        with pytest.raises(CollectionError, match="is closed"):
            engine._call(closing)


@pytest.mark.parametrize("engine", ["memory"])
class TestSeveralObjects:
    """As on a server, where all of them go by a name."""

    def test_others_who_write_faster_than_it_encodes(
        self, place: Place, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with ColbertCollection.open(**place) as other:
            texts = (f"Text {number}." for number in itertools.count())
            with monkeypatch.context() as patch:
                first(patch, migration, "_remove_deleted", lambda *_: other.add([Document(next(texts), "busy")]))
                with pytest.raises(CollectionError, match="written to faster than its documents are encoded"):
                    collection.migrate(dim=64)
            assert collection.dim == DIM
            assert collection.count() == other.count() == 31
            # What was encoded is kept: the next try goes on with it.
            assert collection.migrate(dim=64).encoded < 5

    def test_a_second_reader_follows(self, place: Place, collection: ColbertCollection) -> None:
        """Whatever it does first after the one it had open is gone."""
        first_acts: list[tuple[Callable[[ColbertCollection], Any], Any]] = [
            (lambda one: one.search(ITEMS[11].text, k=1)[0].id, "d11"),
            (lambda one: one.get(["d11"])[0].id, "d11"),
            (lambda one: one.count(), 30),
            (lambda one: sorted(one.ids()), sorted(str(one.id) for one in ITEMS)),
            (lambda one: len(list(one.scroll())), 30),
            (lambda one: one.add([ITEMS[11]]), ["d11"]),
            (lambda one: one.ingest([ITEMS[11]]).unchanged, 1),
            (lambda one: one.delete(["not there"]), None),
            (lambda one: one.verify(sample=2).ok, True),
            (lambda one: one.explain("bread", "d11").text, ITEMS[11].text),
            (lambda one: one.migrate(long_documents="truncate").documents, 30),
        ]
        changes: Iterator[dict[str, Any]] = itertools.cycle(
            [
                {"dim": 64},
                {"storage": "turbo8"},
                {"dim": DIM, "first_stage": "bm25"},
                {"storage": "int8", "first_stage": "hybrid"},
            ]
        )
        for act, result in first_acts:
            with ColbertCollection.open(**place, encoder=collection.encoder) as other:
                collection.migrate(**next(changes))
                assert act(other) == result
                assert replace(other.schema, long_documents="split") == collection.schema
                assert other.search(ITEMS[12].text, k=1)[0].id == "d12"

    def test_a_collection_that_is_really_gone(self, place: Place, collection: ColbertCollection) -> None:
        with ColbertCollection.open(**place) as other:
            for alias in place["client"].get_aliases().aliases:
                place["client"].delete_collection(alias.collection_name)
            with pytest.raises(CollectionError, match=r"not found|doesn't exist"):
                other.count()

    def test_the_old_one_can_be_kept(self, place: Place, collection: ColbertCollection) -> None:
        """Who has it open goes on with it, and cannot migrate over the new one."""
        with ColbertCollection.open(**place) as stale:
            report = collection.migrate(dim=64, keep_old=True)
            assert stale.search(ITEMS[11].text, k=1)[0].id == "d11"
            assert stale.dim == DIM
            collection.add([Document("Only in the new one.", "new")])
            with pytest.raises(CollectionError, match=r"has been migrated.*Open it again"):
                stale.migrate(dim=96)
        with ColbertCollection.open(**place) as new:
            assert (new.dim, new.count(), new.get(["new"])[0].text) == (64, 31, "Only in the new one.")
        with ColbertCollection.open(client=place["client"], name=report.old) as old:
            assert (old.dim, old.count(), old.verify().ok) == (DIM, 30, True)
        assert leftovers(place) == [report.old]
        assert collection.migrate(dim=96).old is None
        assert leftovers(place) == [report.old]

    def test_other_peoples_collections_are_left_alone(
        self, place: Place, collection: ColbertCollection, mini: JinaColbertEncoder
    ) -> None:
        """Also one that has the name that the next collection would get."""
        client = place["client"]
        client.create_collection(f"{NAME}.2", vectors_config=OTHERS)
        client.upsert(f"{NAME}.2", [models.PointStruct(id=1, vector=[1.0, 2.0, 3.0])], wait=True)
        collection.migrate(dim=64)
        assert (collection.dim, collection.count()) == (64, 30)
        with ColbertCollection.open(**place) as again:
            assert again.verify().ok
        with ColbertCollection.create(**place, encoder=mini, dim=DIM, overwrite=True) as new:
            assert new.count() == 0
        assert client.count(f"{NAME}.2").count == 1
        assert leftovers(place) == [f"{NAME}.2"]

    @pytest.mark.parametrize("format", [1, 2])
    def test_a_collection_without_an_alias(
        self, place: Place, mini: JinaColbertEncoder, vectors: list[Matrix], format: int
    ) -> None:
        """As versions before made them: under its own name, and without a first stage."""
        described = {**CollectionSchema.describe(mini, DIM, "split", "float16").to_dict(), "format": format}
        if format == 1:
            for name in ("first_stage", "stage_options", "pool_factor"):
                described.pop(name, None)
        multivector = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        params = models.VectorParams(size=DIM, distance=models.Distance.DOT, multivector_config=multivector)
        place["client"].create_collection(NAME, vectors_config={"colbert": params}, metadata={"jcv2": described})
        with (
            ColbertCollection.open(**place, encoder=mini) as collection,
            ColbertCollection.open(**place, encoder=mini) as other,
        ):
            store(collection, ITEMS, vectors[:30])
            before = payloads(collection)
            report = collection.migrate(first_stage="hybrid")
            assert (report.copied, report.documents) == (30, 30)
            check(collection, before)
            assert collection.search(ITEMS[11].text, k=1, candidates=3)[0].id == "d11"
            assert other.search(ITEMS[12].text, k=1)[0].id == "d12"
            assert other.schema.first_stage == "hybrid"
            assert leftovers(place) == []
            assert collection.migrate(dim=64).documents == 30

    def test_two_on_one_client_may_work_at_a_time(self, place: Place, mini: JinaColbertEncoder) -> None:
        """Local mode has no locks of its own, so that all objects on a client must share one."""
        one = ColbertCollection.create(**place, encoder=mini, dim=DIM, first_stage="pooled")
        other = ColbertCollection.open(**place, encoder=mini)
        rows = np.ones((3, DIM), dtype=np.float32)
        query = SearchRequest(rows, Candidates({"pooled": rows[0]}, 10))

        def work(engine: Any, start: int) -> None:
            for number in range(start, start + 40):
                id, payload = point_id(str(number)), {"_id": str(number), "page_content": "A text."}
                engine.upsert([Point(id, rows, payload, {"pooled": rows[0]})])
                if number % 4 == 0:
                    engine.delete([id])
                engine.search([SearchRequest(rows), query], 10, filter=None, score_threshold=None)
                list(engine.scroll(None, with_payload=True))
                engine.count(None)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)  # so that what can go wrong does
        try:
            in_threads(*[partial(work, two.engine, 80 * n) for n, two in enumerate([one, other, one, other])])
        finally:
            sys.setswitchinterval(interval)
        assert one.count() == other.count() == 4 * 30


class TestServer:
    @pytest.fixture
    def loopback(self) -> Iterator[LoopbackQdrant]:
        with LoopbackQdrant() as running:
            yield running

    @pytest.fixture
    def place(self, loopback: LoopbackQdrant) -> Place:
        return {"url": loopback.url, "name": NAME, "client_options": {"check_compatibility": False}}

    def test_layout_and_payload_indexes_are_kept(
        self, loopback: LoopbackQdrant, place: Place, mini: JinaColbertEncoder
    ) -> None:
        client = QdrantClient(url=loopback.url, check_compatibility=False)
        with ColbertCollection.create(
            **place,
            encoder=mini,
            dim=DIM,
            shard_key="north",
            payload_indexes={"metadata.group": "keyword", "metadata.n": "integer"},
            collection_options={"shard_number": 3, "replication_factor": 2, "sharding_method": "custom"},
        ) as collection:
            collection.add(ITEMS[:5])
            collection.migrate(dim=64)
            info = client.get_collection(NAME)
            assert (info.config.params.shard_number, info.config.params.replication_factor) == (3, 2)
            kinds = {key: one.data_type.value for key, one in info.payload_schema.items()}
            assert kinds == {"metadata.group": "keyword", "metadata.n": "integer"}
            collection.add(ITEMS[5:8])
            assert collection.search(ITEMS[6].text, k=1)[0].id == "d6"
            assert collection.count() == 8
        client.close()

    def test_an_old_one_that_cannot_be_dropped_is_no_failure(
        self,
        loopback: LoopbackQdrant,
        place: Place,
        mini: JinaColbertEncoder,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The new one has replaced the old one by then, so the object goes on with it, and so do others."""
        first(
            monkeypatch,
            ClientEngine,
            "adopt",
            lambda *_, **__: loopback.fail(status=403, path_contains=f"/collections/{NAME}.1", reason="Forbidden"),
        )
        with ColbertCollection.create(**place, encoder=mini, dim=DIM, retries=1) as collection:
            collection.add(ITEMS[:5])
            collection.migrate(dim=64)
            assert collection.dim == 64
            collection.add([Document("After that.", "new")])
            with ColbertCollection.open(**place) as other:
                assert (other.dim, other.count()) == (64, 6)
            assert f"{NAME}.1" in caplog.text

    def test_the_swap_is_tried_again(self, loopback: LoopbackQdrant, place: Place, mini: JinaColbertEncoder) -> None:
        """An answer that is lost on its way does not leave this object on another collection than the rest.

        And an own client is closed at the end, not before.
        """
        with ColbertCollection.create(**place, encoder=mini, dim=DIM) as collection:
            collection.add(ITEMS[:5])
            with ColbertCollection.open(**place, encoder=mini) as other:
                loopback.fail(drop=True, carried_out=True, path_contains="/collections/aliases")
                collection.migrate(storage="turbo8")
                assert loopback.sent("POST", "/collections/aliases")
                assert collection.count() == other.count() == 5
                assert other.schema == collection.schema
                assert other.engine.physical == collection.engine.physical
                collection.migrate(storage="float16")
                theirs, ours = other.engine.client, collection.engine.client
            assert theirs._client.closed
            assert not ours._client.closed
        assert ours._client.closed


def test_engines_refuse_what_is_not_their_own(collection: ColbertCollection) -> None:
    server = ClientEngine.create(QdrantClient(":memory:"), "one", collection.schema, options=NewCollection())
    for engine, other in ((collection.engine, server), (server, collection.engine)):
        with pytest.raises(CollectionError, match="can only adopt what its own"):
            engine.adopt(other, keep_old=False)
