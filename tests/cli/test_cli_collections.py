"""Listing and dropping collections in folders; those on servers are in test_cli_server.py."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest
from cli_helpers import MINI, PROGRAM, error, run, run_both, run_json
from collection_samples import copied

from jcv2_plugin import ColbertCollection
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.errors import (
    CollectionCorruptError,
    CollectionLockedError,
    CollectionNotFoundError,
    CollectionUnfinishedError,
)


class TestList:
    def test_a_folder_itself_and_those_in_it(self, rows: Path) -> None:
        (rows / "many" / "deep").mkdir(parents=True)
        copied("store", "many/b")
        copied("store", "many/deep/deeper")
        (rows / "many" / "shard").mkdir()
        expected = {"model": "mini", "dim": 32, "storage": "float16", "first_stage": "hybrid", "documents": 30}
        assert run_json("collections", "list", "-c", "many") == [{"name": "many/b", **expected, "state": None}]
        assert run_json("collections", "list", "many") == run_json("collections", "list", "-c", "many")
        run("collections", "list", code=2)
        run("collections", "list", "many", "-c", "many", code=2)
        assert [one["name"] for one in run_json("collections", "list", "-c", "store")] == ["store"]
        assert [one["name"] for one in run_json("collections", "list", ".")] == ["store"]
        assert [one["name"] for one in run_json("collections", "list", str(rows))] == [str(rows / "store")]
        assert run_json("collections", "list", "docs") == []
        assert "There is no collection in docs." in run("collections", "list", "docs")
        with pytest.raises(CollectionNotFoundError, match="no folder 'nowhere'"):
            run("collections", "list", "nowhere")

    def test_the_table_is_whole_in_a_pipe(self, rows: Path) -> None:
        long = "a-name-that-is-long-" * 8
        (rows / "store").rename(rows / long)
        header, line = run("collections", "list", ".").splitlines()
        assert header.split() == ["name", "model", "dim", "storage", "first", "stage", "documents"]
        assert line.split() == [long, "mini", "32", "float16", "hybrid", "30"]

    def test_one_in_use_is_left_alone(self, rows: Path) -> None:
        with ColbertCollection.open("store"):
            (listed,) = run_json("collections", "list", ".")
            assert (listed["dim"], listed["documents"], listed["state"]) == (32, None, "in use")
            assert "in use" in run("collections", "list", ".")

    def test_one_that_is_damaged_is_listed_too(self, rows: Path) -> None:
        for name in ("description", "shard"):
            copied("store", name)
        (rows / "description" / "jcv2.json").write_text("{")
        (shard,) = (rows / "shard").glob("shard*")
        shard.rename(rows / "elsewhere")
        states = {one["name"]: (one["dim"], one["state"]) for one in run_json("collections", "list", ".")}
        assert states == {"description": (None, "unreadable"), "shard": (32, "unreadable"), "store": (32, None)}
        run("collections", "drop", "-c", "description", "--yes")
        assert not (rows / "description").exists()

    def test_info(self, rows: Path) -> None:
        described = run_json("info", "-c", "store")
        assert (described["model"], described["dim"], described["documents"]) == ("mini", 32, 30)
        assert run_json("collections", "info", "-c", "store") == described
        assert "float16" in run("info", "-c", "store")


class TestDrop:
    def test_it_needs_a_yes_in_a_pipe(self, rows: Path) -> None:
        output, said = run_both("collections", "drop", "-c", "store", code=2)
        assert output == ""
        assert "--yes" in said
        assert run_json("info", "-c", "store")["documents"] == 30
        assert run_both("collections", "drop", "-c", "store", "--yes")[1] == "Dropped the collection in 'store'.\n"
        assert not (rows / "store").exists()

    @pytest.mark.parametrize("answer, stays", [("n", True), ("y", False)])
    def test_it_asks_on_a_terminal(self, rows: Path, answer: str, stays: bool) -> None:
        ours, theirs = pty.openpty()
        command = [PROGRAM, "collections", "drop", "-c", "store"]
        process = subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE, text=True, cwd=rows)
        os.write(ours, f"{answer}\n".encode())
        _, said = process.communicate(timeout=60)
        os.close(ours)
        os.close(theirs)
        assert said.startswith("Drop the collection in 'store' with 30 documents? [y/N]: ")
        assert ("Aborted" in said, process.returncode) == (stays, 1 if stays else 0)
        assert (rows / "store").exists() == stays

    def test_all_of_ours_is_removed(self, rows: Path) -> None:
        store = rows / "store"
        with ColbertCollection.open(store) as collection:
            described = collection.schema.to_dict()
            changed = CollectionSchema.from_dict({**described, "storage": "float32"}, "here")
            collection.engine.successor(changed).close()
        (store / "ingest.journal").write_text("")
        (store / "ingest.journal.lock").write_text("")
        (store / "jcv2.json.tmp").write_text("")
        there = {entry.name for entry in store.iterdir()}
        assert there >= {"jcv2.json", "lock", "shard", "shard-2", "shard-2.pending.json"}
        run("collections", "drop", "-c", "store", "--yes")
        assert not store.exists()

    def test_what_is_not_ours_stays(self, rows: Path) -> None:
        (rows / "store" / "notes.txt").write_text("mine")
        (rows / "store" / "shards").mkdir()
        _, said = run_both("collections", "drop", "-c", "store", "--yes")
        assert said.splitlines()[1] == "The folder is kept, because it also contains notes.txt, shards."
        assert sorted(entry.name for entry in (rows / "store").iterdir()) == ["notes.txt", "shards"]

    def test_a_folder_that_is_no_collection(self, folder: Path) -> None:
        (folder / "docs" / "shard").mkdir()
        for name in ("docs", "nowhere"):
            with pytest.raises(CollectionNotFoundError, match=rf"no collection in '{name}'"):
                run("collections", "drop", "-c", name, "--yes")
        assert len(list((folder / "docs").iterdir())) == 3

    def test_one_in_use(self, rows: Path) -> None:
        with ColbertCollection.open("store") as collection:
            for yes in ([], ["--yes"]):
                with pytest.raises(CollectionLockedError, match="in use"):
                    run("collections", "drop", "-c", "store", *yes)
            assert collection.count() == 30

    def test_a_drop_that_was_killed_can_be_repeated(self, rows: Path) -> None:
        (rows / "store" / "shard").rename(rows / "store" / "shard.dropped")  # as version 0.1 did
        error("info", "-c", "store")
        run("collections", "drop", "-c", "store", "--yes")
        assert not (rows / "store").exists()

    @pytest.mark.parametrize("step", ["shutil.rmtree", "pathlib.Path.unlink"])
    def test_a_drop_that_is_killed_is_said_to_be_unfinished(
        self, rows: Path, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(step, stop)
            run("collections", "drop", "-c", "store", "--yes", code=130)
        for command in (("info", "-c"), ("search", "harbour", "-c"), ("index", "docs", "-c"), ("verify", "-c")):
            with pytest.raises(CollectionUnfinishedError, match="deletion was interrupted"):
                run(*command, "store")
        assert [one["state"] for one in run_json("collections", "list", ".")] == ["unfinished"]
        run("collections", "drop", "-c", "store", "--yes")
        assert not (rows / "store").exists()

    def test_what_a_creation_leaves_that_is_killed_at_once(self, folder: Path) -> None:
        (folder / "half" / "shard").mkdir(parents=True)
        with pytest.raises(CollectionCorruptError, match="or drop it"):
            run("index", "docs", "-c", "half", *MINI)
        assert [one["name"] for one in run_json("collections", "list", ".")] == ["half"]
        run("collections", "drop", "-c", "half", "--yes")
        run("index", "docs", "-c", "half", *MINI)

    def test_the_name_is_free_again(self, rows: Path) -> None:
        run("collections", "drop", "-c", "store", "--yes")
        run("index", "docs", "-c", "store", *MINI)
        assert run_json("info", "-c", "store")["documents"] == 2
