"""``jcv2 quantize``."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import run, run_both, run_json
from official_checkpoint import SENTENCES, write_checkpoint

pytest.importorskip("openvino")
pytest.importorskip("nncf")

from jcv2_plugin.encoder import quantization
from jcv2_plugin.errors import InvalidOptionError


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of a tiny model; ``docs`` has texts to calibrate on."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for number, sentence in enumerate(SENTENCES):
        (folder / "docs" / f"{number}.txt").write_text(sentence)
    return str(write_checkpoint(folder / "model"))


def test_the_folder_is_a_model(model: str, folder: Path) -> None:
    (folder / "docs" / "latin.txt").write_bytes(b"caf\xe9")
    output, said = run_both("quantize", model, "docs", "--out", "eight")
    assert output == ""
    assert "skipped: docs/latin.txt" in said
    assert said.splitlines()[-1].startswith("eight: ")
    (folder / "docs" / "latin.txt").unlink()
    run("index", "docs", "-c", "store", "--model", "eight")
    assert run_json("info", "-c", "store")["model"] == str(folder / "eight")
    assert len(run_json("search", "-c", "store", "capital of France")) == 5


def test_a_full_folder_is_refused_before_any_work(model: str, folder: Path) -> None:
    with pytest.raises(FileExistsError, match="'docs' exists and is not empty"):
        run("quantize", "no-such-model", "docs", "--out", "docs")


def test_nothing_is_left_of_a_failure(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(InvalidOptionError, match="at least 10 texts"):
        run("quantize", model, "docs/food.md", "--out", "eight")

    class Unwritable:
        def save_pretrained(self, path: str, **_: object) -> None:
            Path(path, "config.json").write_text("{}")
            raise OSError("the disk is full")

    monkeypatch.setattr(quantization, "quantize", lambda *_, **__: Unwritable())
    with pytest.raises(OSError, match="the disk is full"):
        run("quantize", model, "docs", "--out", "eight")
    assert sorted(folder.iterdir()) == before
