"""The terminal and the place worked on: a console for results, one for progress and remarks, and the connection."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jcv2_plugin.places import check_url, without_credentials

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from jcv2_plugin.collection import ColbertCollection

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# Tables of a pipe are not for a screen: nothing in them is folded or cut.
_WIDTH_IN_A_PIPE = 10_000
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def quiet_libraries() -> None:
    """Keep loading bars and advice of the libraries below out of the output."""
    from transformers.utils import logging

    transformers_logging: Any = logging
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    _quiet_client()


def _quiet_client() -> None:
    warnings.filterwarnings("ignore", category=UserWarning, module="qdrant_client")
    # Its place in the code is named as that of the caller. Connection says it in words of its own.
    warnings.filterwarnings("ignore", category=UserWarning, message="Api key is used with an insecure connection")


@dataclass(frozen=True)
class Connection:
    """Where a collection is, and how a server is spoken to: what ``-c`` and the options beside it say.

    Attributes:
        location: A folder or a server's URL.
        name: Of the collection, on a server.
        api_key: For a server.
        timeout: Seconds to wait for an answer; None leaves it to the client.
        grpc: Whether to prefer gRPC.
        retries: Attempts at each request; None leaves it to the collection.
    """

    location: str
    name: str = "documents"
    api_key: str | None = None
    timeout: int | None = None
    grpc: bool = False
    retries: int | None = None

    def __post_init__(self) -> None:
        if self.is_server:
            check_url(self.location)

    @property
    def is_server(self) -> bool:
        """Whether the location is a server's URL."""
        return "://" in self.location

    @property
    def folder(self) -> Path:
        """The location as a path, where it is a folder."""
        return Path(self.location).expanduser()

    @property
    def shown(self) -> str:
        """The location without credentials."""
        return without_credentials(self.location) if self.is_server else self.location

    @property
    def place(self) -> str:
        """What to call the collection in messages; without credentials, which a URL may have."""
        if not self.is_server:
            return f"the collection in {self.location!r}"
        parts = urlsplit(self.location)
        return f"the collection {self.name!r} at {parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def client_options(self) -> dict[str, Any]:
        """For ``QdrantClient``."""
        given = {"api_key": self.api_key, "timeout": self.timeout, "prefer_grpc": self.grpc}
        return {key: value for key, value in given.items() if value}

    @property
    def arguments(self) -> dict[str, Any]:
        """For ``ColbertCollection.create``, ``open`` and ``restore``, after the location."""
        retries = {} if self.retries is None else {"retries": self.retries}
        return {"name": self.name, "client_options": self.client_options, **retries}

    def open(self, *, device: str | None = None, shard_key: str | int | None = None) -> ColbertCollection:
        """Open the collection."""
        from jcv2_plugin.collection import ColbertCollection

        self._prepare()
        return ColbertCollection.open(self.location, device=device, shard_key=shard_key, **self.arguments)

    def _prepare(self) -> None:
        _quiet_client()
        parts = urlsplit(self.location)
        if self.api_key and parts.scheme == "http" and parts.hostname not in _THIS_MACHINE:
            remark(f"warning: the key goes to {parts.hostname} unencrypted. Use https://, if the server has it.")

    @contextmanager
    def client(self) -> Iterator[QdrantClient]:
        """A client of the server, for what is not about one collection; its errors come as ours."""
        from qdrant_client import QdrantClient

        from jcv2_plugin.engines.client import address
        from jcv2_plugin.engines.transport import translated_errors

        self._prepare()
        client = QdrantClient(url=self.location, **self.client_options)
        try:
            with translated_errors(address(client)):
                yield client
        finally:
            client.close()


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
