"""What was measured is kept at once, is not measured again, and never stands beside figures of other settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import starting
import typer
from study_samples import Counting

from jcv2_plugin.evaluation.study import Cell, StudyError, run_study
from jcv2_plugin.evaluation.study.record import StudyRecord, locked, read


def rows(out: Path) -> list[dict[str, Any]]:
    return list(read(out / "counting.json")["cells"])


def numbers(out: Path) -> list[int]:
    return [row["parameters"]["number"] for row in rows(out)]


def test_a_run_measures_only_what_is_missing_and_keeps_the_rest(tmp_path: Path) -> None:
    first, second, fewer = Counting(range(3)), Counting(range(5)), Counting(range(1))
    run_study(first, tmp_path)
    before = rows(tmp_path)
    run_study(second, tmp_path)
    run_study(fewer, tmp_path)
    assert (first.done, second.done, fewer.done) == ([0, 1, 2], [3, 4], [])
    assert rows(tmp_path)[:3] == before
    assert numbers(tmp_path) == list(range(5))
    record = StudyRecord(tmp_path / "counting.json", "counting", first.settings)
    assert [cell.languages for cell in record.cells[:2]] == [{}, {"q0": "de->en"}]
    (run,) = record.runs
    assert run["versions"]["torch"]
    assert {"cpu", "cores", "threads"} <= run["machine"].keys()
    assert run["command"]


def test_other_settings_are_refused_by_name_unless_forced(tmp_path: Path) -> None:
    run_study(Counting(settings={"model": {"name": "a", "heads": [1, 2]}, "queries": 5}), tmp_path)
    before = (tmp_path / "counting.json").read_bytes()
    other = Counting([7], settings={"model": {"name": "b", "heads": (1, 2)}, "queries": 6})
    with pytest.raises(StudyError, match=r"model\.name was 'a', is 'b'; queries was 5, is 6.*--force"):
        run_study(other, tmp_path)
    assert (tmp_path / "counting.json").read_bytes() == before
    run_study(other, tmp_path, force=True)
    assert other.done == numbers(tmp_path) == [7]


@pytest.mark.parametrize("error", [RuntimeError("power cut"), KeyboardInterrupt()])
def test_a_run_that_ends_early_keeps_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise error

    with pytest.raises((RuntimeError, typer.Exit)) as ended:
        run_study(Counting(before=fail), tmp_path)
    assert numbers(tmp_path) == [0, 1]
    if isinstance(ended.value, typer.Exit):
        assert ended.value.exit_code == 130
        assert "Run the same command to continue" in capsys.readouterr().err
        assert "2 cells have not been measured yet" in (tmp_path / "counting.html").read_text()
    run_study(again := Counting(), tmp_path)
    assert again.done == [2, 3]
    assert "not been measured yet" not in (tmp_path / "counting.html").read_text()


def test_a_killed_run_keeps_what_it_measured(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from study_samples import Counting
from jcv2_plugin.evaluation.study import run_study
run_study(Counting(before=lambda number: number < 3 or os.kill(os.getpid(), signal.SIGKILL)), sys.argv[1])
"""
    killed = starting.run(program, tmp_path)
    assert killed.returncode == -9
    assert numbers(tmp_path) == [0, 1, 2]
    run_study(rest := Counting(), tmp_path)
    assert rest.done == [3]


def test_two_processes_do_not_measure_into_one_file(tmp_path: Path) -> None:
    with locked(tmp_path / "counting.json"), pytest.raises(StudyError, match="Another process is writing to"):
        run_study(Counting(), tmp_path)


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    record = StudyRecord(tmp_path / "x.json", "x", {})
    with pytest.raises(StudyError, match=r"number 1: mean is nan"):
        record.add(Cell({"number": 1}).measured({"mean": float("nan")}))
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(("given", "message"), [([1, 1], "equal parameters"), ([], "no cells")])
def test_equal_cells_and_none_are_refused(tmp_path: Path, given: list[int], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        run_study(Counting(given), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a study's results file"),
        ('{"format": 99}', "is not a study's results file of format 1"),
        ('{"format": 1, "study": "counting", "settings": {}}', "is not a study's results file"),
        ('{"format": 1, "study": 1, "settings": {}, "runs": [], "cells": []}', "is not a study's results file"),
        (
            '{"format": 1, "study": "counting", "settings": {}, "runs": [], "cells": [{"parameters": {}}]}',
            "is not a study's results file",
        ),
        (
            '{"format": 1, "study": "counting", "settings": {}, "runs": [1], "cells": []}',
            "is not a study's results file",
        ),
        ('{"format": 1, "study": "other", "settings": {}, "runs": [], "cells": []}', "holds the study 'other', not 'c"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "counting.json").write_text(content)
    with pytest.raises(StudyError, match=rf"counting\.json {message}"):
        run_study(Counting(), tmp_path)
    assert (tmp_path / "counting.json").read_text() == content
