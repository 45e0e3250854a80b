"""What was measured is kept at once, is not measured again, and never stands beside figures of other settings."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import typer
from study_samples import Counting

from jcv2_plugin.evaluation.study import Cell, Measured, StudyError, run_study
from jcv2_plugin.evaluation.study.record import StudyRecord, locked, read


def cells(out: Path) -> list[int]:
    return [cell["parameters"]["number"] for cell in read(out / "counting.json")["cells"]]


def test_a_second_run_measures_only_what_is_missing(tmp_path: Path) -> None:
    first, second = Counting(range(3)), Counting(range(5))
    run_study(first, tmp_path)
    before = read(tmp_path / "counting.json")["cells"]
    run_study(second, tmp_path)
    assert (first.measured, second.measured) == ([0, 1, 2], [3, 4])
    assert read(tmp_path / "counting.json")["cells"][:3] == before


def test_languages_of_queries_are_kept(tmp_path: Path) -> None:
    record = StudyRecord(tmp_path / "some.json", "some", {})
    record.add(Cell({"number": 1}), Measured({}, {"value": {"q": 1.0}}, {"q": "de->en"}))
    record.add(Cell({"number": 2}), Measured({}, {"value": {"q": 1.0}}))
    again = StudyRecord(record.path, "some", {})
    assert [one.languages for one in again.results] == [{"q": "de->en"}, {}]


def test_fewer_cells_than_before_keep_the_others(tmp_path: Path) -> None:
    run_study(Counting(range(3)), tmp_path)
    run_study(fewer := Counting(range(1)), tmp_path)
    assert fewer.measured == []
    assert cells(tmp_path) == [0, 1, 2]


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    run_study(Counting(settings={"model": {"name": "a", "heads": [1, 2]}, "queries": 5}), tmp_path)
    before = (tmp_path / "counting.json").read_bytes()
    with pytest.raises(StudyError, match=r"model\.name was 'a', is 'b'; queries was 5, is 6.*--force"):
        run_study(Counting(settings={"model": {"name": "b", "heads": (1, 2)}, "queries": 6}), tmp_path)
    assert (tmp_path / "counting.json").read_bytes() == before


def test_force_starts_anew(tmp_path: Path) -> None:
    run_study(Counting(range(3)), tmp_path)
    run_study(other := Counting([7], settings={"model": "b"}), tmp_path, force=True)
    assert other.measured == cells(tmp_path) == [7]


def test_a_cell_that_fails_loses_none_before_it(tmp_path: Path) -> None:
    class Failing(Counting):
        def measure(self, cell: Cell) -> Measured:
            if cell.parameters["number"] == 2:
                raise RuntimeError("power cut")
            return super().measure(cell)

    with pytest.raises(RuntimeError, match="power cut"):
        run_study(Failing(), tmp_path)
    assert cells(tmp_path) == [0, 1]


def test_ctrl_c_keeps_what_is_measured_and_reports_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted(Counting):
        def measure(self, cell: Cell) -> Measured:
            if cell.parameters["number"] == 2:
                raise KeyboardInterrupt
            return super().measure(cell)

    with pytest.raises(typer.Exit) as ended:
        run_study(Interrupted(), tmp_path)
    assert ended.value.exit_code == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert "2 of the cells asked for are not measured yet" in (tmp_path / "counting.html").read_text()
    run_study(again := Counting(), tmp_path)
    assert again.measured == [2, 3]
    assert "not measured yet" not in (tmp_path / "counting.html").read_text()


def test_a_killed_run_loses_one_cell_at_most(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, time
        sys.path.insert(0, sys.argv[1])
        from study_samples import Counting
        from jcv2_plugin.evaluation.study import run_study
        class Slow(Counting):
            def measure(self, cell):
                print(cell.parameters["number"], flush=True)
                time.sleep(0.02)
                return super().measure(cell)
        run_study(Slow(range(1000)), sys.argv[2])
    """)
    command = [sys.executable, "-c", program, str(Path(__file__).parents[2]), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    begun = 0
    for line in process.stdout:
        begun = int(line) + 1
        if begun == 12:
            break
    time.sleep(0.01)
    process.kill()
    begun = max([begun, *(int(line) + 1 for line in process.stdout)])
    process.wait()
    assert begun - 1 <= len(cells(tmp_path)) <= begun
    assert cells(tmp_path) == list(range(len(cells(tmp_path))))
    run_study(rest := Counting(range(begun + 3)), tmp_path)
    assert rest.measured == list(range(begun + 3))[len(cells(tmp_path)) - len(rest.measured) :]


def test_two_processes_do_not_measure_into_one_file(tmp_path: Path) -> None:
    with locked(tmp_path / "counting.json"), pytest.raises(StudyError, match="Another process is measuring"):
        run_study(Counting(), tmp_path)


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    record = StudyRecord(tmp_path / "x.json", "x", {})
    record.begin("command", {}, {})
    with pytest.raises(StudyError, match=r"number 1: mean is nan"):
        record.add(Cell({"number": 1}), Measured({"mean": float("nan")}))
    assert not (tmp_path / "x.json").exists()


def test_equal_cells_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="same parameters"):
        run_study(Counting([1, 1]), tmp_path)
    with pytest.raises(StudyError, match="no cell"):
        run_study(Counting([]), tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}'])
def test_a_foreign_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "counting.json").write_text(content)
    with pytest.raises(StudyError, match=r"counting\.json"):
        run_study(Counting(), tmp_path)
    assert (tmp_path / "counting.json").read_text() == content


def test_a_file_of_another_study_is_refused(tmp_path: Path) -> None:
    run_study(Counting(), tmp_path)
    with pytest.raises(StudyError, match=r"holds the study 'counting', not 'other'"):
        StudyRecord(tmp_path / "counting.json", "other", {"model": "none"})


def test_the_file_says_who_measured_what(tmp_path: Path) -> None:
    run_study(Counting(range(2)), tmp_path)
    content = json.loads((tmp_path / "counting.json").read_text())
    run = content["runs"][content["cells"][0]["run"]]
    assert run["versions"]["torch"]
    assert {"cpu", "cores", "threads"} <= run["machine"].keys()
    assert run["command"]
    run_study(Counting(range(3)), tmp_path)
    assert len(json.loads((tmp_path / "counting.json").read_text())["runs"]) == 1
