"""Process batches in parallel on a CPU, one per thread, instead of using all threads within each operator.

A transformer's operators are short. When each is split across cores, all cores wait for the slowest one hundreds of
times per batch; with whole batches in parallel they wait once, at the end. Measured by benchmarks/peers.py
(docs/benchmarks.md).
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
"""Maximum number of worker threads. The Python part of a batch runs in one thread at a time, so more would wait."""


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Apply ``work`` to ``items`` in parallel and yield the results in order.

    Items are consumed lazily, at most two per worker ahead of the yielded result. Each worker thread gets an equal
    share of the ``threads`` of torch; with one thread, or one item, everything runs in the calling thread. If ``work``
    raises an exception, items that have not been started are skipped.
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
    """Start ``number`` worker threads that use ``threads`` torch threads each.

    A thread new to torch takes the number set last by any thread. It is therefore reset at once, so that unrelated
    threads do not start with it.
    """
    own = torch.get_num_threads()
    ready = threading.Barrier(number + 1)

    def prepare() -> None:
        torch.get_num_threads()  # on first use in a thread, torch initialises the number and overwrites earlier values
        torch.set_num_threads(threads)
        ready.wait()

    pool = ThreadPoolExecutor(number, "jcv2-batches", initializer=prepare)
    try:
        for _ in range(number):
            pool.submit(int)  # starts one thread each, because none is idle until all are ready
        ready.wait()
    except BaseException:
        ready.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        torch.set_num_threads(own)
    return pool
