"""Every kind of finding, and the command ``jcv2-finetune check``."""

from __future__ import annotations

import io
import json
import lzma
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from training_samples import write_jsonl
from typer.testing import CliRunner

from jcv2_trainer.cli.app import app, show_report
from jcv2_trainer.data.check import FIELDS, KINDS, CheckReport, check_file, validate

PAIR = {"query": "who?", "positive": "she"}
TRIPLET = {"query": "what?", "positive": "this", "negatives": ["that", "those"]}


def check_rows(folder: Path, *rows: Any, max_findings: int = 20) -> CheckReport:
    return check_file(write_jsonl(folder / "a.jsonl", list(rows)), max_findings)


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_sound_rows_are_counted_and_null_counts_as_absent(tmp_path):
    nulls = dict.fromkeys(("scores", "lang", "source"))
    scored = {**TRIPLET, "query": "3", "scores": [2, 1.5, -0.25], "lang": "en", "source": "s"}
    report = check_rows(tmp_path, {**TRIPLET, **nulls}, b"", scored)
    assert (report.ok, report.rows, report.pairs, report.triplets) == (True, 2, 0, 2)
    assert (report.counts, report.findings) == ({}, [])
    assert (report.languages, report.sources) == ({"en": 1}, {"s": 1})
    assert report.mean_characters == {"query": 3.0, "positive": 4.0, "negatives": 4.5}
    assert report.negatives_per_row == {2: 2}
    report = check_rows(tmp_path, {**PAIR, "negatives": None}, {**PAIR, "negatives": [], "scores": [0.5]})
    assert (report.ok, report.pairs, report.counts) == (True, 2, {})


def test_no_command_lets_foreign_text_control_the_terminal(tmp_path):
    folder = tmp_path / "\x1b[2J\x9b31m"
    folder.mkdir()
    good = write_jsonl(folder / "a.jsonl", [{**PAIR, "query": f"who is {n}?", "positive": f"no {n}"} for n in range(9)])
    bad = write_jsonl(folder / "\x1b.jsonl", [{**PAIR, "negatives": ["\x1b[2J", 3], "lang": "\x1b"}, b"\x1b\x7f"])
    outputs = [
        invoke("check", good, bad),
        invoke("check", bad, "--json"),
        invoke("check", folder / "none"),
        invoke("mine", good, "--with", "bm25", "--out", folder / "out.jsonl"),
        invoke("mine", bad, "--with", "bm25", "--out", folder / "other.jsonl"),
        invoke("score", good, "--teacher", "./t\x1b[2J", "--out", folder / "scored.jsonl"),
        invoke("train", bad, "--out", folder / "model", "--model", "mini"),
        invoke("heads", good, "--out", folder / "heads", "--model", folder),
        invoke("check", "--\x9b\u202e"),
    ]
    assert [one.exit_code for one in outputs] == [1, 1, 2, 0, 2, 2, 2, 2, 2]
    for one in outputs:
        assert one.exception is None or isinstance(one.exception, SystemExit)
        assert not [char for char in one.output if not char.isprintable() and char != "\n"], one.output


ERRORS = [
    ("bad-json", "", b"{'query': 1}"),
    ("bad-json", "", b'{"query": "\xff", "positive": "p"}'),
    ("bad-json", "", b"[" * 100_000),
    ("bad-json", "", b'{"query": "q", "positive": "p", "scores": [' + b"1" * 5000 + b"]}"),
    ("not-an-object", "", ["query", "positive"]),
    ("wrong-type", "negatives", {**PAIR, "negatives": {"a": "n"}}),
    ("wrong-type", "query", {**PAIR, "query": False}),
    ("missing-field", "query", {"positive": "p"}),
    ("missing-field", "positive", {"query": "q", "positive": None}),
    ("wrong-type", "query", {**PAIR, "query": 3}),
    ("wrong-type", "positive", {**PAIR, "positive": ["p"]}),
    ("wrong-type", "lang", {**PAIR, "lang": 7}),
    ("wrong-type", "negatives", {**PAIR, "negatives": "n"}),
    ("wrong-type", "negatives[1]", {**PAIR, "negatives": ["n", None]}),
    ("wrong-type", "scores", {**PAIR, "scores": 1.0}),
    ("wrong-type", "scores[0]", {**PAIR, "scores": ["1.0"]}),
    ("wrong-type", "scores[0]", {**PAIR, "scores": [True]}),
    ("empty-text", "query", {**PAIR, "query": " \t\u3000"}),
    ("empty-text", "negatives[0]", {**PAIR, "negatives": [""]}),
    ("broken-text", "positive", {**PAIR, "positive": "x\ud800"}),
    ("score-count", "scores", {**TRIPLET, "scores": [1.0, 2.0]}),
    ("score-count", "scores", {**PAIR, "scores": []}),
    ("non-finite-score", "scores[1]", {**TRIPLET, "scores": [1.0, float("nan"), 2.0]}),
    ("non-finite-score", "scores[0]", {**PAIR, "scores": [float("-inf")]}),
    ("non-finite-score", "scores[0]", {**PAIR, "scores": [10**400]}),
    ("positive-as-negative", "negatives[1]", {**PAIR, "negatives": ["he", " she"]}),
    ("duplicate-negatives", "negatives[2]", {**PAIR, "negatives": ["he", "it", "he "]}),
]


@pytest.mark.parametrize("kind, field, row", ERRORS, ids=lambda value: str(value)[:30])
def test_each_error_names_line_and_field(tmp_path, kind, field, row):
    report = check_rows(tmp_path, PAIR, row)
    assert not report.ok
    assert report.counts == {kind: 1}
    assert (report.rows, report.pairs, report.triplets) == (2, 1, 0)
    [finding] = report.findings
    assert (finding.line, finding.kind, finding.field, finding.severity) == (2, kind, field, "error")
    assert finding.message
    assert finding.remedy == KINDS[kind][1]


def test_a_file_without_rows_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n \n")
    report = check_file(str(tmp_path / "a.jsonl"))
    assert (report.ok, report.rows, report.counts) == (False, 0, {"no-rows": 1})


WARNINGS = [
    ("repeated-query", "query", PAIR, {**PAIR, "query": "who? ", "positive": "he"}),
    ("mixed-negative-counts", "negatives", TRIPLET, {**TRIPLET, "query": "b", "negatives": ["one"]}),
    ("mixed-pairs-triplets", "negatives", PAIR, TRIPLET),
    ("mixed-pairs-triplets", "negatives", TRIPLET, PAIR),
    ("unknown-field", "Score", PAIR, {**PAIR, "Score": [1.0]}),
]


@pytest.mark.parametrize("kind, field, first, second", WARNINGS)
def test_warnings_do_not_fail_a_file(tmp_path, kind, field, first, second):
    report = check_rows(tmp_path, first, second)
    assert report.ok
    assert (report.counts, report.errors, report.warnings) == ({kind: 1}, 0, 1)
    [finding] = report.findings
    assert (finding.line, finding.field, finding.severity) == (2, field, "warning")
    assert ("did you mean 'scores'?" in finding.message) == (kind == "unknown-field")
    assert report.pairs + report.triplets == 2


def test_a_repeated_query_names_the_first_line_and_equal_rows_are_no_repetition(tmp_path):
    other = {**PAIR, "positive": "he"}
    report = check_rows(tmp_path, TRIPLET, PAIR, PAIR, other, other)
    assert report.counts["repeated-query"] == 2
    assert [one.line for one in report.findings if one.kind == "repeated-query"] == [4, 5]
    assert "line 2 has the same query" in report.findings[-1].message


def test_mixtures_and_unknown_fields_are_reported_once_a_file(tmp_path):
    rows = [{"query": str(i), "positive": "p", "negatives": list("abc")[: i % 4], "id": i} for i in range(40)]
    report = check_rows(tmp_path, *rows)
    assert report.counts == {"mixed-negative-counts": 1, "mixed-pairs-triplets": 1, "unknown-field": 1}
    assert report.negatives_per_row == {0: 10, 1: 10, 2: 10, 3: 10}


def test_nothing_stops_at_the_first_finding(tmp_path):
    report = check_rows(tmp_path, {"negatives": ["n", "n", ""], "scores": [1, "2"]}, b"nonsense", PAIR)
    assert report.counts == {
        "bad-json": 1,
        "missing-field": 2,
        "wrong-type": 1,
        "empty-text": 1,
        "score-count": 1,
        "duplicate-negatives": 1,
    }
    assert report.pairs == 1


def test_all_findings_are_counted_and_a_frequent_kind_hides_no_rare_one(tmp_path):
    rows = [{**PAIR, "positive": str(i)} for i in range(50)] + [{"query": "q"}] * 50 + [b"nonsense"]
    report = check_rows(tmp_path, *rows, max_findings=5)
    assert report.counts == {"bad-json": 1, "missing-field": 50, "repeated-query": 49}
    assert [(one.line, one.kind) for one in report.findings] == [
        *[(51 + i, "missing-field") for i in range(4)],
        (101, "bad-json"),
    ]
    assert check_rows(tmp_path, *rows, max_findings=0).findings == []
    with pytest.raises(ValueError, match="max_findings must not be negative"):
        check_rows(tmp_path, *rows, max_findings=-1)


def test_names_without_end_are_counted_together(tmp_path):
    rows = [{"query": str(i), "positive": "p", "source": str(i), f"f{i}": 1} for i in range(1200)]
    report = check_rows(tmp_path, *rows)
    assert len(report.sources) == 1001
    assert report.sources["(other)"] == 200
    assert report.counts == {"unknown-field": 1000}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_row_is_either_sound_or_has_known_faults(row):
    faults = validate(row, {})[1]
    assert {fault.kind for fault in faults} <= KINDS.keys()
    if not faults:
        assert row["query"].strip()
        assert row["positive"].strip()
        assert all(negative.strip() for negative in row.get("negatives") or [])


def test_the_command_prints_plain_lines_in_a_pipe(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{**PAIR, "lang": "[red]x\x1b"}, {"query": "[bold]q"}])
    result = invoke("check", path)
    assert result.exit_code == 1
    assert f"{path}: not ok. 2 rows: 1 pairs, 0 triplets, 1 with errors" in result.stdout
    assert f"{path}:2: error [missing-field] positive: not in the row. Add the field" in result.stdout
    assert r"languages: '[red]x\x1b' 1" in result.stdout
    assert "\x1b" not in result.stdout


def test_rows_of_tables_and_files_of_folders_are_named(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([PAIR, {**PAIR, "query": ""}]), folder / "a.parquet")
    result = invoke("check", folder / "a.parquet")
    assert result.exit_code == 1
    assert f"{folder / 'a.parquet'} row 2: error [empty-text] query: ''" in result.stdout
    write_jsonl(folder / "b.jsonl", [3])
    assert f"{folder / 'b.jsonl'}:1: error [not-an-object]" in invoke("check", folder).stdout
    console = Console(file=io.StringIO(), force_terminal=True, width=150, color_system=None, highlight=False)
    show_report(check_file(folder), console)
    shown = console.file.getvalue()
    assert "┃ file      ┃ line/row ┃" in shown
    assert "│ a.parquet │        2 │ empty-text" in shown
    console = Console(file=io.StringIO(), force_terminal=True, width=150, color_system=None, highlight=False)
    show_report(check_rows(tmp_path, PAIR, {"query": "[bold]", "positive": " "}), console)
    assert "│    2 │ empty-text │ positive │" in console.file.getvalue()


def test_the_command_limits_what_it_shows(tmp_path):
    result = invoke("check", write_jsonl(tmp_path / "a.jsonl", [b"nonsense"] * 7), "--max-findings", 2)
    assert result.stdout.count("[bad-json]") == 2
    assert "5 more findings are not shown" in result.stdout


def test_the_command_prints_json(tmp_path):
    good = write_jsonl(tmp_path / "good.jsonl", [PAIR])
    bad = write_jsonl(tmp_path / "bad.jsonl", [PAIR, 3])
    result = invoke("check", good, bad, "--json")
    assert result.exit_code == 1
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["path"], first["ok"], first["pairs"]) == (str(good), True, 1)
    assert (second["ok"], second["errors"], second["counts"]) == (False, 1, {"not-an-object": 1})
    assert second["findings"][0]["line"] == 2


def test_exit_codes(tmp_path):
    good, bad = write_jsonl(tmp_path / "good.jsonl", [PAIR]), write_jsonl(tmp_path / "bad.jsonl", [3])
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(b"no gzip")
    assert invoke("check", good).exit_code == 0
    assert invoke("check", bad, good).exit_code == 1
    result = invoke("check", broken, bad, tmp_path / "missing.jsonl")
    assert result.exit_code == 2
    assert result.stderr.count("error: ") == 2
    assert f"{broken}: cannot be read" in result.stderr
    assert "Traceback" not in result.output
    assert f"{bad}:1: error" in result.stdout  # the readable file is checked all the same


def test_version_and_help():
    assert invoke("--version").stdout.startswith("jcv2-finetune 0.")
    assert "principal-heads" in invoke("--help").stdout


def test_real_pairs_are_sound(data_dir, tmp_path):
    path = tmp_path / "pairs.jsonl"
    with lzma.open(data_dir / "train/pairs.jsonl.xz", "rb") as file:
        path.write_bytes(b"".join(islice(file, 2000)))
    report = check_file(path)
    assert (report.ok, report.rows, report.pairs) == (True, 2000, 2000)
    assert sum(report.languages.values()) == sum(report.sources.values()) == 2000
    assert 10 < report.mean_characters["query"] < report.mean_characters["positive"] < 2000
    assert set(report.counts) <= {"repeated-query"}
