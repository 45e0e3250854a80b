"""What a study is: cells that are measured one by one, and a report made of what was measured.

A package may bring studies of its own. It names them as entry points of the group ``jcv2_plugin.studies``; each is a
function that typer can make a command of, and appears as ``jcv2 study NAME``::

    def recipe(out: Out, model: Model = "mini", seeds: Seeds = 3, force: Force = False) -> None:
        '''Shown as the command's help.'''
        from jcv2_plugin.evaluation.study.running import run_study

        run_study(RecipeStudy(model, seeds), out, force=force)

The options that studies share are in :mod:`jcv2_plugin.evaluation.study.options`. The module of such a function should
import nothing heavy, so that ``--help`` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jcv2_plugin.errors import Jcv2Error

STUDIES = "jcv2_plugin.studies"
"""The group of entry points."""

Value = str | int | float | bool | None
"""What a parameter or a measured value may be. Floats are finite; what could not be measured is None."""


class StudyError(Jcv2Error, ValueError):
    """A study cannot be run as asked, or its file holds the figures of another."""


@dataclass(frozen=True)
class Cell:
    """What is measured at a time.

    Attributes:
        parameters: By name, such as ``{"set": "xquad-en", "dim": 64, "seed": 0}``. They tell the cells of a study
            apart, and are kept in the order given.
    """

    parameters: Mapping[str, Value]

    @property
    def key(self) -> str:
        """The parameters as one string."""
        return ", ".join(f"{name} {value}" for name, value in self.parameters.items())


@dataclass(frozen=True)
class Measured:
    """What measuring a cell gave.

    Attributes:
        values: By name; all of them are shown in the report.
        samples: Of a measure the value of each query (or of what else was drawn), by its id: what intervals are
            computed from. They are kept in the file, not shown one by one.
        languages: Of each query its language, where those of a cell differ.
    """

    values: Mapping[str, Value]
    samples: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    languages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A cell that has been measured."""

    parameters: Mapping[str, Value]
    values: Mapping[str, Value]
    samples: Mapping[str, Mapping[str, float]]
    languages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Figures as text, in rows.

    Attributes:
        title: Above it.
        columns: Headings; the first ``labels`` of them head labels, the others figures.
        rows: Each as long as ``columns``.
        note: A sentence below it; may be empty.
        labels: How many columns are labels.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    labels: int = 1

    def markdown(self) -> str:
        """The table in Markdown, without title and note."""
        rule = ["---" if column < self.labels else "--:" for column in range(len(self.columns))]
        lines = [list(self.columns), rule, *(list(row) for row in self.rows)]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


@dataclass(frozen=True)
class Chart:
    """A picture as SVG text (:mod:`jcv2_plugin.evaluation.study.charts`), with a title above it and a note below."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a report: paragraphs, then tables and charts."""

    title: str
    paragraphs: Sequence[str]
    items: Sequence[Table | Chart] = ()


@dataclass(frozen=True)
class Report:
    """What a person reads.

    Attributes:
        question: What the study asks, in a sentence or two.
        findings: What it found, each a sentence with figures.
        sections: The tables and charts. The first chart is also written to a file of its own.
        limits: What figures of this size and kind can show and what they cannot, written from the settings.
    """

    question: str
    findings: Sequence[str]
    sections: Sequence[Section]
    limits: Sequence[str]


class Study(Protocol):
    """A question, the cells that answer it, and how to measure one."""

    @property
    def name(self) -> str:
        """The command's name, and that of its files."""

    @property
    def title(self) -> str:
        """The report's title."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that figures depend on beside a cell's parameters, as JSON: the model and its fingerprint, sizes of
        samples, lengths. A file with other settings is never continued.
        """

    def cells(self) -> Sequence[Cell]:
        """What to measure, in the order of measuring. More cells than last time are no other study."""

    def measure(self, cell: Cell) -> Measured:
        """Measure one cell. It must not depend on which cells were measured before, in this process or another."""

    def report(self, results: Sequence[Result]) -> Report:
        """The report of all cells measured so far, perhaps not all there are."""
