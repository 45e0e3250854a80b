"""What is done with the times of rounds in which engines take turns."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
TIMES = ("clock", "processor")


def turns(items: Sequence[T], rounds: int) -> Iterator[list[T]]:
    """The items for each round, in an order that lets each come first in turn."""
    for number in range(rounds):
        start = number % len(items)
        yield [*items[start:], *items[:start]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(theirs: Sequence[Mapping[str, float]], ours: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Round by round their time over ours: above 1 is in our favour."""
    return {kind: spread([their[kind] / our[kind] for their, our in zip(theirs, ours, strict=True)]) for kind in TIMES}


def write_json(path: Path, value: Any) -> str:
    """Write a file for workers to read; its path."""
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)
