"""Retry requests to a Qdrant server after transient failures, and translate the failures that last."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from qdrant_client import models
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from jcv2_plugin.engines.failures import UnfinishedWriteError, failure_of, translated
from jcv2_plugin.transport import Backoff, Failure

_LOG = logging.getLogger("jcv2_plugin")
_P = ParamSpec("_P")
_T = TypeVar("_T")
_LONGEST_CLAUSE = 120


@contextmanager
def translated_errors(where: str) -> Iterator[None]:
    """Translate the client's errors. Messages contain the server's address, its reason and a remedy.

    Args:
        where: Address of the server, without credentials.

    Raises:
        CollectionAccessError: The API key is missing or lacks permission.
        CollectionNotFoundError: The collection does not exist.
        CollectionExistsError: The collection already exists.
        ServerLimitError: The request exceeds a limit, or strict mode forbids it.
        ServerBusyError: The server cannot handle the request now.
        CollectionError: The server is unreachable, times out or refuses the request for another reason.
    """
    try:
        yield
    except Exception as error:
        ours = translated(error, where)
        if ours is None:
            raise
        raise ours from error


def completed(write: Callable[_P, Any]) -> Callable[_P, None]:
    """Wrap a write of the client so that it fails, and can be tried again, unless the server has completed it."""

    @functools.wraps(write)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> None:
        result = write(*args, **kwargs)
        if (status := getattr(result, "status", result)) not in (models.UpdateStatus.COMPLETED, True):
            raise UnfinishedWriteError(str(status))

    return checked


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


class Retry(Backoff):
    """Retry requests after transient failures, with exponential backoff."""

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function of the client and retry transient failures.

        Raises the last error unchanged; wrap the call in :func:`translated_errors`. All other errors, including
        interrupts, are raised immediately.
        """
        return self._retrying(first=False)(function, *args, **kwargs)

    def contact(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Make the first request to a server: like :meth:`call`, but do not retry if the server gives no answer.

        The likeliest reason is a wrong address, which should be reported at once.
        """
        return self._retrying(first=True)(function, *args, **kwargs)

    def _retrying(self, *, first: bool) -> Retrying:
        # Retrying is safe even if an attempt succeeded and only its response was lost: all our writes are idempotent
        # (upserts by id, deletes by id or filter).
        def passes(error: BaseException) -> bool:
            failure = failure_of(error)
            return failure is not None and failure.is_transient(first=first)

        return Retrying(
            stop=stop_after_attempt(self.attempts),
            wait=self._wait,
            retry=retry_if_exception(passes),
            before_sleep=self._log,
            sleep=_sleep,
            reraise=True,
        )

    def _wait(self, state: RetryCallState) -> float:
        return self.wait_after(state, _last_failure(state))

    def _log(self, state: RetryCallState) -> None:
        clause = _last_failure(state).reason.partition(". ")[0].strip()
        _LOG.warning(
            "Qdrant: %s failed (%s), attempt %d of %d. Trying again in %.1f s.",
            getattr(state.fn, "__name__", "a request"),
            clause if len(clause) <= _LONGEST_CLAUSE else f"{clause[:_LONGEST_CLAUSE]} ...",
            state.attempt_number,
            self.attempts,
            state.next_action.sleep if state.next_action is not None else 0.0,
        )


def _last_failure(state: RetryCallState) -> Failure:
    error = state.outcome.exception() if state.outcome is not None else None
    return failure_of(error) or Failure(0, "")
