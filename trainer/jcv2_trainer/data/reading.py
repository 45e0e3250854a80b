"""Read training data lazily, and sample texts from it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jcv2_trainer.data.lines import DataError
from jcv2_trainer.data.records import json_lines, normalise, read_entries, read_records, sound_record

__all__ = ["DataError", "read_jsonl", "read_pairs", "sample_texts"]


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number, object)`` for the non-blank lines of a JSON-lines file.

    Raises:
        DataError: A line is not a JSON object.
    """
    for entry in json_lines(path):
        yield entry.number, sound_record(entry)


def read_pairs(path: Path, lang: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield ``(query, positive)`` of the rows in a language, or of all rows.

    The file can have any format and field names of :mod:`jcv2_trainer.data.records`.

    Raises:
        DataError: A row has no text in one of the two fields.
    """
    for entry in read_entries(path):
        row, names = normalise(sound_record(entry))
        if lang is not None and row.get("lang") != lang:
            continue
        for field in ("query", "positive"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise DataError(
                    f"{entry.position}: {names.get(field, field)!r} must be a text, got {row.get(field)!r:.60}. "
                    f"See all such rows with: jcv2-finetune check {path}"
                )
        yield row["query"], row["positive"]


def sample_texts(path: Path, count: int, seed: int, lang: str | None = None) -> tuple[list[str], list[str]]:
    """Sample texts and return ``(queries, positives)``, ``count`` texts in all, half of each.

    The rows are shuffled with ``random.Random(seed)``, and the queries and positives of the first rows are taken. If
    ``count`` is odd, there is one more positive. A file with too few rows yields all its texts. The file can have any
    format of :mod:`jcv2_trainer.data.records`. It is read twice, so that only the sample is held in memory.

    Raises:
        DataError: The file cannot be read, or has no row in ``lang``.
        ValueError: ``count`` is less than 2.
    """
    if count < 2:
        raise ValueError(f"A sample needs at least 2 texts (a query and a positive), got {count!r}.")
    order = list(range(sum(1 for _ in read_pairs(path, lang))))
    if not order:
        raise DataError(_nothing_in(path, lang))
    random.Random(seed).shuffle(order)
    rank = {row: position for position, row in enumerate(order[: (count + 1) // 2])}
    drawn = {rank[row]: pair for row, pair in enumerate(read_pairs(path, lang)) if row in rank}
    pairs = [drawn[position] for position in range(len(rank))]
    return [query for query, _ in pairs[: count // 2]], [positive for _, positive in pairs]


def _nothing_in(path: Path, lang: str | None) -> str:
    if lang is None:
        return f"{path} has no rows. Give a file of pairs or triplets."
    languages = Counter(str(row.get("lang")) for _, row in read_records(path))
    known = ", ".join(f"{name} ({rows:,} rows)" for name, rows in languages.most_common(12))
    return f"{path} has no row with lang {lang!r}. It has: {known or 'no rows'}."
