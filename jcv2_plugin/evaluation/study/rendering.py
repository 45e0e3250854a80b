"""Write a study's report as a self-contained HTML page, and its main chart as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from jcv2_plugin.evaluation.study.base import Chart, Report, Result, Study, StudyError, Table, Value
from jcv2_plugin.evaluation.study.record import StudyRecord
from jcv2_plugin.files import write_atomically

_NEEDED = ("matplotlib", "jinja2")


def check_installed() -> None:
    """Check that the packages for reports are installed, before spending hours on measurements.

    Raises:
        StudyError: If one is not.
    """
    if absent := [name for name in _NEEDED if find_spec(name) is None]:
        raise StudyError(f"Reports need {' and '.join(absent)}: pip install 'jcv2-plugin[study]'")


def write_report(study: Study, record: StudyRecord, out: Path, *, unmeasured: int = 0) -> list[Path]:
    """Write ``<name>.html`` and, if the report has a chart, ``<name>.svg``, and return their paths.

    Args:
        study: Study that creates the report.
        record: Measured cells.
        out: Existing folder to write to.
        unmeasured: Number of requested cells that were not measured, shown at the top of the page.
    """
    report = study.report(record.results)
    written = [out / f"{study.name}.html"]
    write_atomically(written[0], html(study.title, report, record, unmeasured=unmeasured))
    if (chart := main_chart(report)) is not None:
        written.append(out / f"{study.name}.svg")
        write_atomically(written[1], chart.svg)
    return written


def main_chart(report: Report) -> Chart | None:
    """Return the first chart of a report, or None."""
    return next((item for section in report.sections for item in section.items if isinstance(item, Chart)), None)


def html(title: str, report: Report, record: StudyRecord, *, unmeasured: int = 0) -> str:
    """Render the HTML page."""
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
    """Return a table with all parameters and values of all cells."""
    parameters = list(dict.fromkeys(name for one in results for name in one.parameters))
    values = list(dict.fromkeys(name for one in results for name in one.values))
    rows = [
        [*(shown(one.parameters.get(name)) for name in parameters), *(shown(one.values.get(name)) for name in values)]
        for one in results
    ]
    return Table("Each cell as it was measured", [*parameters, *values], rows, labels=len(parameters))


def shown(value: Value) -> str:
    """Format a value for the table of all measurements."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
