"""Read the valid rows of training files one by one."""

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
        query: Query text as in the file, not stripped.
        positive: Positive text as in the file, not stripped.
        negatives: Negative texts. Empty for a pair.
        scores: The teacher's scores for the positive, then for each negative. None if the row has no scores.
        lang: Language, or empty.
        source: Source, or empty.
    """

    query: str
    positive: str
    negatives: tuple[str, ...]
    scores: tuple[float, ...] | None
    lang: str
    source: str


def read_rows(path: Path, *, on_bad: OnBad = "stop", skipped: Counter[str] | None = None) -> Iterator[Row]:
    """Yield the valid rows of a file or folder of any format of :mod:`jcv2_trainer.data.records`.

    Rows with mere warnings of :func:`jcv2_trainer.data.check.check_file` are valid.

    Args:
        path: The file or folder.
        on_bad: How to handle rows with errors: ``"stop"`` raises, ``"skip"`` skips them.
        skipped: Counts each skipped row once, under the kind of its first error (a key of ``KINDS``).

    Raises:
        DataError: A row has errors (with ``"stop"``), or the file cannot be read.
        ValueError: ``on_bad`` is neither ``"stop"`` nor ``"skip"``.
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
    """Return the record with canonical field names, and its first error under the original name."""
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
