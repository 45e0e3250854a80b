"""The terminal: one console for results, one for progress and remarks, and libraries kept quiet."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def quiet_libraries() -> None:
    """Keep loading bars and advice of the libraries below out of the output."""
    from transformers.utils import logging

    transformers_logging: Any = logging
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=UserWarning, module="qdrant_client")


def open_collection(location: str, name: str, api_key: str | None) -> Any:
    """Open a collection named on the command line."""
    from jcv2_plugin.collection import ColbertCollection

    return ColbertCollection.open(location, name=name, client_options=client_options(api_key))


def client_options(api_key: str | None) -> dict[str, Any]:
    """What the options say to ``QdrantClient``."""
    return {"api_key": api_key} if api_key else {}


class RateColumn(TextColumn):
    """Documents a second since the start."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Any:
        """The rate, once there is one."""
        from rich.text import Text

        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} documents/s" if speed else "")


@contextmanager
def progress_bar(label: str, total: int | None) -> Iterator[Any]:
    """A bar on a terminal, nothing in a pipe; gives a function that takes the number done since the last call."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.advance(task, done)
