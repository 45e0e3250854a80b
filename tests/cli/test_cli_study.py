"""``jcv2 study``."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from cli_helpers import run, run_both
from study_samples import Counting, write_sets

from jcv2_plugin.cli import study as study_app
from jcv2_plugin.evaluation.beir import BeirFormatError
from jcv2_plugin.evaluation.study import StudyError, run_study
from jcv2_plugin.evaluation.study.options import STUDIES, Force, Out
from jcv2_plugin.evaluation.study.record import read

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--data", "data", "--sets", "one", "--queries", "5", "--documents", "12", "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two sets in ``data``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JCV2_DATA", raising=False)
    write_sets(tmp_path / "data")
    return tmp_path


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


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
    assert (len(after), after[:2]) == (4, before)


def test_other_settings_are_refused_by_name(folder: Path) -> None:
    options = ("study", "languages", "--out", "out", "--dim", "32", *SMALL)
    run(*options)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("matryoshka", "--dims", "64,many"), "'many' is not a positive integer"),
        (("lengths", "--tokens", "0"), "'0' is not a positive integer"),
        (("masks", "--queries", "1"), "--queries"),
    ],
)
def test_bad_options_are_usage_errors(folder: Path, options: tuple[str, ...], message: str) -> None:
    assert message in plain(run_both("study", *options, "--out", "out", code=2)[1])


def test_a_missing_set_is_an_error_with_a_message(folder: Path) -> None:
    with pytest.raises(BeirFormatError, match=r"data/three"):
        run("study", "languages", "--out", "out", "--data", "data", "--sets", "three", "--dim", "32")


def counting(out: Out, numbers: int = 2, force: Force = False) -> None:
    """Count a little."""
    run_study(Counting(range(numbers)), out, force=force)


def test_a_study_of_another_package_appears_and_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    homes = {"counting": "test_cli_study:counting", "broken": "no_such_package:study", "masks": "no_such_package:study"}
    monkeypatch.setattr(study_app, "entry_points", lambda group: [EntryPoint(*one, STUDIES) for one in homes.items()])
    assert {"Count a little.", "matryoshka"} <= set(re.findall(r"Count a little\.|matryoshka", run("study", "--help")))
    assert "--numbers" in plain(run("study", "counting", "--help"))
    run("study", "counting", "--out", "out", "--numbers", "3")
    assert len(read(folder / "out" / "counting.json")["cells"]) == 3
    with pytest.raises(StudyError, match=r"'broken' .*No module named 'no_such_package'"):
        run("study", "broken")
    assert "MASK" in run("study", "masks", "--help")  # cannot replace one of ours


def test_the_options_of_make_studies_exist() -> None:
    shown = re.findall(r"(?:jcv2 study|\(STUDY\)) ([a-z]+)((?:[^\n]|\\\n)*)", (ROOT / "Makefile").read_text("utf-8"))
    assert {name for name, _ in shown} == {"matryoshka", "languages", "masks", "lengths", "recipe"}
    for name, rest in shown:
        said = plain(run("study", name, "--help"))
        for option in re.findall(r"(--[a-z-]+)", rest):
            assert option in said, (name, option)
