"""Servers for tests of whole collections: the loopback server over REST and gRPC, and a real one where there is one.

A real server is taken from ``QDRANT_URL`` (and ``QDRANT_API_KEY``, and ``QDRANT_GRPC_PORT`` if that is not 6334).
Collections get names of their own there, and are dropped at the end.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from collection_samples import DIM
from loopback_grpc import LoopbackGrpc
from loopback_qdrant import LoopbackQdrant, Recorded
from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection

REAL_URL = os.environ.get("QDRANT_URL", "")
REAL_KEY = os.environ.get("QDRANT_API_KEY")
REAL_GRPC_PORT = int(os.environ.get("QDRANT_GRPC_PORT", "6334"))
LOOPBACKS = ["rest", "grpc"]
ALL = [*LOOPBACKS, *(["real-rest", "real-grpc"] if REAL_URL else [])]
# For promises that the protocol has no part in:
REST = pytest.mark.parametrize("loopback", ["rest"], indirect=True)
ANY_REST = pytest.mark.parametrize("server", [kind for kind in ALL if "rest" in kind], indirect=True)


@dataclass
class Site:
    """A server, how it is spoken to, and the name that a test's collection has there."""

    kind: str
    url: str
    client_options: dict[str, Any]
    name: str
    client: QdrantClient
    """To look behind the scenes."""
    running: LoopbackQdrant | None
    _open: list[ColbertCollection] = field(default_factory=list)

    @property
    def loopback(self) -> LoopbackQdrant:
        """To look at requests and to let them fail; not of a real server."""
        assert self.running is not None
        return self.running

    def create(
        self, encoder: Any, *, client_options: Mapping[str, Any] | None = None, **options: Any
    ) -> ColbertCollection:
        """Make the test's collection; it is closed at the end."""
        given = {"name": self.name, "dim": DIM, "first_stage": "none", **options}
        given["client_options"] = {**self.client_options, **(client_options or {})}
        return self._kept(ColbertCollection.create(self.url, encoder=encoder, **given))

    def open(self, *, client_options: Mapping[str, Any] | None = None, **options: Any) -> ColbertCollection:
        """Open the test's collection; it is closed at the end."""
        given = {"name": self.name, **options, "client_options": {**self.client_options, **(client_options or {})}}
        return self._kept(ColbertCollection.open(self.url, **given))

    def physical(self) -> str:
        """What the collection's name stands for."""
        return {one.alias_name: one.collection_name for one in self.client.get_aliases().aliases}[self.name]

    def names(self) -> list[str]:
        """All collections of this test, as the server names them."""
        if self.running is not None:  # not by a request, which may be one to fail
            return sorted(self.running.store.names())
        return sorted(one.name for one in self.client.get_collections().collections if one.name.startswith(self.name))

    def writes(self) -> list[Recorded]:
        """The requests so far that wrote documents."""
        if self.kind == "rest":
            return self.loopback.sent("PUT", "/points")
        return self.loopback.sent("GRPC", "Points/Upsert")

    def searches(self) -> list[Recorded]:
        """The requests so far that searched."""
        if self.kind == "rest":
            return self.loopback.sent("POST", "/query/batch")
        return self.loopback.sent("GRPC", "/QueryBatch")

    def close(self) -> None:
        """Close all that was opened, and leave nothing behind."""
        for one in self._open:
            one.close()
        if self.running is None:
            for alias in self.client.get_aliases().aliases:
                if alias.alias_name.startswith(self.name):
                    delete = models.DeleteAlias(alias_name=alias.alias_name)
                    self.client.update_collection_aliases([models.DeleteAliasOperation(delete_alias=delete)])
            for name in self.names():
                self.client.delete_collection(name)
        self.client.close()

    def _kept(self, collection: ColbertCollection) -> ColbertCollection:
        self._open.append(collection)
        return collection


@contextmanager
def open_site(kind: str, **settings: Any) -> Iterator[Site]:
    """A server of a kind: ``"rest"``, ``"grpc"``, ``"real-rest"`` or ``"real-grpc"``.

    Args:
        kind: Which.
        settings: Of the loopback server, such as its keys.
    """
    with ExitStack() as stack:
        options: dict[str, Any] = {"check_compatibility": False, "timeout": 60}
        running = None
        if kind in LOOPBACKS:
            running = stack.enter_context(LoopbackQdrant(**settings))
            url = running.url
            options["verify"] = False  # spares each client the reading of certificates, which takes longer than a test
            key = settings.get("api_key")
        else:
            url, key = REAL_URL, REAL_KEY
            options["grpc_port"] = REAL_GRPC_PORT
        if key is not None:
            options["api_key"] = key
        client = QdrantClient(url=url, **options)
        if kind == "grpc":
            assert running is not None
            options["grpc_port"] = stack.enter_context(LoopbackGrpc(running)).port
        if kind.endswith("grpc"):
            options["prefer_grpc"] = True
        site = Site(kind, url, options, f"jcv2-test-{uuid.uuid4().hex[:12]}", client, running)
        stack.callback(site.close)
        yield site
