"""Terminal output: one console for results, one for progress and messages, plus tables and progress bars."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# Wide enough that nothing is wrapped or truncated in a pipe.
_WIDTH_IN_A_PIPE = 10_000


def quiet_libraries() -> None:
    """Silence progress bars and warnings of transformers and qdrant-client."""
    from transformers.utils import logging

    transformers_logging: Any = logging
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    quiet_client()


def quiet_client() -> None:
    """Silence qdrant-client's warnings."""
    warnings.filterwarnings("ignore", category=UserWarning, module="qdrant_client")
    # Match the text, because this warning is attributed to the caller's module. Connection prints its own warning.
    warnings.filterwarnings("ignore", category=UserWarning, message="Api key is used with an insecure connection")


def remark(text: str) -> None:
    """Print a message to stderr without wrapping it, so that paths can be copied."""
    err.print(text, markup=False, soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table at the terminal's width, or at full width in a pipe."""
    if out.is_terminal:
        out.print(table)
    else:
        Console(highlight=False, width=_WIDTH_IN_A_PIPE).print(table)


class Advance(Protocol):
    """Advances a progress bar."""

    def __call__(self, done: int, expected: int | None = None, /) -> None:
        """Advance by ``done`` items; ``expected`` is an estimate of the total."""


@contextmanager
def progress_bar(label: str, total: int | None) -> Iterator[Advance]:
    """Show a progress bar on a terminal and nothing in a pipe, and yield a function that advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeRemainingColumn())
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
