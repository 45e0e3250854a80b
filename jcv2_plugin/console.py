"""Terminal output: one console for results, one for progress and messages, plus tables and progress bars.

Whatever documents, files and servers contain, the terminal gets it as text: control characters are shown as escapes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from typer.core import TyperGroup

# C0 (but for tabs and line feeds), DEL, C1, marks that reorder text, other line ends, halves of surrogate pairs.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_MOST_OF_A_NAME, _MOST_OF_A_MESSAGE = 200, 4000
# click's, or that of Typer's copy of click.
_UsageError: Any = typer.BadParameter.__mro__[1]


def clean(text: str) -> str:
    """Return text with visible escapes, such as ``\\x1b``, for what would control the terminal."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def name(text: str) -> str:
    """Return an id or another name as one line of a sane length, see :func:`clean`."""
    line = clean(text).replace("\n", "\\n").replace("\t", "\\t")
    return line if len(line) <= _MOST_OF_A_NAME else line[:_MOST_OF_A_NAME] + "…"


def message(text: str) -> str:
    """Return a message that may quote foreign text, see :func:`clean`.

    Its further lines are indented, so that none looks like ours. If it is very long, its middle is left out.
    """
    shown = clean(text).replace("\n", "\n    ")
    return shown if len(shown) <= _MOST_OF_A_MESSAGE else f"{shown[: _MOST_OF_A_MESSAGE - 500]} … {shown[-500:]}"


def to_json(value: Any) -> str:
    """Return JSON with readable letters, and with escapes for what would control the terminal."""
    text = json.dumps(value, ensure_ascii=False)
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class CleanConsole(Console):
    """A console that shows foreign text as it is: without markup, emoji codes or control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, and clean what is rendered. Control sequences of rich itself stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(clean(segment.text), segment.style)


out = CleanConsole()
err = CleanConsole(stderr=True)

# Wide enough that nothing is wrapped or truncated in a pipe.
_WIDTH_IN_A_PIPE = 10_000


class CleanGroup(TyperGroup):
    """Commands whose usage errors quote arguments, such as names of files, as text."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Read the arguments before the command."""
        with _clean_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Read the arguments of the command, and run it."""
        with _clean_errors():
            return super().invoke(ctx)


@contextmanager
def _clean_errors() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        error.message = message(error.message)
        raise


class _CleanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return message(super().format(record))


def clean_logs() -> None:
    """Clean the warnings in logs too, which Python prints itself if no logging is set up."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_CleanFormatter())


def quiet_libraries() -> None:
    """Silence progress bars and warnings of transformers and qdrant-client, without importing them."""
    if {"transformers", "huggingface_hub"} & sys.modules.keys():
        from transformers.utils import logging as its_logging

        transformers_logging: Any = its_logging
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
    else:  # they read this when they are imported, which takes seconds, and remote encoders need neither
        os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    quiet_client()


def quiet_client() -> None:
    """Silence qdrant-client's warnings."""
    warnings.filterwarnings("ignore", category=UserWarning, module="qdrant_client")
    # Match the text, because this warning is attributed to the caller's module. Connection prints its own warning.
    warnings.filterwarnings("ignore", category=UserWarning, message="Api key is used with an insecure connection")


def remark(text: str) -> None:
    """Print a message to stderr without wrapping it, so that paths can be copied."""
    err.print(message(text), soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table at the terminal's width, or at full width in a pipe."""
    if out.is_terminal:
        out.print(table)
    else:
        CleanConsole(width=_WIDTH_IN_A_PIPE).print(table)


class Advance(Protocol):
    """Advances a progress bar."""

    def __call__(self, done: int, expected: int | None = None, /) -> None:
        """Advance by ``done`` items; ``expected`` is an estimate of the total."""


@contextmanager
def progress_bar(label: str, total: int | None) -> Iterator[Advance]:
    """Show a progress bar on a terminal and nothing in a pipe, and yield a function that advances it."""
    description, count = (TextColumn(one, markup=False) for one in ("{task.description}", "{task.fields[count]}"))
    columns = (description, BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        progress.add_task(label, total=total, count="")
        (task,) = progress.tasks

        def advance(done: int, expected: int | None = None, /) -> None:
            if expected is not None:
                task.total = expected  # update() would reset the speed
            progress.update(task.id, advance=done)
            of = "" if task.total is None else f" of {'' if expected is None else 'about '}{task.total:,.0f}"
            speed = task.finished_speed or task.speed
            rate = f", {speed:,.0f} documents/s" if speed else ""
            progress.update(task.id, count=f"{task.completed:,.0f}{of}{rate}")

        yield advance
