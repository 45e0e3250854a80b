"""``jcv2 index``: what is encoded, created, skipped and deleted, and what is held in memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge
from cli_helpers import MINI, SHIPS, ids, run, run_both, run_json, start, write_rows

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.cli.index import DocumentStream, SeenIds
from jcv2_plugin.collection.sources import FILE_KEY, PassageReader, SourceError, find_files
from jcv2_plugin.documents import payload_of, point_id
from jcv2_plugin.engines.base import Point
from jcv2_plugin.errors import CollectionMismatchError, InvalidOptionError

ROW = '{"id": "a", "text": "A text from a pipe."}\n'


def sources(collection: Path) -> list[str]:
    with ColbertCollection.open(collection) as opened:
        return sorted(document.metadata["source"] for document in opened.scroll())


def write_parts(file: Path, number: int) -> list[str]:
    parts = [f"# Part {n}\n\n" + f"Ship number {n} sails on the sea. " * 6 for n in range(number)]
    file.write_text("\n\n".join(parts))
    return parts


class TestChanges:
    def test_only_what_changed_is_encoded_again(self, folder: Path) -> None:
        arguments = ("index", "docs", "-c", "store", *MINI)
        first = run_json(*arguments)
        assert (first["files"], first["written"], first["unchanged"], first["documents"]) == (2, 2, 0, 2)
        assert run_json("index", "docs", "-c", "store")["unchanged"] == 2
        (folder / "docs" / "new.txt").write_text("A new file.")
        third = run_json(*arguments)
        assert (third["files"], third["written"], third["unchanged"]) == (3, 1, 2)

    def test_an_edit_leaves_other_passages_alone_and_removes_old_ones(self, folder: Path) -> None:
        parts = write_parts(folder / "docs" / "ships.md", 12)
        arguments = ("index", "docs/ships.md", "-c", "store", *MINI, "--chunk-tokens", "60")
        assert run_json(*arguments)["written"] == 12
        parts[0] = "# A new beginning\n\nThis is another text altogether, and longer than it was. " * 2
        (folder / "docs" / "ships.md").write_text("\n\n".join(parts))
        edited = run_json(*arguments)
        assert (edited["unchanged"], edited["removed"]) == (11, 1)
        (folder / "docs" / "ships.md").write_text(SHIPS)
        assert run_json(*arguments)["documents"] == 1

    def test_rows_and_files_that_are_gone(self, folder: Path) -> None:
        rows = [json.dumps({"id": str(n), "text": f"Row {n}.", "metadata": {"source": "elsewhere"}}) for n in range(3)]
        (folder / "rows.jsonl").write_text("\n".join(rows))
        assert run_json("index", "rows.jsonl", "-c", "store", *MINI)["written"] == 3
        (folder / "rows.jsonl").write_text("\n".join(rows[:2]))
        assert run_json("index", "rows.jsonl", "-c", "store")["removed"] == 1
        (folder / "rows.jsonl").unlink()
        assert run_json("index", ".", "-c", "store")["documents"] == 4
        pruned = run_json("index", ".", "-c", "store", "--prune")
        assert (pruned["removed"], pruned["documents"]) == (2, 2)

    def test_pruning_leaves_everything_else(self, folder: Path) -> None:
        (folder / "outside").mkdir()
        (folder / "outside" / "o.md").write_text("# Outside\n\nNot of this folder.")
        (folder / "docs" / "rows.jsonl").write_text('{"id": "row", "text": "A row of a file."}\n')
        run("index", "outside", "docs", "-", "-c", "store", *MINI, stdin=ROW)
        with ColbertCollection.open(folder / "store") as collection:
            collection.add(["Added by hand."], ids=["hand"], metadata=[{"source": "docs/by-hand"}])
        (folder / "docs" / "food.md").unlink()
        assert run_json("index", "./docs/../docs", "-c", "store", "--prune")["removed"] == 1
        rest = ["docs/by-hand", "docs/rows.jsonl", "docs/ships.md", "outside/o.md", "stdin"]
        assert sources(folder / "store") == rest
        for file in (folder / "docs").iterdir():
            file.unlink()
        # Documents of a pipe stay even when the whole folder is pruned.
        assert run_json("index", ".", "-c", "store", "--prune")["removed"] == 2
        assert sources(folder / "store") == ["docs/by-hand", "outside/o.md", "stdin"]

    def test_more_is_removed_than_fits_a_batch_and_nothing_while_scrolling(
        self, folder: Path, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_rows(folder / "rows.jsonl", range(3))
        with ColbertCollection.create("store", encoder=mini, dim=32, first_stage="none") as collection:
            for start in range(0, 2500, 500):
                collection.engine.upsert([stored_row(number) for number in range(start, start + 500)])
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

    def test_nothing_is_listed_if_nothing_is_gone(self, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ColbertCollection, "payloads", None)
        write_rows(rows / "more.jsonl", range(100, 110))
        assert run_json("index", "rows.jsonl", "more.jsonl", "-c", "store")["documents"] == 40


def stored_row(number: int) -> Point:
    """A row of ``rows.jsonl`` as it is stored, but for its vectors."""
    text = f"Report {number} tells of harbour {number % 97}."
    payload = payload_of(Document(text, str(number), {"source": "rows.jsonl"}, {FILE_KEY: "rows.jsonl"}))
    return Point(point_id(str(number)), np.ones((2, 32), dtype=np.float32), payload)


class TestNames:
    """A file is one source, whichever path it is given by."""

    def test_within_a_run_and_between_runs(self, indexed: Path) -> None:
        docs, before = indexed / "docs", ids("store")
        (indexed / "link").symlink_to(docs)
        (docs / "linked.md").symlink_to("food.md")
        for paths in (["docs", str(docs), "."], [str(docs)], ["."], ["docs/../docs/ships.md"], ["link", "docs"]):
            done = run_json("index", *paths, "-c", "store", "--prune")
            assert (done["written"], done["removed"]) == (0, 0), paths
        assert ids("store") == before
        assert sources(indexed / "store") == ["docs/food.md", "docs/ships.md"]

    def test_outside_of_the_current_folder(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "elsewhere").mkdir()
        monkeypatch.chdir(folder / "elsewhere")
        run("index", "../docs", str(folder / "docs"), "-c", "store", *MINI)
        assert sources(Path("store")) == [str(folder / "docs" / name) for name in ("food.md", "ships.md")]
        (folder / "docs" / "food.md").unlink()
        assert run_json("index", "..", "-c", "store", "--prune")["removed"] == 1

    @pytest.mark.parametrize("prune", [(), ("--prune",)])
    def test_documents_that_an_earlier_version_named_otherwise_are_replaced(
        self, indexed: Path, prune: tuple[str, ...]
    ) -> None:
        name = str(indexed / "docs" / "ships.md")
        with ColbertCollection.open("store") as collection:
            collection.ingest([Document("An old passage.", f"{name}#1", {"source": name}, {FILE_KEY: name})])
        assert run_json("index", "docs", "-c", "store", *prune)["removed"] == 1
        assert len(ids("store")) == 2

    def test_a_link_to_a_file_of_another_kind_keeps_its_name(self, folder: Path) -> None:
        (folder / "1f3c").write_text("Text of a file that is named by a hash.")
        (folder / "docs" / "hub.md").symlink_to("../1f3c")
        run("index", "docs/hub.md", "-c", "store", *MINI)
        assert sources(folder / "store") == ["docs/hub.md"]


class TestNewCollections:
    def test_it_has_the_given_settings(self, folder: Path) -> None:
        options = ("--storage", "int8", "--first-stage", "pooled", "--pool-factor", "2")
        run("index", "docs", "-c", "store", *MINI, *options, "--payload-index", "source=keyword")
        described = run_json("info", "-c", "store")
        assert (described["storage"], described["first_stage"], described["pool_factor"]) == ("int8", "pooled", 2.0)
        assert payload_indexes(folder / "store") == {"_file": "keyword", "metadata.source": "keyword"}
        run("index", "docs", "-c", "store", *MINI, *options)
        others = {"--storage": "float16", "--first-stage": "none", "--pool-factor": "3", "--dim": "128"}
        for option, value in {**others, "--model": "other", "--document-length": "99"}.items():
            with pytest.raises(CollectionMismatchError, match=f"was created with {option}"):
                run("index", "docs", "-c", "store", option, value)

    def test_what_is_not_given_is_the_packages_default(self, indexed: Path) -> None:
        with ColbertCollection.create(indexed / "other", encoder="mini", dim=64) as made:
            info = run_json("info", "-c", "store")
            assert {key: info[key] for key in made.schema.to_dict()} == made.schema.to_dict()

    def test_payload_indexes_are_added(self, indexed: Path) -> None:
        given = ("topic=keyword", "page_content=text", "rdfs:label=keyword", "nested.number=integer")
        run("index", "docs", "-c", "store", *(part for one in given for part in ("--payload-index", one)))
        assert payload_indexes(indexed / "store") == {
            "_file": "keyword",
            "metadata.topic": "keyword",
            "page_content": "text",
            'metadata."rdfs:label"': "keyword",
            "metadata.nested.number": "integer",
        }

    @pytest.mark.parametrize("given", ["topic", "=keyword", "topic=", "topic=word"])
    def test_a_malformed_payload_index(self, folder: Path, given: str) -> None:
        assert "KEY=TYPE" in run_both("index", "docs", "-c", "store", *MINI, "--payload-index", given, code=2)[1]
        assert not (folder / "store").exists()

    @pytest.mark.parametrize(
        ("option", "said"),
        [
            (("--payload-index", "metadata.a[=keyword"), "'metadata.a[' is not a payload key"),
            (("--payload-index", "metadata.=keyword"), "'metadata.' is not a payload key"),
            (("--chunk-tokens", "0"), "chunk-tokens"),
            (("--max-mib", "0"), "max-mib"),
        ],
    )
    def test_a_wrong_option_leaves_no_collection(self, folder: Path, option: tuple[str, str], said: str) -> None:
        printed = run_both("index", "docs", "-c", "store", *MINI, *option, code=2)[1]
        assert said in " ".join(printed.replace("│", " ").split())
        assert not (folder / "store").exists()

    def test_passages_larger_than_the_window_leave_no_collection(self, folder: Path) -> None:
        with pytest.raises(SourceError, match="do not fit the model's window"):
            run("index", "docs", "-c", "store", *MINI, "--chunk-tokens", "5000")
        assert not (folder / "store").exists()

    @pytest.mark.parametrize("option", [("--shards", "2"), ("--replicas", "2"), ("--shard-key", "a")])
    def test_a_folder_has_no_shards(self, folder: Path, option: tuple[str, str]) -> None:
        assert "is a folder" in run_both("index", "docs", "-c", "store", *MINI, *option, code=2)[1]

    @pytest.mark.parametrize("option", [("--storage", "int3"), ("--first-stage", "second")])
    def test_unknown_names_are_refused_before_the_model_is_loaded(self, folder: Path, option: tuple[str, str]) -> None:
        with pytest.raises(InvalidOptionError, match="must be one of"):
            run("index", "docs", "-c", "store", "--model", "no/model", *option)

    @pytest.mark.usefixtures("quick_workers")
    def test_workers(self, folder: Path) -> None:
        write_rows(folder / "rows.jsonl", range(40))
        assert run_json("index", "rows.jsonl", "-c", "store", *MINI, "--workers", "1")["written"] == 40
        assert run_json("index", "rows.jsonl", "-c", "store")["unchanged"] == 40


def payload_indexes(folder: Path) -> dict[str, str]:
    schema = qdrant_edge.EdgeShard.load(str(folder / "shard")).info().payload_schema
    return {key: str(info.data_type).rpartition(".")[2].lower() for key, info in schema.items()}


class TestPipes:
    def test_rows_come_from_stdin_and_stay(self, folder: Path) -> None:
        assert run_json("index", "-", "docs", "-c", "store", *MINI, stdin=ROW)["written"] == 3
        hit = run_json("search", "-c", "store", "a pipe", "-k", "1")[0]
        assert (hit["id"], hit["metadata"]) == ("a", {"source": "stdin"})
        done = run_json("index", "-", "-c", "store", "--prune", stdin=ROW.replace('"a"', '"b"'))
        assert (done["written"], done["removed"]) == (1, 0)
        assert {"a", "b"} < ids("store")

    def test_in_a_shell(self, folder: Path) -> None:
        (folder / "rows").write_text(ROW)
        with open(folder / "rows") as rows:
            done = start("index", "-", "-c", "store", *MINI, cwd=folder, stdin=rows.fileno())
            printed, said = done.communicate(120)
        assert (done.returncode, printed) == (0, "")
        assert said.startswith("1 files: 1 documents written")


class TestWhatCannotBeRead:
    @pytest.fixture
    def odd(self, folder: Path) -> Iterator[Path]:
        """A folder with files that are skipped, beside three that are read."""
        docs = folder / "docs"
        (docs / "latin.txt").write_bytes("Größe".encode("latin-1"))
        (docs / "UPPER.MD").write_text("# Upper\n\nSuffixes may be written in capitals.")
        Path(os.fsdecode(os.fsencode(docs) + b"/caf\xe9.txt")).write_text("Its name is not UTF-8.")
        os.mkfifo(docs / "pipe.txt")
        os.mkfifo(docs / "pipe.jsonl")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(Path("docs", "socket.md")))
            yield docs

    def test_it_is_skipped_with_a_message(self, odd: Path) -> None:
        said = run_both("index", "docs", "-c", "store", *MINI)[1]
        skipped = sorted(line.removeprefix("skipped: ") for line in said.splitlines() if line.startswith("skipped: "))
        assert [line.partition(" (")[0] for line in skipped] == [
            "'docs/caf\\udce9.txt' is not UTF-8, so it cannot be part of an id. Rename it.",
            "'docs/pipe.jsonl' is not a regular file.",
            "'docs/pipe.txt' is not a regular file.",
            "'docs/socket.md' is not a regular file.",
            "docs/latin.txt cannot be read as UTF-8 text",
        ]
        again = run_json("index", "docs", "docs/pipe.txt", "-c", "store", "--prune")
        assert (again["files"], again["skipped_files"], again["unchanged"], again["removed"]) == (3, 5, 3, 0)
        with pytest.raises(SourceError, match="is not UTF-8"):
            run("index", "docs", "-c", "store", "--strict")

    def test_folders_that_are_not_entered_are_named_and_not_pruned(
        self, indexed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        docs = indexed / "docs"
        for name in ("closed", ".hidden", "gone"):
            (docs / name).mkdir()
            (docs / name / "note.md").write_text(f"A note in the folder {name}.")
        (indexed / "far").mkdir()
        (docs / "link").symlink_to("../far")
        (docs / "again").symlink_to("closed")  # its target is entered
        run("index", "docs", "docs/.hidden", "-c", "store")
        before = ids("store")
        listed = os.scandir

        def scandir(path: Any) -> Any:
            if path == Path("docs/closed") or path == "docs/closed":
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return listed(path)

        monkeypatch.setattr(os, "scandir", scandir)
        shutil.rmtree(docs / "gone")
        said = run_both("index", "docs", "-c", "store", "--prune")[1]
        assert "skipped: The folder 'docs/closed' cannot be read (Permission denied)" in said
        assert f"skipped: 'docs/link' is a link to a folder, which is not entered. Give '{indexed}/far'" in said
        assert before - ids("store") == {one for one in before if one.startswith("docs/gone/")}
        for paths in (["docs", "--strict"], ["docs/closed"], ["docs/closed", "--prune"]):
            with pytest.raises(SourceError, match="folder 'docs/closed' cannot be read"):
                run("index", *paths, "-c", "store")

    @pytest.mark.parametrize(
        "row, said",
        [
            ('{"id": "x", "text": "a", "metadata": {"n": NaN}}', r"rows\.jsonl:2: metadata\['n'\] is nan"),
            ('{"id": "x", "text": "a", "metadata": {"n": [1e999]}}', r"rows\.jsonl:2: metadata\['n'\]\[0\] is inf"),
            ('{"id": "x", "text": "a\\ud800"}', r"rows\.jsonl:2: the text has lone surrogates"),
        ],
    )
    def test_what_a_row_cannot_hold_names_file_and_line(self, indexed: Path, row: str, said: str) -> None:
        (indexed / "rows.jsonl").write_text('{"id": "w", "text": "first"}\n' + row + "\n")
        with pytest.raises(SourceError, match=said):
            run("index", "rows.jsonl", "-c", "store")

    def test_a_jsonl_that_is_gone(self, folder: Path) -> None:
        (folder / "gone.jsonl").symlink_to("nowhere")
        with pytest.raises(SourceError, match=r"no file or folder 'gone\.jsonl'"):
            run("index", "gone.jsonl", "-c", "store", *MINI)
        (folder / "docs" / "gone.jsonl").symlink_to("nowhere")
        assert "skipped: docs/gone.jsonl cannot be read" in run_both("index", "docs", "-c", "store", *MINI)[1]
        with pytest.raises(SourceError, match=r"docs/gone\.jsonl cannot be read"):
            run("index", "docs", "-c", "store", "--strict")

    def test_rows_without_text_are_counted_and_named(self, folder: Path) -> None:
        rows = [
            {"id": str(number), "text": text}
            for number, text in enumerate(("a text", "", " \n\u200b\ufeff\x00", "another"))
        ]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert "Left out 2 documents without text: 1, 2." in run_both("index", "rows.jsonl", "-c", "store", *MINI)[1]
        again = run_json("index", "rows.jsonl", "-c", "store")
        assert (again["unchanged"], again["blank"], again["removed"]) == (2, 2, 0)


class TestStopped:
    """An error in the midst of a run says how many documents are stored."""

    @pytest.mark.parametrize("before, stored", [(1, 0), (299, 256)])
    @pytest.mark.parametrize(
        "line, match",
        [
            ('{"id": "0", "text": "Again."}', r"b\.jsonl: the id '0' occurs a second time \(first in a\.jsonl\)"),
            ("nonsense", r"b\.jsonl:1: expected"),
        ],
    )
    def test_at_a_row(
        self, folder: Path, before: int, stored: int, line: str, match: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        monkeypatch.setattr("jcv2_plugin.cli.index.remark", said.append)
        write_rows(folder / "a.jsonl", range(before))
        (folder / "b.jsonl").write_text(f"{line}\n")
        with pytest.raises(SourceError, match=match) as caught:
            run("index", "a.jsonl", "b.jsonl", "-c", "store", *MINI, "--first-stage", "none")
        assert "stored" not in str(caught.value)
        assert said == [f"Stopped with {stored} documents stored. Run the command again to continue."]
        assert run_json("info", "-c", "store")["documents"] == stored


class TestSeenIds:
    def test_ids_and_their_files(self) -> None:
        seen = SeenIds()
        for number in range(10):
            assert seen.add(f"id {number}", number) is None
        assert [seen.add(f"id {number}", 99) for number in range(10)] == list(range(10))
        for own_id in ("", "ä", "日本", "a\x00b", "\ud800", "x" * 100_000):
            assert own_id not in seen
            assert seen.add(own_id, 1) is None
            assert own_id in seen

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
    def test_they_are_on_disk_and_nothing_is_left(self) -> None:
        before = open_files()
        seen = SeenIds()
        for number in range(400_000):
            seen.add(str(number), 0)
        # A file without a name: nothing is left even after a kill.
        made = open_files() - before
        assert made
        assert all(name.endswith("(deleted)") for name in made)
        seen.close()
        assert open_files() - before == set()


def open_files() -> set[str]:
    links = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(link.readlink()))
        except OSError:
            continue
    return {name for name in links if name.startswith("/") and not Path(name).is_char_device()}


class TestStream:
    def test_ids_are_not_in_memory(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        rows = [{"id": f"{n:0300d}", "text": f"Row {n}."} for n in range(5000)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        del rows
        stream = DocumentStream(PassageReader(mini), find_files([tmp_path / "rows.jsonl"]), SeenIds(), strict=False)
        tracemalloc.start()
        assert sum(1 for _ in stream) == 5000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # The ids alone are 1.5 MB.
        assert peak < 400_000

    def test_the_total_is_estimated_from_the_bytes(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        write_rows(tmp_path / "a.jsonl", range(1000, 2000))
        write_rows(tmp_path / "b.jsonl", range(2000, 3000))
        stream = DocumentStream(PassageReader(mini), find_files([tmp_path]), SeenIds(), strict=False)
        documents = iter(stream)
        assert stream.expected is None
        for _ in range(500):
            next(documents)
        assert stream.expected is not None
        assert abs(stream.expected - 2000) < 50
        assert sum(1 for _ in documents) == 1500
        assert stream.expected == 2000
