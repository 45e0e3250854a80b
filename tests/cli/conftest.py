from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import FOOD, MINI, SHIPS, run, write_rows
from collection_samples import copied
from loopback_qdrant import LoopbackQdrant


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


def write_documents(folder: Path) -> None:
    (folder / "docs").mkdir()
    (folder / "docs" / "ships.md").write_text(SHIPS)
    (folder / "docs" / "food.md").write_text(FOOD)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two collections, which the tests copy: ``docs-store`` of documents and ``rows-store`` of rows."""
    folder = tmp_path_factory.mktemp("built")
    write_documents(folder)
    write_rows(folder / "rows.jsonl", range(30))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("index", "docs", "--collection", "docs-store", "--model", "mini", "--dim", "64")
        run("index", "rows.jsonl", "-c", "rows-store", *MINI)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with documents, as the current one."""
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path)
    return tmp_path


@pytest.fixture
def indexed(folder: Path, built: Path) -> Path:
    """With a collection of them in ``store``."""
    copied(built / "docs-store", folder / "store")
    return folder


@pytest.fixture
def rows(folder: Path, built: Path) -> Path:
    """With a collection in ``store`` of the 30 rows of a file."""
    shutil.copy(built / "rows.jsonl", folder)
    copied(built / "rows-store", folder / "store")
    return folder


@pytest.fixture
def server() -> Iterator[LoopbackQdrant]:
    with LoopbackQdrant() as running:
        yield running
