"""Sound rows of training files: what stops them, what is skipped and counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jcv2_trainer.data.check import FIELDS, KINDS, row_faults
from jcv2_trainer.data.reading import DataError
from jcv2_trainer.data.rows import Row, read_rows

PAIR = {"query": " who?", "positive": "she"}


def write(path: Path, rows: list[Any]) -> Path:
    parts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(parts) + b"\n")
    return path


def test_rows_have_every_field_and_absent_ones_are_empty(tmp_path):
    full = {**PAIR, "negatives": ["he", "it"], "scores": [3, 1.5, -2], "lang": "en", "source": "s"}
    nulls = dict.fromkeys(("negatives", "scores", "lang", "source"))
    path = write(tmp_path / "a.jsonl", [full, {**PAIR, **nulls}, {"anchor": "a", "positive": "p", "negative": "n"}])
    assert list(read_rows(path)) == [
        Row(" who?", "she", ("he", "it"), (3.0, 1.5, -2.0), "en", "s"),
        Row(" who?", "she", (), None, "", ""),
        Row("a", "p", ("n",), None, "", ""),
    ]


BAD = [
    (b"{", "a.jsonl:2: [bad-json] "),
    ([1], "a.jsonl:2: [not-an-object] expected a JSON object, got list. "),
    ({"query": "q"}, "a.jsonl:2: [missing-field] positive: not in the row. Add the field"),
    ({"anchor": " ", "positive": "p"}, "a.jsonl:2: [empty-text] anchor: ' ' has no characters"),
    ({**PAIR, "negatives": ["she"]}, "a.jsonl:2: [positive-as-negative] negatives[0]: the same text"),
    ({**PAIR, "negative_1": 5}, "a.jsonl:2: [wrong-type] negative_1: expected a text, got int: 5. "),
    ({**PAIR, "scores": [1, 2]}, "a.jsonl:2: [score-count] scores: 2 scores for 1 positive and 0 negatives. "),
]


@pytest.mark.parametrize("row, said", BAD, ids=lambda value: str(value)[:30])
def test_a_bad_row_stops_with_position_field_value_and_remedy(tmp_path, row, said):
    path = write(tmp_path / "a.jsonl", [PAIR, row])
    reader = read_rows(path)
    assert next(reader).positive == "she"
    with pytest.raises(DataError) as caught:
        next(reader)
    assert said in str(caught.value)
    assert f"jcv2-finetune check {path}" in str(caught.value)


def test_bad_rows_are_skipped_and_each_is_counted_once(tmp_path):
    path = write(tmp_path / "a.jsonl", [PAIR, *(row for row, _ in BAD), {"query": "", "scores": 3}, PAIR])
    skipped: Counter[str] = Counter(earlier=4)
    assert len(list(read_rows(path, on_bad="skip", skipped=skipped))) == 2
    assert skipped == {
        "earlier": 4,
        "bad-json": 1,
        "not-an-object": 1,
        "missing-field": 1,
        "empty-text": 2,
        "positive-as-negative": 1,
        "wrong-type": 1,
        "score-count": 1,
    }


def test_warnings_skip_nothing(tmp_path):
    path = write(tmp_path / "a.jsonl", [PAIR, {**PAIR, "positive": "he", "negatives": ["n"], "title": "t"}])
    assert len(list(read_rows(path))) == 2


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_an_unreadable_file_always_stops(tmp_path, on_bad):
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    for name in ("a.jsonl.gz", "missing.jsonl"):
        with pytest.raises(DataError, match=name):
            list(read_rows(tmp_path / name, on_bad=on_bad))


def test_an_unknown_way_is_refused_before_reading(tmp_path):
    with pytest.raises(ValueError, match="on_bad must be 'stop' or 'skip', got 'drop'"):
        read_rows(tmp_path / "missing.jsonl", on_bad="drop")


VALUES = st.one_of(st.none(), st.text(max_size=2), st.floats(), st.lists(st.text(max_size=2) | st.floats(), max_size=2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES), max_size=5))
def test_every_row_is_either_yielded_or_counted(tmp_path_factory, records):
    path = write(tmp_path_factory.mktemp("rows") / "a.jsonl", [PAIR, *records])
    skipped: Counter[str] = Counter()
    rows = list(read_rows(path, on_bad="skip", skipped=skipped))
    assert len(rows) + skipped.total() == 1 + len(records)
    assert len(rows) == 1 + sum(not list(row_faults(record)) for record in records)
    assert skipped.keys() <= KINDS.keys()
