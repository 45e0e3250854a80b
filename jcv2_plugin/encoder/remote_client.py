"""Requests to a server of encoders: parallel, bounded in time and size, tried again where that may help."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from tenacity import AsyncRetrying

from jcv2_plugin.errors import (
    DocumentTooLongError,
    EncoderAccessError,
    EncoderAnswerError,
    EncoderBusyError,
    EncoderServerError,
    InvalidOptionError,
    Jcv2Error,
    ModelNotFoundError,
    UnknownDimError,
)
from jcv2_plugin.files import parse_json
from jcv2_plugin.transport import (
    TIMEOUT,
    TOO_LARGE,
    UNCOMPRESSED,
    UNREACHABLE,
    UNREADABLE,
    Backoff,
    Failure,
    refuse_compressed,
    seconds_of,
    shortened,
)

_CODES: dict[Any, type[Jcv2Error]] = {
    "unknown_model": ModelNotFoundError,
    "unknown_dimension": UnknownDimError,
    "other_length": InvalidOptionError,
    "document_too_long": DocumentTooLongError,
}
T = TypeVar("T")


@dataclass
class RequestError(Exception):
    """A failed request. ``code`` and ``index`` are the server's, see :mod:`jcv2_plugin.encoder.protocol`."""

    failure: Failure
    code: str | None = None
    index: int | None = None


class _Loop:
    """An event loop in a thread of its own, for the requests of all encoders of this process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="jcv2-remote", daemon=True).start()


_loop: _Loop | None = None
_starting = threading.Lock()


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _starting:
        if _loop is None:
            _loop = _Loop()
        return _loop.loop


def _in_child() -> None:
    global _loop, _starting
    _loop, _starting = None, threading.Lock()  # the thread is the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class EncoderClient:
    """Client of one server. The key is sent to its address only, and is in no message. ``timeout`` are seconds for a
    whole answer, and ``parallel`` is the maximum number of requests at a time.
    """

    def __init__(self, url: str, key: str | None, *, timeout: float, parallel: int, backoff: Backoff) -> None:
        self.url = url
        self._key = key
        self._timeout = timeout
        self._parallel = parallel
        self._backoff = backoff
        self._connected: tuple[asyncio.AbstractEventLoop, httpx.AsyncClient, asyncio.Semaphore] | None = None

    @property
    def has_key(self) -> bool:
        """Whether requests carry a key."""
        return self._key is not None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, from a thread without an event loop or with one that may be blocked."""
        future = asyncio.run_coroutine_threadsafe(work, _running_loop())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def arun(self, work: Coroutine[Any, Any, T]) -> T:
        """Like :meth:`run`, without blocking the caller's event loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _running_loop()))

    def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        connected, self._connected = self._connected, None
        if connected is not None and connected[0] is _running_loop():
            self.run(connected[1].aclose())

    async def call(self, method: str, path: str, body: Any = None, *, most: int, first: bool = False) -> Any:
        """Make a request, several times if need be, and return the JSON of the answer, of at most ``most`` bytes.

        If the ``first`` contact gets no answer, the address is likely wrong. Raises RequestError, also after all
        attempts.
        """

        content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        options = self._backoff.retrying(_failure_of, f"Encoder at {self.url}: a request", first=first)
        retrying = AsyncRetrying(sleep=_sleep, **options)
        return await retrying(self._once, method, path, content, most)

    async def _once(self, method: str, path: str, content: bytes | None, most: int) -> Any:
        client, turns = self._connection()
        async with turns:
            try:
                answer = await asyncio.wait_for(self._answer(client, method, path, content, most), self._timeout)
            except (asyncio.TimeoutError, httpx.TimeoutException) as error:
                raise RequestError(Failure(TIMEOUT, f"no whole answer in {self._timeout:g} s")) from error
            except httpx.DecodingError as error:
                raise RequestError(Failure(UNREADABLE, self._safe(str(error)))) from error
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                raise RequestError(Failure(UNREACHABLE, self._safe(str(error) or type(error).__name__))) from error
        status, headers, text = answer
        if status == 200:
            return self._parsed(text)
        raise self._refusal(status, headers, text)

    async def _answer(
        self, client: httpx.AsyncClient, method: str, path: str, content: bytes | None, most: int
    ) -> tuple[int, httpx.Headers, bytes]:
        received = bytearray()
        async with client.stream(method, f"{self.url}{path}", content=content) as response:
            refuse_compressed(response)
            async for chunk in response.aiter_raw():
                received += chunk
                if len(received) > most:
                    raise RequestError(Failure(UNREADABLE, f"the answer is larger than {most:,} bytes"))
            return response.status_code, response.headers, bytes(received)

    def _connection(self) -> tuple[httpx.AsyncClient, asyncio.Semaphore]:
        """Return the client and the turns of this process's loop. Called in the loop."""
        loop = asyncio.get_running_loop()
        if self._connected is None or self._connected[0] is not loop:
            headers = {"Accept": "application/json", "Content-Type": "application/json", **UNCOMPRESSED}
            if self._key is not None:
                headers["Authorization"] = f"Bearer {self._key}"
            limits = httpx.Limits(max_connections=self._parallel, max_keepalive_connections=self._parallel)
            client = httpx.AsyncClient(headers=headers, timeout=self._timeout, limits=limits, follow_redirects=False)
            self._connected = (loop, client, asyncio.Semaphore(self._parallel))
        return self._connected[1:]

    def _parsed(self, text: bytes) -> Any:
        try:
            return parse_json(text)
        except ValueError as error:
            shown = "a page of HTML" if text.lstrip()[:1] == b"<" else self._safe(f"{text[:80]!r}")
            raise RequestError(Failure(UNREADABLE, f"{shown} instead of JSON")) from error

    def _refusal(self, status: int, headers: httpx.Headers, text: bytes) -> RequestError:
        if 300 <= status < 400:
            try:
                target = urlsplit(headers.get("Location", ""))
                where = f"{target.scheme}://{target.hostname}" if target.hostname else "another path"
            except ValueError:
                where = "what is no address"
            return RequestError(Failure(status, self._safe(f"it redirects to {where}")))
        code = index = None
        reason = f"status {status}"
        try:
            body = parse_json(text)
            if isinstance(body, dict):
                code, index = body.get("code"), body.get("index")
                detail = body.get("detail") or body.get("message") or body.get("error")
                reason = detail if isinstance(detail, str) else reason if detail is None else json.dumps(detail)
        except ValueError:
            if text and not text.lstrip().startswith(b"<"):
                reason = f"status {status}: {text.decode(errors='replace').strip()}"
        failure = Failure(status, self._safe(reason), seconds_of(headers.get("Retry-After")))
        return RequestError(
            failure, code if isinstance(code, str) else None, index if type(index) is int and index >= 0 else None
        )

    def _safe(self, reason: str) -> str:
        """Return what a server says, shortened and without our key, which it may repeat."""
        if self._key:
            reason = reason.replace(self._key, "***")
        return shortened(reason)

    def translated(self, error: RequestError, key_from: str) -> Jcv2Error:
        """Return the exception that a user gets. ``key_from`` says which environment variable to set for a key."""
        failure, where = error.failure, f"The encoder at {self.url}"
        status, reason = failure.status, failure.reason.strip().rstrip(".")
        if error.code in _CODES:
            return _CODES[error.code](f"{where} refused: {reason}.")
        if status == UNREACHABLE:
            return EncoderServerError(
                f"{where} cannot be reached, or broke off ({reason}). Check that it is running and its address (http "
                "or https, the port). What was stored before stays: repeat the call to go on."
            )
        if status == UNREADABLE:
            return EncoderAnswerError(
                f"{where} gave no usable answer: {reason}. Check the address: it must be that of a server with "
                "/v1/multi-vector, such as jcv2 serve. Nothing of this batch was written."
            )
        if status in (401, 403):
            given = "refused the API key" if self.has_key else "needs an API key"
            return EncoderAccessError(f"{where} {given} ({reason}). Pass api_key=..., or set {key_from}.")
        if status in (408, TIMEOUT):
            return EncoderServerError(
                f"{where} did not answer in time ({reason}). Set a longer timeout, send less at a time "
                "(batch_texts), or give the server less to do. Repeat the call to go on."
            )
        if 300 <= status < 400:
            return EncoderAnswerError(
                f"{where} is not there: {reason}. Redirects are not followed, since texts and the key would go there. "
                "Give the final address."
            )
        if status == 404:
            return EncoderAnswerError(f"There is no encoder at {self.url} ({reason}). Check the address and its path.")
        if status == TOO_LARGE:
            return EncoderServerError(f"{where} takes no text of this size ({reason}). Split it, or raise its limit.")
        if status == 429 or status >= 500:
            return EncoderBusyError(
                f"{where} cannot answer now ({reason}). Try again {failure.later}, or allow more retries. What was "
                "stored before stays: repeat the call to go on."
            )
        return EncoderServerError(f"{where} refused: {reason} (status {status}). Check the request and its version.")


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


def _failure_of(error: BaseException) -> Failure | None:
    return error.failure if isinstance(error, RequestError) else None
