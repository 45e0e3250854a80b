"""Sound rows of training files, one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jcv2_trainer.data.check import KINDS, Fault, row_faults
from jcv2_trainer.data.lines import DataError
from jcv2_trainer.data.records import Entry, NoRecord, normalise, read_entries

OnBad = Literal["stop", "skip"]


@dataclass(frozen=True, slots=True)
class Row:
    """A row without errors.

    Attributes:
        query: As in the file, not stripped.
        positive: As in the file, not stripped.
        negatives: None to many; empty for a pair.
        scores: The teacher's for the positive, then for each negative; None without them.
        lang: Empty if absent.
        source: Empty if absent.
    """

    query: str
    positive: str
    negatives: tuple[str, ...]
    scores: tuple[float, ...] | None
    lang: str
    source: str


def read_rows(path: Path, *, on_bad: OnBad = "stop", skipped: Counter[str] | None = None) -> Iterator[Row]:
    """Yield the sound rows of a file or folder of any format that :mod:`jcv2_trainer.data.records` knows.

    Warnings of :func:`jcv2_trainer.data.check.check_file` do not make a row unsound.

    Args:
        path: The file or folder.
        on_bad: What to do at a row with errors: ``"stop"`` with an error, or ``"skip"`` it.
        skipped: Counts the skipped rows, each once, by the kind of its first error (a key of ``KINDS``).

    Raises:
        DataError: At the first row with errors, or, in either case, if the file cannot be read.
        ValueError: If ``on_bad`` is neither.
    """
    if on_bad not in ("stop", "skip"):
        raise ValueError(f"on_bad must be 'stop' or 'skip', got {on_bad!r}.")
    return _sound_rows(path, on_bad, Counter[str]() if skipped is None else skipped)


def _sound_rows(path: Path, on_bad: OnBad, skipped: Counter[str]) -> Iterator[Row]:
    for entry in read_entries(path):
        row, fault = _judge(entry)
        if fault is None:
            yield _row(row)
        elif on_bad == "skip":
            skipped[fault.kind] += 1
        else:
            what = f"{fault.field}: {fault.message}" if fault.field else fault.message
            raise DataError(
                f"{entry.position}: [{fault.kind}] {what}. {KINDS[fault.kind][1]} "
                f"See all errors with: jcv2-finetune check {path}"
            )


def _judge(entry: Entry) -> tuple[dict[str, Any], Fault | None]:
    """The record under canonical names, and its first fault under its own names."""
    if isinstance(entry.value, NoRecord):
        return {}, Fault(entry.value.kind, "", entry.value.message)
    row, own_names = normalise(entry.value)
    fault = next(row_faults(row), None)
    return row, fault and fault._replace(field=own_names.get(fault.field, fault.field))


def _row(row: dict[str, Any]) -> Row:
    scores = row.get("scores")
    return Row(
        query=row["query"],
        positive=row["positive"],
        negatives=tuple(row.get("negatives") or ()),
        scores=None if scores is None else tuple(map(float, scores)),
        lang=row.get("lang") or "",
        source=row.get("source") or "",
    )
