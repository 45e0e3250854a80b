"""The file of a study: its settings and every cell measured so far, written anew after each."""

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
    """What has been measured, in memory and in ``<out>/<study>.json``.

    Args:
        path: The file; read if it is there.
        study: Name and title.
        settings: They must be those of the file.
        force: Start anew, whatever the file holds.

    Raises:
        StudyError: The file is unreadable, of another study, or of other settings.
    """

    def __init__(self, path: Path, study: str, settings: Mapping[str, Any], *, force: bool = False) -> None:
        self.path = path
        # As they read after a round through JSON, where tuples are lists and keys strings.
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
        """All that the figures depend on beside a cell's parameters."""
        return dict(self._content["settings"])

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Command, versions and machine of each run that measured something."""
        return list(self._content["runs"])

    @property
    def results(self) -> list[Result]:
        """The cells measured, in the order of measuring."""
        return results_of(self._content)

    def __contains__(self, cell: Cell) -> bool:
        return cell.key in self._keys

    def begin(self, command: str, versions: Mapping[str, str], machine: Mapping[str, Any]) -> None:
        """Say who measures the cells that follow; the same as before is said once."""
        run = {"command": command, "versions": dict(versions), "machine": dict(machine)}
        if run not in self._content["runs"]:
            self._content["runs"].append(run)
        self._run = self._content["runs"].index(run)

    def add(self, cell: Cell, measured: Measured) -> None:
        """Keep a cell: when this returns it is on the disk.

        Raises:
            StudyError: A value is not finite.
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
        # A cell a line: written quickly, and a difference between two files can be read.
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
    """What a study's file holds.

    Raises:
        StudyError: It is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path} is not JSON ({error}). Remove it, or start anew with --force.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StudyError(f"{path} is no study's file of format {FORMAT}. Remove it, or start anew with --force.")
    return content


def results_of(content: Mapping[str, Any]) -> list[Result]:
    """The cells of a file's content."""
    return [
        Result(cell["parameters"], cell["values"], cell["samples"], cell.get("languages", {}))
        for cell in content["cells"]
    ]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from measuring into the same file.

    Raises:
        StudyError: One does.
    """
    # Not beside the file, where it would be left among the figures.
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
    """The cells of a study that were not measured yet.

    Raises:
        StudyError: Two cells have the same parameters, or there is none.
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
