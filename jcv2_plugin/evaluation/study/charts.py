"""Charts as SVG text, readable in light and dark mode, without colour, and by screen readers."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from jcv2_plugin.evaluation.study.intervals import Interval

_INK, _GRID = "#010203", "#8a8f98"
"""The ink colour is a placeholder for the text colour of the page. The grid's grey works in light and dark mode."""
# Readable on white and on black. Series also differ in marker, dash and hatching.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0609a", "#a67c00", "#7b6fd0", "#808080", "#c2453d")
_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", "-.", ":")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo", "---")
_DODGE = 0.03
_ROW = 0.8  # share of a row that its dots take
_LABELS_WIDTH = 60  # characters that fit below a chart without rotation
_STYLE = (
    "<style>svg{color:#1b1f24;background:#fff;max-width:100%;height:auto}"
    "@media(prefers-color-scheme:dark){svg{color:#e4e7eb;background:#15181c}}</style>"
)


@dataclass(frozen=True)
class Line:
    """A series: a label, and a value with its interval for each ``x``."""

    label: str
    x: Sequence[float]
    y: Sequence[Interval]


@dataclass(frozen=True)
class Bars:
    """A series of bars: a label, and a value, or None, for each category."""

    label: str
    values: Sequence[Interval | None]


def line_chart(
    description: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    reference: float | None = None,
) -> str:
    """Draw lines with markers and error bars. The x axis is logarithmic.

    Args:
        description: Description of the chart for screen readers.
        lines: Series; at most eight are distinguishable.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        log_y: Whether the y axis is logarithmic too.
        reference: Value at which to draw a thin line.
    """
    figure, axes = _figure(7.2, 4.2)
    for number, line in enumerate(lines):
        # Shifted, so that error bars do not overlap.
        shift = 2 ** (_DODGE * (number - (len(lines) - 1) / 2))
        axes.errorbar(
            [x * shift for x in line.x],
            [one.mean for one in line.y],
            yerr=_ends(line.y),
            label=line.label,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle=_DASHES[number % len(_DASHES)],
            capsize=3,
            linewidth=1.6,
            markersize=5,
        )
    if reference is not None:
        axes.axhline(reference, color=_INK, linewidth=0.8)
    axes.set_xscale("log", base=2)
    if log_y:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ticks = sorted({x for line in lines for x in line.x})
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _legend(axes, len(lines))
    return _svg(figure, description)


def bar_chart(
    description: str,
    categories: Sequence[str],
    groups: Sequence[Bars],
    *,
    y_label: str,
    zero_line: bool = False,
) -> str:
    """Draw groups of bars with error bars; see :func:`line_chart`."""
    figure, axes = _figure(max(5.0, 1.6 + 0.42 * len(categories) * (len(groups) + 0.8)), 4.2)
    width = 0.8 / len(groups)
    for number, group in enumerate(groups):
        centres = [index + (number - (len(groups) - 1) / 2) * width for index in range(len(categories))]
        shown = [(x, value) for x, value in zip(centres, group.values, strict=True) if value is not None]
        axes.bar(
            [x for x, _ in shown],
            [value.mean for _, value in shown],
            width * 0.92,
            yerr=_ends([value for _, value in shown]),
            label=group.label,
            color=_COLOURS[number % len(_COLOURS)],
            hatch=_HATCHES[number % len(_HATCHES)],
            edgecolor=_GRID,
            linewidth=0.5,
            ecolor=_INK,
            capsize=2,
        )
    if zero_line:
        axes.axhline(0, color=_INK, linewidth=0.8)
    turned = sum(map(len, categories)) > _LABELS_WIDTH
    axes.set_xticks(range(len(categories)), categories, rotation=30 * turned, ha="right" if turned else "center")
    axes.set_ylabel(y_label)
    _legend(axes, len(groups))
    return _svg(figure, description)


def dot_chart(
    description: str,
    categories: Sequence[str],
    groups: Sequence[Bars],
    *,
    x_label: str,
    reference: float | None = None,
) -> str:
    """Draw a row for each category, with a dot and an error bar for each series; see :func:`line_chart`."""
    figure, axes = _figure(7.2, 1.3 + len(categories) * (0.1 + 0.085 * len(groups)), grid="x")
    for number, group in enumerate(groups):
        shift = (number - (len(groups) - 1) / 2) * _ROW / len(groups)
        shown = [(row + shift, value) for row, value in enumerate(group.values) if value is not None]
        axes.errorbar(
            [value.mean for _, value in shown],
            [y for y, _ in shown],
            xerr=_ends([value for _, value in shown]),
            label=group.label,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle="none",
            linewidth=1.2,
            markersize=4,
        )
    for row in range(1, len(categories), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=_GRID, alpha=0.12, linewidth=0)
    if reference is not None:
        axes.axvline(reference, color=_INK, linewidth=0.8)
    axes.set_yticks(range(len(categories)), categories)
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.set_xlabel(x_label)
    _legend(axes, len(groups))
    return _svg(figure, description)


def _ends(values: Sequence[Interval]) -> list[list[float]]:
    """Return the lengths of the error bars, down and up."""
    return [[max(0.0, one.mean - one.low) for one in values], [max(0.0, one.high - one.mean) for one in values]]


def _figure(width: float, height: float, grid: str = "y") -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots()
    axes.grid(axis=grid, color=_GRID, alpha=0.35, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_INK)
    axes.tick_params(colors=_INK, labelcolor=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _legend(axes: Any, series: int) -> None:
    if series > 1:
        axes.figure.legend(loc="outside upper left", ncols=min(series, 5), frameon=False, labelcolor=_INK)


def _svg(figure: Any, description: str) -> str:
    import matplotlib

    stream = io.StringIO()
    # Keep text as text, which can be searched, read aloud and scaled. No date, so that the output is reproducible.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": description, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _accessible(stream.getvalue(), description)


def _accessible(svg: str, description: str) -> str:
    """Return a single SVG element with a title and the page's text colour, without prologue and unused ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace(_INK, "currentColor")
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    text = escape(description, quote=True)
    head = f'<svg role="img" aria-label="{text}" '
    opened, rest = svg.removeprefix("<svg ").split(">", 1)
    return f"{head}{opened}>{_STYLE}<title>{text}</title>{rest.strip()}\n"
