"""Retry requests to a Qdrant server after transient failures, and translate the failures that last."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from qdrant_client import models
from tenacity import Retrying

from jcv2_plugin.engines.failures import UnfinishedWriteError, failure_of, translated
from jcv2_plugin.transport import Backoff

_P = ParamSpec("_P")
_T = TypeVar("_T")


@contextmanager
def translated_errors(where: str) -> Iterator[None]:
    """Translate the client's errors. Messages contain the server's address ``where``, its reason and a remedy."""
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
    """Retry requests after transient failures, with exponential backoff.

    That is safe even if an attempt succeeded and only its response was lost: all our writes are idempotent (upserts by
    id, deletes by id or filter). The last error is raised unchanged; wrap calls in :func:`translated_errors`.
    """

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function of the client and retry transient failures."""
        return self._retrying(function)(function, *args, **kwargs)

    def contact(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Make the first request to a server: like :meth:`call`, but do not retry if the server gives no answer."""
        return self._retrying(function, first=True)(function, *args, **kwargs)

    def _retrying(self, function: Any, *, first: bool = False) -> Retrying:
        what = f"Qdrant: {getattr(function, '__name__', 'a request')}"
        return Retrying(sleep=_sleep, **self.retrying(failure_of, what, first=first))
