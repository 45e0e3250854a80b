"""The journal of a long ingestion: what it remembers, what it takes for itself, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.collection.journal import IngestJournal, JournalError
from jcv2_plugin.errors import CollectionLockedError

DOCUMENTS = [Document("one"), Document("two", id="mine"), Document("three"), Document("four")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


def names(file: Path | None, *, stored: int = 0) -> list[str | None]:
    """The ids that a try of the run gives, after which it stops."""
    with IngestJournal.open(file) as journal:
        named = [one.id for one in journal.named(DOCUMENTS[:2]) + journal.named(DOCUMENTS[2:])]
        if stored:
            journal.stored(stored)
    return named


def seen(file: Path) -> int:
    with IngestJournal.open(file) as journal:
        return journal.seen


class TestIds:
    def test_each_try_of_a_run_gives_the_same(self, file: Path) -> None:
        first = names(file, stored=2)
        assert first[1] == "mine"
        assert len(set(first)) == 4
        assert names(file) == first
        assert names(file, stored=4) == first

    def test_without_a_file_each_try_gives_others(self) -> None:
        assert set(names(None)) & set(names(None)) == {"mine"}


class TestProgress:
    def test_it_remembers_how_far_a_run_got(self, file: Path) -> None:
        names(file, stored=2)
        assert seen(file) == 2
        with IngestJournal.open(file) as journal:
            journal.stored(2)  # the same documents again
            journal.stored(1)
        assert seen(file) == 3

    def test_a_try_that_gets_less_far_takes_nothing_back(self, file: Path) -> None:
        names(file, stored=4)
        names(file, stored=1)
        assert seen(file) == 4

    def test_it_is_on_disk_at_once(self, file: Path) -> None:
        with IngestJournal.open(file) as journal:
            journal.stored(3)
            assert json.loads(file.read_text().splitlines()[-1]) == {"seen": 3}

    def test_a_run_that_ends_well_leaves_nothing(self, file: Path) -> None:
        with IngestJournal.open(file) as journal:
            journal.stored(3)
            journal.finish()
        assert list(file.parent.iterdir()) == []

    def test_folders_are_made(self, tmp_path: Path) -> None:
        names(tmp_path / "new" / "folder" / "journal")
        assert (tmp_path / "new" / "folder" / "journal").exists()


class TestDamage:
    @pytest.mark.parametrize(
        "end", ['{"se', '{"seen": 3', "{", '"', "\n\n", "\x00\x00\x00", '{"seen": 2}\n[1]\n17\nnull\n']
    )
    def test_a_line_that_was_cut_off_is_no_harm(self, file: Path, end: str) -> None:
        first = names(file, stored=2)
        with file.open("a") as journal:
            journal.write(end)
        assert seen(file) == 2
        assert names(file, stored=4) == first
        assert seen(file) == 4

    def test_any_length_it_may_be_cut_to_after_the_header(self, file: Path) -> None:
        first = names(file, stored=4)
        whole = file.read_bytes()
        header = whole.index(b"}") + 1
        for length in range(header, len(whole)):
            file.write_bytes(whole[:length])
            assert seen(file) in (0, 4)
            assert names(file) == first

    def test_a_header_that_was_cut_off_is_refused(self, file: Path) -> None:
        names(file)
        header = file.read_text().splitlines()[0]
        for length in range(1, len(header)):
            file.write_text(header[:length])
            with pytest.raises(JournalError, match=r"run\.journal' is no journal.*or delete this one"):
                IngestJournal.open(file)
            assert file.read_text() == header[:length]

    def test_an_empty_file_becomes_one(self, file: Path) -> None:
        file.touch()
        first = names(file, stored=2)
        assert names(file) == first

    @pytest.mark.parametrize(
        "content",
        [
            b"years of work\n",
            b"\x89PNG\r\n\x1a\n\xff\xfe",
            b"\n",
            b"{}\n",
            b"[]\n",
            b'{"id": 1, "text": "a corpus"}\n{"id": 2}\n',
            b'{"journal": 1, "run": 7}\n',
            b'{"journal": 1, "run": "no uuid"}\n',
            b'{"run": "8d7f2f2e-3e08-4a3b-9d5e-0f7c2a1b3c4d", "epoch": 3}\n',
        ],
    )
    def test_other_peoples_files_are_left_alone(self, file: Path, content: bytes) -> None:
        file.write_bytes(content)
        with pytest.raises(JournalError, match="is no journal"):
            IngestJournal.open(file)
        assert file.read_bytes() == content
        file.unlink()
        IngestJournal.open(file).close()  # no lock is left

    def test_one_of_a_newer_version(self, file: Path) -> None:
        names(file)
        file.write_text(file.read_text().replace('"journal": 1', '"journal": 2'))
        with pytest.raises(JournalError, match="is no journal"):
            IngestJournal.open(file)

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(JournalError, match="is no journal"):
            IngestJournal.open(tmp_path)


class TestLock:
    def test_two_runs_cannot_share_one(self, file: Path) -> None:
        with IngestJournal.open(file) as journal:
            journal.stored(1)
            with pytest.raises(CollectionLockedError, match="in use by another run"):
                IngestJournal.open(file)
            journal.stored(1)
        assert seen(file) == 2

    def test_two_collections_cannot_use_one_at_a_time(self, mini: JinaColbertEncoder, file: Path) -> None:
        one, other = (ColbertCollection.create(":memory:", encoder=mini, dim=32) for _ in range(2))

        def stream() -> Iterator[str]:
            yield "Rice is cooked in water."
            with pytest.raises(CollectionLockedError, match="in use by another run"):
                other.ingest(["The ferry sails at noon."], journal=file)
            yield "A piano has many keys."

        assert one.ingest(stream(), journal=file).written == 2
        assert (one.count(), other.count()) == (2, 0)


class TestInAnIngestion:
    def test_a_bad_journal_stops_it_before_anything_is_read(self, mini: JinaColbertEncoder, file: Path) -> None:
        file.write_text("years of work")
        taken: list[int] = []
        with ColbertCollection.create(":memory:", encoder=mini, dim=32) as collection:
            with pytest.raises(JournalError):
                collection.ingest((taken.append(n) or "A text." for n in range(3)), journal=file)
            assert (taken, collection.count()) == ([], 0)
            assert collection.ingest(["A text."]).written == 1

    def test_documents_without_ids_do_not_come_twice(self, mini: JinaColbertEncoder, file: Path) -> None:
        texts = [f"Report {n} tells of harbour {n % 7}." for n in range(20)]

        def breaking_after(number: int) -> Iterator[str]:
            yield from texts[:number]
            raise RuntimeError("the source is gone")

        with ColbertCollection.create(":memory:", encoder=mini, dim=32) as collection:
            reports = []
            for number in (5, 13):
                with pytest.raises(RuntimeError, match="the source is gone"):
                    collection.ingest(breaking_after(number), batch_documents=4, journal=file)
                assert file.exists()
            reports.append(collection.ingest(texts, batch_documents=4, journal=file))
            assert (reports[0].resumed_at, reports[0].unchanged, reports[0].written) == (12, 12, 8)
            assert sorted(one.text for one in collection.scroll()) == sorted(texts)
            assert list(file.parent.iterdir()) == []
            # A new run is a new run.
            assert collection.ingest(texts, batch_documents=4, journal=file).written == 20
            assert collection.count() == 40

    def test_the_same_text_twice_is_two_documents(self, mini: JinaColbertEncoder, file: Path) -> None:
        with ColbertCollection.create(":memory:", encoder=mini, dim=32) as collection:
            assert collection.ingest(["Rice.", "Rice.", "Rice."], batch_documents=2, journal=file).written == 3
            assert collection.count() == 3

    def test_a_journal_of_another_collection_costs_nothing(self, mini: JinaColbertEncoder, file: Path) -> None:
        texts = [f"Report {n}." for n in range(8)]

        def stream() -> Iterator[str]:
            yield from texts
            raise RuntimeError

        with ColbertCollection.create(":memory:", encoder=mini, dim=32) as one, pytest.raises(RuntimeError):
            one.ingest(stream(), batch_documents=4, journal=file)
        with ColbertCollection.create(":memory:", encoder=mini, dim=32) as other:
            report = other.ingest(texts, batch_documents=4, journal=file)
            assert (report.written, report.unchanged, other.count()) == (8, 0, 8)


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("")
    for name in ("journal", "journal.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    with IngestJournal.open(tmp_path / "journal") as journal:
        journal.named([Document("A text.")])
        journal.stored(1)
    assert (tmp_path / "victim").read_text() == ""
    (tmp_path / "journal").unlink()
    (tmp_path / "journal.lock").unlink(missing_ok=True)
    (tmp_path / "journal.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(JournalError, match=r"journal' cannot be locked \(.*links"):
        IngestJournal.open(tmp_path / "journal")
