"""Draw charts as SVG text, readable in light and dark mode, without colour, and by screen readers."""

from __future__ import annotations

import math
from html import escape

from jcv2_plugin.evaluation.study.base import Chart

# Readable on white and on black. Series also differ in their marks.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0609a", "#a67c00", "#7b6fd0", "#808080", "#c2453d")
_MARKS = "●■▲◆✚★▼✖"
_STYLE = (
    "svg{color:#1b1f24;background:#fff;font:13px system-ui,sans-serif;max-width:100%;height:auto}"
    "text{dominant-baseline:central}@media(prefers-color-scheme:dark){svg{color:#e4e7eb;background:#15181c}}"
)
_GRID = 'stroke="#8a8f98" opacity=".35"'
_WIDTH, _ROW, _TOP, _LETTER = 760, 11, 34, 7.2


def svg(chart: Chart) -> str:
    """Draw a row for each category, with a mark and a line for each series' figure and interval."""
    places = list(dict.fromkeys(place for own in chart.series.values() for place in own))
    height = max(2, len(chart.series)) * _ROW
    bottom = _TOP + height * len(places)
    left = _LETTER * max(map(len, places)) + 16
    ends = [end for own in chart.series.values() for one in own.values() if one is not None for end in one]
    ends += [] if chart.reference is None else [chart.reference]
    step = _step(max(ends) - min(ends))
    first, last = math.floor(min(ends) / step), math.ceil(max(ends) / step)

    def x(value: float) -> float:
        return left + (value / step - first) / max(1, last - first) * (_WIDTH - left - 20)

    drawn = []
    for index, place in enumerate(places):
        y = _TOP + height * index
        drawn += [_label(left - 8, y + height / 2, place, "end"), _line(left, y, _WIDTH, y, _GRID)]
    for tick in (number * step for number in range(first, last + 1)):
        drawn += [_line(x(tick), _TOP, x(tick), bottom, _GRID), _label(x(tick), bottom + 12, f"{tick:.6g}", "middle")]
    if chart.reference is not None:
        drawn.append(_line(x(chart.reference), _TOP, x(chart.reference), bottom, 'stroke="currentColor"'))
    beside = 8.0
    for number, (name, own) in enumerate(chart.series.items()):
        colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)]
        drawn += [_label(beside, 16, mark, "start", colour), _label(beside + 14, 16, name)]
        beside += _LETTER * len(name) + 34
        for place, one in own.items():
            if one is not None:
                at = _TOP + height * (places.index(place) + (number + 0.5) / len(chart.series))
                drawn.append(_line(x(one.low), at, x(one.high), at, f'stroke="{colour}" stroke-width="1.5"'))
                drawn.append(_label(x(one.mean), at, mark, "middle", colour))
    drawn.append(_label(left, bottom + 32, chart.label))
    said = escape(f"{chart.title}: {', '.join(places)}")
    head = f'role="img" aria-label="{said}" width="{_WIDTH}" viewBox="0 0 {_WIDTH} {bottom + 44}"'
    style = f"<style>{_STYLE}</style><title>{said}</title>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {head}>{style}{"".join(drawn)}</svg>\n'


def _step(span: float) -> float:
    """Return a distance of ticks, of which four to ten fit into a span."""
    power = 10.0 ** math.floor(math.log10(max(span, 1e-6) / 4))
    return next(power * factor for factor in (5, 2, 1) if power * factor <= max(span, 1e-6) / 4)


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" {style}/>'


def _label(x: float, y: float, text: str, anchor: str = "start", colour: str = "currentColor") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
