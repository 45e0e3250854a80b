"""Read the valid rows of training files one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from jcv2_trainer.data.check import KINDS, Row, validate
from jcv2_trainer.data.lines import DataError
from jcv2_trainer.data.records import Fault, normalise, read_entries

__all__ = ["OnBad", "Row", "read_rows"]

OnBad = Literal["stop", "skip"]


def read_rows(path: Path, *, on_bad: OnBad = "stop", skipped: Counter[str] | None = None) -> Iterator[Row]:
    """Yield the valid rows of a file or folder of any format of :mod:`jcv2_trainer.data.records`.

    Rows with mere warnings of :func:`jcv2_trainer.data.check.check_file` are valid.

    Args:
        path: The file or folder.
        on_bad: How to handle rows with errors: ``"stop"`` raises, ``"skip"`` skips them.
        skipped: Counts each skipped row once, under the kind of its first error (a key of ``KINDS``).

    Raises:
        DataError: A row has errors (with ``"stop"``), or the file cannot be read.
    """
    for entry in read_entries(path):
        value = entry.value
        row, faults = (None, [value]) if isinstance(value, Fault) else validate(*normalise(value))
        if row is not None:
            yield row
            continue
        fault = faults[0]
        if on_bad != "skip":
            what = f"{fault.field}: {fault.message}" if fault.field else fault.message
            raise DataError(
                f"{entry.position}: [{fault.kind}] {what}. {KINDS[fault.kind][1]} "
                f"See all errors with: jcv2-finetune check {path}"
            )
        if skipped is not None:
            skipped[fault.kind] += 1
