"""Sample batches from one source and language at a time, without duplicate texts."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers.base.sampler import DefaultBatchSampler

_PATIENCE = 10  # how many batches' worth of rows to skip while filling one batch


class GroupedBatchSampler(DefaultBatchSampler):
    """Shuffle the rows of a dataset into batches, determined by the seed and the epoch alone.

    In-batch negatives from another language or source can be told apart by their looks, which teaches the model
    nothing. A batch therefore has rows of one ``source`` and ``lang`` only. A row whose query or positive is already in
    the batch waits for the next one. If too few others are left, it is added anyway (the loss counts equal texts once).
    Groups too small for a batch are combined, by language if that suffices, since a row alone in its batch would teach
    nothing. Consecutive batches, one for each of the processes, come from the same group.
    """

    def __init__(self, dataset: Any, batch_size: int, processes: int = 1, seed: int = 13) -> None:
        super().__init__(range(len(dataset)), batch_size, drop_last=False, seed=seed)
        self.rows_per_batch = batch_size
        self.processes = processes
        # accelerate would take a batch smaller than this attribute for the end of the data.
        self.batch_size = None  # type: ignore[assignment]
        # Whole columns at once: one by one, the values of a million rows take minutes.
        columns = dataset.select_columns(["query_key", "positive_key", "source", "lang"])[:]
        self._queries, self._positives = columns["query_key"], columns["positive_key"]
        self._groups = _groups(list(zip(columns["lang"], columns["source"], strict=True)), batch_size * processes)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the row indices of each batch."""
        random = np.random.default_rng((self.seed, self.epoch))
        batches = [batch for group in self._groups for batch in self._deal(random.permutation(group))]
        for index in random.permutation(len(batches)):
            yield from batches[index]

    def _deal(self, rows: NDArray[np.int64]) -> Iterator[list[list[int]]]:
        """Yield the batches of one group, as many at a time as there are processes."""
        waiting = deque(rows.tolist())
        size = self.rows_per_batch * self.processes
        while waiting:
            together = self._fill(waiting, min(size, len(waiting)))
            if len(together) < self.processes:
                return
            yield [part.tolist() for part in np.array_split(np.asarray(together), self.processes)]

    def _fill(self, waiting: deque[int], size: int) -> list[int]:
        """Take ``size`` rows from the front, skipping those whose texts are already taken."""
        chosen: list[int] = []
        passed: deque[int] = deque()
        taken: set[tuple[str, int]] = set()
        # Limited, because with few distinct queries a batch would read to the end of the group.
        while waiting and len(chosen) < size and len(passed) < _PATIENCE * size:
            row = waiting.popleft()
            texts = {("query", self._queries[row]), ("positive", self._positives[row])}
            if texts & taken:
                passed.append(row)
                continue
            taken |= texts
            chosen.append(row)
        while len(chosen) < size:
            chosen.append(passed.popleft() if passed else waiting.popleft())
        waiting.extendleft(reversed(passed))
        return chosen

    def __len__(self) -> int:
        """Return the number of batches, which is the same in each epoch."""
        size = self.rows_per_batch * self.processes
        full = sum(len(group) // size for group in self._groups)
        rests = sum(1 for group in self._groups if len(group) % size >= self.processes)
        return (full + rests) * self.processes


def _groups(labels: Sequence[tuple[str, ...]], size: int) -> list[NDArray[np.int64]]:
    """Group rows by language and source. Groups with fewer than ``size`` rows are merged by language, then into one."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        groups[label].append(row)
    for length in (1, 0):
        together: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for label, rows in groups.items():
            together[label if len(rows) >= size else label[:length]] += rows
        groups = together
    return [np.asarray(sorted(rows), dtype=np.int64) for _, rows in sorted(groups.items())]
