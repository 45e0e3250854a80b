"""What every request passes before the application sees it: keys, limits and the queue; what is counted and traced."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jcv2_plugin.serving.answers import RefusedError
from jcv2_plugin.serving.metrics import Metrics
from jcv2_plugin.serving.service import Service

_GONE = 499
"""Status in the metrics of a request whose client did not wait for the answer."""
_DRAINED = 64 * 2**20
"""Bytes of a refused request that are read, for many clients read no answer before they have sent everything."""


class Gate:
    """ASGI middleware before the application.

    Args:
        app: The application.
        service: What works.
        metrics: What is counted.
        work: Paths whose requests wait for the encoder.
        known: All paths, for the metrics. Others are counted together.
        free: Paths that need no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: Service,
        metrics: Metrics,
        work: Collection[str],
        known: Collection[str],
        free: Collection[str],
    ) -> None:
        self._app, self._service, self._metrics = app, service, metrics
        self._work, self._known, self._free = frozenset(work), frozenset(known), frozenset(free)
        self._keys = [_digest(key.encode()) for key in service.settings.keys]
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._known else "other"
        headers = Headers(scope=scope)
        began = time.perf_counter()
        status = _GONE

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._service.tracing.request(scope["method"], path, headers) as span:
            try:
                await self._pass(scope, headers, receive, counted)
            except Exception:
                status = 500
                raise
            finally:
                self._metrics.request(path, status, time.perf_counter() - began)
                if span is not None:
                    span.set_attribute("http.response.status_code", status)

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        try:
            if scope["path"] not in self._free:
                self._check_key(headers)
            if scope["method"] != "POST" or scope["path"] not in self._work:
                await self._app(scope, receive, send)
                return
            self._check_room(headers)
        except RefusedError as error:
            await self._refuse(error, scope, receive, send)
            return
        self._waiting += 1
        self._metrics.waiting.set(self._waiting)
        try:
            await self._work_on(scope, receive, send)
        finally:
            self._waiting -= 1
            self._metrics.waiting.set(self._waiting)

    def _check_key(self, headers: Headers) -> None:
        if not self._keys:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = _digest(given.strip().encode("latin-1", "replace"))
        # All keys are compared, each in constant time, so that the time tells nothing about them.
        known = sum(hmac.compare_digest(digest, key) for key in self._keys)
        if scheme.lower() != "bearer" or not known:
            detail = "The key is missing or wrong. Send the header 'Authorization: Bearer KEY'."
            raise RefusedError(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})

    def _check_room(self, headers: Headers) -> None:
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._service.settings.max_body:
            raise self._too_large()
        if self._waiting >= self._service.settings.max_waiting:
            seconds = self._service.batcher.seconds_to_wait()
            detail = f"{self._waiting} requests are waiting, which is the most. Try again in {seconds} s."
            raise RefusedError(429, "busy", detail, headers={"Retry-After": str(seconds)})

    def _too_large(self) -> RefusedError:
        most = self._service.settings.max_body
        return RefusedError(413, "too_large", f"The request has more than {most:,} bytes. Send fewer or shorter texts.")

    async def _refuse(self, error: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.wait_for(_read(receive, _DRAINED, keep=False), self._service.settings.body_seconds)
        except (asyncio.TimeoutError, _TooLargeError):
            pass
        except _ClientGoneError:
            return
        await error.response()(scope, receive, send)

    async def _work_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self._service.settings
        try:
            body = await asyncio.wait_for(_read(receive, settings.max_body), settings.body_seconds)
        except _ClientGoneError:
            return
        except _TooLargeError:
            await self._refuse(self._too_large(), scope, receive, send)
            return
        except asyncio.TimeoutError:
            detail = f"The request did not arrive within {settings.body_seconds:g} s."
            await RefusedError(408, None, detail, headers={"Connection": "close"}).response()(scope, receive, send)
            return
        await _until_gone(self._app, scope, body, receive, send)


class _ClientGoneError(Exception):
    pass


class _TooLargeError(Exception):
    pass


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


async def _read(receive: Receive, most: int, *, keep: bool = True) -> bytes:
    """Return the body of a request; an empty one unless it is to be kept."""
    parts: list[bytes] = []
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        part = message.get("body", b"")
        length += len(part)
        if length > most:
            raise _TooLargeError
        if keep:
            parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _until_gone(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Run the application on a request, and cancel it if the client does not wait for the answer."""
    answered = False
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.ensure_future(receive())  # nothing follows the body but the end of the connection

    async def replay() -> Message:
        return messages.pop() if messages else await asyncio.shield(gone)

    async def noted(message: Message) -> None:
        nonlocal answered
        answered = answered or message["type"] == "http.response.start"
        await send(message)

    running = asyncio.ensure_future(app(scope, replay, noted))
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answered or running.done():
            await running
    finally:
        for task in (running, gone):
            if not task.done():
                task.cancel()
        await asyncio.gather(running, gone, return_exceptions=True)
