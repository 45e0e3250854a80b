"""Requests are sent again while their failure passes by itself, and no longer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from loopback_qdrant import LoopbackQdrant
from loopback_samples import IDS, FakeRpcError, filled_client, params, points, query
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import UnexpectedResponse

from jcv2_plugin.engines import retries as transport
from jcv2_plugin.engines.failures import failure_of
from jcv2_plugin.engines.retries import Retry, translated_errors
from jcv2_plugin.errors import InvalidOptionError, ServerBusyError


@pytest.fixture
def server() -> Iterator[LoopbackQdrant]:
    with LoopbackQdrant() as running:
        yield running


@pytest.fixture
def client(server: LoopbackQdrant) -> Iterator[QdrantClient]:
    yield from filled_client(server)


class TestRetry:
    def test_what_passes_is_tried_until_it_passes(
        self, server: LoopbackQdrant, client: QdrantClient, waits: list[float], caplog: pytest.LogCaptureFixture
    ) -> None:
        server.fail(times=1, status=503)
        server.fail(times=1, drop=True)
        server.fail(times=1, status=500)
        with caplog.at_level(logging.WARNING, logger="jcv2_plugin"):
            assert Retry().call(client.count, "c", exact=True).count == 12
        assert len(server.sent("POST", "/count")) == 4
        for wait, least in zip(waits, (0.5, 1.0, 2.0), strict=True):
            assert least <= wait <= least + 0.5
        assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
        assert "count failed (Shard temporarily unavailable: injected by the test), attempt 1 of 5" in caplog.text

    def test_the_log_gives_one_short_clause_of_the_reason(
        self, server: LoopbackQdrant, client: QdrantClient, waits: list[float], caplog: pytest.LogCaptureFixture
    ) -> None:
        """As of a cluster of which a node is gone."""
        clause = "Service internal error: 4 out of 6 shards failed to apply operation"
        server.fail(status=500, reason=f"{clause}. First error captured: {'x' * 500}")
        server.fail(status=500, reason="y" * 500)
        Retry().call(client.count, "c")
        first, second = (record.getMessage() for record in caplog.records)
        assert first.startswith(f"Qdrant: count failed ({clause}), attempt 1 of 5. Trying again in ")
        assert len(second) < 200

    def test_it_ends(self, server: LoopbackQdrant, client: QdrantClient, waits: list[float]) -> None:
        server.fail(times=99, status=503)
        with pytest.raises(UnexpectedResponse, match="503"):
            Retry(attempts=7, longest_wait=3.0).call(client.count, "c")
        assert len(server.sent("POST", "/count")) == 7
        assert len(waits) == 6
        assert waits[-3:] == [3.0] * 3

    def test_the_server_says_how_long(self, server: LoopbackQdrant, client: QdrantClient, waits: list[float]) -> None:
        server.fail(times=1, status=429, retry_after=42)
        assert Retry().call(client.count, "c").count == 12
        assert waits == [42.0]

    def test_but_not_for_hours(self, server: LoopbackQdrant, client: QdrantClient, waits: list[float]) -> None:
        server.fail(times=1, status=503, retry_after=4000)
        with pytest.raises(ServerBusyError, match="in 4000 seconds"), translated_errors("http://a.server"):
            Retry().call(client.count, "c")
        assert waits == []

    @pytest.mark.parametrize(
        "act",
        [
            lambda c: c.count("x"),
            lambda c: c.create_collection("c", vectors_config=params()),
            lambda c: c.upsert("c", points([-1])),
            lambda c: c.query_batch_points("c", [query(using="x")]),
            lambda c: c.scroll("c", limit=0),
        ],
    )
    def test_a_refusal_is_final(
        self, server: LoopbackQdrant, client: QdrantClient, waits: list[float], act: Callable[[QdrantClient], Any]
    ) -> None:
        before = len(server.requests)
        with pytest.raises(UnexpectedResponse, match=r"4\d\d"):
            Retry().call(act, client)
        assert (len(server.requests) - before, waits) == (1, [])

    def test_a_write_whose_answer_is_lost_is_written_once(
        self, server: LoopbackQdrant, client: QdrantClient, waits: list[float]
    ) -> None:
        server.fail(times=2, drop=True, carried_out=True)
        Retry().call(client.upsert, "c", points([*IDS, 99]))
        assert len(server.sent("PUT", "/points")) == 4, "the one of the fixture, two lost, one answered"
        assert client.count("c").count == 13
        assert len(waits) == 2

    def test_an_interruption_passes_at_once(self, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
        calls: list[int] = []

        def interrupted(seconds: float = 0.0) -> None:
            calls.append(1)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Retry().call(interrupted)
        assert (calls, waits) == ([1], [])

        def busy() -> None:
            calls.append(1)
            raise FakeRpcError(grpc.StatusCode.UNAVAILABLE, "away")

        monkeypatch.setattr(transport, "_sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Retry().call(busy)
        assert calls == [1, 1, 1], "one call of each function, and the wait"

    def test_it_waits_for_real(self, server: LoopbackQdrant, client: QdrantClient) -> None:
        server.fail(times=2, status=504)
        started = time.perf_counter()
        assert Retry(first_wait=0.1, longest_wait=0.15).call(client.count, "c").count == 12
        assert time.perf_counter() - started > 0.2

    @pytest.mark.parametrize(
        ("error", "passes"),
        [
            (FakeRpcError(grpc.StatusCode.UNAVAILABLE, "connection reset"), True),
            (FakeRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, "late"), True),
            (FakeRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "Sent message larger than max (9 vs. 4)"), False),
            (FakeRpcError(grpc.StatusCode.INTERNAL, "Service internal error"), True),
            (FakeRpcError(grpc.StatusCode.INVALID_ARGUMENT, "wrong"), False),
            (FakeRpcError(grpc.StatusCode.NOT_FOUND, "none"), False),
            (FakeRpcError(grpc.StatusCode.UNAUTHENTICATED, "no key"), False),
            (ResourceExhaustedResponse("slow down", 3), True),
            (QdrantException("Retry-After header value is not a valid integer: soon"), True),
            (ValueError("a bug"), False),
            (KeyboardInterrupt(), False),
        ],
    )
    def test_which_pass(self, error: BaseException, passes: bool) -> None:
        failure = failure_of(error)
        assert (failure is not None and failure.is_transient()) is passes

    @pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first_wait": -1.0}, {"longest_wait": -1.0}])
    def test_settings_are_checked(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InvalidOptionError, match="at least one attempt"):
            Retry(**wrong)
