"""Read the valid rows of training files one by one, and sample texts from them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from jcv2_trainer.data.check import KINDS, Row, validate
from jcv2_trainer.data.lines import DataError
from jcv2_trainer.data.records import Entry, Fault, json_lines, normalise, read_entries, sound_record

__all__ = ["DataError", "OnBad", "Row", "mendable_rows", "read_jsonl", "read_rows", "sample_texts"]

OnBad = Literal["stop", "skip"]

_MENDED = ("positive-as-negative", "duplicate-negatives")


def read_rows(path: Path, *, on_bad: OnBad = "stop", skipped: Counter[str] | None = None) -> Iterator[Row]:
    """Yield the valid rows of a file or folder of any format of :mod:`jcv2_trainer.data.records`.

    Rows with mere warnings of :func:`jcv2_trainer.data.check.check_file` are valid. With ``"skip"``, rows with errors
    are counted in ``skipped``, once each, under the kind of their first error (a key of ``KINDS``).

    Raises:
        DataError: A row has errors (with ``"stop"``), or the file cannot be read.
    """
    for entry in read_entries(path):
        value = entry.value
        row, faults = (None, [value]) if isinstance(value, Fault) else validate(*normalise(value))
        if row is not None:
            yield row
        elif on_bad != "skip":
            raise _refusal(entry, faults[0], path)
        elif skipped is not None:
            skipped[faults[0].kind] += 1


def mendable_rows(path: Path, skip: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file after the first ``skip``, with canonical field names and unknown fields.

    Scores and negatives that mining and scoring write anew may have errors.

    Raises:
        DataError: A row has another error, or the file cannot be read.
    """
    for entry in islice(read_entries(path), skip, None):
        record, names = normalise(sound_record(entry))
        for fault in validate(record, names)[1]:
            if fault.kind not in _MENDED and not fault.field.startswith("scores"):
                raise _refusal(entry, fault, path)
        yield record


def _refusal(entry: Entry, fault: Fault, path: Path) -> DataError:
    what = f"{fault.field}: {fault.message}" if fault.field else fault.message
    return DataError(
        f"{entry.position}: [{fault.kind}] {what}. {KINDS[fault.kind][1]} "
        f"See all errors with: jcv2-finetune check {path}"
    )


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
