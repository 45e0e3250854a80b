"""Run a study: measure the cells that are missing, then write the report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jcv2_plugin.console import err, quiet_libraries, remark
from jcv2_plugin.evaluation.study.base import Cell, Study, StudyError
from jcv2_plugin.evaluation.study.environment import command, machine, versions
from jcv2_plugin.evaluation.study.record import StudyRecord, locked, missing
from jcv2_plugin.evaluation.study.rendering import check_installed, write_report

_INTERRUPTED = 130


def run_study(study: Study, out: str | os.PathLike[str], *, force: bool = False) -> None:
    """Measure what is missing and write ``<out>/<name>.json``, ``.html`` and ``.svg``.

    Every cell is on the disk before the next begins, so that a run which is stopped or killed loses one at most;
    called again, it measures the others.

    Args:
        study: What to measure.
        out: A folder; made if need be.
        force: Start anew, whatever was measured before. The old file is kept until the first cell is measured.

    Raises:
        StudyError: The folder holds figures of other settings, another process measures into it, or what reports
            need is not installed.
        typer.Exit: With status 130 after Ctrl-C, once a report of what there is has been written.
    """
    check_installed()
    quiet_libraries()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{study.name}.json"
    with locked(path):
        record = StudyRecord(path, study.name, study.settings, force=force)
        cells = missing(study, record)
        kept = len(study.cells()) - len(cells)
        if kept:
            remark(f"{kept} of {kept + len(cells)} cells were measured before; {len(cells)} to go.")
        interrupted = _measure(study, record, cells)
        if record.results and not (interrupted and _too_early(study, record)):
            written = write_report(study, record, out, unmeasured=len(missing(study, record)))
            remark(f"Written: {', '.join(map(str, [path, *written]))}")
        if interrupted:
            remark("Stopped. What was measured is kept: the same command goes on from there.")
            raise typer.Exit(_INTERRUPTED)


def _measure(study: Study, record: StudyRecord, cells: Sequence[Cell]) -> bool:
    """Measure and keep cells; whether Ctrl-C put an end to it."""
    record.begin(command(), versions(), machine())
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=len(cells))
        try:
            for cell in cells:
                progress.update(task, description=cell.key)
                record.add(cell, study.measure(cell))
                progress.advance(task)
        except KeyboardInterrupt:
            return True
    return False


def _too_early(study: Study, record: StudyRecord) -> bool:
    """Whether a run was stopped before there is anything to report."""
    try:
        study.report(record.results)
    except StudyError as error:
        remark(str(error))
        return True
    return False
