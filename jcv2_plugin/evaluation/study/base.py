"""The study protocol: cells that are measured one by one, and a report on the results.

Other packages can provide studies as entry points in the group ``jcv2_plugin.studies``. Each is a function that typer
can turn into a command, and appears as ``jcv2 study NAME``::

    def recipe(out: Out, model: Model = "mini", seeds: Seeds = 3, force: Force = False) -> None:
        '''Shown as the command's help.'''
        from jcv2_plugin.evaluation.study.running import run_study

        run_study(RecipeStudy(model, seeds), out, force=force)

:mod:`jcv2_plugin.evaluation.study.options` has the options that studies share. The module of the function should not
import anything heavy, so that ``--help`` is fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jcv2_plugin.errors import Jcv2Error

STUDIES = "jcv2_plugin.studies"
"""Entry point group for studies."""

Value = str | int | float | bool | None
"""Type of a parameter or a measured value. Floats are finite; None means that it could not be measured."""


class StudyError(Jcv2Error, ValueError):
    """A study cannot be run with these options, or its file holds the results of another one."""


@dataclass(frozen=True)
class Cell:
    """The unit that a study measures at a time.

    Attributes:
        parameters: Parameters by name, such as ``{"set": "xquad-en", "dim": 64, "seed": 0}``. They identify the cell
            within its study, and their order is kept.
    """

    parameters: Mapping[str, Value]

    @property
    def key(self) -> str:
        """The parameters as a single string."""
        return ", ".join(f"{name} {value}" for name, value in self.parameters.items())


@dataclass(frozen=True)
class Measured:
    """The measurements of a cell.

    Attributes:
        values: Values by name; all of them are shown in the report.
        samples: For each measure, the value of each query (or other sampled unit) by id. Intervals are computed from
            them. They are stored in the file, but not shown individually.
        languages: Language of each query, if the queries of a cell differ in language.
    """

    values: Mapping[str, Value]
    samples: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    languages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A measured cell."""

    parameters: Mapping[str, Value]
    values: Mapping[str, Value]
    samples: Mapping[str, Mapping[str, float]]
    languages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        title: Title above the table.
        columns: Column headings, labels first, then figures.
        rows: Rows of text, each as long as ``columns``.
        note: Sentence below the table; may be empty.
        labels: Number of label columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    labels: int = 1

    def markdown(self) -> str:
        """Return the table in Markdown, without title and note."""
        rule = ["---" if column < self.labels else "--:" for column in range(len(self.columns))]
        lines = [list(self.columns), rule, *(list(row) for row in self.rows)]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


@dataclass(frozen=True)
class Chart:
    """A chart as SVG text (:mod:`jcv2_plugin.evaluation.study.charts`), with a title above it and a note below."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A section of a report: paragraphs, then tables and charts."""

    title: str
    paragraphs: Sequence[str]
    items: Sequence[Table | Chart] = ()


@dataclass(frozen=True)
class Report:
    """The content of a study's report.

    Attributes:
        question: The question that the study answers, in one or two sentences.
        findings: The results, each a sentence with figures.
        sections: Tables and charts. The first chart is also written to a separate file.
        limits: What results of this size and kind can and cannot show, derived from the settings.
    """

    question: str
    findings: Sequence[str]
    sections: Sequence[Section]
    limits: Sequence[str]


class Study(Protocol):
    """A question, the cells that answer it, and how to measure them."""

    @property
    def name(self) -> str:
        """Name of the command and of its files."""

    @property
    def title(self) -> str:
        """Title of the report."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything besides the cell parameters that affects the results, as JSON: the model and its fingerprint,
        sample sizes, lengths. A file with other settings is never continued.
        """

    def cells(self) -> Sequence[Cell]:
        """Return the cells to measure, in order. A study may have more cells than in the last run."""

    def measure(self, cell: Cell) -> Measured:
        """Measure one cell. The result must not depend on the cells measured before, in this process or another."""

    def report(self, results: Sequence[Result]) -> Report:
        """Return the report on the cells measured so far, which may not be all of them."""
