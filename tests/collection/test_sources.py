from __future__ import annotations

import errno
import io
import json
import os
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.collection.sources import PassageReader, SourceError, SourceFile, find_files, html_text


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


class TestFindFiles:
    def test_folders_are_searched_without_hidden_ones(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("b.md", "a/x.txt", "a/y.py", "page.html", "notes.rst", "data.jsonl"):
            write(tmp_path / "docs" / name, "text")
        for name in (".git/x.md", "node_modules/x.md", "picture.png", ".hidden.md", "__pycache__/x.py"):
            write(tmp_path / "docs" / name, "text")
        monkeypatch.chdir(tmp_path)
        names = [file.name for file in find_files(["docs", "./docs/b.md"])]
        assert names == [
            "docs/a/x.txt", "docs/a/y.py", "docs/b.md", "docs/data.jsonl", "docs/notes.rst", "docs/page.html",
        ]  # fmt: skip

    def test_queries_of_a_beir_folder_are_no_documents(self, tmp_path: Path) -> None:
        write(tmp_path / "corpus.jsonl", "{}")
        write(tmp_path / "queries.jsonl", "{}")
        assert [file.path.name for file in find_files([tmp_path])] == ["corpus.jsonl"]

    def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With --prune, its documents would be deleted."""
        (tmp_path / "closed").mkdir()
        for file in (tmp_path / "open.md", tmp_path / "closed" / "more.md"):
            file.write_text("A text.")
        scandir = os.scandir

        def refuse(path: str) -> Any:
            if str(path).endswith("closed"):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(SourceError, match=r"closed' cannot be read \(Permission denied\)"):
            find_files([tmp_path], allow_empty=True)

    def test_bad_paths(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="no file or folder"):
            find_files([tmp_path / "missing"])
        with pytest.raises(SourceError, match="no files to index"):
            find_files([tmp_path])
        with pytest.raises(SourceError, match=r"kind '[.]png'"):
            find_files([write(tmp_path / "picture.png", "x")])


class TestPassages:
    def test_text_is_split_within_the_size_and_nothing_is_lost(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        text = "\n\n".join(f"## Part {n}\n\n" + f"Sentence number {n} tells of ships. " * 12 for n in range(6))
        path = write(tmp_path / "book.md", text)
        passages = list(PassageReader(mini, chunk_tokens=60).read(SourceFile(path, "book.md")))
        assert len({one.id for one in passages}) == len(passages) > 6
        for passage in passages:
            assert len(mini.tokenizer(passage.text, add_special_tokens=False)["input_ids"]) <= 60
            assert str(passage.id).startswith("book.md#")
            assert passage.metadata == {"source": "book.md"}
        assert "".join("".join(p.text.split()) for p in passages) == "".join(text.split())

    def test_equal_passages_are_told_apart(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        path = write(tmp_path / "same.txt", "\n\n".join(["The same words again and again, for ever. " * 4] * 3))
        passages = list(PassageReader(mini, chunk_tokens=45).read(SourceFile(path, "same.txt")))
        assert len({one.id for one in passages}) == len(passages) >= 3

    def test_html_without_scripts(self) -> None:
        head = "<head><style>p{}</style><script>x()</script></head>"
        page = f"<html>{head}<body><h1>Ships</h1><p>They sail.</p></body></html>"
        assert html_text(page) == "Ships\nThey sail."

    @pytest.mark.parametrize("begun", ["<!--", "<!DOCTYPE", "<![CDATA[", "<![", "<?", "</", "<a b='", "<a ", "<!", "<"])
    def test_html_that_ends_nothing(self, begun: str) -> None:
        """Python's parser looks for the end of each in all that follows: minutes for a hundred kilobytes."""
        for page in (begun * 20_000, begun * 20_000 + "-->"):
            started = time.process_time()
            assert "They sail." in html_text(f"<p>They sail.</p>{page}")
            assert time.process_time() - started < 2

    def test_html_sections(self) -> None:
        page = "<![if x]>Ships<![endif]> <![what now]>sail <![CDATA[in]]> a <b>row.<!-- x --> A < B <!-- and <b"
        assert " ".join(html_text(page).split()) == "Ships sail in a row. A < B <!-- and <b"

    def test_sizes_must_fit_the_window(self, mini: JinaColbertEncoder) -> None:
        with pytest.raises(SourceError, match="do not fit the model's window of 298"):
            PassageReader(mini, chunk_tokens=299)
        for value in (0, "3", True, 1.0, float("nan")):
            for name in ("chunk_tokens", "max_mib"):
                with pytest.raises(SourceError, match=f"{name} must be a positive integer, got"):
                    PassageReader(mini, **{name: value})  # type: ignore[arg-type]

    def test_a_text_larger_than_the_limit_is_not_read(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        path = tmp_path / "large.txt"
        with path.open("wb") as file:
            file.truncate(3 * 2**30)  # takes no space
        tracemalloc.start()
        with pytest.raises(SourceError, match=r"large.txt is larger than 1 MiB.*--max-mib"):
            PassageReader(mini, max_mib=1).read(SourceFile(path, "large.txt"))
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
        tracemalloc.stop()

    def test_a_line_longer_than_the_limit_is_not_read(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text('{"id": "a", "text": "A text."}\n')
        with path.open("ab") as file:
            file.truncate(3 * 2**30)
        tracemalloc.start()
        rows = PassageReader(mini, max_mib=1).read(SourceFile(path, "rows.jsonl"))
        assert next(rows).id == "a"
        with pytest.raises(SourceError, match=r"rows.jsonl:2: the line is longer than 1 MiB"):
            next(rows)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
        tracemalloc.stop()

    def test_files_that_are_not_text(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
        with pytest.raises(SourceError, match="cannot be read as UTF-8"):
            list(PassageReader(mini).read(SourceFile(tmp_path / "latin.txt", "latin.txt")))


class TestJsonl:
    def test_both_forms(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        rows = [
            {"_id": "1", "title": "Ships", "text": "They sail."},
            {"_id": "2", "title": "", "text": ""},
            {"id": "a", "text": "Rice is cooked.", "metadata": {"topic": "food"}},
        ]
        path = write(tmp_path / "docs.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
        documents = list(PassageReader(mini).read(SourceFile(path, "docs.jsonl")))
        assert [(one.id, one.text) for one in documents] == [("1", "Ships They sail."), ("a", "Rice is cooked.")]
        assert documents[0].metadata == {"source": "docs.jsonl", "title": "Ships"}
        assert documents[1].metadata == {"source": "docs.jsonl", "topic": "food"}

    def test_a_byte_order_mark_is_no_part_of_the_text(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        (tmp_path / "docs.jsonl").write_text('{"id": 1, "text": "Ships sail."}', encoding="utf-8-sig")
        (tmp_path / "text.txt").write_text("Ships sail.", encoding="utf-8-sig")
        for name in ("docs.jsonl", "text.txt"):
            documents = list(PassageReader(mini).read(SourceFile(tmp_path / name, name)))
            assert [one.text for one in documents] == ["Ships sail."]

    def test_lines_that_are_not_utf8(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        (tmp_path / "docs.jsonl").write_bytes('{"id": "1", "text": "Größe"}'.encode("latin-1"))
        with pytest.raises(SourceError, match=r"docs\.jsonl:1: expected"):
            list(PassageReader(mini).read(SourceFile(tmp_path / "docs.jsonl", "docs.jsonl")))

    @pytest.mark.parametrize(
        "line",
        ["{", "[]", '{"text": "no id"}', '{"id": null, "text": "x"}', '{"id": "1"}', '{"id": "1", "text": 3}', '"x"'],
    )
    def test_bad_lines_are_named(self, mini: JinaColbertEncoder, tmp_path: Path, line: str) -> None:
        path = write(tmp_path / "docs.jsonl", '{"id": "0", "text": "good"}\n' + line)
        with pytest.raises(SourceError, match=r"docs\.jsonl:2: expected"):
            list(PassageReader(mini).read(SourceFile(path, "docs.jsonl")))


class TestStdin:
    def test_lines_come_from_a_pipe(self, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = b'{"id": "1", "text": "Ships sail."}\n{"id": "2", "text": "Rice is cooked."}\nnonsense'
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        (file,) = find_files(["-", "-"])
        assert (file.name, file.is_jsonl, file.size()) == ("stdin", True, 0)
        documents = PassageReader(mini).read(file)
        assert [next(documents).id, next(documents).id] == ["1", "2"]
        with pytest.raises(SourceError, match="stdin:3: expected"):
            next(documents)

    def test_a_file_of_that_name_is_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "-" / "a.md", "text")
        assert [file.name for file in find_files(["./-"])] == ["-/a.md"]


class TestReading:
    def test_the_bytes_read_are_counted(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        rows = "".join(json.dumps({"id": n, "text": f"Row {n}."}) + "\n" for n in range(10))
        write(tmp_path / "rows.jsonl", rows)
        write(tmp_path / "text.md", "A text.")
        reader = PassageReader(mini)
        assert reader.bytes_read == 0
        for file in find_files([tmp_path]):
            before = reader.bytes_read
            assert len(list(reader.read(file))) == (10 if file.is_jsonl else 1)
            assert reader.bytes_read - before == file.size()
        documents = reader.read(SourceFile(tmp_path / "rows.jsonl", "rows.jsonl"))
        before = reader.bytes_read
        next(documents)
        assert reader.bytes_read - before == len(rows.splitlines(keepends=True)[0])

    def test_a_file_that_cannot_be_read_is_refused_at_once(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        reader = PassageReader(mini)
        with pytest.raises(SourceError, match="cannot be read as UTF-8"):
            reader.read(SourceFile(tmp_path / "gone.md", "gone.md"))
        with pytest.raises(SourceError, match=r"gone\.jsonl cannot be read .* Make it readable, or leave it out"):
            reader.read(SourceFile(tmp_path / "gone.jsonl", "gone.jsonl"))

    def test_rows_that_are_too_deep(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        path = write(tmp_path / "deep.jsonl", '{"id": "1", "text": ' + "[" * 200_000)
        with pytest.raises(SourceError, match=r"deep\.jsonl:1: expected .*nested too deeply"):
            list(PassageReader(mini).read(SourceFile(path, "deep.jsonl")))
