"""Async versions of a collection's methods.

They run in threads, so that the event loop is not blocked while a model encodes or a server responds. Qdrant Edge
holds the GIL during each of its calls and blocks the loop for that time, so long operations are split into many calls.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_PAGE = 256


def in_thread(method: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return the async version of a method: it runs in a thread."""

    @functools.wraps(method)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, *args, **kwargs)

    run.__name__ = f"a{method.__name__}"
    return run


async def pages_in_thread(items: Iterator[T]) -> AsyncIterator[T]:
    """Iterate over an iterator that is read in a thread, a page at a time."""
    while page := await asyncio.to_thread(lambda: list(itertools.islice(items, _PAGE))):
        for item in page:
            yield item
