"""Translate errors of a Qdrant server to errors of this package, and retry transient ones."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from jcv2_plugin.engines.failures import NEVER_FITS, Failure, failure_of, is_transient, is_transient_answer
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

_LOG = logging.getLogger("jcv2_plugin")
_P = ParamSpec("_P")
_T = TypeVar("_T")

_LONGEST_REASON = 600

_SETTINGS = {
    "limit": ("max_query_limit", "Ask for at most {limit} results (k=...) and candidates (candidates=...) at a time"),
    "upsert limit": ("upsert_max_batchsize", "Write at most {limit} documents at a time"),
    "update limit": ("upsert_max_batchsize", "Write at most {limit} documents at a time"),
    "search batch size": ("search_max_batchsize", "Search for at most {limit} queries at a time"),
    "timeout": ("max_timeout", "Choose a timeout of at most {limit} seconds"),
    "hnsw_ef": ("search_max_hnsw_ef", "Search with at most {limit} candidates (candidates=...)"),
    "oversampling": ("search_max_oversampling", "Keep the collection in another storage than int8"),
}
_EXCEEDED = r'Limit exceeded \S+ > (?P<limit>\S+) for "(?P<name>[^"]+)"'
_NO_EXACT = r"hnsw_config\.m = 0|Exact search disabled"
_TOO_LARGE = r"larger than allowed|larger than max|message length too large"
_RAISE = "client.update_collection(name, strict_mode_config=models.StrictModeConfig({setting}=...))"


def _index_required(found: re.Match[str]) -> Jcv2Error:
    key, kinds = found["key"], (found["kinds"] or "keyword").split(", ")
    kind = "keyword" if "keyword" in kinds else kinds[0]
    return ServerLimitError(
        f"Its strict mode filters by indexed keys only. Create a payload index: payload_indexes={{{key!r}: {kind!r}}} "
        f"when the collection is created, or collection.create_payload_index({key!r}, {kind!r})."
    )


def _limit_exceeded(found: re.Match[str]) -> Jcv2Error:
    setting, remedy = _SETTINGS.get(found["name"], (found["name"], "Keep to at most {limit}"))
    return ServerLimitError(
        f"The limit is {setting}={found['limit']} of its strict mode. {remedy.format(limit=found['limit'])}, or raise "
        f"it: {_RAISE.format(setting=setting)}."
    )


def _too_many_rows(found: re.Match[str]) -> Jcv2Error:
    limit = found["limit"]
    return ServerLimitError(
        f"The limit is multivector_config[{found['name']!r}].max_vectors={limit} of its strict mode. Use an encoder "
        f"with document_length={limit} or less, which splits longer documents, or raise it: "
        f"{_RAISE.format(setting='multivector_config')}."
    )


def _exact_forbidden(found: re.Match[str]) -> Jcv2Error:
    return ServerLimitError(
        "Its strict mode has search_allow_exact=False, but MaxSim over all documents is exact: the vectors have no "
        "graph. Search with the first stage (a migration can add one, such as hybrid), or allow it: "
        f"{_RAISE.format(setting='search_allow_exact').replace('=...', '=True')}."
    )


def _says(kind: type[Jcv2Error], remedy: str) -> Callable[[re.Match[str]], Jcv2Error]:
    return lambda found: kind(remedy.format(**found.groupdict()))


_MEANINGS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Jcv2Error]], ...] = tuple(
    (re.compile(pattern), make)
    for pattern, make in (
        (r'Index required but not found for "(?P<key>[^"]+)"(?:[^\[]*\[(?P<kinds>[^\]]+)\])?', _index_required),
        (_EXCEEDED, _limit_exceeded),
        (r"Multivector '(?P<name>[^']*)' has a limit of (?P<limit>\d+) vectors", _too_many_rows),
        (_NO_EXACT, _exact_forbidden),
        (
            r"Total size of all vectors \(\d+\) must be less than (?P<limit>\d+)",
            _says(
                ServerLimitError,
                "No document may have {limit} numbers (tokens times dim) or more. Shorten or split it, or create the "
                "collection with a smaller dim.",
            ),
        ),
        (
            _TOO_LARGE,
            _says(
                ServerLimitError,
                "Write fewer or shorter documents at a time, or raise service.max_request_size_mb of the server.",
            ),
        ),
        (
            r"Max (?P<what>points count|vector storage size|payload storage size) limit",
            _says(ServerLimitError, "The collection is full: delete documents, or raise the limit of its strict mode."),
        ),
        (NEVER_FITS, _says(ServerLimitError, "It will not pass later either. Write or search less at a time.")),
        (
            r"Filter condition limit|Condition size limit",
            _says(ServerLimitError, "Use a smaller filter, or several searches."),
        ),
        (
            r"Shard key not specified|Shard expected",
            _says(InvalidOptionError, "The collection has a shard for each shard key. Give one of its shard keys."),
        ),
        (
            r"Shard key .+ not found|target shard key",
            _says(
                InvalidOptionError,
                "Give an existing shard key, or create it: client.create_shard_key(name, key).",
            ),
        ),
        (
            r"Vector dimension error: expected dim: (?P<there>\d+), got (?P<given>\d+)",
            _says(
                CollectionMismatchError,
                "The collection holds vectors of dim={there}, not {given}. Use a model and dim that fit it, or create "
                "another collection.",
            ),
        ),
        (
            r"Not existing vector name",
            _says(
                CollectionMismatchError,
                "The collection has no such vector: it was not made by jcv2-plugin, or with other settings. Create "
                "another one.",
            ),
        ),
        (
            r"Auto sharding method",
            _says(
                InvalidOptionError,
                "The collection has no shard keys. Leave out the shard key, or create the collection with one.",
            ),
        ),
        (r"No point with id", _says(CollectionError, "It may have been deleted meanwhile.")),
        # Any other strict mode rule; the server's reason contains the remedy.
        (r"\. Help: ", _says(ServerLimitError, "It is a rule of the collection's strict mode.")),
    )
)


def translated(error: BaseException, where: str) -> Jcv2Error | None:
    """Translate an error of the client, or return None if it is not a failed request. ``where`` is the address."""
    failure = failure_of(error)
    if failure is None:
        return None
    reason = failure.reason.strip()
    if len(reason) > _LONGEST_REASON:
        reason = f"{reason[:_LONGEST_REASON]} ..."
    if failure.kind == "timeout":
        return CollectionError(
            f"Qdrant at {where} did not answer in time ({reason}). Set a longer timeout, or send less at a time."
        )
    if failure.kind == "unreachable":
        return CollectionError(
            f"Qdrant at {where} cannot be reached ({reason}). Check that it is running, its URL (http or https, the "
            "port) and the timeout. A folder needs no server."
        )
    if failure.kind == "unreadable":
        return CollectionError(
            f"What answers at {where} is no Qdrant server, or of another version ({reason}). Check the address, its "
            "port and its path."
        )
    said = f"Qdrant at {where} refused: {reason if reason.endswith(('.', '!')) else f'{reason}.'}"
    for pattern, make in _MEANINGS:
        if found := pattern.search(failure.reason):
            meant = make(found)
            return type(meant)(f"{said} {meant}")
    return _by_status(failure, said)


def limit_named(error: ServerLimitError, name: str) -> int | None:
    """Return the value of the exceeded limit if the server names it ``name``, else None."""
    failure = _behind(error)
    found = None if failure is None else re.search(_EXCEEDED, failure.reason)
    return int(found["limit"]) if found and found["name"] == name and found["limit"].isdecimal() else None


def was_too_large(error: ServerLimitError) -> bool:
    """Return whether a request was too large in bytes, so that half of it may succeed."""
    failure = _behind(error)
    return failure is not None and (failure.status == 413 or re.search(_TOO_LARGE, failure.reason) is not None)


def was_exact(error: ServerLimitError) -> bool:
    """Return whether the collection's strict mode refused an exact request."""
    failure = _behind(error)
    return failure is not None and re.search(_NO_EXACT, failure.reason) is not None


def _behind(error: ServerLimitError) -> Failure | None:
    return None if error.__cause__ is None else failure_of(error.__cause__)


def _by_status(failure: Failure, said: str) -> Jcv2Error:
    status = failure.status
    if status in (401, 403) and "locked" not in failure.reason:
        return CollectionAccessError(
            f"{said} Give an API key with the permission to do this, or set the environment variable QDRANT_API_KEY."
        )
    if status == 404 and failure.from_qdrant:
        return CollectionNotFoundError(f"{said} Check the name, or create the collection first.")
    if status == 404:
        return CollectionError(f"{said} No Qdrant server answers at this path: check the address and its prefix.")
    if status == 409:
        return CollectionExistsError(f"{said} Open it, choose another name, or set overwrite to replace it.")
    if status == 413:
        return ServerLimitError(f"{said} Write fewer or shorter documents at a time, or raise the limit there.")
    if status == 507:
        return ServerLimitError(f"{said} The server has no room left: delete something, or give it more.")
    if status in (429, 502, 503):
        when = "later" if failure.retry_after is None else f"in {failure.retry_after:g} seconds"
        return ServerBusyError(f"{said} Try again {when}, or allow more retries.")
    if status >= 500:
        return CollectionError(f"{said} The server's log says more.")
    return CollectionError(f"{said} Check the request and the versions of server and qdrant-client.")


@contextmanager
def translated_errors(where: str) -> Iterator[None]:
    """Translate the client's errors. Messages contain the server's address, its reason and a remedy.

    Args:
        where: Address of the server, without credentials.

    Raises:
        CollectionAccessError: The API key is missing or lacks permission.
        CollectionNotFoundError: The collection does not exist.
        CollectionExistsError: The collection already exists.
        CollectionMismatchError: The collection's vectors do not fit.
        ServerLimitError: The request exceeds a limit.
        ServerBusyError: The server cannot handle the request now.
        InvalidOptionError: A shard key is missing or unknown.
        CollectionError: The server is unreachable, times out or refuses the request for another reason.
    """
    try:
        yield
    except Exception as error:
        ours = translated(error, where)
        if ours is None:
            raise
        raise ours from error


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


@dataclass(frozen=True)
class Retry:
    """Retry requests after transient failures, with exponential backoff.

    Waits double from ``first_wait`` up to ``longest_wait``, with jitter so that clients do not retry in step. If the
    server asks for a longer wait, that is used.

    Args:
        attempts: Maximum number of attempts. 1 disables retries.
        first_wait: Seconds before the second attempt.
        longest_wait: Maximum wait in seconds.
    """

    attempts: int = 5
    first_wait: float = 0.5
    longest_wait: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_wait < 0 or self.longest_wait < 0:
            raise InvalidOptionError(f"Retries need at least one attempt and no negative wait, got {self!r}.")

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function of the client and retry transient failures.

        Raises the last error unchanged; wrap the call in :func:`translated_errors`. All other errors, including
        interrupts, are raised immediately.
        """
        return self._while(is_transient, function, *args, **kwargs)

    def contact(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Make the first request to a server: like :meth:`call`, but do not retry if the server gives no answer.

        The likeliest reason is a wrong address, which should be reported at once.
        """
        return self._while(is_transient_answer, function, *args, **kwargs)

    def _while(
        self,
        passes: Callable[[BaseException], bool],
        function: Callable[_P, _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        # Retrying is safe even if an attempt succeeded and only its response was lost: all our writes are idempotent
        # (upserts by id, deletes by id or filter).
        retrying = Retrying(
            stop=stop_after_attempt(self.attempts),
            wait=self._wait,
            retry=retry_if_exception(passes),
            before_sleep=self._log,
            sleep=_sleep,
            reraise=True,
        )
        return retrying(function, *args, **kwargs)

    def _wait(self, state: RetryCallState) -> float:
        backoff = wait_exponential_jitter(self.first_wait, self.longest_wait, jitter=self.first_wait)(state)
        failure = _last_failure(state)
        asked = 0.0 if failure is None or failure.retry_after is None else failure.retry_after
        return max(backoff, asked)

    def _log(self, state: RetryCallState) -> None:
        failure = _last_failure(state)
        _LOG.warning(
            "Qdrant: %s failed (%s), attempt %d of %d. Trying again in %.1f s.",
            getattr(state.fn, "__name__", "a request"),
            failure.reason[:_LONGEST_REASON] if failure is not None else "",
            state.attempt_number,
            self.attempts,
            state.next_action.sleep if state.next_action is not None else 0.0,
        )


def _last_failure(state: RetryCallState) -> Failure | None:
    error = state.outcome.exception() if state.outcome is not None else None
    return None if error is None else failure_of(error)
