"""Classify failed requests to a Qdrant server, over REST or gRPC, and tell whether a retry may succeed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import grpc
import httpx
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

_TRANSIENT_STATUSES = {429, 500, 502, 503, 504}
# Do not retry if the server asks for a longer wait, in seconds; the error states the wait instead.
_LONGEST_ASKED_WAIT = 300.0
# Certificate and name errors that a retry does not fix.
_PERMANENT = ("[SSL", "Name or service not known", "nodename nor servname", "Failed parsing HTTP")
NEVER_FITS = "larger than rate limiter capacity"

_STATUS_OF_CODE = {
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


@dataclass(frozen=True)
class Failure:
    """A failed request, over REST or gRPC."""

    kind: Literal["refused", "timeout", "unreachable", "unreadable"]
    reason: str
    status: int = 0
    retry_after: float | None = None
    from_qdrant: bool = True
    """Whether the response looks like Qdrant's rather than that of a proxy or another service."""


def failure_of(error: BaseException) -> Failure | None:
    """Classify an exception, or return None if it is not a failed request."""
    if isinstance(error, UnexpectedResponse):
        return _of_response(error)
    if isinstance(error, ResourceExhaustedResponse):
        return Failure("refused", str(error), status=429, retry_after=float(error.retry_after_s))
    if isinstance(error, QdrantException):
        # The client could not parse the Retry-After header.
        return Failure("refused", str(error), status=429)
    if isinstance(error, ResponseHandlingException):
        source = error.source
        if isinstance(source, httpx.TimeoutException):
            return Failure("timeout", str(source) or type(source).__name__)
        kind: Literal["unreachable", "unreadable"]
        kind = "unreachable" if isinstance(source, (httpx.TransportError, OSError)) else "unreadable"
        return Failure(kind, str(source) or type(source).__name__)
    if isinstance(error, grpc.RpcError):
        return _of_rpc(error)
    # A web page or another service's JSON with status 200: the client only fails when it parses the body.
    if isinstance(error, json.JSONDecodeError) or (isinstance(error, AssertionError) and "returned None" in str(error)):
        return Failure("unreadable", str(error))
    return None


def _of_response(error: UnexpectedResponse) -> Failure:
    status = error.status_code or 0
    stated = _stated_reason(error.content)
    reason = f"{status} {error.reason_phrase}".strip() if stated is None else stated
    if stated is None and (text := error.content.decode(errors="replace").strip()) and not text.startswith("<"):
        reason = f"{reason}: {text}"
    asked = str(error.headers.get("Retry-After", "") if error.headers is not None else "")
    return Failure(
        "timeout" if status in (408, 504) else "refused",
        reason,
        status=status,
        retry_after=float(asked) if asked.isdigit() else None,
        from_qdrant=stated is not None,
    )


def _stated_reason(content: bytes) -> str | None:
    """Return the server's own reason, from Qdrant's JSON or from Qdrant Cloud's short form for rejected keys."""
    try:
        body = json.loads(content)
    except ValueError:
        return None
    if not isinstance(body, dict):
        return None
    status = body.get("status")
    stated = status.get("error") if isinstance(status, dict) else body.get("error", status)
    return stated if isinstance(stated, str) and stated else None


def _of_rpc(error: grpc.RpcError) -> Failure:
    code = error.code() if callable(getattr(error, "code", None)) else None
    details = error.details() if callable(getattr(error, "details", None)) else None
    reason = str(details or code or error)
    status = _STATUS_OF_CODE.get(code, 400)
    if "larger than max" in reason or "message length too large" in reason:
        return Failure("refused", reason, status=413)
    if status == 503 and "temporarily unavailable" not in reason:
        return Failure("unreachable", reason)
    if "serializing request" in reason:
        return Failure("refused", reason, status=400)
    return Failure("timeout" if status == 504 else "refused", reason, status=status)


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed: no connection, a timeout, or a busy or failing server."""
    failure = failure_of(error)
    if failure is None or failure.kind == "unreadable" or NEVER_FITS in failure.reason:
        return False
    if failure.kind == "unreachable":
        return not any(one in failure.reason for one in _PERMANENT)
    if failure.retry_after is not None and failure.retry_after > _LONGEST_ASKED_WAIT:
        return False
    # 408 is the server's own timeout and, besides 429, the only transient 4xx status.
    return failure.kind == "timeout" or failure.status in _TRANSIENT_STATUSES


def is_transient_answer(error: BaseException) -> bool:
    """Return whether a server answered with an error that a retry may resolve."""
    failure = failure_of(error)
    return failure is not None and failure.kind == "refused" and is_transient(error)
