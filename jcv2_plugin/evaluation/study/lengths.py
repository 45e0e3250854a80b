"""The study ``lengths``: time and memory of the backbone by length, batch size, attention and kind of positions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from statistics import median
from typing import Any

from sentence_transformers.util import get_device_name

from jcv2_plugin.encoder.official import DEFAULT_ROPE_THETA
from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.evaluation.study.base import Cell, Chart, Interval, Report, StudyError, Table, Value
from jcv2_plugin.evaluation.study.environment import machine
from jcv2_plugin.evaluation.study.intervals import median_interval
from jcv2_plugin.evaluation.study.options import DTYPES
from jcv2_plugin.evaluation.study.retrieval import distinct, having

ATTENTION = EAGER, SDPA, FLASH = "eager", "sdpa", "flash_attention_2"
POSITIONS = ROTARY, ABSOLUTE = "rotary", "absolute"
TO_SDPA = "time, to SDPA"
TO_ABSOLUTE = "time, to absolute positions"
TO_BATCH = "time a text, to the smallest batch"
TO_LENGTH = "time a token, to the shortest"
PEAK_MEMORY, PASS_MEMORY = "peak memory, MiB", "memory of the pass, MiB"
MEASURED = "measured"
_START_SECONDS = 300.0
_TIMING_SECONDS = 15.0  # for one to seven rounds
_METHOD = (
    "Each cell ran in its own process. Times are ratios of passes that alternated in that process: the median of the "
    "rounds, with a 95 % interval, or the lowest and the highest of fewer than six rounds. With one thread of torch, "
    "they are processor time, so other work on the machine does not count. Less than 1 is faster than the reference."
)
_FINDINGS = {
    TO_SDPA: "{kind} attention takes {ratio:.2f} times as long as SDPA at {tokens:,} tokens, batch {batch}.",
    TO_ABSOLUTE: "Rotary positions take {ratio:.2f} times as long as absolute ones at {tokens:,} tokens ({kind}).",
    TO_LENGTH: "A token takes {ratio:.1f} times as long at {tokens:,} tokens as at the shortest length ({kind}).",
    TO_BATCH: "In batches of {batch}, a text of {tokens:,} tokens takes {ratio:.2f} times as long as alone ({kind}).",
}


@dataclass
class LengthsStudy:
    """Measure the time and memory of a network with random weights, on which they do not depend.

    Attributes:
        lengths: Tokens per text.
        batches: Texts per batch.
        attention: Some of :data:`ATTENTION`.
        positions: Some of :data:`POSITIONS`.
        layers: Number of layers.
        hidden: Hidden size; the feed-forward layers are four times as wide.
        heads: Number of attention heads.
        dtype: By default bfloat16 on a GPU, float32 on a CPU.
        device: By default the best available.
        seconds: Limit for a cell after the network is built. A cell that exceeds a limit is stopped and reported so.
        memory_mib: Limit in MiB for the process or, on an accelerator, the device.
        seeds: How often to measure each cell, each time in a new process.
    """

    lengths: Sequence[int]
    batches: Sequence[int]
    attention: Sequence[str] = ATTENTION
    positions: Sequence[str] = POSITIONS
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    dtype: str | None = None
    device: str | None = None
    seconds: float = 60
    memory_mib: int = 4096
    seeds: int = 1

    name = "lengths"
    title = "Lengths: time and memory of the backbone"

    def __post_init__(self) -> None:
        self.device = self.device or get_device_name()
        self.on_gpu = self.device.startswith("cuda")
        self.dtype = self.dtype or ("bfloat16" if self.on_gpu else "float32")
        chosen: dict[str, tuple[Sequence[str], Sequence[str]]] = {
            "attention": (self.attention, ATTENTION),
            "positions": (self.positions, POSITIONS),
            "dtype": ([self.dtype], DTYPES),
        }
        for what, (given, known) in chosen.items():
            if not given or not set(given) <= set(known):
                raise InvalidOptionError(f"{what} must be one or more of {known}, got {tuple(given)!r}.")
        if self.hidden % (2 * self.heads):
            raise InvalidOptionError(
                f"hidden must be a multiple of twice the heads, for rotary positions, got {self.hidden}, {self.heads}."
            )
        if not self.lengths or not self.batches:
            raise InvalidOptionError("There must be at least one length and one batch size.")
        self.lengths, self.batches = sorted(self.lengths), sorted(self.batches)

    @property
    def network(self) -> dict[str, Any]:
        """Sizes, dtype and device of the network."""
        return {name: getattr(self, name) for name in ("layers", "hidden", "heads", "dtype", "device")}

    @property
    def settings(self) -> Mapping[str, Any]:
        """Network, limits, references and machine; times of different machines are not comparable."""
        here = machine()
        return {
            **self.network,
            "shortest": self.lengths[0],
            "smallest batch": self.batches[0],
            "limits": {"seconds": float(self.seconds), "memory_mib": self.memory_mib},
            "threads": here["threads"],
            "processor": here["gpu" if self.on_gpu else "cpu"],
        }

    def cells(self) -> Sequence[Cell]:
        """Return every combination, shortest texts first."""
        combinations = product(self.lengths, self.batches, self.positions, self.attention, range(self.seeds))
        return [
            Cell({"positions": kind, "attention": attention, "tokens": tokens, "batch": batch, "seed": seed})
            for tokens, batch, kind, attention, seed in combinations
        ]

    def measure(self, cell: Cell) -> Cell:
        """Run the cell in a new process, or record why it cannot run here."""
        variant = {name: value for name, value in cell.parameters.items() if name != "seed"}
        references = self._references(variant)
        if variant["attention"] == FLASH and (reason := self._flash_missing()):
            result: dict[str, Any] = {"outcome": f"skipped: {reason}", "rounds": []}
        else:
            result = _run(
                {
                    "network": {**self.network, "longest": self.lengths[-1], "rope_theta": DEFAULT_ROPE_THETA},
                    "variant": variant,
                    "references": references,
                    "seed": cell.parameters["seed"],
                    "seconds": min(_TIMING_SECONDS, self.seconds / 2),
                    "limit": self.seconds,
                    "memory_mib": self.memory_mib,
                }
            )
        rounds = result["rounds"]
        samples: dict[str, dict[str, float]] = {}
        for name, other in references.items() if rounds else ():
            # Compare the cost per token, because batch sizes and lengths may differ.
            scale = _tokens(other) / _tokens(variant)
            samples[name] = {str(number): scale * row["own"] / row[name] for number, row in enumerate(rounds)}
        values: dict[str, Value] = {
            "outcome": result["outcome"],
            "rounds": len(rounds),
            PEAK_MEMORY: result.get("peak MiB"),
            PASS_MEMORY: result.get("pass MiB"),
            **{name: median(samples[name].values()) if name in samples else None for name in _FINDINGS},
        }
        if self.on_gpu:
            values["ms"] = 1000 * median(row["own"] for row in rounds) if rounds else None
        return cell.measured(values, samples)

    def _references(self, variant: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
        """Return the variants that are timed in alternation with the cell."""
        found: dict[str, dict[str, Value]] = {
            TO_SDPA: {**variant, "attention": SDPA},
            TO_ABSOLUTE: {**variant, "positions": ABSOLUTE},
            TO_BATCH: {**variant, "batch": self.batches[0]},
            TO_LENGTH: {**variant, "tokens": self.lengths[0]},
        }
        return {name: other for name, other in found.items() if other != variant}

    def _flash_missing(self) -> str | None:
        """Return why flash-attn cannot be used with the network, or None if it can."""
        if not self.on_gpu:
            return f"flash-attn needs a CUDA device, not {self.device}"
        if self.dtype == "float32":
            return "flash-attn needs bfloat16 or float16"
        return None if find_spec("flash_attn") else "flash-attn is not installed (pip install flash-attn)"

    @staticmethod
    def report(settings: Mapping[str, Any], cells: Sequence[Cell]) -> Report:
        """Return the report."""
        measured = [one for one in cells if one.values["outcome"] == MEASURED]
        others = [one for one in cells if one.values["outcome"] != MEASURED]
        sections: dict[str, list[str | Table | Chart]] = {
            "By length": [_METHOD, *_growth_chart(settings, measured), _grid(measured, TO_LENGTH)],
            "Kinds of attention": [
                _grid(measured, TO_SDPA),
                _grid(cells, PASS_MEMORY, "Memory of a pass, MiB", "Less what was in use before the pass."),
            ],
            "Rotary against absolute positions": [_grid(measured, TO_ABSOLUTE)],
            "By batch": [_grid(measured, TO_BATCH)],
        }
        if settings["device"].startswith("cuda"):
            sections["Time"] = [_grid(measured, "ms", "Time of a pass, ms")]
        if others:
            columns = [*others[0].parameters, "why"]
            rows = [[*map(str, one.parameters.values()), str(one.values["outcome"])] for one in others]
            sections["What was not measured"] = [Table("Cells without figures", columns, rows, labels=len(columns) - 1)]
        return Report(
            "How do time and memory grow with length and batch size, and what do attention and positions cost? "
            f"Network: {settings['layers']} layers of width {settings['hidden']}, {settings['heads']} heads, "
            f"{settings['dtype']}, {settings['device']}.",
            _findings(measured, others),
            sections,
            [
                f"The network has {settings['layers']} layers of width {settings['hidden']}; jina-colbert-v2 has 24 of "
                "width 1,024. In a wider network, attention is a smaller part of the work, and so is every ratio.",
                "Weights are random, so nothing is said of quality. Texts in a batch are equally long: no padding.",
                "Ratios on a CPU do not carry over to a GPU, where SDPA uses torch's own flash kernels if they fit.",
            ],
        )


def _tokens(variant: Mapping[str, Any]) -> int:
    return int(variant["tokens"]) * int(variant["batch"])


def _run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job in a new process and return its result. The outcome says why it ended early, if it did.

    A process that fails for another reason than its size is a ``StudyError``.
    """
    command = [sys.executable, "-m", "jcv2_plugin.evaluation.study.length_worker"]
    try:
        seconds = _START_SECONDS + float(job["limit"])
        done = subprocess.run(
            command, input=json.dumps(job), capture_output=True, encoding="utf-8", errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"outcome": f"not started after {_START_SECONDS:g} s", "rounds": []}
    lines = done.stdout.splitlines()
    result: dict[str, Any] = json.loads(lines[-1]) if lines else {"rounds": []}
    if done.returncode == 0:
        return result
    if done.returncode in (-9, 137) or "not enough memory" in done.stderr or "bad_alloc" in done.stderr:
        return {**result, "outcome": "out of memory"}
    raise StudyError(
        f"Measuring {job['variant']} failed with status {done.returncode}: {done.stderr[-2000:].strip() or '-'}"
    )


def _findings(measured: Sequence[Cell], others: Sequence[Cell]) -> list[str]:
    found = []
    for name, text in _FINDINGS.items():
        for kind in (EAGER, FLASH) if name == TO_SDPA else (SDPA,):
            own = [one for one in having(measured, attention=kind) if one.values[name] is not None]
            if own:
                tokens = max(distinct(own, "tokens"))
                batch = max(distinct(having(own, tokens=tokens), "batch"))
                at = having(own, tokens=tokens, batch=batch)
                ratio = median(float(one.values[name] or 0) for one in at)
                found.append(text.format(kind=kind, ratio=ratio, tokens=tokens, batch=batch))
    if others:
        reasons = sorted({str(one.values["outcome"]) for one in others})
        found.append(f"{len(others)} cells have no figures: {'; '.join(reasons)}.")
    return found


def _spread(cells: Sequence[Cell], name: str) -> Interval | None:
    """Return the median of a ratio over its rounds with its interval, or None if it was not measured."""
    rounds = [value for one in cells for value in one.samples.get(name, {}).values()]
    return median_interval(rounds) if rounds else None


def _grid(cells: Sequence[Cell], name: str, title: str = "", note: str = "") -> Table:
    """Return a table of a ratio or value, by attention, kind of positions and batch size, and by length."""

    def text(own: Sequence[Cell]) -> str:
        if (ratio := _spread(own, name)) is not None:
            return ratio.text(2)
        found = [float(value) for one in own if (value := one.values.get(name)) is not None]
        return f"{median(found):,.{0 if name == PASS_MEMORY else 2}f}" if found else "–"

    lengths, rows = sorted(distinct(cells, "tokens")), []
    for attention, kind, batch in product(*(distinct(cells, name) for name in ("attention", "positions", "batch"))):
        own = having(cells, attention=attention, positions=kind, batch=batch)
        texts = [text(having(own, tokens=length)) for length in lengths]
        if set(texts) != {"–"}:
            rows.append([f"{attention}, {kind}, batch {batch}", *texts])
    columns = ["", *(f"{length:,} tokens" for length in lengths)]
    return Table(title or f"{name[0].upper()}{name[1:]}", columns, rows, note)


def _growth_chart(settings: Mapping[str, Any], cells: Sequence[Cell]) -> list[Chart]:
    smallest, shortest = settings["smallest batch"], settings["shortest"]
    series: dict[str, dict[str, Interval | None]] = {}
    for attention, kind in product(distinct(cells, "attention"), distinct(cells, "positions")):
        own = having(cells, attention=attention, positions=kind, batch=smallest)
        for length in sorted(distinct(own, "tokens")):
            if found := _spread(having(own, tokens=length), TO_LENGTH):
                series.setdefault(f"{attention}, {kind}", {})[f"{length:,} tokens"] = found
    title, label = f"Time of a token in longer texts, batch {smallest}", f"time a token, to that at {shortest} tokens"
    return [Chart(title, label, series, "A constant 1 would be linear growth.", reference=1)] if series else []
