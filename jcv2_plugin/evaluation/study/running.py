"""Run a study: measure the missing cells, then write the report as a self-contained HTML page."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jcv2_plugin.console import err, quiet_libraries, remark
from jcv2_plugin.evaluation.study.base import Cell, Chart, Study, StudyError, Table, Value
from jcv2_plugin.evaluation.study.charts import svg
from jcv2_plugin.evaluation.study.environment import machine, versions
from jcv2_plugin.evaluation.study.record import StudyRecord, locked
from jcv2_plugin.files import write_atomically

_INTERRUPTED = 130


def run_study(study: Study, out: str | os.PathLike[str], *, force: bool = False) -> None:
    """Measure the missing cells of a study and write ``<out>/<name>.json``, ``.html`` and ``.svg``.

    Every cell is written to disk before the next one starts, so an interrupted run loses at most one cell. Calling this
    again continues the run. With ``force``, earlier results are replaced when the first cell is measured.

    Raises:
        StudyError: If the folder has results of other settings, another process is measuring into it, or the
            study has no or equal cells.
        typer.Exit: With status 130 after Ctrl-C, after writing a report on the results so far.
    """
    quiet_libraries()
    path = Path(out) / f"{study.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        record = StudyRecord(path, study.name, study.settings, force=force)
        cells = {cell.key: cell for cell in study.cells()}
        if not cells or len(cells) < len(study.cells()):
            what = "cells with equal parameters" if cells else "no cells to measure with these options"
            raise StudyError(f"The study {study.name!r} has {what}.")
        missing = [cell for key, cell in cells.items() if key not in {one.key for one in record.cells}]
        if len(missing) < len(cells):
            remark(f"{len(cells) - len(missing)} of {len(cells)} cells were measured before; {len(missing)} to go.")
        left = _measure(study, record, missing)
        try:
            written = write_report(study, record, unmeasured=left) if record.cells else []
            remark(f"Written: {', '.join(map(str, [path, *written]))}")
        except StudyError as error:
            if not left:
                raise
            remark(str(error))
        if left:
            remark("Stopped. The results so far are saved. Run the same command to continue.")
            raise typer.Exit(_INTERRUPTED)


def _measure(study: Study, record: StudyRecord, cells: Sequence[Cell]) -> int:
    """Measure cells and record them. Return how many are left after Ctrl-C."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    record.begin({"command": command, "versions": versions(), "machine": machine()})
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=len(cells))
        for number, cell in enumerate(cells):
            progress.update(task, description=cell.key)
            try:
                record.add(study.measure(cell))
            except KeyboardInterrupt:
                return len(cells) - number
            progress.advance(task)
    return 0


def write_report(study: Study, record: StudyRecord, *, unmeasured: int = 0) -> list[Path]:
    """Write the HTML page and, if the report has a chart, the first one as SVG, beside the record.

    The page says at its top how many cells are ``unmeasured``.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    report = study.report(record.settings, record.cells)
    charts = [svg(item) for item in report.items() if isinstance(item, Chart)]
    loader = PackageLoader("jcv2_plugin.evaluation.study", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template("report.html.j2").render(
        study=study, report=report, record=record, draw=svg, unmeasured=unmeasured, everything=_everything(record.cells)
    )
    files = {record.path.with_suffix(".html"): page}
    files |= {record.path.with_suffix(".svg"): drawn for drawn in charts[:1]}
    for path, content in files.items():
        write_atomically(path, content)
    return list(files)


def _everything(cells: Sequence[Cell]) -> Table:
    """Return a table with all parameters and values of all cells."""
    parameters = list(dict.fromkeys(name for one in cells for name in one.parameters))
    values = list(dict.fromkeys(name for one in cells for name in one.values))
    rows = [
        [*(shown(one.parameters.get(name)) for name in parameters), *(shown(one.values.get(name)) for name in values)]
        for one in cells
    ]
    return Table("Each cell as it was measured", [*parameters, *values], rows, labels=len(parameters))


def shown(value: Value) -> str:
    """Format a value for the table of all measurements."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
