"""Reading training files lazily, and drawing samples from them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import subprocess
import sys
from pathlib import Path

import pytest

from jcv2_trainer.data import lines as lines_module
from jcv2_trainer.data.reading import DataError, read_jsonl, read_pairs, sample_texts

ROWS = [{"query": f"q{i}", "positive": f"p{i}", "lang": "en" if i % 2 else "de"} for i in range(20)]


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "name, compress",
    [
        ("a.jsonl", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.xz", lzma.compress),
        ("a.jsonl.bz2", bz2.compress),
        ("a.jsonl.XZ", lzma.compress),
    ],
)
def test_reads_plain_and_compressed(tmp_path, name, compress):
    path = write(tmp_path / name, compress(lines(ROWS)))
    assert [row for _, row in read_jsonl(path)] == ROWS


def test_line_numbers_count_blank_lines_and_a_byte_order_mark_is_no_text(tmp_path):
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": "\xe2\x80\xa8"}')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (4, {"a": "\u2028"})]


@pytest.mark.parametrize(
    "line, said",
    [
        (b"{", "a.jsonl:2: not valid JSON"),
        (b'"text"', "a.jsonl:2: expected a JSON object, got str"),
        (b'{"a": "\xff"}', "a.jsonl:2: not valid JSON"),
        (b"[" * 100_000, "a.jsonl:2: not valid JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, said):
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n' + line)
    with pytest.raises(DataError, match=said):
        list(read_jsonl(path))


def test_rows_before_a_bad_line_are_read(tmp_path):
    reader = read_jsonl(write(tmp_path / "a.jsonl", b'{"a": 1}\nnonsense'))
    assert next(reader) == (1, {"a": 1})


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz", "a.jsonl.bz2"])
@pytest.mark.parametrize("damage", ["truncated", "never compressed"])
def test_damaged_archives_are_named(tmp_path, name, damage):
    noise = random.Random(5).randbytes(50_000).hex()
    content = lines([{"query": noise}] * 3)
    compress = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[Path(name).suffix]
    damaged = compress(content)[:20_000] if damage == "truncated" else content
    with pytest.raises(DataError, match=f"{name}: cannot be read after line 0"):
        list(read_jsonl(write(tmp_path / name, damaged)))


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(DataError, match=r"does not exist or is no file\. Give a JSON-lines file"):
            list(read_jsonl(path))


def test_a_line_over_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "LINE_LIMIT", 2**20)
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n"' + b"x" * 2**20 + b'"\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: longer than 1 MiB"):
        list(read_jsonl(path))


def test_pairs_are_filtered_by_language_and_must_be_texts(tmp_path):
    path = write(tmp_path / "a.jsonl", lines(ROWS) + b'{"query": "q", "positive": null, "lang": "fr"}\n')
    assert list(read_pairs(path, "de"))[1] == ("q2", "p2")
    with pytest.raises(DataError, match=r"a\.jsonl:21: 'positive' must be a text, got None\. .*jcv2-finetune check"):
        list(read_pairs(path))


def test_a_sample_is_the_head_of_a_seeded_shuffle(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(lines(ROWS)))
    english = [row for row in ROWS if row["lang"] == "en"]
    random.Random(13).shuffle(english)
    queries, positives = sample_texts(path, 7, seed=13, lang="en")
    assert queries == [row["query"] for row in english[:3]]
    assert positives == [row["positive"] for row in english[:4]]
    assert sample_texts(path, 7, seed=14, lang="en") != (queries, positives)


def test_a_small_file_gives_all_its_texts(tmp_path):
    path = write(tmp_path / "a.jsonl", lines(ROWS[:3]))
    queries, positives = sample_texts(path, 100, seed=1)
    assert sorted(queries) == ["q0", "q1", "q2"]
    assert sorted(positives) == ["p0", "p1", "p2"]


def test_a_sample_of_nothing_says_what_there_is(tmp_path):
    path = write(tmp_path / "a.jsonl", lines(ROWS))
    with pytest.raises(DataError, match=r"no row with lang 'ja'. It has: de \(10 rows\), en \(10 rows\)\."):
        sample_texts(path, 4, seed=1, lang="ja")
    with pytest.raises(DataError, match="has no rows"):
        sample_texts(write(tmp_path / "b.jsonl", b"\n"), 4, seed=1)
    with pytest.raises(ValueError, match="at least 2 texts"):
        sample_texts(path, 1, seed=1)


def test_importing_the_trainer_and_its_command_needs_no_torch():
    code = "import sys, jcv2_trainer, jcv2_trainer.cli.app; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
