"""A real server of ``jcv2 serve`` over loopback, in a thread of the tests' process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.serving.app import create_app
from jcv2_plugin.serving.run import make_server, reserve, url_of
from jcv2_plugin.serving.settings import ServerSettings


@dataclass
class ServedSite:
    url: str
    encoder: JinaColbertEncoder
    client: httpx.Client

    def count(self, name: str) -> float:
        """A counter of the server's, all labels together."""
        lines = self.client.get("/metrics").text.splitlines()
        rows = [line.rpartition(" ") for line in lines if line.partition(" ")[0].partition("{")[0] == name]
        return sum(float(value) for _, _, value in rows)


@contextmanager
def serving(
    encoder: JinaColbertEncoder | None = None, settings: ServerSettings | None = None, **options: Any
) -> Iterator[ServedSite]:
    """Serve an encoder (``mini``, if none is given), until the block ends."""
    encoder = encoder or JinaColbertEncoder.from_pretrained("mini", device="cpu", document_length=40)
    bound = reserve("127.0.0.1", 0)
    listens = threading.Event()
    server = make_server(create_app(encoder, settings, **options), started=listens.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        assert listens.wait(30)
        key = settings.keys[0] if settings and settings.keys else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=url_of(bound), headers=headers, timeout=60) as client:
            yield ServedSite(url_of(bound), encoder, client)
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
