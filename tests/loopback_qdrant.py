"""A loopback HTTP server that stands in for a real Qdrant server: its REST API, its limits and its refusals.

Behind it is qdrant-client's local mode, so results are right; in front of it is what local mode does not have:
requests that travel as JSON, keys, limits, strict mode, shard keys, aliases, and failures on demand. Every body is
checked against qdrant-client's own models.

    with LoopbackQdrant() as server:
        client = QdrantClient(url=server.url)

It listens on 127.0.0.1 only. It keeps everything in memory and is meant for tests.
"""

from __future__ import annotations

import hmac
import importlib.metadata
import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from loopback_limits import Refused
from loopback_routes import Store, answer, is_read
from pydantic import BaseModel
from qdrant_client import models

MAX_BODY_BYTES = 32 * 1024 * 1024

_REASONS = {
    429: "Rate limiting exceeded: Write rate limit exceeded: Operation requires 1 tokens but only 0.0 were available",
    500: "Service internal error: injected by the test",
    503: "Shard temporarily unavailable: injected by the test",
}


@dataclass(frozen=True)
class Recorded:
    """A request as it arrived."""

    method: str
    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    size: int
    raw: bytes = field(repr=False)

    @cached_property
    def body(self) -> Any:
        """The body, parsed; None where there was none, or where it was too large to be read."""
        return json.loads(self.raw) if self.raw else None


@dataclass
class Fault:
    """A failure or delay that has been asked for, and how many more requests it is for."""

    times: float
    path_contains: str
    seconds: float = 0.0
    status: int | None = None
    reason: str | None = None
    retry_after: int | str | None = None
    drop: bool = False
    carried_out: bool = False

    def refusal(self) -> Refused:
        status = self.status or 0
        reason = self.reason or _REASONS.get(status, "Bad request: injected by the test")
        return Refused(status, reason, retry_after=self.retry_after)


class LoopbackQdrant:
    """See the module.

    Args:
        api_key: Required in the header ``api-key``, except of ``GET /``.
        read_only_api_key: A key with which nothing may be changed.
        max_body_bytes: A larger body is refused.
        oversize_status: How: 400 as the server does, or 413 as a proxy in front of it does.
        strict_mode: The strict mode of collections that are created without one.
        version: The version that it says it has.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        read_only_api_key: str | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        oversize_status: int = 400,
        strict_mode: models.StrictModeConfig | None = None,
        version: str = importlib.metadata.version("qdrant-client"),
    ) -> None:
        self.version = version
        self.store = Store(strict_mode)
        self.requests: list[Recorded] = []
        """Every request but ``GET /``, which a new client sends from a thread of its own."""
        self._api_key = api_key
        self._read_only_api_key = read_only_api_key
        self._max_body_bytes = max_body_bytes
        self._oversize_status = oversize_status
        self._faults: list[Fault] = []
        self._guard = threading.Lock()
        self._closing = threading.Event()
        self._server: _Server | None = None

    def __enter__(self) -> LoopbackQdrant:
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self.store.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        assert self._server is not None, "the server is started by a with statement"
        return int(self._server.server_address[1])

    def fail(self, times: int = 1, status: int | None = None, *, path_contains: str = "", **more: Any) -> None:
        """Let the next requests to such paths fail.

        Args:
            times: How many requests.
            status: The status; 502 and 504 come with a page of HTML, as from a proxy.
            path_contains: Only requests to such paths.
            more: ``retry_after`` and ``reason`` of the server, or instead of a status ``drop=True``, which closes the
                connection without an answer; with ``carried_out=True`` only the answer is lost.
        """
        self._add(Fault(times, path_contains, status=status, **more))

    def delay(self, seconds: float, *, times: float = float("inf"), path_contains: str = "") -> None:
        self._add(Fault(times, path_contains, seconds=seconds))

    def heal(self) -> None:
        with self._guard:
            self._faults.clear()

    def sent(self, method: str, path_contains: str = "") -> list[Recorded]:
        with self._guard:
            return [one for one in self.requests if one.method == method and path_contains in one.path]

    def _add(self, fault: Fault) -> None:
        with self._guard:
            self._faults.append(fault)

    def next_fault(self, request: Recorded) -> Fault | None:
        """Take note of a request, wait if it is to wait, and tell how it is to fail."""
        with self._guard:
            self.requests.append(request)
            mine = [one for one in self._faults if one.times > 0 and one.path_contains in request.path]
            delays = [one for one in mine if one.seconds]
            failures = [one for one in mine if not one.seconds][:1]
            for one in delays + failures:
                one.times -= 1
        if delays:
            self._closing.wait(sum(one.seconds for one in delays))
        return failures[0] if failures else None

    def check_key(self, request: Recorded, *, reads: bool) -> None:
        if self._api_key is None and self._read_only_api_key is None:
            return
        given = request.headers.get("api-key")
        if not given:
            raise Denied("Must provide an API key or an Authorization bearer token")
        if hmac.compare_digest(given, self._api_key or ""):
            return
        if not hmac.compare_digest(given, self._read_only_api_key or ""):
            raise Denied("Invalid API key or JWT")
        if not reads:
            raise Refused(403, "Forbidden: Global manage access is required")

    def _handle(self, request: Recorded) -> _Answer | None:
        if request.path == "/":
            return _Answer(200, {"title": "qdrant - vector search engine", "version": self.version})
        fault = self.next_fault(request)
        if fault is not None and not fault.carried_out:
            return _failed(fault)
        try:
            self.check_key(request, reads=is_read(request.method, request.path))
            if request.size > self._max_body_bytes:
                problem = f"JSON payload ({request.size} bytes) is larger than allowed"
                raise Refused(self._oversize_status, f"Payload error: {problem} (limit: {self._max_body_bytes} bytes).")
            started = time.perf_counter()
            result = answer(self.store, request.method, request.path, request.params, request.raw)
            took = time.perf_counter() - started
            done = _Answer(200, {"usage": None, "time": took, "status": "ok", "result": _plain(result)})
        except Denied as denied:
            done = _Answer(401, str(denied))
        except Refused as refused:
            done = _refusal(refused)
        except Exception as error:
            done = _refusal(Refused(500, f"Service internal error: the loopback server failed: {error!r}"))
        return done if fault is None else _failed(fault)


@dataclass(frozen=True)
class _Answer:
    status: int
    body: Any
    """A str is sent as plain text, anything else as JSON."""
    headers: Mapping[str, str] = field(default_factory=dict)


class Denied(Exception):
    """No key, or a wrong one; the answer to it is no JSON."""


def _plain(result: Any) -> Any:
    if isinstance(result, list):
        return [_plain(one) for one in result]
    # Only the models' own fields are left out where empty: a null in a payload is a value.
    return result.model_dump(mode="json", exclude_none=True) if isinstance(result, BaseModel) else result


def _refusal(refused: Refused) -> _Answer:
    headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
    return _Answer(refused.status, {"status": {"error": refused.reason}, "time": 0.0}, headers)


def _failed(fault: Fault) -> _Answer | None:
    if fault.drop:
        return None
    refused = _refusal(fault.refusal())
    if fault.status in (502, 504) and fault.reason is None:
        return _Answer(refused.status, f"<html><body><h1>{fault.status} of a proxy</h1></body></html>", refused.headers)
    return refused


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, owner: LoopbackQdrant) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away, as one whose time is up, is no error of the server's."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def _serve(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        # Also a body that is too large is read, so that the refusal reaches a client that is still sending.
        raw = b"".join(self._read(size, keep=size <= self.server.owner._max_body_bytes))
        url = urlsplit(self.path)
        request = Recorded(
            method=self.command,
            path=url.path,
            params=dict(parse_qsl(url.query)),
            headers={name.lower(): value for name, value in self.headers.items()},
            size=size,
            raw=raw,
        )
        answered = self.server.owner._handle(request)
        if answered is None:
            self.close_connection = True
            return
        is_text = isinstance(answered.body, str)
        content = answered.body.encode() if is_text else json.dumps(answered.body).encode()
        self.send_response(answered.status)
        self.send_header("Content-Type", "text/plain" if is_text else "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in answered.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _read(self, size: int, *, keep: bool) -> list[bytes]:
        parts = []
        while size > 0:
            part = self.rfile.read(min(size, 1 << 20))
            if not part:
                break
            size -= len(part)
            parts.append(part if keep else b"")
        return parts

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the requests are in :attr:`LoopbackQdrant.requests`."""
