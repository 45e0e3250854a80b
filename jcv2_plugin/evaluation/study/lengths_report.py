"""The report of the study ``lengths``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from statistics import median
from typing import Any

from jcv2_plugin.evaluation.study.base import Chart, Report, Result, Section, Table
from jcv2_plugin.evaluation.study.charts import Line, line_chart
from jcv2_plugin.evaluation.study.intervals import Interval, median_interval
from jcv2_plugin.evaluation.study.retrieval import distinct, having

EAGER, SDPA, FLASH = "eager", "sdpa", "flash_attention_2"
ROTARY, ABSOLUTE = "rotary", "absolute"
TO_SDPA = "time, to SDPA"
TO_ABSOLUTE = "time, to absolute positions"
TO_BATCH = "time a text, to the smallest batch"
TO_LENGTH = "time a token, to the shortest"
PEAK_MEMORY, PASS_MEMORY = "peak memory, MiB", "memory of the pass, MiB"
MEASURED = "measured"


def lengths_report(settings: Mapping[str, Any], results: Sequence[Result]) -> Report:
    """Return the report on the measured cells."""
    measured = [one for one in results if one.values["outcome"] == MEASURED]
    others = [one for one in results if one.values["outcome"] != MEASURED]
    network = (
        f"{settings['layers']} layers, width {settings['hidden']}, {settings['heads']} heads, {settings['dtype']}, "
        f"{settings['device']}"
    )
    method = (
        "Each cell ran in a process of its own. Times are ratios of passes that ran by turns in that process: the "
        "median of the rounds, with rounds in brackets that hold the true median with 95 % confidence, or the lowest "
        "and the highest where there are fewer than six. They are of the time that the processor spent where torch has "
        "one thread, so that other work on the machine does not count, and of the clock otherwise. Less than 1 is "
        "faster than what is compared with."
    )
    sections = [
        Section("By length", [method], [*_growth_chart(settings, measured), ratios(measured, TO_LENGTH)]),
        Section("Kinds of attention", [], [*_memory_chart(measured), ratios(measured, TO_SDPA), memory(results)]),
        Section("Rotary against absolute positions", [], [ratios(measured, TO_ABSOLUTE)]),
        Section("By batch", [], [ratios(measured, TO_BATCH)]),
    ]
    if settings["device"].startswith("cuda"):
        sections.append(Section("Time", [], [_absolute(measured)]))
    if others:
        rows = [[*(str(value) for value in one.parameters.values()), str(one.values["outcome"])] for one in others]
        table = Table("Cells without figures", [*others[0].parameters, "why"], rows, labels=len(others[0].parameters))
        sections.append(Section("What was not measured", [], [table]))
    return Report(
        question=(
            "How do time and memory grow with length and batch, and what do kinds of attention and positions cost? "
            f"Network: {network}."
        ),
        findings=_findings(measured, others),
        sections=sections,
        limits=_limits(settings),
    )


def _findings(measured: Sequence[Result], others: Sequence[Result]) -> list[str]:
    found = []
    for name, text in (
        (TO_SDPA, "{kind} attention takes {ratio:.2f} times SDPA's time at {tokens:,} tokens, batch {batch}."),
        (
            TO_ABSOLUTE,
            "Rotary positions take {ratio:.2f} times the time of absolute ones at {tokens:,} tokens ({kind}).",
        ),
        (TO_LENGTH, "A token costs {ratio:.1f} times as much at {tokens:,} tokens as at the shortest ({kind})."),
        (
            TO_BATCH,
            "In batches of {batch}, a text takes {ratio:.2f} times its time alone, at {tokens:,} tokens ({kind}).",
        ),
    ):
        for kind in (EAGER, FLASH) if name == TO_SDPA else (SDPA,):
            own = [one for one in measured if one.parameters["attention"] == kind and one.values[name] is not None]
            if not own:
                continue
            longest = max(int(one.parameters["tokens"] or 0) for one in own)
            at = [one for one in own if one.parameters["tokens"] == longest]
            batch = max(int(one.parameters["batch"] or 0) for one in at)
            ratio = median(float(one.values[name] or 0) for one in at if one.parameters["batch"] == batch)
            found.append(text.format(kind=kind, ratio=ratio, tokens=longest, batch=batch))
    reasons = {str(one.values["outcome"]) for one in others}
    if others:
        found.append(f"{len(others)} cells have no figures: {'; '.join(sorted(reasons))}.")
    return found


def ratios(results: Sequence[Result], name: str) -> Table:
    """Return a table of a ratio by length, for each attention, kind of positions and batch size that has it."""
    return _grid(results, f"{name[0].upper()}{name[1:]}", lambda cells: _ratio(cells, name))


def memory(results: Sequence[Result]) -> Table:
    """Return a table of the memory that a pass needs in addition to the network, by length."""

    def text(cells: Sequence[Result]) -> str | None:
        found = [one.values[PASS_MEMORY] for one in cells if one.values[PASS_MEMORY] is not None]
        return f"{median(float(value or 0) for value in found):,.0f}" if found else None

    note = (
        "The most that was held during a pass, less what was held before. Small ones are within the allocator's noise."
    )
    return _grid(results, "Memory of a pass, MiB", text, note)


def _ratio(cells: Sequence[Result], name: str) -> str | None:
    found = _spread(cells, name)
    return None if found is None else found.text(2)


def _spread(cells: Sequence[Result], name: str) -> Interval | None:
    """Return the median of a ratio over its rounds with its interval, or None if it was not measured."""
    rounds = [value for one in cells if name in one.samples for value in one.samples[name].values()]
    return median_interval(rounds) if rounds else None


def _grid(
    results: Sequence[Result], title: str, text: Callable[[Sequence[Result]], str | None], note: str = ""
) -> Table:
    lengths = sorted(distinct(results, "tokens"))
    columns, cells = [], []
    for attention, kind, batch in product(*(distinct(results, name) for name in ("attention", "positions", "batch"))):
        own = having(results, attention=attention, positions=kind, batch=batch)
        column = [text(having(own, tokens=length)) for length in lengths]
        if any(column):
            columns.append(f"{attention}, {kind}, batch {batch}")
            cells.append(column)
    # There are more combinations than lengths, so the combinations are the rows.
    rows = [[name, *(value or "–" for value in column)] for name, column in zip(columns, cells, strict=True)]
    return Table(title, ["", *(f"{length:,} tokens" for length in lengths)], rows, note)


def _lines(results: Sequence[Result], batch: int, value: Callable[[Sequence[Result]], Interval | None]) -> list[Line]:
    """Return a line of values by length for each attention and kind of positions that has any."""
    lines = []
    for attention, kind in product(distinct(results, "attention"), distinct(results, "positions")):
        own = having(results, attention=attention, positions=kind, batch=batch)
        values = {length: value(having(own, tokens=length)) for length in sorted(distinct(results, "tokens"))}
        if points := {length: found for length, found in values.items() if found is not None}:
            lines.append(Line(f"{attention}, {kind}", list(points), list(points.values())))
    return lines


def _growth_chart(settings: Mapping[str, Any], results: Sequence[Result]) -> list[Chart]:
    smallest, shortest = settings["smallest batch"], settings["shortest"]
    lines = [
        Line(line.label, [shortest, *line.x], [Interval(1.0, 1.0, 1.0), *line.y])
        for line in _lines(results, smallest, lambda cells: _spread(cells, TO_LENGTH))
    ]
    if not lines:
        return []
    description = f"Time a token at each length, to that at {shortest} tokens, batch {smallest}; a line for each kind."
    label = f"time a token, to that at {shortest}"
    svg = line_chart(description, lines, x_label="tokens a text", y_label=label, reference=1)
    return [Chart(f"What a token costs in longer texts, batch {smallest}", svg, "1 would be linear growth.")]


def _memory_chart(results: Sequence[Result]) -> list[Chart]:
    def value(cells: Sequence[Result]) -> Interval | None:
        found = [float(one.values[PASS_MEMORY] or 0) for one in cells if one.values[PASS_MEMORY]]
        return Interval(median(found), min(found), max(found)) if found else None

    batch = max((int(one.parameters["batch"] or 0) for one in results), default=0)
    if not (lines := _lines(results, batch, value)):
        return []
    description = f"Memory of a pass at each length, batch {batch}; a line for each kind of attention and positions."
    svg = line_chart(description, lines, x_label="tokens a text", y_label="MiB", log_y=True)
    return [Chart(f"Memory of a pass, batch {batch}", svg, "Both axes are logarithmic.")]


def _absolute(results: Sequence[Result]) -> Table:
    def text(cells: Sequence[Result]) -> str | None:
        found = [float(one.values["ms"] or 0) for one in cells if one.values.get("ms") is not None]
        return f"{median(found):,.2f}" if found else None

    return _grid(results, "Time of a pass, ms", text)


def _limits(settings: Mapping[str, Any]) -> list[str]:
    lines = [
        f"The network is {settings['layers']} layers deep and {settings['hidden']} wide; jina-colbert-v2 has 24 layers "
        "of width 1,024 and 16 heads. In a wider network the matrices cost more beside the attention, so that "
        "attention's share, and with it every ratio here, is smaller at the same length.",
        "Weights are random. Time and memory do not depend on them; quality is not looked at.",
        "All texts of a batch have the same length, so nothing is said of padding.",
    ]
    if settings["device"].startswith("cuda"):
        lines.append(
            "SDPA uses flash kernels of torch's own where they fit; flash_attention_2 is the package flash-attn."
        )
    else:
        lines.append(
            f"On a CPU with {settings['threads']} thread(s): ratios carry over to other CPUs roughly, to a GPU not at "
            "all. Flash attention's gain is in traffic to a GPU's memory, of which a CPU can show nothing."
        )
    return lines
