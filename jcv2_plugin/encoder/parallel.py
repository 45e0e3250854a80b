"""Work side by side on a CPU's cores: a thread of its own for each piece, instead of all threads in each operator.

A transformer's operators are short, and sharing each among cores makes all wait for the slowest hundreds of times a
batch. Whole batches side by side wait once, at the end. Measured by benchmarks/peers.py (docs/benchmarks.md).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_WORKERS = 16
"""Pieces at once. Python's own part of a batch is done by one thread at a time, so more would wait for it."""


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """The results of ``work`` for each of ``items``, in their order, several being worked at.

    Items are taken as they are needed, at most two for each worker ahead of the result that is given. Torch's threads
    in the calling thread stay what they are.

    Args:
        work: What is done with an item, in a thread of its own and by as many threads of torch as are left for it.
        items: Any number of items.
        threads: Threads of torch to deal out. With one of them, or one item, all is done in the calling thread.

    Raises:
        Exception: Of ``work``; what was not begun is left.
    """
    remaining = iter(items)
    first = list(islice(remaining, max(1, min(threads, MOST_WORKERS))))
    if len(first) < 2:
        yield from map(work, chain(first, remaining))
        return
    pool = _workers(len(first), threads // len(first))
    try:
        pending: deque[Future[Result]] = deque(pool.submit(work, item) for item in first)
        for item in chain(islice(remaining, len(first)), remaining):
            if len(pending) >= 2 * len(first):
                yield pending.popleft().result()
            pending.append(pool.submit(work, item))
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _workers(number: int, threads: int) -> ThreadPoolExecutor:
    """Threads that have so many of torch's each.

    A thread that torch has not seen takes the number that was set last by any: it is put back at once, so that threads
    of others do not begin with these.
    """
    own = torch.get_num_threads()
    ready = threading.Barrier(number + 1)

    def prepare() -> None:
        torch.get_num_threads()  # at a thread's first use torch sets its number, over what was set before
        torch.set_num_threads(threads)
        ready.wait()

    pool = ThreadPoolExecutor(number, "jcv2-batches", initializer=prepare)
    try:
        for _ in range(number):
            pool.submit(int)  # a thread is started for each, as none is free before all are ready
        ready.wait()
    except BaseException:
        ready.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        torch.set_num_threads(own)
    return pool
