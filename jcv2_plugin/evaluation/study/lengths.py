"""The study ``lengths``: time and memory of the backbone by length, batch size, attention and kind of positions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from sentence_transformers.util import get_device_name

from jcv2_plugin.encoder.official import DEFAULT_ROPE_THETA
from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.evaluation.study.base import Cell, Measured, Report, Result, StudyError, Value
from jcv2_plugin.evaluation.study.environment import machine
from jcv2_plugin.evaluation.study.lengths_report import (
    ABSOLUTE,
    EAGER,
    FLASH,
    MEASURED,
    PASS_MEMORY,
    PEAK_MEMORY,
    ROTARY,
    SDPA,
    TO_ABSOLUTE,
    TO_BATCH,
    TO_LENGTH,
    TO_SDPA,
    lengths_report,
)
from jcv2_plugin.evaluation.study.options import DTYPES

ATTENTION = (EAGER, SDPA, FLASH)
POSITIONS = (ROTARY, ABSOLUTE)
_START_SECONDS = 300.0
_POLL_SECONDS = 0.05
_TIMING_SECONDS = 15.0  # for one to seven rounds


@dataclass(frozen=True)
class Network:
    """A network with random weights. Time and memory do not depend on the weights.

    Attributes:
        layers: Number of layers.
        hidden: Hidden size; the feed-forward layers are four times as wide.
        heads: Number of attention heads.
        dtype: Dtype of weights and activations.
        device: Device to run on.
    """

    layers: int
    hidden: int
    heads: int
    dtype: str
    device: str

    @classmethod
    def of(cls, layers: int, hidden: int, heads: int, *, dtype: str | None, device: str | None) -> Network:
        """Create a network, with defaults for device and dtype.

        Raises:
            InvalidOptionError: If such a network cannot be built.
        """
        device = device or get_device_name()
        dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
        if dtype not in DTYPES:
            raise InvalidOptionError(f"dtype must be one of {DTYPES}, got {dtype!r}.")
        if hidden % heads or (hidden // heads) % 2:
            raise InvalidOptionError(
                f"hidden must be a multiple of twice the heads, for rotary positions, got {hidden} and {heads}."
            )
        return cls(layers, hidden, heads, dtype, device)


@dataclass(frozen=True)
class Limits:
    """Limits for a cell. A cell that exceeds one is stopped, and the report says so.

    Attributes:
        seconds: Seconds after the network is built.
        memory_mib: Memory in MiB, of the process or, on an accelerator, of the device.
    """

    seconds: float
    memory_mib: int


class LengthsStudy:
    """Measure the backbone's time and memory; see :class:`jcv2_plugin.evaluation.study.base.Study`.

    Args:
        network: Network to run.
        limits: Limits for each cell.
        lengths: Tokens per text.
        batches: Texts per batch.
        attention: Some of :data:`ATTENTION`.
        positions: Some of :data:`POSITIONS`.
        seeds: How often to measure each cell, each time in a new process.

    Raises:
        InvalidOptionError: If a kind of attention or positions is unknown, or there is no length or batch.
    """

    name = "lengths"
    title = "Lengths: time and memory of the backbone"

    def __init__(
        self,
        network: Network,
        limits: Limits,
        *,
        lengths: Sequence[int],
        batches: Sequence[int],
        attention: Sequence[str] = ATTENTION,
        positions: Sequence[str] = POSITIONS,
        seeds: int = 1,
    ) -> None:
        for what, given, known in (("attention", attention, ATTENTION), ("positions", positions, POSITIONS)):
            if not given or not set(given) <= set(known):
                raise InvalidOptionError(f"{what} must be some of {known}, got {tuple(given)!r}.")
        if not lengths or not batches:
            raise InvalidOptionError("There must be a length and a batch to measure.")
        self.network = network
        self.limits = limits
        self.lengths = tuple(sorted(lengths))
        self.batches = tuple(sorted(batches))
        self.attention = tuple(attention)
        self.positions = tuple(positions)
        self.seeds = seeds

    @property
    def settings(self) -> Mapping[str, Any]:
        """Network, limits, references and machine; times of different machines are not comparable."""
        here = machine()
        return {
            **asdict(self.network),
            "shortest": self.lengths[0],
            "smallest batch": self.batches[0],
            "limits": asdict(self.limits),
            "threads": here["threads"],
            "processor": here.get("gpu") if self.network.device.startswith("cuda") else here["cpu"],
        }

    def cells(self) -> Sequence[Cell]:
        """Return every combination, shortest texts first."""
        return [
            Cell({"positions": kind, "attention": attention, "tokens": tokens, "batch": batch, "seed": seed})
            for tokens in self.lengths
            for batch in self.batches
            for kind in self.positions
            for attention in self.attention
            for seed in range(self.seeds)
        ]

    def measure(self, cell: Cell) -> Measured:
        """Run the cell in a new process, or record why it cannot run here."""
        values = dict(cell.parameters)
        if values["attention"] == FLASH and (reason := flash_missing(self.network)) is not None:
            return _measured(f"skipped: {reason}", {})
        variant = {name: value for name, value in values.items() if name != "seed"}
        references = self._references(variant)
        job = {
            "network": {**asdict(self.network), "longest": self.lengths[-1], "rope_theta": DEFAULT_ROPE_THETA},
            "variant": variant,
            "references": references,
            "seed": values["seed"],
            "seconds": min(_TIMING_SECONDS, self.limits.seconds / 2),
            "memory_mib": self.limits.memory_mib,
        }
        result = _in_process(job, self.limits)
        return _measured(
            result["outcome"], result, variant, references, absolute=self.network.device.startswith("cuda")
        )

    def report(self, results: Sequence[Result]) -> Report:
        """Return the report."""
        return lengths_report(self.settings, results)

    def _references(self, variant: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
        """Return the variants that are timed in alternation with the cell."""
        found: dict[str, dict[str, Value]] = {}
        if variant["attention"] != SDPA:
            found[TO_SDPA] = {**variant, "attention": SDPA}
        if variant["positions"] == ROTARY:
            found[TO_ABSOLUTE] = {**variant, "positions": ABSOLUTE}
        if variant["batch"] != self.batches[0]:
            found[TO_BATCH] = {**variant, "batch": self.batches[0]}
        if variant["tokens"] != self.lengths[0]:
            found[TO_LENGTH] = {**variant, "tokens": self.lengths[0]}
        return found


def flash_missing(network: Network) -> str | None:
    """Return why flash-attn cannot be used with a network, or None if it can."""
    if not network.device.startswith("cuda"):
        return f"flash-attn needs a CUDA device, not {network.device}"
    if network.dtype == "float32":
        return "flash-attn needs bfloat16 or float16"
    return None if find_spec("flash_attn") is not None else "flash-attn is not installed (pip install flash-attn)"


def _measured(
    outcome: str,
    result: Mapping[str, Any],
    variant: Mapping[str, Any] | None = None,
    references: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    absolute: bool = False,
) -> Measured:
    rounds = result.get("rounds", [])
    values: dict[str, Value] = {
        "outcome": outcome,
        "rounds": len(rounds),
        PEAK_MEMORY: result.get("peak MiB"),
        PASS_MEMORY: result.get("pass MiB"),
    }
    samples: dict[str, dict[str, float]] = {}
    for name in (TO_SDPA, TO_ABSOLUTE, TO_BATCH, TO_LENGTH):
        values[name] = None
        if variant is None or references is None or name not in references or not rounds:
            continue
        # Compare the cost per token, because batch sizes and lengths may differ.
        scale = _tokens(references[name]) / _tokens(variant)
        own = {str(number): scale * row["own"] / row[name] for number, row in enumerate(rounds)}
        samples[name] = own
        values[name] = median(own.values())
    if absolute:
        values["ms"] = 1000 * median(row["own"] for row in rounds) if rounds else None
    return Measured(values, samples)


def _tokens(variant: Mapping[str, Any]) -> int:
    return int(variant["tokens"]) * int(variant["batch"])


def _in_process(job: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Run a job in a new process and return its result. The outcome says why it ended early, if it did.

    Raises:
        StudyError: If the process fails for another reason than its size.
    """
    with tempfile.TemporaryDirectory(prefix="jcv2-lengths-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        with (folder / "stderr").open("wb") as errors:
            command = [sys.executable, "-m", "jcv2_plugin.evaluation.study.length_worker", name]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
            try:
                stopped = _watch(process, folder / "ready", limits, on_cpu=job["network"]["device"] == "cpu")
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
        written = folder / "result.json"
        result = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {"rounds": []}
        if stopped is not None:
            # If the memory was measured, but timing took too long, keep what there is.
            return {**result, "outcome": MEASURED if result["rounds"] else stopped}
        if process.returncode == 0:
            return dict(result)
        message = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip()
        if process.returncode in (-9, 137) or "not enough memory" in message or "bad_alloc" in message:
            return {**result, "outcome": "out of memory"}
        raise StudyError(
            f"Measuring {job['variant']} failed with status {process.returncode}: {message[-2000:] or 'no message'}"
        )


def _watch(process: subprocess.Popen[bytes], ready: Path, limits: Limits, *, on_cpu: bool) -> str | None:
    """Wait for a process to end. Return which limit it exceeded, or None."""
    end = time.monotonic() + _START_SECONDS
    started = False
    while process.poll() is None:
        if not started and ready.exists():
            started, end = True, time.monotonic() + limits.seconds
        if time.monotonic() > end:
            return f"over {limits.seconds:g} s" if started else f"not started after {_START_SECONDS:g} s"
        if on_cpu and (used := _resident_mib(process.pid)) is not None and used > limits.memory_mib:
            return f"over {limits.memory_mib:,} MiB"
        time.sleep(_POLL_SECONDS)
    return None


def _resident_mib(pid: int) -> float | None:
    """Return a process's memory in MiB, if known."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
