"""A study's results file: its settings and every cell measured so far, rewritten after each cell."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jcv2_plugin.evaluation.study.base import Cell, Measured, Result, Study, StudyError, Value
from jcv2_plugin.files import write_atomically

FORMAT = 1
_SAMPLE_DIGITS = 6


class StudyRecord:
    """The results of a study, in memory and in ``<out>/<study>.json``.

    Args:
        path: Results file; loaded if it exists.
        study: Name of the study.
        settings: Settings of the study; they must match those in the file.
        force: Whether to start over, whatever the file contains.

    Raises:
        StudyError: If the file is unreadable, or belongs to another study or other settings.
    """

    def __init__(self, path: Path, study: str, settings: Mapping[str, Any], *, force: bool = False) -> None:
        self.path = path
        # A round trip through JSON turns tuples into lists and keys into strings, as in the file.
        settings = json.loads(json.dumps(settings))
        self._content: dict[str, Any] = {
            "format": FORMAT,
            "study": study,
            "settings": settings,
            "runs": [],
            "cells": [],
        }
        if path.exists() and not force:
            self._content = read(path)
            self._check(study, settings)
        self._run = 0
        self._rows = [_dumps(cell) for cell in self._content["cells"]]
        self._keys = {Cell(cell["parameters"]).key for cell in self._content["cells"]}

    @property
    def settings(self) -> dict[str, Any]:
        """Everything besides the cell parameters that affects the results."""
        return dict(self._content["settings"])

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Command, versions and machine of each run."""
        return list(self._content["runs"])

    @property
    def results(self) -> list[Result]:
        """The measured cells, in the order they were measured."""
        return results_of(self._content)

    def __contains__(self, cell: Cell) -> bool:
        return cell.key in self._keys

    def begin(self, command: str, versions: Mapping[str, str], machine: Mapping[str, Any]) -> None:
        """Register the run that measures the following cells. Identical runs are registered once."""
        run = {"command": command, "versions": dict(versions), "machine": dict(machine)}
        if run not in self._content["runs"]:
            self._content["runs"].append(run)
        self._run = self._content["runs"].index(run)

    def add(self, cell: Cell, measured: Measured) -> None:
        """Add a measured cell and write it to disk before returning.

        Raises:
            StudyError: If a value is not finite.
        """
        samples = {
            name: {own_id: round(float(value), _SAMPLE_DIGITS) for own_id, value in values.items()}
            for name, values in measured.samples.items()
        }
        row: dict[str, Any] = {"parameters": dict(cell.parameters), "values": dict(measured.values), "samples": samples}
        _check_finite(cell, row["values"])
        if measured.languages:
            row["languages"] = dict(measured.languages)
        row["run"] = self._run
        self._content["cells"].append(row)
        self._rows.append(_dumps(row))
        self._keys.add(cell.key)
        self._write()

    def _write(self) -> None:
        # One line per cell: fast to write, and diffs are readable.
        head = {name: value for name, value in self._content.items() if name != "cells"}
        rows = ",\n".join(self._rows)
        write_atomically(
            self.path, f'{json.dumps(head, indent=1, ensure_ascii=False)[:-2]},\n "cells": [\n{rows}\n]}}\n'
        )

    def _check(self, study: str, settings: Mapping[str, Any]) -> None:
        if self._content["study"] != study:
            raise StudyError(
                f"{self.path} holds the study {self._content['study']!r}, not {study!r}. Give another folder."
            )
        if differences := list(_differences(self._content["settings"], settings)):
            raise StudyError(
                f"{self.path} was measured with other settings: {'; '.join(differences)}. Figures of both cannot "
                "stand together. Give another folder, or start anew with --force."
            )


def read(path: Path) -> dict[str, Any]:
    """Read a study's results file.

    Raises:
        StudyError: If it is not a valid results file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path} is not JSON ({error}). Remove it, or start anew with --force.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StudyError(f"{path} is no study's file of format {FORMAT}. Remove it, or start anew with --force.")
    return content


def results_of(content: Mapping[str, Any]) -> list[Result]:
    """Return the measured cells in a file's content."""
    return [
        Result(cell["parameters"], cell["values"], cell["samples"], cell.get("languages", {}))
        for cell in content["cells"]
    ]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a results file against other processes.

    Raises:
        StudyError: If another process holds the lock.
    """
    # In the temporary folder, because the lock file would otherwise be left next to the results.
    own = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"jcv2-study-{own}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StudyError(f"Another process is measuring into {path}. Wait for it, or give another folder.") from error
    try:
        yield
    finally:
        lock.release()


def missing(study: Study, record: StudyRecord) -> list[Cell]:
    """Return the cells of a study that have not been measured yet.

    Raises:
        StudyError: If the study has no cells, or two cells with the same parameters.
    """
    cells: Sequence[Cell] = study.cells()
    if not cells:
        raise StudyError(f"The study {study.name!r} has no cell to measure with these options.")
    if len({cell.key for cell in cells}) < len(cells):
        raise StudyError(f"The study {study.name!r} has cells with the same parameters; one would hide the other.")
    return [cell for cell in cells if cell not in record]


def _dumps(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _check_finite(cell: Cell, values: Mapping[str, Value]) -> None:
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise StudyError(f"{cell.key}: {name} is {value}. What cannot be measured must be None.")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} was {before!r}, is {now!r}"
