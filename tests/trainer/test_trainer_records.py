"""Reading records of every format, and the other names that fields may have."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from jcv2_trainer.data.check import check_file
from jcv2_trainer.data.lines import read_lines
from jcv2_trainer.data.reading import DataError, sample_texts
from jcv2_trainer.data.records import normalise, read_entries, read_records

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


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def save(folder: Path, form: str, rows: list[dict[str, Any]]) -> Path:
    """The rows in one of the formats."""
    path = folder / f"data.{form}"
    if form == "jsonl.zst":
        path.write_bytes(zstandard.compress(jsonl(rows)))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    elif form == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    elif form == "dict":
        datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(path)
    elif form == "folder":
        path.mkdir()
        pq.write_table(pa.Table.from_pylist(rows), path / "a.parquet")
    else:
        path.write_bytes(jsonl(rows))
    return path


TABLES = ["parquet", "saved", "dict", "folder"]


@pytest.mark.parametrize("form", ["jsonl", "jsonl.zst", *TABLES])
def test_every_format_gives_the_same_records_numbered_from_one(tmp_path, form):
    records = list(read_records(save(tmp_path, form, ROWS)))
    assert [number for number, _ in records] == list(range(1, 601))
    assert [record for _, record in records] == ROWS


@pytest.mark.parametrize("form", ["jsonl.zst", *TABLES])
def test_every_format_gets_the_same_findings(tmp_path, form):
    def findings(path: Path) -> list[tuple[Any, ...]]:
        return [(one.line, one.field, one.kind) for one in check_file(path).findings]

    expected = findings(save(tmp_path, "jsonl", FAULTY))
    assert {kind for _, _, kind in expected} == {
        "empty-text",
        "positive-as-negative",
        "score-count",
        "repeated-query",
    }
    path = save(tmp_path, form, FAULTY)
    assert findings(path) == expected
    report = check_file(path)
    assert {one.unit for one in report.findings} == {"line" if form == "jsonl.zst" else "row"}
    repeated = next(one for one in report.findings if one.kind == "repeated-query")
    assert repeated.message.startswith("line 1 has" if form == "jsonl.zst" else "row 1 has")


def test_a_zst_file_of_several_frames_is_read_to_its_end(tmp_path):
    frames = [zstandard.compress(jsonl(ROWS[start : start + 7])) for start in range(0, 600, 7)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert [record for _, record in read_records(tmp_path / "a.jsonl.zst")] == ROWS


@pytest.mark.parametrize("size", [-100, 20_000])
def test_a_zst_file_cut_short_is_refused(tmp_path, size):
    noise = [{"query": random.Random(i).randbytes(20_000).hex()} for i in range(3)]
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(jsonl(noise))[:size])
    with pytest.raises(DataError, match=r"a\.jsonl\.zst: cannot be read after line \d .*ends within a frame"):
        list(read_records(tmp_path / "a.jsonl.zst"))


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(jsonl(ROWS))
    with pytest.raises(DataError, match=rf"{name}: cannot be read after (line|row) 0 \("):
        list(read_records(tmp_path / name))


def test_a_saved_dataset_with_a_lost_file_is_refused(tmp_path):
    path = save(tmp_path, "saved", ROWS)
    next(path.glob("*.arrow")).unlink()
    with pytest.raises(DataError, match="saved: cannot be read after row 0"):
        list(read_records(path))


@pytest.mark.parametrize("form", ["jsonl.zst", "parquet"])
def test_records_are_read_as_they_are_asked_for(tmp_path, form):
    """A file damaged in its middle gives the records before the damage."""
    rows = [{"query": random.Random(i).randbytes(400).hex()} for i in range(5000)]
    path = save(tmp_path, form, rows)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    path.write_bytes(content)
    reader = read_records(path)
    assert [next(reader) for _ in range(300)] == list(enumerate(rows[:300], start=1))
    with pytest.raises(DataError, match=r"cannot be read after (line|row) [1-9]"):
        list(reader)


def test_a_zst_file_that_expands_far_is_read_in_little_memory(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    with zstandard.open(path, "wb") as file:
        for _ in range(400):
            file.write(b"x" * 2**20 + b"\n")
    code = (
        "import resource, sys; from pathlib import Path; from jcv2_trainer.data.lines import read_lines\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "count = sum(1 for _ in read_lines(Path(sys.argv[1])))\n"
        "print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    count, mebibytes = map(int, done.stdout.split())
    assert count == 400
    assert mebibytes < 300


def test_without_zstandard_the_error_says_what_to_install(tmp_path):
    path = save(tmp_path, "jsonl.zst", ROWS[:1])
    code = (
        "import sys; sys.modules['zstandard'] = None\n"
        "from pathlib import Path; from jcv2_trainer.data.lines import read_lines\n"
        "list(read_lines(Path(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "data.jsonl.zst: reading .zst needs the package zstandard" in done.stderr
    assert "pip install zstandard" in done.stderr


def test_a_folder_of_files_is_read_by_name_and_findings_name_the_file(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "b.jsonl").write_bytes(jsonl([{"query": "q0", "positive": "other"}]) + b"nonsense\n")
    pq.write_table(pa.Table.from_pylist(ROWS[:2]), folder / "a.parquet")
    (folder / ".hidden").write_text("is passed over")
    assert [(one.file.name, one.number) for one in read_entries(folder)] == [
        ("a.parquet", 1),
        ("a.parquet", 2),
        ("b.jsonl", 1),
        ("b.jsonl", 2),
    ]
    with pytest.raises(DataError, match=r"b\.jsonl:2: not valid JSON"):
        list(read_records(folder))
    report = check_file(folder)
    bad, repeated = (
        next(one for one in report.findings if one.kind == kind) for kind in ("bad-json", "repeated-query")
    )
    assert bad.position == f"{folder / 'b.jsonl'}:2"
    assert repeated.position == f"{folder / 'b.jsonl'}:1"
    assert "row 1 of a.parquet has the same query" in repeated.message


def test_paths_without_data_say_what_to_give(tmp_path):
    def refusal(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            list(read_records(path))
        return str(caught.value)

    assert "missing.jsonl does not exist. Give JSON lines" in refusal(tmp_path / "missing.jsonl")
    assert "is an empty folder. Give JSON lines" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "notes.txt in it is neither .jsonl nor .parquet" in refusal(tmp_path)
    splits = tmp_path / "splits"
    datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS[:1]) for name in ("dev", "test")}).save_to_disk(splits)
    assert "has no split 'train'. It has: dev, test." in refusal(splits)
    assert list(read_records(splits / "dev")) == [(1, ROWS[0])]


def test_progress_of_datasets_stays_out_of_pipes(tmp_path, capfd):
    datasets.Dataset.from_list(ROWS[:40]).save_to_disk(tmp_path / "d", num_shards=20)
    capfd.readouterr()
    assert len(list(read_records(tmp_path / "d"))) == 40
    assert capfd.readouterr() == ("", "")


def test_blank_lines_keep_their_number(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b'\n{"a": 1}\n\n{"a": 2}'))
    assert [number for number, _ in read_lines(tmp_path / "a.jsonl.zst")] == [2, 4]


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
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        jsonl(
            [
                {"anchor": "", "positive": "p", "negative_1": "n", "negative_2": "p"},
                {"anchor": "a", "query": "q", "positive": "p", "negative": "n"},
            ]
        )
    )
    found = {(one.line, one.field, one.kind) for one in check_file(path).findings}
    assert found == {
        (1, "anchor", "empty-text"),
        (1, "negative_2", "positive-as-negative"),
        (2, "anchor", "unknown-field"),
    }


def test_samples_are_drawn_from_tables_with_aliases(tmp_path):
    pq.write_table(
        pa.Table.from_pylist([{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(4)]), tmp_path / "a.parquet"
    )
    queries, positives = sample_texts(tmp_path / "a.parquet", 8, seed=1)
    assert (sorted(queries), sorted(positives)) == (["q0", "q1", "q2", "q3"], ["p0", "p1", "p2", "p3"])
