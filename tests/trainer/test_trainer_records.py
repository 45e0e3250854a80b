"""Reading records, rows and samples of every format, the other names that fields may have, and damaged files."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from jcv2_trainer.data import lines as lines_module
from jcv2_trainer.data.check import check_file
from jcv2_trainer.data.lines import _decompressed, read_lines
from jcv2_trainer.data.reading import DataError, Row, read_jsonl, read_rows, sample_texts
from jcv2_trainer.data.records import normalise, read_entries

ROWS: list[dict[str, Any]] = [
    {"query": f"q{i}", "positive": f"p{i}\u2028", "negatives": [f"n{i}", "m"], "scores": [2.0, 1.0, 0.5]}
    for i in range(600)
]
FAULTY = [
    {"query": "q", "positive": "p", "negatives": ["n"], "scores": [1.0, 2.0]},
    {"query": " ", "positive": "p", "negatives": ["n"], "scores": None},
    {"query": "q", "positive": "other", "negatives": ["other"], "scores": [1.0]},
    {"query": "q", "positive": "third", "negatives": ["n"], "scores": None},
]
PAIR = {"query": " who?", "positive": "she"}
ARCHIVES = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zstandard.compress}
TABLES = ["parquet", "saved", "dict", "folder"]


def jsonl(rows: list[Any]) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def write(path: Path, content: bytes | list[Any]) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else jsonl(content))
    return path


def save(folder: Path, form: str, rows: list[dict[str, Any]]) -> Path:
    """The rows in one of the formats."""
    path = folder / f"data.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    elif form == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(path, num_shards=3)
    elif form == "dict":
        datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(path)
    elif form == "folder":
        path.mkdir()
        pq.write_table(pa.Table.from_pylist(rows), path / "a.parquet")
    else:
        write(path, ARCHIVES.get(form.partition(".")[2].lower(), bytes)(jsonl(rows)))
    return path


# Formats


@pytest.mark.parametrize("form", ["jsonl", *(f"jsonl.{suffix}" for suffix in ARCHIVES), "jsonl.XZ", *TABLES])
def test_every_format_gives_the_same_records_numbered_from_one_and_prints_nothing(tmp_path, form, capfd):
    path = save(tmp_path, form, ROWS)
    capfd.readouterr()
    entries = list(read_entries(path))
    assert capfd.readouterr() == ("", "")
    assert [entry.number for entry in entries] == list(range(1, 601))
    assert [entry.value for entry in entries] == ROWS


@pytest.mark.parametrize("form", ["jsonl", "parquet", "saved"])
def test_every_format_gets_the_same_findings(tmp_path, form):
    report = check_file(save(tmp_path, form, FAULTY))
    assert [(one.line, one.field, one.kind) for one in report.findings] == [
        (2, "query", "empty-text"),
        (3, "negatives[0]", "positive-as-negative"),
        (3, "scores", "score-count"),
        (4, "query", "repeated-query"),
    ]
    unit = "line" if form == "jsonl" else "row"
    assert {one.unit for one in report.findings} == {unit}
    assert report.findings[-1].message.startswith(f"{unit} 1 has the same query")


def test_a_folder_of_files_is_read_by_name_and_findings_name_the_file(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "b.jsonl", [{"query": "q0", "positive": "other"}, b"nonsense"])
    pq.write_table(pa.Table.from_pylist(ROWS[:2]), folder / "a.parquet")
    (folder / ".hidden").write_text("is passed over")
    places = [("a.parquet", 1), ("a.parquet", 2), ("b.jsonl", 1), ("b.jsonl", 2)]
    assert [(one.file.name, one.number) for one in read_entries(folder)] == places
    found = {one.kind: one for one in check_file(folder).findings}
    assert found["bad-json"].position == f"{folder / 'b.jsonl'}:2"
    assert found["repeated-query"].position == f"{folder / 'b.jsonl'}:1"
    assert "row 1 of a.parquet has the same query" in found["repeated-query"].message


def test_paths_without_data_say_what_to_give(tmp_path):
    def refusal(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            list(read_entries(path))
        return str(caught.value)

    assert "missing.jsonl does not exist. Give JSON lines" in refusal(tmp_path / "missing.jsonl")
    assert "is an empty folder. Give JSON lines" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "notes.txt in it is neither .jsonl nor .parquet" in refusal(tmp_path)
    splits = tmp_path / "splits"
    datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS[:1]) for name in ("dev", "test")}).save_to_disk(splits)
    assert "has no split 'train'. It has: dev, test." in refusal(splits)
    assert [entry.value for entry in read_entries(splits / "dev")] == ROWS[:1]
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(DataError, match="does not exist or is not a file"):
            list(read_jsonl(path))


# Damage


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_an_archive_is_read_to_its_end_or_refused(tmp_path, suffix):
    compress = ARCHIVES[suffix]
    noise = [{"query": random.Random(i).randbytes(20_000).hex()} for i in range(3)]
    whole, path = compress(jsonl(noise)), tmp_path / f"a.jsonl.{suffix}"
    several = b"".join(compress(jsonl([row])) for row in noise) + bytes(512)  # and padding
    assert [row for _, row in read_jsonl(write(path, several))] == noise
    remedy = "copy or compress it again"
    for content in (whole[:-100], whole[:20_000], b"", jsonl(noise)):
        with pytest.raises(DataError, match=rf"{path.name}: cannot be read after line \d .*{remedy}"):
            list(read_jsonl(write(path, content)))
    for garbage in (b"x", b"\n", jsonl(noise), bytes(4) + b"other data" * 500, compress(b"{}")[:-3]):
        with pytest.raises(DataError, match=rf"{path.name}: cannot be read after line 3 \(after the.*{remedy}"):
            list(read_jsonl(write(path, whole + garbage)))


def test_tables_that_cannot_be_read_are_refused(tmp_path):
    write(tmp_path / "a.parquet", ROWS)
    saved = save(tmp_path, "saved", ROWS)
    next(saved.glob("*.arrow")).unlink()
    for path in (tmp_path / "a.parquet", saved):
        with pytest.raises(DataError, match=rf"{path.name}: cannot be read after row 0 \("):
            list(read_entries(path))


@pytest.mark.parametrize("form", ["jsonl.zst", "parquet"])
def test_records_are_read_as_they_are_asked_for(tmp_path, form):
    """A file damaged in its middle gives the records before the damage."""
    rows = [{"query": random.Random(i).randbytes(400).hex()} for i in range(5000)]
    path = save(tmp_path, form, rows)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    path.write_bytes(content)
    reader = read_entries(path)
    assert [next(reader).value for _ in range(300)] == rows[:300]
    with pytest.raises(DataError, match=r"cannot be read after (line|row) [1-9]"):
        list(reader)


def test_an_archive_that_expands_far_is_read_in_little_memory(tmp_path):
    with zstandard.open(tmp_path / "a.jsonl.zst", "wb") as file:
        for _ in range(400):
            file.write(b"x" * 2**20 + b"\n")
    tracemalloc.start()
    assert sum(1 for _ in read_lines(tmp_path / "a.jsonl.zst")) == 400
    assert tracemalloc.get_traced_memory()[1] < 150 * 2**20
    tracemalloc.stop()


def test_without_zstandard_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"a\.jsonl\.zst: reading \.zst needs .* pip install zstandard"):
        list(read_lines(write(tmp_path / "a.jsonl.zst", b"")))


# Lines


def test_line_numbers_count_blank_lines_and_a_byte_order_mark_is_no_text(tmp_path):
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": "\xe2\x80\xa8"}')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (4, {"a": "\u2028"})]


@pytest.mark.parametrize(
    "line, said",
    [
        (b"{", "not valid JSON: Expecting property name .* at character 2"),
        (b'"text"', "expected a JSON object, got str"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'"' + b"x" * 2**20, "longer than 1 MiB"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_lines_are_named_and_those_before_are_read(tmp_path, line, said, monkeypatch):
    monkeypatch.setattr(lines_module, "LINE_LIMIT", 2**20)
    reader = read_jsonl(write(tmp_path / "a.jsonl", b'{"a": 1}\n' + line))
    assert next(reader) == (1, {"a": 1})
    with pytest.raises(DataError, match=rf"a\.jsonl:2: {said}.* one JSON object per line"):
        next(reader)


# Names of fields


@pytest.mark.parametrize(
    "record, expected",
    [
        ({"anchor": "a", "positive": "p"}, {"query": "a", "positive": "p"}),
        ({"query": "q", "negative": "n"}, {"query": "q", "negatives": ["n"]}),
        ({"negative_10": "c", "negative_2": "b", "negative_1": "a"}, {"negatives": ["a", "b", "c"]}),
        ({"negative_1": "a", "negative_2": None, "negative_3": "c"}, {"negatives": ["a", "c"]}),
        ({"negative_1": None, "anchor": None}, {}),
        ({"query": "q", "anchor": "a"}, {"query": "q", "anchor": "a"}),
        ({"query": None, "anchor": "a"}, {"query": "a"}),
        ({"negatives": [], "negative": "n"}, {"negatives": [], "negative": "n"}),
        ({"negatives": None, "negative": "n"}, {"negatives": ["n"]}),
        ({"negative_x": "n", "negative_": "n"}, {"negative_x": "n", "negative_": "n"}),
    ],
)
def test_aliases_replace_absent_fields(record, expected):
    assert normalise(record)[0] == expected


@given(st.dictionaries(st.sampled_from(["anchor", "query", "negative", "negative_1", "negatives", "x"]), st.integers()))
def test_normalising_loses_nothing_and_is_done_once(record):
    row, own_names = normalise(record)
    flat = [one for value in row.values() for one in (value if isinstance(value, list) else [value])]
    assert sorted(flat) == sorted(record.values())
    assert normalise(row) == (row, {})
    assert set(own_names.values()) == record.keys() - row.keys()


def test_findings_name_fields_as_the_file_does(tmp_path):
    rows = [
        {"anchor": "", "positive": "p", "negative_1": "n", "negative_2": "p"},
        {"anchor": "a", "query": "q", "positive": "p", "negative": "n"},
    ]
    found = {(one.line, one.field, one.kind) for one in check_file(write(tmp_path / "a.jsonl", rows)).findings}
    assert found == {
        (1, "anchor", "empty-text"),
        (1, "negative_2", "positive-as-negative"),
        (2, "anchor", "unknown-field"),
    }


# Rows


def test_rows_have_every_field_and_absent_ones_are_empty(tmp_path):
    full = {**PAIR, "negatives": ["he", "it"], "scores": [3, 1.5, -2], "lang": "en", "source": "s"}
    nulls = dict.fromkeys(("negatives", "scores", "lang", "source"))
    rows = [full, {**PAIR, **nulls}, {"anchor": "a", "positive": "p", "negative": "n", "title": "unknown"}]
    assert list(read_rows(write(tmp_path / "a.jsonl", rows))) == [
        Row(" who?", "she", ("he", "it"), (3.0, 1.5, -2.0), "en", "s"),
        Row(" who?", "she", (), None),
        Row("a", "p", ("n",)),
    ]


BAD = {
    "[bad-json] not valid JSON": b"{",
    "[not-an-object] expected a JSON object, got list. ": [1],
    "[missing-field] positive: not in the row. Add the field": {"query": "q"},
    "[empty-text] anchor: ' ' has no visible character": {"anchor": " ", "positive": "p"},
    "[positive-as-negative] negatives[0]: the same text": {**PAIR, "negatives": ["she"]},
    "[wrong-type] negative_1: expected a text, got int: 5. ": {**PAIR, "negative_1": 5},
    "[score-count] scores: 2 scores for 1 positive and 0 negatives. ": {**PAIR, "scores": [1, 2]},
}


@pytest.mark.parametrize("said, row", BAD.items())
def test_a_bad_row_stops_with_position_field_value_and_remedy(tmp_path, said, row):
    reader = read_rows(path := write(tmp_path / "a.jsonl", [PAIR, row]))
    assert next(reader).positive == "she"
    with pytest.raises(DataError) as caught:
        next(reader)
    assert f"a.jsonl:2: {said}" in str(caught.value)
    assert f"jcv2-finetune check {path}" in str(caught.value)


def test_bad_rows_are_skipped_and_each_is_counted_once(tmp_path):
    path = write(tmp_path / "a.jsonl", [PAIR, *BAD.values(), {"query": "", "scores": 3}, PAIR])
    skipped: Counter[str] = Counter(earlier=4)
    assert len(list(read_rows(path, on_bad="skip", skipped=skipped))) == 2
    expected = Counter(said[1:].partition("]")[0] for said in BAD)
    assert skipped == expected + Counter({"earlier": 4, "empty-text": 1})


# Samples


def test_a_sample_is_the_head_of_a_seeded_shuffle(tmp_path):
    rows = [{"query": f"q{i}", "positive": f"p{i}", "lang": "en" if i % 2 else "de"} for i in range(20)]
    path = write(tmp_path / "a.jsonl", rows)
    english = [row for row in rows if row["lang"] == "en"]
    random.Random(13).shuffle(english)
    queries, positives = sample_texts(path, 7, seed=13, lang="en")
    assert queries == [row["query"] for row in english[:3]]
    assert positives == [row["positive"] for row in english[:4]]
    assert sample_texts(path, 7, seed=14, lang="en") != (queries, positives)
    with pytest.raises(DataError, match=r"no row with lang 'ja'. It has: de \(10 rows\), en \(10 rows\)\."):
        sample_texts(path, 4, seed=1, lang="ja")
    with pytest.raises(DataError, match="has no rows"):
        sample_texts(write(tmp_path / "b.jsonl", b"\n"), 4, seed=1)
    with pytest.raises(ValueError, match="at least 2 texts"):
        sample_texts(path, 1, seed=1)


def test_a_small_table_with_aliases_gives_all_its_texts(tmp_path):
    path = save(tmp_path, "parquet", [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(3)])
    queries, positives = sample_texts(path, 100, seed=1)
    assert (sorted(queries), sorted(positives)) == (["q0", "q1", "q2"], ["p0", "p1", "p2"])


def test_importing_the_trainer_and_its_command_needs_no_torch():
    code = "import sys, jcv2_trainer, jcv2_trainer.cli.app; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["bz2", "xz"])
def test_what_inflates_does_so_in_pieces(kind):
    """A few hundred bytes of .bz2 may stand for gigabytes."""
    packed = ARCHIVES[kind](bytes(10**8))
    new = {"bz2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}[kind]
    sizes = [len(one) for one in _decompressed(io.BytesIO(packed), new)]
    assert (sum(sizes), max(sizes)) == (10**8, 2**20)
