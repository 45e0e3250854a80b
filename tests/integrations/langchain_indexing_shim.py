"""A pytest plugin: our store where langchain-core's tests of its indexing take its ``InMemoryVectorStore``.

``JCV2_SHIM_FOLDER`` names a folder for collections on Qdrant Edge; without it they are in memory.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import langchain_core.vectorstores
import pytest

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from langchain_jcv2 import JinaColbertVectorStore

_ENCODER = JinaColbertEncoder.from_pretrained("mini", device="cpu", dims=32)
_NUMBERS = itertools.count()


class Shim(JinaColbertVectorStore):
    """Made as the tests make theirs, and with the attribute in which they count documents."""

    open_ones: list[Shim] = []  # noqa: RUF012

    def __init__(self, embedding: object) -> None:
        folder, number = os.environ.get("JCV2_SHIM_FOLDER"), next(_NUMBERS)
        location = Path(folder) / str(number) if folder else ":memory:"
        super().__init__(ColbertCollection.create(location, encoder=_ENCODER))
        self.open_ones.append(self)

    @property
    def store(self) -> dict[str, Any]:
        return {stored.id: stored for stored in self.collection.scroll()}


langchain_core.vectorstores.InMemoryVectorStore = Shim


@pytest.fixture(autouse=True)
def _close_stores():
    yield
    for store in Shim.open_ones:
        store.collection.close()
    Shim.open_ones.clear()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """For the caller to see that the tests have used our store."""
    terminalreporter.write_line(f"stores of ours: {next(_NUMBERS)}")
