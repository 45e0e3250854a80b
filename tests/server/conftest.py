"""A module's documents ``ITEMS``, encoded once, and collections of them on a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from collection_samples import encoded, store
from server_site import Site

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.engines.base import Matrix


@pytest.fixture(scope="module")
def vectors(request: pytest.FixtureRequest, mini: JinaColbertEncoder) -> list[Matrix]:
    return encoded(mini, request.module.ITEMS)


@pytest.fixture
def filled(
    request: pytest.FixtureRequest, server: Site, mini: JinaColbertEncoder, vectors: list[Matrix]
) -> Callable[..., ColbertCollection]:
    """Makes the test's collection, with the documents."""

    def make(**options: Any) -> ColbertCollection:
        collection = server.create(mini, **options)
        store(collection, request.module.ITEMS, vectors)
        return collection

    return make


@pytest.fixture
def stored(
    request: pytest.FixtureRequest, loopback: Site, mini: JinaColbertEncoder, vectors: list[Matrix]
) -> ColbertCollection:
    """The documents on the loopback server."""
    collection = loopback.create(mini)
    store(collection, request.module.ITEMS, vectors)
    return collection
