"""A study's results file: its settings and every cell measured so far, rewritten after each cell."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jcv2_plugin.evaluation.study.base import Cell, StudyError
from jcv2_plugin.files import read_json, write_atomically

FORMAT = 1
_SAMPLE_DIGITS = 6


class StudyRecord:
    """The results of a study, in memory and in ``<out>/<study>.json``, which is loaded unless ``force``.

    Raises:
        StudyError: If the file is unreadable, or belongs to another study or other settings.
    """

    def __init__(self, path: Path, study: str, settings: Mapping[str, Any], *, force: bool = False) -> None:
        self.path = path
        # A round trip through JSON turns tuples into lists and keys into strings, as in the file.
        settings = json.loads(json.dumps(settings))
        self._head: dict[str, Any] = {"format": FORMAT, "study": study, "settings": settings, "runs": []}
        rows: list[dict[str, Any]] = []
        if path.exists() and not force:
            self._head = read(path)
            rows = self._head.pop("cells")
            _check_same(path, self._head, study, settings)
        self.settings: dict[str, Any] = self._head["settings"]
        self.runs: list[dict[str, Any]] = self._head["runs"]
        self.cells = results_of({"cells": rows})
        self._rows = [_dumps(row) for row in rows]

    def begin(self, run: Mapping[str, Any]) -> None:
        """Register the command, versions and machine of the following cells. Identical runs are registered once."""
        if run not in self.runs:
            self.runs.append(dict(run))
        self._run = self.runs.index(dict(run))

    def add(self, cell: Cell) -> None:
        """Add a measured cell and write it to disk. A value that is not finite is a ``StudyError``."""
        for name, value in cell.values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise StudyError(f"{cell.key}: {name} is {value}. A study must return None for what it cannot measure.")
        samples = {
            name: {own_id: round(float(value), _SAMPLE_DIGITS) for own_id, value in values.items()}
            for name, values in cell.samples.items()
        }
        row = {"parameters": dict(cell.parameters), "values": dict(cell.values), "samples": samples}
        row |= {"languages": dict(cell.languages)} if cell.languages else {}
        self._rows.append(_dumps({**row, "run": self._run}))
        self.cells.append(Cell(cell.parameters, cell.values, samples, cell.languages))
        # One line per cell: fast to write, and diffs are readable.
        head, rows = json.dumps(self._head, indent=1, ensure_ascii=False)[:-2], ",\n".join(self._rows)
        write_atomically(self.path, f'{head},\n "cells": [\n{rows}\n]}}\n')


def read(path: Path) -> dict[str, Any]:
    """Read a study's results file. Anything else is a ``StudyError``."""
    try:
        content = read_json(path)
    except ValueError as error:
        raise StudyError(f"{path} is not JSON ({error}). Remove it, or start over with --force.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not _is_whole(content):
        raise StudyError(
            f"{path} is not a study's results file of format {FORMAT}. Remove it, or start over with --force."
        )
    return content


def results_of(content: Mapping[str, Any]) -> list[Cell]:
    """Return the measured cells in a file's content."""
    return [
        Cell(row["parameters"], row["values"], row["samples"], row.get("languages", {})) for row in content["cells"]
    ]


def _is_whole(content: Mapping[str, Any]) -> bool:
    try:
        cells = results_of(content)
        dicts = [content["settings"], *content["runs"], *(part for cell in cells for part in vars(cell).values())]
        dicts += [sample for cell in cells for sample in cell.samples.values()]
        return isinstance(content["study"], str) and all(isinstance(one, dict) for one in dicts)
    except (LookupError, TypeError, AttributeError):
        return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a results file against other processes. If one holds the lock, that is a ``StudyError``."""
    # In the temporary folder, because the lock file would otherwise be left next to the results.
    own = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    try:
        with FileLock(Path(tempfile.gettempdir()) / f"jcv2-study-{own}.lock", timeout=0):
            yield
    except Timeout as error:
        raise StudyError(f"Another process is writing to {path}. Wait for it, or choose another folder.") from error


def _check_same(path: Path, head: Mapping[str, Any], study: str, settings: Mapping[str, Any]) -> None:
    if head["study"] != study:
        raise StudyError(f"{path} holds the study {head['study']!r}, not {study!r}. Choose another folder.")
    if differences := list(_differences(head["settings"], settings)):
        raise StudyError(
            f"{path} was measured with other settings: {'; '.join(differences)}. Choose another folder, or start over "
            "with --force."
        )


def _dumps(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{prefix}{name}.")
        elif before != now:
            yield f"{prefix}{name} was {before!r}, is {now!r}"
