"""Streams into a collection: their order, what an error or Ctrl-C leaves, and ids that come more than once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from collection_samples import DIM, contents, documents, expected_contents, stored_vectors

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder, checks
from jcv2_plugin.errors import CollectionError, DocumentTooLongError, InvalidDocumentError, InvalidOptionError

ITEMS = documents(24)


@pytest.fixture(params=["edge", "memory"])
def collection(request: pytest.FixtureRequest, mini: JinaColbertEncoder, tmp_path: Path) -> Iterator[ColbertCollection]:
    location = ":memory:" if request.param == "memory" else tmp_path / "collection"
    with ColbertCollection.create(location, encoder=mini, dim=DIM) as made:
        yield made


@pytest.fixture
def upserts(collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The ids of each write, noted on its way to the engine."""
    noted: list[list[str]] = []
    engine = collection.engine

    def upsert(points: Any, original: Callable[[Any], None] = engine.upsert) -> None:
        noted.append([point.payload["_id"] for point in points])
        original(points)

    monkeypatch.setattr(engine, "upsert", upsert)
    return noted


@pytest.fixture
def encoded_texts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of each batch that is encoded."""
    noted: list[list[str]] = []
    original = JinaColbertEncoder.document_vectors

    def document_vectors(self: JinaColbertEncoder, texts: list[str], *rest: Any) -> Any:
        noted.append(list(texts))
        return original(self, texts, *rest)

    monkeypatch.setattr(JinaColbertEncoder, "document_vectors", document_vectors)
    return noted


def usable(collection: ColbertCollection) -> bool:
    """Whether it takes, finds and verifies documents as ever."""
    collection.add(["The lighthouse is striped."], ids=["after"])
    assert collection.search("The lighthouse is striped.", k=1)[0].id == "after"
    collection.delete(["after"])
    return collection.verify().ok


class TestOrder:
    def test_batches_are_stored_in_the_order_of_the_stream(
        self, collection: ColbertCollection, upserts: list[list[str]]
    ) -> None:
        progress: list[int] = []
        report = collection.ingest(iter(ITEMS), batch_documents=5, progress=progress.append)
        assert list(itertools.chain(*upserts)) == [one.id for one in ITEMS]
        assert [len(one) for one in upserts] == progress == [5, 5, 5, 5, 4]
        assert (report.written, report.unchanged, report.seen, report.resumed_at) == (24, 0, 24, 0)
        assert contents(collection) == expected_contents(ITEMS)

    def test_storing_goes_on_while_the_next_batch_is_encoded(
        self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first write waits until a later batch is encoded, which would be forever if one waited for the other."""
        engine, later = collection.engine, threading.Event()
        original, encode = engine.upsert, JinaColbertEncoder.document_vectors
        batches = itertools.count()

        def upsert(points: Any) -> None:
            assert later.wait(timeout=60)
            original(points)

        def document_vectors(self: JinaColbertEncoder, *arguments: Any) -> Any:
            if next(batches) == 1:
                later.set()
            return encode(self, *arguments)

        monkeypatch.setattr(engine, "upsert", upsert)
        monkeypatch.setattr(JinaColbertEncoder, "document_vectors", document_vectors)
        assert collection.ingest(ITEMS, batch_documents=6).written == 24

    def test_what_is_stored_unchanged_is_neither_encoded_nor_written(
        self, collection: ColbertCollection, upserts: list[list[str]], encoded_texts: list[list[str]]
    ) -> None:
        collection.ingest(ITEMS, batch_documents=10)
        upserts.clear()
        encoded_texts.clear()
        changed = Document("Another text.", "d13", ITEMS[13].metadata)
        report = collection.ingest([*ITEMS[:13], changed, *ITEMS[14:]], batch_documents=10)
        assert (report.written, report.unchanged) == (1, 23)
        assert encoded_texts == [["Another text."]]
        assert [one for one in upserts if one] == [["d13"]]

    def test_long_texts_make_smaller_batches(
        self, collection: ColbertCollection, encoded_texts: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checks, "_BATCH_CHARACTERS", 100)
        texts = ["a " * 20, "b " * 20, "c " * 20, "d " * 100, "e " * 5, "f " * 5]  # 40, 40, 40, 200, 10, 10 characters
        report = collection.ingest(texts, batch_documents=5)
        assert [[text[0] for text in batch] for batch in encoded_texts] == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
        assert report.written == collection.count() == 6

    def test_nothing_at_all(self, collection: ColbertCollection) -> None:
        progress: list[int] = []
        assert collection.ingest([], progress=progress.append).seen == 0
        assert collection.ingest(iter(()), journal=None).seen == 0
        assert (progress, collection.count()) == ([], 0)


class TestIdsThatComeAgain:
    def versions(self, number: int, *, apart: int) -> list[Document]:
        """Versions of one document, each with others between it and the next."""
        stream: list[Document] = []
        for version in range(number):
            stream.append(Document(f"Version {version} of the text.", "again", {"version": version}))
            stream += documents(apart - 1, start=100 + 10 * version)
        return stream

    @pytest.mark.parametrize("apart", [3, 4, 7])
    def test_the_last_one_stays(self, collection: ColbertCollection, apart: int) -> None:
        stream = self.versions(5, apart=apart)
        collection.ingest(stream, batch_documents=3)
        assert contents(collection) == expected_contents(stream)
        assert collection.get(["again"])[0].metadata == {"version": 4}
        assert collection.verify().ok

    @pytest.mark.parametrize("slow", ["storing", "encoding", "neither"])
    def test_also_if_it_is_what_was_stored_before(
        self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch, slow: str
    ) -> None:
        """While the new version is on its way the collection still has the old one, which looks unchanged."""
        old, new = Document("The first version.", "again"), Document("The second one, not to stay.", "again")
        collection.add([old])
        engine, original = collection.engine, collection.engine.upsert

        def upsert(points: Any) -> None:
            if slow == "storing":
                threading.Event().wait(0.05)
            original(points)

        monkeypatch.setattr(engine, "upsert", upsert)
        stream = [new, old, *documents(3)] if slow != "encoding" else [new, *documents(1), old, *documents(3, start=5)]
        report = collection.ingest(stream, batch_documents=1)
        assert report.written == len(stream)
        assert collection.get(["again"])[0].text == old.text
        assert collection.search("the first version", k=1)[0].text == old.text
        assert collection.verify().ok

    def test_twice_in_one_batch_is_an_error(self, collection: ColbertCollection) -> None:
        stream = [*ITEMS[:4], Document("One.", "twice"), Document("Two.", "twice"), *ITEMS[4:]]
        with pytest.raises(InvalidDocumentError, match=r"'twice'\): this id comes twice"):
            collection.ingest(stream, batch_documents=4)
        assert sorted(collection.ids()) == ["d0", "d1", "d2", "d3"]


class TestErrors:
    def test_a_bad_document_leaves_the_batches_before_it(self, collection: ColbertCollection) -> None:
        with pytest.raises(InvalidDocumentError, match="the text is empty"):
            collection.ingest([*ITEMS[:10], Document(" ", "bad"), *ITEMS[10:]], batch_documents=4)
        assert contents(collection) == expected_contents(ITEMS[:8])
        assert usable(collection)

    def test_a_document_that_is_too_long(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        with ColbertCollection.create(
            tmp_path / "c", encoder=mini, dim=DIM, long_documents="error", first_stage="none"
        ) as collection:
            with pytest.raises(DocumentTooLongError, match=r"'long' \(.*\) has"):
                collection.ingest([*ITEMS[:6], Document("The tide comes in. " * 200, "long")], batch_documents=3)
            assert contents(collection) == expected_contents(ITEMS[:6])

    def test_a_source_that_fails(self, collection: ColbertCollection) -> None:
        def stream() -> Iterator[Document]:
            yield from ITEMS[:9]
            raise OSError("the disk is gone")

        with pytest.raises(OSError, match="the disk is gone"):
            collection.ingest(stream(), batch_documents=4)
        assert contents(collection) == expected_contents(ITEMS[:8])
        assert usable(collection)

    def test_an_engine_that_fails(self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch) -> None:
        engine, original, writes = collection.engine, collection.engine.upsert, itertools.count()

        def upsert(points: Any) -> None:
            if next(writes) == 2:
                raise CollectionError("the disk is full")
            original(points)

        monkeypatch.setattr(engine, "upsert", upsert)
        with pytest.raises(CollectionError, match="the disk is full"):
            collection.ingest(ITEMS, batch_documents=4)
        assert {one.id for one in ITEMS[:8]} <= set(collection.ids())
        assert "d8" not in set(collection.ids())
        # What came after it is not taken for stored when the run is repeated.
        monkeypatch.setattr(engine, "upsert", original)
        collection.ingest(ITEMS, batch_documents=4)
        assert contents(collection) == expected_contents(ITEMS)

    def test_a_progress_that_fails(self, collection: ColbertCollection) -> None:
        def progress(number: int) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            collection.ingest(ITEMS, batch_documents=4, progress=progress)
        stored = contents(collection)
        assert stored == expected_contents(ITEMS[: len(stored)])
        assert len(stored) >= 4
        assert usable(collection)

    def test_a_batch_of_none(self, collection: ColbertCollection) -> None:
        for size in (0, -1):
            with pytest.raises(ValueError, match="batch_documents must be positive"):
                collection.ingest(ITEMS, batch_documents=size)

    def test_workers_that_are_none(self, collection: ColbertCollection) -> None:
        wrong: list[Any] = [-1, "cpu", True, 1.5, None, ["cpu", 1]]
        for workers in wrong:
            with pytest.raises(InvalidOptionError, match="workers must be"):
                collection.ingest(ITEMS, workers=workers)
        assert collection.count() == 0

    @pytest.mark.parametrize("what", ["one string", ITEMS[0]])
    def test_a_single_document(self, collection: ColbertCollection, what: Any) -> None:
        with pytest.raises(InvalidDocumentError, match="Give an iterable of documents"):
            collection.ingest(what)


class TestCtrlC:
    def test_in_the_source(self, collection: ColbertCollection) -> None:
        def stream() -> Iterator[Document]:
            yield from ITEMS[:14]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            collection.ingest(stream(), batch_documents=4)
        assert contents(collection) == expected_contents(ITEMS[:12])
        assert usable(collection)
        assert collection.ingest(ITEMS, batch_documents=4).unchanged == 12

    def test_between_batches(self, collection: ColbertCollection, tmp_path: Path) -> None:
        def progress(number: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            collection.ingest(ITEMS, batch_documents=4, progress=progress, journal=tmp_path / "journal")
        stored = contents(collection)
        assert stored == expected_contents(ITEMS[: len(stored)])  # whole batches, in order
        assert len(stored) % 4 == 0
        assert usable(collection)
        report = collection.ingest(ITEMS, batch_documents=4, journal=tmp_path / "journal")
        assert report.unchanged == len(stored)
        assert contents(collection) == expected_contents(ITEMS)

    def test_while_a_batch_is_encoded(self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch) -> None:
        original, batches = JinaColbertEncoder.document_vectors, itertools.count()

        def document_vectors(self: JinaColbertEncoder, *arguments: Any) -> Any:
            if next(batches) == 3:
                raise KeyboardInterrupt
            return original(self, *arguments)

        monkeypatch.setattr(JinaColbertEncoder, "document_vectors", document_vectors)
        with pytest.raises(KeyboardInterrupt):
            collection.ingest(ITEMS, batch_documents=4)
        monkeypatch.undo()
        assert contents(collection) == expected_contents(ITEMS[:12])
        assert usable(collection)

    def test_no_thread_is_left(self, collection: ColbertCollection) -> None:
        def stream() -> Iterator[Document]:
            yield from ITEMS[:5]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            collection.ingest(stream(), batch_documents=2)
        assert [one.name for one in threading.enumerate() if one.name.startswith("jcv2-store")] == []


def test_other_writers_wait_and_readers_do_not(collection: ColbertCollection) -> None:
    waiting: list[str] = []

    def stream() -> Iterator[Document]:
        yield from ITEMS[:4]
        writer = threading.Thread(target=lambda: waiting.extend(collection.add(["Late."], ids=["late"])))
        writer.start()
        reader = threading.Thread(target=lambda: waiting.append(f"{len(collection.search('bread'))} found"))
        reader.start()
        reader.join(timeout=60)
        writer.join(timeout=0.1)
        assert writer.is_alive()
        assert len(waiting) == 1
        yield from ITEMS[4:8]
        threads.append(writer)

    threads: list[threading.Thread] = []
    collection.ingest(stream(), batch_documents=4)
    threads[0].join(timeout=60)
    assert waiting[1:] == ["late"]
    assert collection.count() == 9


def test_vectors_are_those_of_add(collection: ColbertCollection, mini: JinaColbertEncoder) -> None:
    collection.ingest(ITEMS, batch_documents=7)
    with ColbertCollection.create(":memory:", encoder=mini, dim=DIM) as other:
        other.add(ITEMS)
        theirs = stored_vectors(other)
    for one, matrix in stored_vectors(collection).items():
        assert matrix == pytest.approx(theirs[one], abs=1e-3)
