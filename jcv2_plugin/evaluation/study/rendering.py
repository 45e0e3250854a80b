"""A study's report as files: one HTML page that needs nothing beside it, and the main chart as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from jcv2_plugin.evaluation.study.base import Chart, Report, Result, Study, StudyError, Table, Value
from jcv2_plugin.evaluation.study.record import StudyRecord
from jcv2_plugin.files import write_atomically

_NEEDED = ("matplotlib", "jinja2")


def check_installed() -> None:
    """Say what is missing before hours are spent on measuring.

    Raises:
        StudyError: What reports are made with is not installed.
    """
    if absent := [name for name in _NEEDED if find_spec(name) is None]:
        raise StudyError(f"Reports need {' and '.join(absent)}: pip install 'jcv2-plugin[study]'")


def write_report(study: Study, record: StudyRecord, out: Path, *, unmeasured: int = 0) -> list[Path]:
    """Write ``<name>.html`` and, where the report has a chart, ``<name>.svg``; give their paths.

    Args:
        study: Makes the report.
        record: What was measured.
        out: An existing folder.
        unmeasured: Cells asked for and not measured, which the page says first.
    """
    report = study.report(record.results)
    written = [out / f"{study.name}.html"]
    write_atomically(written[0], html(study.title, report, record, unmeasured=unmeasured))
    if (chart := main_chart(report)) is not None:
        written.append(out / f"{study.name}.svg")
        write_atomically(written[1], chart.svg)
    return written


def main_chart(report: Report) -> Chart | None:
    """The first chart of a report."""
    return next((item for section in report.sections for item in section.items if isinstance(item, Chart)), None)


def html(title: str, report: Report, record: StudyRecord, *, unmeasured: int = 0) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("jcv2_plugin.evaluation.study", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        report=report,
        unmeasured=unmeasured,
        everything=everything(record.results),
        settings=record.settings,
        runs=record.runs,
    )


def everything(results: Sequence[Result]) -> Table:
    """Every parameter and value of every cell."""
    parameters = list(dict.fromkeys(name for one in results for name in one.parameters))
    values = list(dict.fromkeys(name for one in results for name in one.values))
    rows = [
        [*(shown(one.parameters.get(name)) for name in parameters), *(shown(one.values.get(name)) for name in values)]
        for one in results
    ]
    return Table("Each cell as it was measured", [*parameters, *values], rows, labels=len(parameters))


def shown(value: Value) -> str:
    """A value as the table of all measurements has it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
