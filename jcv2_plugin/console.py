"""The terminal: a console for results, another for progress and remarks, tables and progress bars."""

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

# Tables of a pipe are not for a screen: nothing in them is folded or cut.
_WIDTH_IN_A_PIPE = 10_000


def quiet_libraries() -> None:
    """Keep loading bars and advice of the libraries below out of the output."""
    from transformers.utils import logging

    transformers_logging: Any = logging
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    quiet_client()


def quiet_client() -> None:
    """Keep qdrant-client's advice out of the output."""
    warnings.filterwarnings("ignore", category=UserWarning, module="qdrant_client")
    # It is attributed to the caller's module, so its text is matched. Connection says it in words of its own.
    warnings.filterwarnings("ignore", category=UserWarning, message="Api key is used with an insecure connection")


def remark(text: str) -> None:
    """Say something beside the results. It is not folded: a path that is cut in two cannot be copied."""
    err.print(text, markup=False, soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or, in a pipe, as wide as it is."""
    if out.is_terminal:
        out.print(table)
    else:
        Console(highlight=False, width=_WIDTH_IN_A_PIPE).print(table)


class CountColumn(TextColumn):
    """How many are done, of how many there are as far as that is known."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Any:
        """The number done, and the total."""
        from rich.text import Text

        if task.total is None:
            return Text(f"{task.completed:,.0f}")
        about = "about " if task.fields.get("estimated") else ""
        return Text(f"{task.completed:,.0f} of {about}{task.total:,.0f}")


class RateColumn(TextColumn):
    """Documents a second since the start."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Any:
        """The rate, once there is one."""
        from rich.text import Text

        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} documents/s" if speed else "")


class Advance(Protocol):
    """Moves a bar on."""

    def __call__(self, done: int, expected: int | None = None, /) -> None:
        """So many were done since the last call; so many are expected in all, by an estimate."""


@contextmanager
def progress_bar(label: str, total: int | None) -> Iterator[Advance]:
    """A bar on a terminal, nothing in a pipe; gives a function that takes the number done since the last call."""
    columns = (TextColumn("{task.description}"), BarColumn(), CountColumn(), RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        task = progress.add_task(label, total=total, estimated=False)

        def advance(done: int, expected: int | None = None, /) -> None:
            if expected is not None:
                # Not by update(), which would forget the speed each time.
                progress.tasks[0].total = expected
            progress.update(task, advance=done, estimated=expected is not None)

        yield advance
