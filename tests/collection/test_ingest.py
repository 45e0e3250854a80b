"""Streams into a collection: their order, what an error or Ctrl-C leaves, and ids that come more than once."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from collection_samples import Create, both_engines, contents, documents, expected_contents, fail, first, on_call

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder, checks
from jcv2_plugin.errors import CollectionError, DocumentTooLongError, InvalidDocumentError, InvalidOptionError

ITEMS = documents(24)
LONG = "The tide comes in. " * 200


@pytest.fixture
def collection(create: Create) -> ColbertCollection:
    return create(long_documents="error")


@pytest.fixture
def upserts(collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The ids of each write, noted on its way to the engine."""
    noted: list[list[str]] = []
    first(monkeypatch, collection.engine, "upsert", lambda points: noted.append([one.payload["_id"] for one in points]))
    return noted


def usable(collection: ColbertCollection) -> bool:
    """Whether it takes, finds and verifies documents as ever, with no thread left."""
    collection.add(["The lighthouse is striped."], ids=["after"])
    assert collection.search("The lighthouse is striped.", k=1)[0].id == "after"
    collection.delete(["after"])
    assert not any(one.name.startswith("jcv2-store") for one in threading.enumerate())
    return collection.verify().ok


class TestOrder:
    @both_engines
    def test_batches_are_stored_in_the_order_of_the_stream(
        self, collection: ColbertCollection, upserts: list[list[str]], encoded_texts: list[list[str]]
    ) -> None:
        """And what is stored unchanged is neither encoded nor written again."""
        progress: list[int] = []
        report = collection.ingest(iter(ITEMS), batch_documents=5, progress=progress.append)
        assert list(itertools.chain(*upserts)) == [one.id for one in ITEMS]
        assert [len(one) for one in upserts] == progress == [5, 5, 5, 5, 4]
        assert (report.written, report.unchanged, report.seen, report.resumed_at) == (24, 0, 24, 0)
        assert contents(collection) == expected_contents(ITEMS)
        upserts.clear()
        encoded_texts.clear()
        changed = [Document("Another text.", "d13", ITEMS[13].metadata), Document(ITEMS[14].text, "d14", {"n": 0})]
        report = collection.ingest([*ITEMS[:13], *changed, *ITEMS[15:]], batch_documents=10)
        assert (report.written, report.unchanged) == (2, 22)
        assert encoded_texts == [["Another text.", ITEMS[14].text]]
        assert [one for one in upserts if one] == [["d13", "d14"]]

    def test_storing_goes_on_while_the_next_batch_is_encoded(
        self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first write waits until a later batch is encoded, which would be forever if one waited for the other."""
        later = threading.Event()
        first(monkeypatch, collection.engine, "upsert", lambda points: later.wait(timeout=60) or pytest.fail("no turn"))
        first(monkeypatch, JinaColbertEncoder, "document_vectors", on_call(2, later.set))
        assert collection.ingest(ITEMS, batch_documents=6).written == 24

    def test_a_few_batches_are_held_only(self, collection: ColbertCollection) -> None:
        """One being encoded, and those waiting to be stored."""
        taken: list[Document] = []
        stored, ahead = [0], []

        def stream() -> Iterator[Document]:
            for one in documents(60):
                taken.append(one)
                yield one

        def progress(number: int) -> None:
            ahead.append(len(taken) - sum(stored))
            stored.append(number)

        collection.ingest(stream(), batch_documents=4, progress=progress)
        assert len(taken) == sum(stored) == 60
        assert max(ahead) <= 4 * 4

    def test_long_texts_make_smaller_batches(
        self, collection: ColbertCollection, encoded_texts: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checks, "_BATCH_CHARACTERS", 100)
        texts = ["a " * 20, "b " * 20, "c " * 20, "d " * 100, "e " * 5, "f " * 5]  # 40, 40, 40, 200, 10, 10 characters
        report = collection.ingest(texts, batch_documents=5)
        assert [[text[0] for text in batch] for batch in encoded_texts] == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
        assert report.written == collection.count() == 6


class TestIdsThatComeAgain:
    @pytest.mark.parametrize("apart", [3, 4, 7])
    def test_the_last_one_stays(self, collection: ColbertCollection, apart: int) -> None:
        """With others between each version and the next, in the same batch or another."""
        stream: list[Document] = []
        for version in range(5):
            stream.append(Document(f"Version {version} of the text.", "again", {"version": version}))
            stream += documents(apart - 1, start=100 + 10 * version)
        collection.ingest(stream, batch_documents=3)
        assert contents(collection) == expected_contents(stream)
        assert collection.get(["again"])[0].metadata == {"version": 4}
        assert collection.verify().ok

    @both_engines
    @pytest.mark.parametrize("slow", ["storing", "encoding", "neither"])
    def test_also_if_it_is_what_was_stored_before(
        self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch, slow: str
    ) -> None:
        """While the new version is on its way the collection still has the old one, which looks unchanged."""
        old, new = Document("The first version.", "again"), Document("The second one, not to stay.", "again")
        collection.add([old])
        if slow == "storing":
            first(monkeypatch, collection.engine, "upsert", lambda points: time.sleep(0.05))
        stream = [new, old, *documents(3)] if slow != "encoding" else [new, *documents(1), old, *documents(3, start=5)]
        assert collection.ingest(stream, batch_documents=1).written == len(stream)
        assert collection.get(["again"])[0].text == old.text
        assert collection.search("the first version", k=1)[0].text == old.text
        assert collection.verify().ok


def ending(items: Iterable[Document], error: BaseException) -> Iterator[Document]:
    """A source that fails after so many."""
    yield from items
    raise error


class TestWhatStopsIt:
    """The batches before it stay, the collection is as good as ever, and the next run goes on from there."""

    @pytest.mark.parametrize(
        ("stream", "error", "message", "stored"),
        [
            ([*ITEMS[:10], Document(" ", "bad"), *ITEMS[10:]], InvalidDocumentError, "the text is empty", 8),
            ([*ITEMS[:4], Document("A.", "a"), Document("B.", "a")], InvalidDocumentError, r"'a'\): .* twice", 4),
            ([*ITEMS[:6], Document(LONG, "long")], DocumentTooLongError, r"'long' \(.*\) has", 4),
            ((ITEMS[:9], OSError("the disk is gone")), OSError, "the disk is gone", 8),
            ((ITEMS[:14], KeyboardInterrupt()), KeyboardInterrupt, None, 12),
        ],
        ids=["a bad text", "an id twice", "too long", "an error of the source", "Ctrl-C in the source"],
    )
    def test_in_the_stream(
        self, collection: ColbertCollection, stream: Any, error: type[BaseException], message: str | None, stored: int
    ) -> None:
        given = ending(*stream) if isinstance(stream, tuple) else stream
        with pytest.raises(error, match=message):
            collection.ingest(given, batch_documents=4, on_blank="error")
        assert contents(collection) == expected_contents(ITEMS[:stored])
        assert usable(collection)
        assert collection.ingest(ITEMS, batch_documents=4).unchanged == stored

    @both_engines
    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
    def test_between_batches(self, collection: ColbertCollection, tmp_path: Path, error: type[BaseException]) -> None:
        progress = on_call(1, lambda: fail(error()))
        with pytest.raises(error):
            collection.ingest(ITEMS, batch_documents=4, progress=progress, journal=tmp_path / "j")
        stored = contents(collection)
        assert stored == expected_contents(ITEMS[: len(stored)])  # whole batches, in order
        assert len(stored) in range(4, 24, 4)
        assert usable(collection)
        assert collection.ingest(ITEMS, batch_documents=4, journal=tmp_path / "j").unchanged == len(stored)
        assert contents(collection) == expected_contents(ITEMS)

    @both_engines
    def test_while_a_batch_is_encoded(self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            first(patch, JinaColbertEncoder, "document_vectors", on_call(4, lambda: fail(KeyboardInterrupt())))
            with pytest.raises(KeyboardInterrupt):
                collection.ingest(ITEMS, batch_documents=4)
        assert contents(collection) == expected_contents(ITEMS[:12])
        assert usable(collection)

    def test_in_the_engine(self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            first(patch, collection.engine, "upsert", on_call(3, lambda: fail(CollectionError("the disk is full"))))
            with pytest.raises(CollectionError, match="the disk is full"):
                collection.ingest(ITEMS, batch_documents=4)
        assert {one.id for one in ITEMS[:8]} <= set(collection.ids())
        assert "d8" not in set(collection.ids())
        # What came after it is not taken for stored when the run is repeated.
        collection.ingest(ITEMS, batch_documents=4)
        assert contents(collection) == expected_contents(ITEMS)

    def test_before_it_begins(self, collection: ColbertCollection) -> None:
        assert collection.ingest([], progress=lambda _: pytest.fail("there is nothing")).seen == 0
        wrong: list[tuple[Any, Any, type[Exception], str]] = [
            (ITEMS, {"batch_documents": 0}, ValueError, "batch_documents must be a positive"),
            (ITEMS, {"batch_documents": -1}, ValueError, "batch_documents must be a positive"),
            (ITEMS, {"workers": ["cpu", 1]}, InvalidOptionError, "workers must be"),
            ("one string", {}, InvalidDocumentError, "Give an iterable of documents"),
            (ITEMS[0], {}, InvalidDocumentError, "Give an iterable of documents"),
        ]
        for stream, options, error, message in wrong:
            with pytest.raises(error, match=message):
                collection.ingest(stream, **options)
        assert collection.count() == 0


def test_other_writers_wait_and_readers_do_not(collection: ColbertCollection) -> None:
    done: list[str] = []
    writer = threading.Thread(target=lambda: done.extend(collection.add(["Late."], ids=["late"])))
    reader = threading.Thread(target=lambda: done.append(f"{len(collection.search('bread'))} found"))

    def stream() -> Iterator[Document]:
        yield from ITEMS[:4]
        writer.start()
        reader.start()
        reader.join(timeout=60)
        writer.join(timeout=0.1)
        assert writer.is_alive()
        assert len(done) == 1
        yield from ITEMS[4:8]

    collection.ingest(stream(), batch_documents=4)
    writer.join(timeout=60)
    assert done[1:] == ["late"]
    assert collection.count() == 9


def test_blank_texts_are_counted_and_named(collection: ColbertCollection, caplog: pytest.LogCaptureFixture) -> None:
    pages = [Document("One.", "1"), Document(" \n", "2"), Document("Three.", "3"), Document("", "4")]
    with caplog.at_level("WARNING"):
        report = collection.ingest(pages, batch_documents=2)
    assert (report.written, report.blank, report.seen) == (2, 2, 4)
    (record,) = caplog.records
    assert record.getMessage().startswith("Left out 2 documents without text: 2, 4.")
    assert collection.ingest(pages).unchanged == 2
