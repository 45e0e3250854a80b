from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import FOOD, MINI, SHIPS, run, write_rows
from loopback_qdrant import LoopbackQdrant


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with documents, as the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "ships.md").write_text(SHIPS)
    (tmp_path / "docs" / "food.md").write_text(FOOD)
    return tmp_path


@pytest.fixture
def indexed(folder: Path) -> Path:
    """With a collection of them in ``store``."""
    run("index", "docs", "--collection", "store", "--model", "mini", "--dim", "64")
    return folder


@pytest.fixture
def rows(folder: Path) -> Path:
    """With a collection in ``store`` of the 30 rows of a file."""
    write_rows(folder / "rows.jsonl", range(30))
    run("index", "rows.jsonl", "-c", "store", *MINI)
    return folder


@pytest.fixture
def server() -> Iterator[LoopbackQdrant]:
    with LoopbackQdrant() as running:
        yield running
