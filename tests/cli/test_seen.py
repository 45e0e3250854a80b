"""A run's ids are on disk: any number of them takes the same memory."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path

import pytest
from cli_helpers import write_rows

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.cli.seen import SeenIds
from jcv2_plugin.cli.stream import DocumentStream
from jcv2_plugin.collection.sources import PassageReader, SourceError, find_files


class TestSeenIds:
    def test_the_file_of_an_id_that_was_there(self) -> None:
        with SeenIds(buffered=3) as seen:
            for number in range(10):
                assert seen.add(f"id {number}", number) is None
            assert [seen.add(f"id {number}", 99) for number in range(10)] == list(range(10))
            assert len(seen) == 10
            assert "id 9" in seen
            assert "id 0" in seen
            assert "id 10" not in seen
            assert 3 not in seen

    def test_any_text_is_an_id(self) -> None:
        with SeenIds() as seen:
            for own_id in ("", "ä", "日本", "a\x00b", "\ud800", "x" * 100_000):
                assert seen.add(own_id, 1) is None
                assert own_id in seen

    def test_what_is_gone_comes_in_batches(self) -> None:
        with SeenIds(buffered=4) as seen:
            for number in range(10):
                seen.note_gone(str(number))
            batches = list(seen.gone())
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert [one for batch in batches for one in batch] == [str(number) for number in range(10)]

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open files are told by /proc")
    def test_it_is_on_disk_and_nothing_of_it_is_left(self) -> None:
        with SeenIds() as seen:
            before = open_files()
            for number in range(400_000):
                seen.add(str(number), 0)
            made = open_files() - before
            # A file without a name: also a kill leaves nothing.
            assert [name.endswith("(deleted)") for name in made] == [True]
            assert len(seen._new) < 1000
        assert open_files() - before == set()
        seen.close()


def open_files() -> set[str]:
    links = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(link.readlink()))
        except OSError:
            continue
    return {name for name in links if name.startswith("/") and not name.startswith("/dev/")}


class TestStream:
    def test_ids_are_not_held(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        rows = [{"id": f"{n:0300d}", "text": f"Row {n}."} for n in range(5000)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        del rows
        files, reader = find_files([tmp_path / "rows.jsonl"]), PassageReader(mini)
        with SeenIds(buffered=100) as seen:
            stream = DocumentStream(reader, files, seen, strict=False)
            tracemalloc.start()
            read = sum(1 for _ in stream)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert (read, len(seen)) == (5000, 5000)
            assert len(seen._new) <= 100
        # The ids alone are 1.5 MB.
        assert peak < 400_000

    def test_an_id_that_was_written_away_is_still_refused(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        write_rows(tmp_path / "a.jsonl", range(5000))
        write_rows(tmp_path / "b.jsonl", [5000, 7])
        files = find_files([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
        with SeenIds(buffered=100) as seen:
            stream = iter(DocumentStream(PassageReader(mini), files, seen, strict=False))
            for _ in range(5001):
                next(stream)
            with pytest.raises(SourceError, match=r"b\.jsonl: the id '7' comes a second time \(first in .*a\.jsonl\)"):
                next(stream)

    def test_how_many_there_are_is_estimated_from_the_bytes(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        write_rows(tmp_path / "a.jsonl", range(1000, 2000))
        write_rows(tmp_path / "b.jsonl", range(2000, 3000))
        files = find_files([tmp_path])
        with SeenIds() as seen:
            stream = DocumentStream(PassageReader(mini), files, seen, strict=False)
            documents = iter(stream)
            assert stream.expected is None
            for _ in range(500):
                next(documents)
            assert stream.expected is not None
            assert abs(stream.expected - 2000) < 50
            assert sum(1 for _ in documents) == 1500
            assert stream.expected == 2000
