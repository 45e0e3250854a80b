"""Options for the location of a collection and the connection to a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from jcv2_plugin.collection.location import DEFAULT_NAME, check_location, without_credentials
from jcv2_plugin.console import quiet_client, remark

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from jcv2_plugin.collection.collection import ColbertCollection

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_PANEL = "Options for Qdrant servers"


@dataclass(frozen=True)
class Connection:
    """The location of a collection, and the connection settings if it is a server."""

    location: Annotated[
        str, typer.Option("--collection", "-c", help="Folder of the collection, or URL of a Qdrant server.")
    ]
    name: Annotated[str, typer.Option(help="Name of the collection on the server.", rich_help_panel=_PANEL)] = (
        DEFAULT_NAME
    )
    api_key: Annotated[
        str | None, typer.Option(envvar="QDRANT_API_KEY", show_envvar=True, help="API key.", rich_help_panel=_PANEL)
    ] = None
    timeout: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="SECONDS", help="How long to wait for a response. Default: 5.", rich_help_panel=_PANEL
        ),
    ] = None
    grpc: Annotated[
        bool, typer.Option("--grpc", help="Use gRPC, on the server's port 6334.", rich_help_panel=_PANEL)
    ] = False
    retries: int | None = None  # an option of WritingConnection

    def __post_init__(self) -> None:
        check_location(self.location)

    @property
    def is_server(self) -> bool:
        """Whether the location is a server's URL."""
        return "://" in self.location

    @property
    def folder(self) -> Path:
        """The location as a path, if it is a folder."""
        return Path(self.location).expanduser()

    @property
    def shown(self) -> str:
        """The location without credentials."""
        return without_credentials(self.location) if self.is_server else self.location

    @property
    def title(self) -> str:
        """Description of the collection for messages, without credentials in its URL."""
        if not self.is_server:
            return f"the collection in {self.location!r}"
        parts = urlsplit(self.location)
        return f"the collection {self.name!r} at {parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for ``QdrantClient``."""
        given = {"api_key": self.api_key, "timeout": self.timeout, "prefer_grpc": self.grpc}
        return {key: value for key, value in given.items() if value}

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``ColbertCollection.create``, ``open`` and ``restore``."""
        retries = {} if self.retries is None else {"retries": self.retries}
        return {"name": self.name, "client_options": self.client_options, **retries}

    def open(self, **options: Any) -> ColbertCollection:
        """Open the collection, with further options of ``ColbertCollection.open``.

        A first stage of the user's own is done without, since a command has no objects: searches are exact.
        """
        from jcv2_plugin.collection.collection import ColbertCollection

        self._prepare()
        return ColbertCollection.open(self.location, first_stage="none", **options, **self.arguments)

    def _prepare(self) -> None:
        quiet_client()
        parts = urlsplit(self.location)
        secret = "API key" if self.api_key else "password" if parts.password else None
        if secret and parts.scheme == "http" and parts.hostname not in _THIS_MACHINE:
            remark(f"warning: the {secret} is sent to {parts.hostname} unencrypted. Use https:// if the server has it.")

    @contextmanager
    def client(self) -> Iterator[QdrantClient]:
        """Yield a client for operations on the server itself. Its exceptions are translated to ours."""
        from jcv2_plugin.engines.deadlines import connect
        from jcv2_plugin.engines.qdrant import address
        from jcv2_plugin.engines.retries import translated_errors

        self._prepare()
        client = connect(self.location, **self.client_options)
        try:
            with translated_errors(address(client)):
                yield client
        finally:
            client.close()


@dataclass(frozen=True)
class OptionalConnection(Connection):
    """A connection of a command that does not always need one."""

    location: Annotated[
        str,
        typer.Option("--collection", "-c", help="Folder, or URL of a Qdrant server.", show_default=False),
    ] = ""


@dataclass(frozen=True)
class WritingConnection(Connection):
    """A connection of a command that writes, and repeats requests that fail for a temporary reason."""

    retries: Annotated[
        int | None,
        typer.Option(
            min=1, help="How often to send a request that fails temporarily. Default: 5.", rich_help_panel=_PANEL
        ),
    ] = None
