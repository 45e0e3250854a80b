"""What a study consists of: cells that are measured one by one, and a report with tables and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from jcv2_plugin.errors import Jcv2Error

Value = str | int | float | bool | None
"""Type of a parameter or a measured value. Floats are finite; None means that it could not be measured."""

Samples = Mapping[str, float]
"""Values of a measure by query id."""


class StudyError(Jcv2Error, ValueError):
    """A study cannot be run with these options, or its file holds the results of another one."""


@dataclass(frozen=True)
class Cell:
    """The unit that a study measures at a time.

    Attributes:
        parameters: Parameters by name, such as ``{"set": "xquad-en", "dim": 64, "seed": 0}``. They identify the cell.
        values: Measured values by name; the report shows all of them.
        samples: For each measure, the value of each query (or other sampled unit) by id, for intervals.
        languages: Language of each query, if the queries of a cell differ in language.
    """

    parameters: Mapping[str, Value]
    values: Mapping[str, Value] = field(default_factory=dict)
    samples: Mapping[str, Samples] = field(default_factory=dict)
    languages: Mapping[str, str] = field(default_factory=dict)

    def measured(
        self,
        values: Mapping[str, Value],
        samples: Mapping[str, Samples] | None = None,
        languages: Mapping[str, str] | None = None,
    ) -> Cell:
        """Return the cell with its measurements."""
        return replace(self, values=values, samples=samples or {}, languages=languages or {})

    @property
    def key(self) -> str:
        """The parameters as a single string."""
        return ", ".join(f"{name} {value}" for name, value in self.parameters.items())


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float

    def text(self, digits: int = 3, *, signed: bool = False) -> str:
        """Format the interval as ``0.912 [0.891, 0.930]``."""
        mean, low, high = (f"{value:{'+' if signed else ''}.{digits}f}" for value in self)
        return f"{mean} [{low}, {high}]"


@dataclass(frozen=True)
class Table:
    """A table: a title, column headings (``labels`` of them for labels), rows of text, and a note below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    labels: int = 1

    def markdown(self) -> str:
        """Return the table in Markdown, without title and note."""
        rule = ["---" if column < self.labels else "--:" for column in range(len(self.columns))]
        lines = [self.columns, rule, *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


@dataclass(frozen=True)
class Chart:
    """Figures with their intervals, by series (at most eight are distinguishable) and category, drawn as rows of dots.

    ``label`` is that of the axis, ``note`` a sentence below the chart, and ``reference`` the value at which to draw a
    line.
    """

    title: str
    label: str
    series: Mapping[str, Mapping[str, Interval | None]]
    note: str = ""
    reference: float | None = None


@dataclass(frozen=True)
class Report:
    """The content of a study's report.

    Attributes:
        question: The question that the study answers, in one or two sentences.
        findings: The results, each a sentence with figures.
        sections: Paragraphs, tables and charts by heading. The first chart is also written to a separate file.
        limits: What results of this size and kind can and cannot show.
    """

    question: str
    findings: Sequence[str]
    sections: Mapping[str, Sequence[str | Table | Chart]]
    limits: Sequence[str]

    def items(self) -> list[str | Table | Chart]:
        """Return the paragraphs, tables and charts of all sections."""
        return [item for section in self.sections.values() for item in section]


class Study(Protocol):
    """A question, the cells that answer it, and how to measure them."""

    name: str
    """Name of the command and of its files."""
    title: str
    """Title of the report."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything besides the cell parameters that affects the results, as JSON: the model and its fingerprint,
        sample sizes, lengths. A file with other settings is never continued.
        """

    def cells(self) -> Sequence[Cell]:
        """Return the cells to measure, in order. A study may have more cells than in the last run."""

    def measure(self, cell: Cell) -> Cell:
        """Measure one cell. The result must not depend on the cells measured before, in this process or another."""

    def report(self, settings: Mapping[str, Any], cells: Sequence[Cell]) -> Report:
        """Return the report on the cells measured so far, which may not be all of them."""
