"""``jcv2 study``."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from cli_helpers import PROGRAM, jcv2, run, run_both, wait_until
from study_samples import Counting, write_sets

from jcv2_plugin.cli import study as study_app
from jcv2_plugin.evaluation.study import StudyError, run_study
from jcv2_plugin.evaluation.study.options import Force, Out
from jcv2_plugin.evaluation.study.record import read

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two sets in ``data``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JCV2_DATA", raising=False)
    write_sets(tmp_path / "data")
    return tmp_path


SMALL = ("--data", "data", "--sets", "one", "--queries", "5", "--documents", "12", "--device", "cpu")


def test_matryoshka_measures_the_heads_asked_for_and_goes_on_with_more(folder: Path) -> None:
    options = ("study", "matryoshka", "--out", "out", "--model", "mini", "--dims", "64, 32", *SMALL)
    printed, said = run_both(*options, "--seeds", "1")
    assert printed == ""
    assert "Written: out/matryoshka.json, out/matryoshka.html, out/matryoshka.svg" in said
    before = read(folder / "out" / "matryoshka.json")["cells"]
    assert [list(cell["parameters"].values()) for cell in before] == [["one", 0, 64], ["one", 0, 32]]
    _, said = run_both(*options, "--seeds", "2")
    assert "2 of 4 cells were measured before; 2 to go." in said
    after = read(folder / "out" / "matryoshka.json")["cells"]
    assert after[:2] == before
    assert len(after) == 4


def test_figures_are_those_of_eval(folder: Path) -> None:
    run("study", "matryoshka", "--out", "out", "--dims", "96", "--data", "data", "--sets", "two", "--device", "cpu")
    (cell,) = read(folder / "out" / "matryoshka.json")["cells"]
    printed = json.loads(run("eval", "data/two", "--model", "mini", "--dim", "96", "--device", "cpu", "--json"))
    for name in ("ndcg@10", "recall@100", "mrr@10"):
        assert cell["values"][name] == pytest.approx(printed[name], abs=1e-9)


def test_other_settings_are_refused_by_name(folder: Path) -> None:
    options = ("study", "languages", "--out", "out", "--dim", "32", *SMALL)
    run(*options)
    with pytest.raises(StudyError, match=r"queries was 5, is 6"):
        run(*options, "--queries", "6")
    with pytest.raises(StudyError, match=r"dim was 32, is 64"):
        run(*options, "--dim", "64")
    run(*options, "--queries", "6", "--force")
    assert read(folder / "out" / "languages.json")["settings"]["queries"] == 6


def test_masks_has_a_length(folder: Path) -> None:
    run("study", "masks", "--out", "out", "--dim", "32", "--length", "12", "--seeds", "1", *SMALL)
    cells = read(folder / "out" / "masks.json")["cells"]
    assert [cell["values"]["vectors a query"] for cell in cells[:2]] == [12, 12]


def test_lengths_says_why_it_skips(folder: Path) -> None:
    run("study", "lengths", "--out", "out", "--attention", "flash_attention_2", "--tokens", "16", "--device", "cpu")
    assert "needs a CUDA device" in (folder / "out" / "lengths.html").read_text()


def test_ctrl_c_ends_with_130_and_keeps_the_cells(folder: Path) -> None:
    # Cells of some tenths of a second each: the signal comes in the middle.
    options = ("matryoshka", "--out", "out", "--data", "data", "--sets", "one,two", "--queries", "5", "--seeds", "30")
    command = [PROGRAM, "study", *options, "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    path = folder / "out" / "matryoshka.json"
    wait_until(lambda: path.exists() and len(read(path)["cells"]) >= 12)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert 12 <= len(read(path)["cells"]) < 360
    assert "Unfinished" in (folder / "out" / "matryoshka.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("matryoshka", "--dims", "64,many"), "'many' is not a positive whole number"),
        (("lengths", "--tokens", "0"), "'0' is not a positive whole number"),
        (("masks", "--queries", "1"), "--queries"),
    ],
)
def test_bad_options_are_usage_errors(folder: Path, options: tuple[str, ...], message: str) -> None:
    _, said = run_both("study", *options, "--out", "out", code=2)
    assert message in re.sub(r"\x1b\[[0-9;]*m", "", said)


def test_a_missing_set_is_an_error_with_a_message(folder: Path) -> None:
    done = jcv2("study", "languages", "--out", "out", "--data", "data", "--sets", "three", "--dim", "32", cwd=folder)
    assert done.returncode == 1
    assert "There is no folder data/three" in done.stderr
    assert "Traceback" not in done.stderr


class TestForeignStudies:
    """Those that other packages bring as entry points."""

    def test_appears_and_runs(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._install(monkeypatch, "counting", "test_cli_study:counting")
        assert "Count a little." in run("study", "--help")
        assert "--numbers" in re.sub(r"\x1b\[[0-9;]*m", "", run("study", "counting", "--help"))
        run("study", "counting", "--out", "out", "--numbers", "3")
        assert len(read(folder / "out" / "counting.json")["cells"]) == 3

    def test_one_that_cannot_be_loaded_says_what_it_needs(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._install(monkeypatch, "broken", "no_such_package:study")
        assert "matryoshka" in run("study", "--help")
        with pytest.raises(StudyError, match=r"'broken' .*No module named 'no_such_package'"):
            run("study", "broken")

    def test_cannot_replace_an_own_study(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._install(monkeypatch, "masks", "no_such_package:study")
        assert "MASK" in run("study", "masks", "--help")

    @staticmethod
    def _install(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        found = [EntryPoint(name, value, study_app.STUDIES)]
        monkeypatch.setattr(study_app, "entry_points", lambda group: found)


def counting(out: Out, numbers: int = 2, force: Force = False) -> None:
    """Count a little."""
    run_study(Counting(range(numbers)), out, force=force)


def test_the_commands_of_the_page_exist() -> None:
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8") + (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = re.findall(r"jcv2 study ([a-z]+)((?:[^`\n]|\\\n)*)", page)
    assert {name for name, _ in shown} >= {"matryoshka", "languages", "masks", "lengths"}
    for name, rest in shown:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", run("study", name, "--help"))
        for option in re.findall(r"(--[a-z-]+)", rest):
            assert option in plain, (name, option)
