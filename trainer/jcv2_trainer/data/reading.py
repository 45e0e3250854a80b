"""Read JSON lines lazily, and sample texts from training files."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jcv2_trainer.data.lines import DataError
from jcv2_trainer.data.records import json_lines, sound_record
from jcv2_trainer.data.rows import read_rows

__all__ = ["DataError", "read_jsonl", "sample_texts"]


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number, object)`` for the non-blank lines of a JSON-lines file.

    Raises:
        DataError: A line is not a JSON object.
    """
    return ((entry.number, sound_record(entry)) for entry in json_lines(path))


def sample_texts(path: Path, count: int, seed: int, lang: str | None = None) -> tuple[list[str], list[str]]:
    """Sample texts and return ``(queries, positives)``, ``count`` texts in all, half of each.

    The rows are shuffled with ``random.Random(seed)``, and the queries and positives of the first rows are taken. If
    ``count`` is odd, there is one more positive. A file with too few rows yields all its texts. The file can have any
    format of :mod:`jcv2_trainer.data.records`. It is read twice, so that only the sample is held in memory.

    Raises:
        DataError: The file cannot be read, a row has an error, or no row is in ``lang``.
        ValueError: ``count`` is less than 2.
    """
    if count < 2:
        raise ValueError(f"A sample needs at least 2 texts (a query and a positive), got {count!r}.")
    languages = Counter(row.lang for row in read_rows(path))
    order = list(range(languages.total() if lang is None else languages[lang]))
    if not order:
        if lang is None:
            raise DataError(f"{path} has no rows. Give a file of pairs or triplets.")
        known = ", ".join(f"{name or '(none)'} ({rows:,} rows)" for name, rows in languages.most_common(12))
        raise DataError(f"{path} has no row with lang {lang!r}. It has: {known or 'no rows'}.")
    random.Random(seed).shuffle(order)
    rank = {row: position for position, row in enumerate(order[: (count + 1) // 2])}
    rows = (row for row in read_rows(path) if lang in (None, row.lang))
    drawn = {rank[index]: row for index, row in enumerate(rows) if index in rank}
    queries = [drawn[position].query for position in range(min(len(rank), count // 2))]
    return queries, [drawn[position].positive for position in range(len(rank))]
