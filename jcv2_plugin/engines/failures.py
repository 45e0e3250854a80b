"""Failures of a Qdrant server, over REST or gRPC, told apart by their HTTP status, and the exceptions a user gets."""

from __future__ import annotations

import json
from collections.abc import Mapping

import grpc
import httpx
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from jcv2_plugin.errors import (
    CollectionAccessError,
    CollectionError,
    CollectionExistsError,
    CollectionNotFoundError,
    ServerBusyError,
    ServerLimitError,
)
from jcv2_plugin.files import parse_json
from jcv2_plugin.transport import (
    TIMEOUT,
    TOO_LARGE,
    UNFINISHED,
    UNREACHABLE,
    UNREADABLE,
    Failure,
    seconds_of,
    shortened,
)

_STATUS_OF_CODE = {
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    # With a time to wait, the client raises ResourceExhaustedResponse. Without one, the request is too large.
    grpc.StatusCode.RESOURCE_EXHAUSTED: TOO_LARGE,
    grpc.StatusCode.OUT_OF_RANGE: TOO_LARGE,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: TIMEOUT,
}

_KEY = (
    CollectionAccessError,
    "Give an API key with the permission to do this (to write, write access to this collection), or set the "
    "environment variable QDRANT_API_KEY.",
)
_LATER = (ServerBusyError, "Try again {later}, or allow more retries.")
_LESS = (ServerLimitError, "Send less at a time (fewer or shorter documents), or raise the server's limit.")
_REMEDIES: Mapping[int, tuple[type[CollectionError], str]] = {
    401: _KEY,
    403: _KEY,
    404: (CollectionNotFoundError, "Check the name, or create the collection first."),
    409: (CollectionExistsError, "Open it, choose another name, or set overwrite to replace it."),
    TOO_LARGE: _LESS,
    429: _LATER,
    502: _LATER,
    503: _LATER,
    507: (ServerLimitError, "The server is full. Delete something, or give it more space."),
}
_STRICT = (ServerLimitError, "This is a rule of the collection's strict mode.")
_BROKEN = (CollectionError, "See the server's log.")
_WRONG = (CollectionError, "Check the request, and the versions of the server and qdrant-client.")


class UnfinishedWriteError(Exception):
    """The server took a write, but has not completed it. The argument is the status that it gave."""


def failure_of(error: BaseException | None) -> Failure | None:
    """Classify an exception of the client, or return None if it is not a failed request."""
    if isinstance(error, UnexpectedResponse):
        return _of_response(error)
    if isinstance(error, UnfinishedWriteError):
        return Failure(UNFINISHED, f"a write is {error}, not completed")
    if isinstance(error, QdrantException):  # of the base class if the client cannot parse Retry-After
        return Failure(429, str(error), seconds_of(getattr(error, "retry_after_s", None)))
    if isinstance(error, grpc.RpcError):
        code, details = (getattr(error, name, lambda: None)() for name in ("code", "details"))
        return Failure(_STATUS_OF_CODE.get(code, 400), str(details or code or error))
    if isinstance(error, ResponseHandlingException):
        source = error.source
        status = UNREACHABLE if isinstance(source, (httpx.TransportError, OSError)) else UNREADABLE
        reason = str(source) or type(source).__name__
        return Failure(TIMEOUT if isinstance(source, httpx.TimeoutException) else status, reason)
    # For JSON of another service, with status 200, the client's own assertions fail.
    if isinstance(error, (json.JSONDecodeError, AssertionError)):
        return Failure(UNREADABLE, str(error))
    return None


def _of_response(error: UnexpectedResponse) -> Failure:
    status, text = error.status_code or 0, error.content.decode(errors="replace").strip()
    stated = _stated_reason(error.content)
    if stated is None:
        page = "" if not text or text.startswith("<") else f": {text}"
        # Not Qdrant's own words: for an unknown path, another service answers.
        return Failure(UNREADABLE if status == 404 else status, f"{status} {error.reason_phrase}{page}".strip())
    # The server does not say when a request may be repeated that is larger than its rate limit for a minute. A body
    # that is too large gets the same status as any wrong one, but in parts it can be stored.
    if status == 429 or (status == 400 and "larger than allowed" in stated):
        status = TOO_LARGE
    return Failure(status, stated, seconds_of(error.headers.get("Retry-After") if error.headers is not None else None))


def _stated_reason(content: bytes) -> str | None:
    """Return the server's own reason, from Qdrant's JSON or from Qdrant Cloud's short form for rejected keys."""
    try:
        body = parse_json(content)
        status = body.get("status")
        stated = status["error"] if isinstance(status, dict) else body.get("error", status)
    except (ValueError, KeyError, AttributeError):
        return None
    return stated if isinstance(stated, str) and stated else None


def translated(error: BaseException, where: str) -> CollectionError | None:
    """Translate an error of the client, or return None if it is not a failed request. ``where`` is the address."""
    failure = failure_of(error)
    if failure is None:
        return None
    status, reason = failure.status, shortened(failure.reason)
    if status == UNREACHABLE:
        return CollectionError(
            f"Qdrant at {where} cannot be reached ({reason}). Check that it is running, its URL (http or https, the "
            "port) and the timeout. A folder needs no server."
        )
    if status == UNREADABLE:
        return CollectionError(
            f"What answers at {where} is no Qdrant server, or of another version ({reason}). Check the address, its "
            "port and its path."
        )
    if status == UNFINISHED:
        return CollectionError(
            f"Qdrant at {where} did not finish in time ({reason}), so it may not be stored. Write it again when the "
            "server has less to do, or send less at a time."
        )
    if status in (408, TIMEOUT):
        return CollectionError(
            f"Qdrant at {where} did not answer in time ({reason}). Set a longer timeout, or send less at a time."
        )
    # Strict mode answers like any wrong request, except that it always says how to change it.
    other = _STRICT if ". Help: " in reason else _BROKEN if status >= 500 else _WRONG
    kind, remedy = _REMEDIES.get(status, other)
    stop = "" if reason.endswith((".", "!")) else "."
    return kind(f"Qdrant at {where} refused: {reason}{stop} {remedy.format(later=failure.later)}")


def status_of(error: CollectionError) -> int:
    """Return the HTTP status behind a translated error, or 0 if there is none."""
    failure = failure_of(error.__cause__)
    return UNREACHABLE if failure is None else failure.status
