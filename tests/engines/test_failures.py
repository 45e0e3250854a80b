"""Each refusal of a server becomes an error of ours, with the server's reason and the way out."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
import numpy as np
import pytest
from loopback_qdrant import LoopbackQdrant
from loopback_samples import FakeRpcError, params, points, query, topic
from qdrant_client import QdrantClient, models

from jcv2_plugin.engines.retries import Retry, translated_errors
from jcv2_plugin.errors import (
    CollectionAccessError,
    CollectionError,
    CollectionExistsError,
    CollectionMismatchError,
    CollectionNotFoundError,
    InvalidOptionError,
    Jcv2Error,
    ServerBusyError,
    ServerLimitError,
)

WHERE = "http://qdrant.example:6333"
QUICK = Retry(attempts=4, first_wait=0.001, longest_wait=0.002)


@pytest.fixture
def server() -> Iterator[LoopbackQdrant]:
    with LoopbackQdrant() as running:
        yield running


@pytest.fixture
def client(server: LoopbackQdrant) -> Iterator[QdrantClient]:
    opened = QdrantClient(url=server.url, check_compatibility=False, timeout=10)
    opened.create_collection("c", vectors_config=params())
    opened.upsert("c", points())
    yield opened
    opened.close()


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


class TestRefusals:
    def test_no_key_and_a_wrong_one(self) -> None:
        with LoopbackQdrant(api_key="secret", read_only_api_key="look") as server, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for key, reason in (
                (None, "Must provide an API key"),
                ("wrong", "401 Unauthorized: Invalid API key or JWT."),
                ("look", "Forbidden: Global manage access is required."),
            ):
                client = QdrantClient(url=server.url, api_key=key, check_compatibility=False)
                message = translated(CollectionAccessError, lambda: client.create_collection("c"))  # noqa: B023
                assert reason in message
                assert "Give an API key" in message
                assert "QDRANT_API_KEY" in message
                assert "wrong" not in message

    def test_a_key_that_qdrant_cloud_does_not_know(self, server: LoopbackQdrant, client: QdrantClient) -> None:
        server.fail(status=403, reason="key doesn't exist")
        assert "refused: key doesn't exist. Give an API key" in translated(
            CollectionAccessError, lambda: client.count("c")
        )

    def test_a_locked_storage_is_no_matter_of_keys(self, server: LoopbackQdrant, client: QdrantClient) -> None:
        server.fail(status=403, reason="Storage locked: for maintenance")
        assert "for maintenance" in translated(CollectionError, lambda: client.count("c"))

    def test_no_collection(self, client: QdrantClient) -> None:
        message = translated(CollectionNotFoundError, lambda: client.get_collection("x"))
        assert message.startswith(f"Qdrant at {WHERE} refused: Not found: Collection `x` doesn't exist! Check the name")

    def test_a_collection_too_many(self, client: QdrantClient) -> None:
        message = translated(CollectionExistsError, lambda: client.create_collection("c", vectors_config=params()))
        assert "set overwrite" in message

    @pytest.mark.parametrize("status", [400, 413])
    def test_a_body_that_is_too_large(self, status: int) -> None:
        with LoopbackQdrant(max_body_bytes=2000, oversize_status=status) as server:
            client = QdrantClient(url=server.url, check_compatibility=False)
            client.create_collection("c", vectors_config=params())
            message = translated(ServerLimitError, lambda: client.upsert("c", points()))
            assert "(limit: 2000 bytes)" in message
            assert "max_request_size_mb" in message
            # A proxy says so in a page of its own.
            server.fail(status=413, reason="x")
            assert translated(ServerLimitError, lambda: client.upsert("c", points()))

    def test_a_multivector_that_is_too_large(self, client: QdrantClient) -> None:
        client.create_collection("wide", vectors_config=params(size=1024))
        rows: Any = np.ones((1024, 1024), dtype=np.int8).tolist()
        point = models.PointStruct.model_construct(id=2, vector={"colbert": rows})
        message = translated(ServerLimitError, lambda: client.upsert("wide", [point]))
        assert "No document may have 1048576 numbers (tokens times dim) or more" in message

    def test_vectors_of_another_dimension(self, client: QdrantClient) -> None:
        wrong = [query(query=[[1.0, 2.0]])]
        message = translated(CollectionMismatchError, lambda: client.query_batch_points("c", wrong))
        assert "holds vectors of dim=4, not 2" in message
        wrong = [query(using="other")]
        message = translated(CollectionMismatchError, lambda: client.query_batch_points("c", wrong))
        assert "was not made by jcv2-plugin" in message

    def test_shard_keys(self, client: QdrantClient) -> None:
        client.create_collection("s", vectors_config=params(), sharding_method=models.ShardingMethod.CUSTOM)
        client.create_shard_key("s", "here")
        message = translated(InvalidOptionError, lambda: client.upsert("s", points()))
        assert "Give one of its shard keys" in message
        for act in (
            lambda: client.upsert("s", points(), shard_key_selector="there"),
            lambda: client.query_batch_points("s", [query(shard_key="there")]),
        ):
            message = translated(InvalidOptionError, act)
            assert 'Shard key "there" not found' in message
            assert "create_shard_key" in message
        message = translated(InvalidOptionError, lambda: client.create_shard_key("c", "here"))
        assert "Leave out the shard key" in message

    def test_another_refusal_keeps_the_servers_reason(self, client: QdrantClient) -> None:
        message = translated(CollectionError, lambda: client.upsert("c", points([-1])))
        assert "value -1 is not a valid point ID" in message

    def test_a_long_reason_is_cut(self, server: LoopbackQdrant, client: QdrantClient) -> None:
        server.fail(status=400, reason="x" * 5000)
        assert len(translated(CollectionError, lambda: client.count("c"))) < 1000

    def test_errors_that_are_ours_or_no_requests_pass(self) -> None:
        for error in (
            CollectionMismatchError("ours"),
            ValueError("a bug"),
            AssertionError("a bug"),
            KeyboardInterrupt(),
        ):
            with pytest.raises(type(error)) as caught, translated_errors(WHERE):
                raise error
            assert caught.value is error


class TestStrictMode:
    @pytest.fixture
    def strict(self, client: QdrantClient) -> Callable[..., QdrantClient]:
        def change(**limits: Any) -> QdrantClient:
            client.update_collection("c", strict_mode_config=models.StrictModeConfig(enabled=True, **limits))
            return client

        return change

    def test_an_index_is_required(self, strict: Callable[..., QdrantClient]) -> None:
        client = strict(unindexed_filtering_retrieve=False)
        message = translated(ServerLimitError, lambda: client.scroll("c", topic("t1")))
        assert "payload_indexes={'metadata.topic': 'keyword'}" in message
        assert "collection.create_payload_index('metadata.topic', 'keyword')" in message
        year = models.Filter(must=[models.FieldCondition(key="metadata.year", range=models.Range(gte=2001))])
        message = translated(ServerLimitError, lambda: client.scroll("c", year))
        assert "collection.create_payload_index('metadata.year', 'float')" in message

    @pytest.mark.parametrize(
        ("limits", "act", "setting", "remedy"),
        [
            ({"max_query_limit": 3}, lambda c: c.scroll("c", limit=9), "max_query_limit=3", "at most 3 results"),
            ({"upsert_max_batchsize": 2}, lambda c: c.upsert("c", points()), "upsert_max_batchsize=2", "2 documents"),
            (
                {"search_max_batchsize": 1},
                lambda c: c.query_batch_points("c", [query(), query()]),
                "search_max_batchsize=1",
                "at most 1 queries",
            ),
            ({"max_timeout": 5}, lambda c: c.count("c", timeout=9), "max_timeout=5", "at most 5 seconds"),
            (
                {"multivector_config": {"colbert": models.StrictModeMultivector(max_vectors=3)}},
                lambda c: c.upsert("c", points()),
                "multivector_config['colbert'].max_vectors=3",
                "document_length=3",
            ),
            ({"max_points_count": 5}, lambda c: c.upsert("c", points()), "Max points count limit of 5", "is full"),
            ({"search_allow_exact": False}, lambda c: c.count("c"), "search_allow_exact=False", "=True"),
            ({"filter_max_conditions": 0}, lambda c: c.count("c", topic("a")), "1 > 0", "smaller filter"),
        ],
    )  # fmt: skip
    def test_a_limit_is_named(
        self,
        strict: Callable[..., QdrantClient],
        limits: dict[str, Any],
        act: Callable[[QdrantClient], Any],
        setting: str,
        remedy: str,
    ) -> None:
        client = strict(**limits)
        message = translated(ServerLimitError, lambda: act(client))
        assert setting in message
        assert remedy in message

    def test_our_own_collections_need_exact_search(self, client: QdrantClient) -> None:
        client.create_collection(
            "flat",
            vectors_config=params(hnsw_config=models.HnswConfigDiff(m=0)),
            strict_mode_config=models.StrictModeConfig(enabled=True, search_allow_exact=False),
        )
        message = translated(ServerLimitError, lambda: client.query_batch_points("flat", [query()]))
        assert "StrictModeConfig(search_allow_exact=True)" in message

    def test_a_rule_that_is_new_keeps_the_servers_remedy(self, server: LoopbackQdrant, client: QdrantClient) -> None:
        server.fail(status=400, reason="Bad request: Too purple. Help: Use another colour.")
        assert "Use another colour. It is a rule of" in translated(ServerLimitError, lambda: client.count("c"))


class TestNoAnswer:
    def test_nobody_there(self) -> None:
        client = QdrantClient(url="http://127.0.0.1:9", check_compatibility=False)
        message = translated(CollectionError, client.get_collections)
        assert "cannot be reached (" in message
        assert "and the timeout" in message

    def test_too_late(self, server: LoopbackQdrant) -> None:
        client = QdrantClient(url=server.url, check_compatibility=False, timeout=1)
        server.delay(1.3, times=1)
        message = translated(CollectionError, lambda: client.collection_exists("c"))
        assert "did not answer in time (timed out)" in message
        assert "longer timeout" in message

    @pytest.mark.parametrize("status", [408, 504])
    def test_too_late_in_the_servers_opinion(self, server: LoopbackQdrant, client: QdrantClient, status: int) -> None:
        server.fail(status=status, reason="Timeout: Operation 'Search' timed out after 60s")
        assert "longer timeout" in translated(CollectionError, lambda: client.count("c"))

    def test_cut_off(self, server: LoopbackQdrant, client: QdrantClient) -> None:
        server.fail(drop=True)
        assert "cannot be reached (Server disconnected" in translated(CollectionError, lambda: client.count("c"))

    def test_busy(self, server: LoopbackQdrant, client: QdrantClient) -> None:
        server.fail(status=429, retry_after=7)
        message = translated(ServerBusyError, lambda: client.count("c"))
        assert "Rate limiting exceeded" in message
        assert "in 7 seconds" in message
        server.fail(status=503)
        assert "Shard temporarily unavailable" in translated(ServerBusyError, lambda: client.count("c"))
        server.fail(status=502)
        assert "refused: 502 Bad Gateway. Try again later" in translated(ServerBusyError, lambda: client.count("c"))
        server.fail(status=429, retry_after="soon")
        assert "not a valid integer: soon" in translated(ServerBusyError, lambda: client.count("c"))

    def test_a_request_that_no_rate_lets_through(self, server: LoopbackQdrant, client: QdrantClient) -> None:
        reason = "request larger than rate limiter capacity, please try to split your request"
        server.fail(times=9, status=429, reason=f"Rate limiting exceeded: Write rate limit exceeded, {reason}")
        assert "less at a time" in translated(ServerLimitError, lambda: QUICK.call(client.count, "c"))
        assert len(server.sent("POST", "/count")) == 1

    def test_broken_and_full(self, server: LoopbackQdrant, client: QdrantClient) -> None:
        server.fail(status=500)
        assert "Service internal error" in translated(CollectionError, lambda: client.count("c"))
        server.fail(status=507, reason="Insufficient storage: disk usage is at 99%")
        assert "99%" in translated(ServerLimitError, lambda: client.count("c"))

    @pytest.mark.parametrize(
        ("status", "page"),
        [(200, b"<html>hello</html>"), (200, b'{"hello": 1}'), (200, b'"hello"'), (404, b"no such page")],
    )
    def test_another_service(self, status: int, page: bytes) -> None:
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
            assert "http or https" in translated(CollectionError, lambda: QUICK.call(secure.get_collections))
            other.shutdown()
        assert "heck the address" in message


class TestGrpc:
    @pytest.mark.parametrize(
        ("code", "details", "kind", "part"),
        [
            ("UNAUTHENTICATED", "Invalid API key or JWT", CollectionAccessError, "QDRANT_API_KEY"),
            ("PERMISSION_DENIED", "Global manage access is required", CollectionAccessError, "QDRANT_API_KEY"),
            ("NOT_FOUND", "Not found: Collection `x` doesn't exist!", CollectionNotFoundError, "Check the name"),
            ("ALREADY_EXISTS", "Wrong input: Collection `x` already exists!", CollectionExistsError, "set overwrite"),
            ("RESOURCE_EXHAUSTED", "Rate limiting exceeded", ServerBusyError, "later"),
            ("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max (9 vs. 4)", ServerLimitError, "fewer"),
            ("OUT_OF_RANGE", "Error, decoded message length too large: found 9 bytes", ServerLimitError, "fewer"),
            ("INVALID_ARGUMENT", 'Limit exceeded 9 > 3 for "limit". Help: less', ServerLimitError, "max_query_limit=3"),
            ("INVALID_ARGUMENT", "Wrong input: Shard key not specified", InvalidOptionError, "shard keys"),
            (
                "INVALID_ARGUMENT",
                "Wrong input: Vector dimension error: expected dim: 64, got 128",
                CollectionMismatchError,
                "dim=64, not 128",
            ),
            ("INVALID_ARGUMENT", "Validation error", CollectionError, "Check the request"),
            ("DEADLINE_EXCEEDED", "Deadline Exceeded", CollectionError, "longer timeout"),
            ("UNAVAILABLE", "failed to connect to all addresses", CollectionError, "cannot be reached"),
            ("UNAVAILABLE", "Shard temporarily unavailable: one", ServerBusyError, "later"),
            ("INTERNAL", "Service internal error: disk", CollectionError, "log"),
        ],
    )
    def test_codes(self, code: str, details: str, kind: type[Jcv2Error], part: str) -> None:
        error = FakeRpcError(grpc.StatusCode[code], details)
        message = translated(kind, lambda: raise_(error))
        assert part in message
        assert details in message

    def test_an_error_without_a_code(self) -> None:
        assert "refused: lost" in translated(CollectionError, lambda: raise_(grpc.RpcError("lost")))

    def test_nobody_there(self) -> None:
        client = QdrantClient(url="http://127.0.0.1:9", grpc_port=9, prefer_grpc=True, check_compatibility=False)
        assert "cannot be reached (failed to connect" in translated(CollectionError, client.get_collections)
