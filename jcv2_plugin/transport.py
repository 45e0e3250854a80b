"""Requests to servers that may fail: what is tried again, and how long to wait. For Qdrant as for encoders."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from tenacity import RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from jcv2_plugin.errors import InvalidOptionError

UNREACHABLE = 0
UNREADABLE = 200
"""Statuses of our own: no answer, and an answer that is not of the server that was expected."""
UNFINISHED = 202
TIMEOUT = 504
TOO_LARGE = 413
UNCOMPRESSED = {"Accept-Encoding": "identity"}
"""Headers of our requests: a few kilobytes could be inflated to more than there is memory."""
_BUSY = {429, 500, 502, 503}
_TRANSIENT = {UNREACHABLE, UNFINISHED, 408, TIMEOUT, *_BUSY}
# Do not retry if the server asks for a longer wait, in seconds; the error states the wait instead.
_LONGEST_ASKED_WAIT = 300.0
_LONGEST_REASON, _LONGEST_CLAUSE = 600, 120
_LOG = logging.getLogger("jcv2_plugin")


@dataclass(frozen=True)
class Failure:
    """A failed request: its HTTP status or one of ours, the server's reason, and how many seconds it asks to wait."""

    status: int
    reason: str
    retry_after: float | None = None

    def is_transient(self, *, first: bool = False) -> bool:
        """Return whether a retry may succeed. If the ``first`` request gets no answer, the address is likely wrong."""
        return self.status in (_BUSY if first else _TRANSIENT) and (self.retry_after or 0) <= _LONGEST_ASKED_WAIT

    @property
    def later(self) -> str:
        """When to try again, in words."""
        return "later" if self.retry_after is None else f"in {self.retry_after:g} seconds"


def shortened(reason: str) -> str:
    """Return a reason without space around it, and not too long for a message."""
    reason = reason.strip()
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]} ..."


def seconds_of(asked: Any) -> float | None:
    """Return how long a server asks to wait, from its ``Retry-After``, or None if it does not say so in seconds."""
    try:
        seconds = float(asked)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < math.inf else None


def refuse_compressed(answer: httpx.Response) -> None:
    """Raise httpx.DecodingError for a compressed answer, whose size is not known before it is inflated."""
    coding = answer.headers.get("Content-Encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise httpx.DecodingError(f"its answer is compressed ({coding!r:.40}), which was not asked for")


@dataclass(frozen=True)
class Backoff:
    """Attempts, of which 1 disables retries, and the seconds to wait between them.

    Waits double from ``first_wait`` up to ``longest_wait``, with jitter so that clients do not retry in step. If the
    server asks for a longer wait, that is used.
    """

    attempts: int = 5
    first_wait: float = 0.5
    longest_wait: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_wait < 0 or self.longest_wait < 0:
            raise InvalidOptionError(f"Retries need at least one attempt and no negative wait, got {self!r}.")

    def retrying(
        self, failure_of: Callable[[BaseException], Failure | None], what: str, *, first: bool = False
    ) -> dict[str, Any]:
        """Return arguments for tenacity's ``Retrying`` and ``AsyncRetrying``, which log ``what`` they try again.

        An exception that ``failure_of`` calls no failure, or one that lasts, is raised at once.
        """

        def last(state: RetryCallState) -> Failure:
            error = state.outcome.exception() if state.outcome is not None else None
            return (failure_of(error) if error is not None else None) or Failure(UNREACHABLE, "")

        def passes(error: BaseException) -> bool:
            failure = failure_of(error)
            return failure is not None and failure.is_transient(first=first)

        def wait(state: RetryCallState) -> float:
            backoff = wait_exponential_jitter(self.first_wait, self.longest_wait, jitter=self.first_wait)(state)
            return max(backoff, last(state).retry_after or 0.0)

        def log(state: RetryCallState) -> None:
            clause = last(state).reason.partition(". ")[0].strip()
            _LOG.warning(
                "%s failed (%s), attempt %d of %d. Trying again in %.1f s.",
                what, clause if len(clause) <= _LONGEST_CLAUSE else f"{clause[:_LONGEST_CLAUSE]} ...",
                state.attempt_number, self.attempts, state.next_action.sleep if state.next_action is not None else 0.0,
            )  # fmt: skip

        return {
            "stop": stop_after_attempt(self.attempts),
            "wait": wait,
            "retry": retry_if_exception(passes),
            "before_sleep": log,
            "reraise": True,
        }
