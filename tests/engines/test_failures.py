"""Each refusal of a server becomes an error of ours, with the server's reason and the way out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
import pytest
from loopback_qdrant import LoopbackQdrant
from loopback_samples import FakeRpcError, filled_client, params, points, query, topic
from qdrant_client import QdrantClient, models

from jcv2_plugin.engines.aliases import generation_of, next_name
from jcv2_plugin.engines.retries import Retry, translated_errors
from jcv2_plugin.engines.storage import version_of
from jcv2_plugin.errors import (
    CollectionAccessError,
    CollectionError,
    CollectionExistsError,
    CollectionMismatchError,
    CollectionNotFoundError,
    Jcv2Error,
    ServerBusyError,
    ServerLimitError,
)

WHERE = "http://qdrant.example:6333"
QUICK = Retry(attempts=4, first_wait=0.001, longest_wait=0.002)


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackQdrant]:
    with LoopbackQdrant() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LoopbackQdrant) -> Iterator[QdrantClient]:
    yield from filled_client(server)


def translated(kind: type[Jcv2Error], act: Callable[[], Any]) -> str:
    """The message of our error, which must be of just this kind."""
    with pytest.raises(kind) as caught, translated_errors(WHERE):
        act()
    assert type(caught.value) is kind
    assert caught.value.__cause__ is not None
    message = str(caught.value)
    assert WHERE in message
    assert "Raw response content" not in message
    return message


def raise_(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("kind", "act", "parts"),
    [
        (CollectionNotFoundError, lambda c: c.get_collection("x"), ["Collection `x` doesn't exist!", "Check the name"]),
        (CollectionExistsError, lambda c: c.create_collection("c", vectors_config=params()), ["set overwrite"]),
        (CollectionError, lambda c: c.upsert("c", points([-1])), ["value -1 is not a valid point ID"]),
        (CollectionError, lambda c: c.query_batch_points("c", [query(using="x")]), ["Not existing vector name", "x"]),
        (CollectionError, lambda c: c.create_shard_key("c", "here"), ["Auto sharding method"]),
    ],
)
def test_a_refusal_keeps_the_servers_reason(
    client: QdrantClient, kind: type[Jcv2Error], act: Callable[[QdrantClient], Any], parts: list[str]
) -> None:
    message = translated(kind, lambda: act(client))
    assert message.startswith(f"Qdrant at {WHERE} refused: ")
    assert all(part in message for part in parts)


@pytest.mark.parametrize(
    ("fault", "kind", "parts"),
    [
        ({"status": 403, "reason": "key doesn't exist"}, CollectionAccessError, ["QDRANT_API_KEY", "exist. Give an"]),
        ({"status": 429, "retry_after": 7}, ServerBusyError, ["Rate limiting exceeded", "in 7 seconds"]),
        ({"status": 429, "retry_after": "soon"}, ServerBusyError, ["not a valid integer: soon"]),
        ({"status": 429, "reason": "larger than rate limiter capacity"}, ServerLimitError, ["capacity. Send less"]),
        ({"status": 413, "reason": "x"}, ServerLimitError, ["Send less at a time"]),
        ({"status": 502}, ServerBusyError, ["refused: 502 Bad Gateway. Try again later"]),
        ({"status": 503}, ServerBusyError, ["Shard temporarily unavailable"]),
        ({"status": 500}, CollectionError, ["Service internal error", "log"]),
        ({"status": 507, "reason": "disk usage is at 99%"}, ServerLimitError, ["99%", "full"]),
        ({"status": 408, "reason": "timed out after 60s"}, CollectionError, ["after 60s", "longer timeout"]),
        ({"status": 504}, CollectionError, ["longer timeout"]),
        ({"drop": True}, CollectionError, ["cannot be reached (Server disconnected", "and the timeout"]),
        ({"status": 400, "reason": "Too purple. Help: Use red."}, ServerLimitError, ["Use red. This is a rule of"]),
    ],
)
def test_a_status_tells_what_to_do(
    server: LoopbackQdrant, client: QdrantClient, fault: dict[str, Any], kind: type[Jcv2Error], parts: list[str]
) -> None:
    server.fail(**fault)
    message = translated(kind, lambda: client.count("c"))
    assert all(part in message for part in parts)


def test_a_long_reason_is_cut(server: LoopbackQdrant, client: QdrantClient) -> None:
    server.fail(status=400, reason="x" * 5000)
    assert len(translated(CollectionError, lambda: client.count("c"))) < 1000


@pytest.mark.parametrize("status", [400, 413])
def test_a_body_that_is_too_large(status: int) -> None:
    with LoopbackQdrant(max_body_bytes=2000, oversize_status=status) as server:
        client = QdrantClient(url=server.url, check_compatibility=False)
        client.create_collection("c", vectors_config=params())
        message = translated(ServerLimitError, lambda: client.upsert("c", points()))
        assert "(limit: 2000 bytes)" in message


@pytest.mark.parametrize(
    ("limits", "act", "parts"),
    [
        (
            {"unindexed_filtering_retrieve": False},
            lambda c: c.scroll("c", topic("t1")),
            ['Index required but not found for "metadata.topic"', "[keyword]", "Create an index"],
        ),
        ({"max_query_limit": 3}, lambda c: c.scroll("c", limit=9), ['9 > 3 for "limit"', "to or below 3"]),
        ({"search_allow_exact": False}, lambda c: c.count("c"), ["Exact search disabled!", "Set exact=false"]),
    ],
)
def test_a_rule_of_strict_mode_is_named_with_the_servers_remedy(
    limits: dict[str, Any], act: Callable[[QdrantClient], Any], parts: list[str]
) -> None:
    with LoopbackQdrant(strict_mode=models.StrictModeConfig(enabled=True, **limits)) as server:
        for client in filled_client(server):
            message = translated(ServerLimitError, lambda: act(client))  # noqa: B023
            assert all(part in message for part in parts)


def test_errors_that_are_ours_or_no_requests_pass() -> None:
    for error in (CollectionMismatchError("ours"), ValueError("a bug"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, translated_errors(WHERE):
            raise error
        assert caught.value is error


def test_an_answer_that_is_too_late(server: LoopbackQdrant) -> None:
    client = QdrantClient(url=server.url, check_compatibility=False, timeout=1)
    server.delay(1.3, times=1)
    message = translated(CollectionError, lambda: client.collection_exists("c"))
    assert "did not answer in time (timed out). Set a longer timeout" in message


@pytest.mark.parametrize("options", [{}, {"grpc_port": 9, "prefer_grpc": True}])
def test_nobody_there(options: dict[str, Any]) -> None:
    client = QdrantClient(url="http://127.0.0.1:9", check_compatibility=False, **options)
    assert "cannot be reached (" in translated(CollectionError, client.get_collections)


@pytest.mark.parametrize(
    ("status", "page"),
    [(200, b"<html>hello</html>"), (200, b'{"hello": 1}'), (200, b'"hello"'), (404, b"no such page")],
)
def test_another_service(status: int, page: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
        client = QdrantClient(url=f"http://127.0.0.1:{other.server_port}", check_compatibility=False)
        message = translated(CollectionError, lambda: QUICK.call(client.get_collections))
        secure = QdrantClient(url=f"https://127.0.0.1:{other.server_port}", check_compatibility=False)
        assert "http or https" in translated(CollectionError, lambda: QUICK.contact(secure.get_collections))
        other.shutdown()
    assert "is no Qdrant server, or of another version" in message


@pytest.mark.parametrize(
    ("code", "details", "kind", "part"),
    [
        ("UNAUTHENTICATED", "Invalid API key or JWT", CollectionAccessError, "QDRANT_API_KEY"),
        ("PERMISSION_DENIED", "Global manage access is required", CollectionAccessError, "QDRANT_API_KEY"),
        ("NOT_FOUND", "Not found: Collection `x` doesn't exist!", CollectionNotFoundError, "Check the name"),
        ("ALREADY_EXISTS", "Wrong input: Collection `x` already exists!", CollectionExistsError, "set overwrite"),
        ("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max (9 vs. 4)", ServerLimitError, "Send less"),
        ("OUT_OF_RANGE", "Error, decoded message length too large: found 9 bytes", ServerLimitError, "Send less"),
        ("INVALID_ARGUMENT", 'Limit exceeded 9 > 3 for "limit". Help: less', ServerLimitError, "strict mode"),
        ("INVALID_ARGUMENT", "Validation error", CollectionError, "Check the request"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", CollectionError, "longer timeout"),
        ("UNAVAILABLE", "failed to connect to all addresses", CollectionError, "cannot be reached"),
        ("INTERNAL", "Service internal error: disk", CollectionError, "log"),
    ],
)
def test_codes_of_grpc(code: str, details: str, kind: type[Jcv2Error], part: str) -> None:
    message = translated(kind, lambda: raise_(FakeRpcError(grpc.StatusCode[code], details)))
    assert part in message
    assert details in message


def test_an_error_of_grpc_without_a_code() -> None:
    assert "refused: lost" in translated(CollectionError, lambda: raise_(grpc.RpcError("lost")))


def test_a_server_that_has_every_name_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    client = QdrantClient(":memory:")
    client.create_collection("other", models.VectorParams(size=2, distance=models.Distance.DOT))
    found = client.get_collection("other")
    monkeypatch.setattr(client, "collection_exists", lambda name: True)
    monkeypatch.setattr(client, "get_collection", lambda name: found)
    with pytest.raises(CollectionError, match=r"All names from papers\.8 to papers\.1007 are taken"):
        next_name(client, "papers", "papers.7")


def test_names_and_versions_with_thousands_of_digits_are_nobody_s() -> None:
    """A server may tell any; Python does not convert so many."""
    assert generation_of("papers." + "9" * 5000, "papers") == 0
    assert version_of("9" * 5000 + ".1.0") is None
