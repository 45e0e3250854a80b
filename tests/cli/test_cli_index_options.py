"""What a new collection is to be like, pipes, workers, and what is removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge
from cli_helpers import MINI, ids, jcv2, run, run_both, run_json, write_rows

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.collection.sources import FILE_KEY, SourceError
from jcv2_plugin.documents import payload_of, point_id
from jcv2_plugin.engines.base import Point
from jcv2_plugin.errors import CollectionMismatchError, InvalidOptionError


def payload_indexes(folder: Path) -> dict[str, str]:
    schema = qdrant_edge.EdgeShard.load(str(folder / "shard")).info().payload_schema
    return {key: str(info.data_type).rpartition(".")[2].lower() for key, info in schema.items()}


class TestNewCollections:
    def test_it_is_made_as_asked_for(self, folder: Path) -> None:
        options = ("--storage", "int8", "--first-stage", "pooled", "--pool-factor", "2")
        run("index", "docs", "-c", "store", *MINI, *options, "--payload-index", "source=keyword")
        described = run_json("info", "-c", "store")
        assert (described["storage"], described["first_stage"], described["pool_factor"]) == ("int8", "pooled", 2.0)
        assert payload_indexes(folder / "store") == {"_file": "keyword", "metadata.source": "keyword"}
        # It is the same the next time; and what is said of it must be true.
        run("index", "docs", "-c", "store", *MINI, *options)
        for option, value in (("--storage", "float16"), ("--first-stage", "none"), ("--pool-factor", "3")):
            with pytest.raises(CollectionMismatchError, match=f"was made with {option}"):
                run("index", "docs", "-c", "store", option, value)

    def test_what_is_not_given_is_the_packages_default(self, indexed: Path) -> None:
        with ColbertCollection.create(indexed / "other", encoder="mini", dim=64) as made:
            assert {**run_json("info", "-c", "store"), "documents": 0} == {**made.schema.to_dict(), "documents": 0}

    def test_another_payload_index_is_added(self, indexed: Path) -> None:
        run("index", "docs", "-c", "store", "--payload-index", "topic=keyword", "--payload-index", "page_content=text")
        found = payload_indexes(indexed / "store")
        assert found == {"_file": "keyword", "metadata.topic": "keyword", "page_content": "text"}

    @pytest.mark.parametrize("given", ["topic", "=keyword", "topic=", "topic=word"])
    def test_a_payload_index_that_is_none(self, folder: Path, given: str) -> None:
        run("index", "docs", "-c", "store", *MINI, "--payload-index", given, code=2)
        assert not (folder / "store").exists()

    @pytest.mark.parametrize("option", [("--shards", "2"), ("--replicas", "2"), ("--shard-key", "a")])
    def test_a_folder_has_no_shards(self, folder: Path, option: tuple[str, str]) -> None:
        _, said = run_both("index", "docs", "-c", "store", *MINI, *option, code=2)
        assert "is a folder" in said
        assert not (folder / "store").exists()

    @pytest.mark.parametrize("option", [("--storage", "int3"), ("--first-stage", "second")])
    def test_what_there_is_not(self, folder: Path, option: tuple[str, str]) -> None:
        with pytest.raises(InvalidOptionError, match="must be one of"):
            run("index", "docs", "-c", "store", "--model", "no/model", *option)

    def test_workers(self, folder: Path) -> None:
        write_rows(folder / "rows.jsonl", range(40))
        done = jcv2("index", "rows.jsonl", "-c", "store", *MINI, "--workers", "1", "--json", cwd=folder)
        assert json.loads(done.stdout)["written"] == 40
        assert "Traceback" not in done.stderr
        assert run_json("index", "rows.jsonl", "-c", "store")["unchanged"] == 40


class TestPipes:
    ROW = '{"id": "a", "text": "A text from a pipe."}\n'

    def test_rows_come_from_stdin(self, folder: Path) -> None:
        assert run_json("index", "-", "docs", "-c", "store", *MINI, stdin=self.ROW)["written"] == 3
        hit = run_json("search", "-c", "store", "a pipe", "-k", "1")[0]
        assert (hit["id"], hit["metadata"]) == ("a", {"source": "stdin"})

    def test_another_pipe_removes_nothing(self, folder: Path) -> None:
        run("index", "-", "-c", "store", *MINI, stdin=self.ROW)
        done = run_json("index", "-", "-c", "store", "--prune", stdin=self.ROW.replace('"a"', '"b"'))
        assert (done["written"], done["removed"]) == (1, 0)
        assert ids("store") == {"a", "b"}

    def test_a_line_that_is_none_is_named(self, folder: Path) -> None:
        with pytest.raises(SourceError, match="stdin:2: expected"):
            run("index", "-", "-c", "store", *MINI, stdin=self.ROW + "nonsense\n")
        assert run_json("info", "-c", "store")["documents"] == 0

    def test_in_a_shell(self, folder: Path) -> None:
        done = jcv2("index", "-", "-c", "store", *MINI, cwd=folder, stdin=self.ROW)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("1 files: 1 documents written")


class TestFiles:
    def test_a_jsonl_that_cannot_be_read(self, folder: Path) -> None:
        (folder / "gone.jsonl").symlink_to("nowhere")
        with pytest.raises(SourceError, match=r"no file or folder 'gone\.jsonl'"):
            run("index", "gone.jsonl", "-c", "store", *MINI)
        (folder / "docs" / "gone.jsonl").symlink_to("nowhere")
        with pytest.raises(SourceError, match=r"docs/gone\.jsonl cannot be read"):
            run("index", "docs", "-c", "store", *MINI)

    def test_a_bad_row_leaves_what_came_before(self, folder: Path) -> None:
        rows = write_rows(folder / "rows.jsonl", range(300))
        with rows.open("a") as file:
            file.write("nonsense\n")
        with pytest.raises(SourceError, match=r"rows\.jsonl:301"):
            run("index", "rows.jsonl", "-c", "store", *MINI)
        assert run_json("info", "-c", "store")["documents"] == 256

    def test_what_is_removed_may_be_more_than_fits_a_batch(
        self, folder: Path, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_rows(folder / "rows.jsonl", range(3))
        with ColbertCollection.create("store", encoder=mini, dim=32, first_stage="none") as collection:
            for start in range(0, 2500, 500):
                collection.engine.upsert([row(number) for number in range(start, start + 500)])
            collection.add(["Added by hand."], ids=["hand"])
        running: list[bool] = []
        deleted: list[int] = []
        scroll, delete = ColbertCollection.payloads, ColbertCollection.delete

        def payloads(self: ColbertCollection, *arguments: Any) -> Iterator[dict[str, Any]]:
            running.append(True)
            yield from scroll(self, *arguments)
            running.pop()

        def deleting(self: ColbertCollection, batch: list[str]) -> None:
            assert not running
            deleted.append(len(batch))
            delete(self, batch)

        monkeypatch.setattr(ColbertCollection, "payloads", payloads)
        monkeypatch.setattr(ColbertCollection, "delete", deleting)
        done = run_json("index", "rows.jsonl", "-c", "store")
        assert (done["unchanged"], done["removed"], done["documents"]) == (3, 2497, 4)
        assert deleted == [1000, 1000, 497]

    def test_nothing_is_listed_where_nothing_is_gone(self, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ColbertCollection, "payloads", None)
        write_rows(rows / "more.jsonl", range(100, 110))
        assert run_json("index", "rows.jsonl", "more.jsonl", "-c", "store")["documents"] == 40


def row(number: int) -> Point:
    """A row of ``rows.jsonl`` as it is stored, but for its vectors."""
    text = f"Report {number} tells of harbour {number % 97}."
    payload = payload_of(Document(text, str(number), {"source": "rows.jsonl"}, {FILE_KEY: "rows.jsonl"}))
    return Point(point_id(str(number)), np.ones((2, 32), dtype=np.float32), payload)
