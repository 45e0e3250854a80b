"""The timeout is for a whole answer, however slowly it comes, and no answer is larger than memory."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from jcv2_plugin import ColbertCollection
from jcv2_plugin.engines import deadlines
from jcv2_plugin.engines.deadlines import connect
from jcv2_plugin.errors import CollectionError

BODY = json.dumps({"result": {"exists": True}, "status": "ok", "time": 0.1, "pad": "x" * 1000}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that answers each connection with so many bytes at a time, and gives its address."""
    listening: list[socket.socket] = []
    closing = threading.Event()

    def start(first: bytes, size: int, wait: float, answered: bytes = HEAD + BODY) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def run() -> None:
            while not closing.is_set():
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(one,), daemon=True).start()

        def answer(one: socket.socket) -> None:
            with one:
                rest = answered[len(first) :]
                try:
                    one.recv(65536)
                    one.sendall(first)
                    for begin in range(0, len(rest), size):
                        if closing.wait(wait):
                            return
                        one.sendall(rest[begin : begin + size])
                except OSError:
                    return

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    closing.set()
    for server in listening:
        server.close()


@pytest.mark.parametrize("first", [b"", HEAD], ids=["from the first byte", "in the body"])
def test_a_byte_at_a_time_is_no_answer(serve: Serve, first: bytes) -> None:
    url = serve(first, 1, 0.2)
    started = time.perf_counter()
    with pytest.raises(CollectionError, match="did not answer in time"):
        ColbertCollection.open(url, client_options={"timeout": 1, "check_compatibility": False})
    assert time.perf_counter() - started < 2.5


def test_what_has_arrived_is_more_time_for_the_rest(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large answer over a slow line: 100 bytes each tenth of a second take longer than the timeout."""
    monkeypatch.setattr(deadlines, "_SLOWEST", 900)
    client = connect(serve(b"", 100, 0.1), timeout=1, check_compatibility=False)
    started = time.perf_counter()
    assert client.collection_exists("c")
    assert time.perf_counter() - started > 1.0
    client.close()


def test_the_deadline_is_for_each_request(serve: Serve) -> None:
    client = connect(serve(HEAD + BODY, 1, 0), timeout=1, check_compatibility=False)
    for _ in range(3):
        assert client.collection_exists("c")
        time.sleep(0.5)
    client.close()


def test_an_answer_without_end_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes faster than memory fills up, so no timeout ends it."""
    monkeypatch.setattr(deadlines, "_MOST", 10**6)
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000000\r\n\r\n" + bytes(10**7)
    with pytest.raises(CollectionError, match=r"no Qdrant server.*its answer is larger than 1,000,000 bytes"):
        ColbertCollection.open(serve(b"", 2**15, 0, endless))


def test_an_answer_is_not_inflated(serve: Serve) -> None:
    """A few bytes may stand for more than there is memory."""
    once = gzip.compress(BODY)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(once)
    with pytest.raises(CollectionError, match=r"no Qdrant server.*its answer is compressed \('gzip'\)"):
        ColbertCollection.open(serve(b"", 2**15, 0, head + once))
