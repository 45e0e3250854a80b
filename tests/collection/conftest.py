"""Collections of the sample documents on Edge, and in memory where a test asks for both."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from collection_samples import DIM, NAME, Create, Place, documents, encoded, first, store
from loopback_qdrant import LoopbackQdrant
from qdrant_client import QdrantClient

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.engines.base import Matrix


@pytest.fixture(scope="session")
def vectors(mini: JinaColbertEncoder) -> list[Matrix]:
    """The token vectors of ``documents(90)``."""
    return encoded(mini, documents(90))


@pytest.fixture
def engine() -> str:
    """Tests marked with ``both_engines`` have it as a parameter."""
    return "edge"


@pytest.fixture
def create(engine: str, mini: JinaColbertEncoder, vectors: list[Matrix], tmp_path: Path) -> Iterator[Create]:
    """Makes collections with the first so many sample documents, and closes them."""
    numbers = itertools.count()
    with ExitStack() as stack:

        def make(number: int = 0, **options: Any) -> ColbertCollection:
            location = ":memory:" if engine == "memory" else tmp_path / f"collection-{next(numbers)}"
            made = ColbertCollection.create(location, **{"encoder": mini, "dim": DIM, **options})
            stack.enter_context(made)
            if number:
                store(made, documents(number), vectors[:number])
            return made

        yield make


@pytest.fixture
def place(engine: str, tmp_path: Path) -> Iterator[Place]:
    """Where a test's collection may live, as arguments of ``create`` and ``open``: also ``engine="rest"``."""
    if engine == "edge":
        yield {"path": tmp_path / "place"}
        return
    with ExitStack() as stack:
        url = {"location": ":memory:"}
        if engine == "rest":
            url = {"url": stack.enter_context(LoopbackQdrant()).url}
        client = QdrantClient(**url, check_compatibility=False)
        stack.callback(client.close)
        yield {"client": client, "name": NAME}


@pytest.fixture
def encoded_texts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of each batch of documents that is encoded."""
    noted: list[list[str]] = []
    first(monkeypatch, JinaColbertEncoder, "document_vectors", lambda _, texts, *rest: noted.append(list(texts)))
    return noted
