"""Run a study: measure the missing cells, then write the report."""

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
    """Measure the missing cells of a study and write ``<out>/<name>.json``, ``.html`` and ``.svg``.

    Every cell is written to disk before the next one starts, so an interrupted run loses at most one cell. Calling this
    again continues the run.

    Args:
        study: Study to run.
        out: Output folder; created if it does not exist.
        force: Whether to start over and discard earlier results. The old file is kept until the first cell is measured.

    Raises:
        StudyError: If the folder has results of other settings, another process is measuring into it, or a package for
            reports is not installed.
        typer.Exit: With status 130 after Ctrl-C, after writing a report on the results so far.
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
    """Measure cells and record them. Return whether Ctrl-C interrupted it."""
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
    """Return whether there is nothing to report yet."""
    try:
        study.report(record.results)
    except StudyError as error:
        remark(str(error))
        return True
    return False
