"""The location of a collection, from the command-line options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jcv2_plugin.collection.location import check_url, without_credentials
from jcv2_plugin.console import quiet_client, remark

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from jcv2_plugin.collection.collection import ColbertCollection

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Connection:
    """The location of a collection and the connection settings for a server, from ``-c`` and related options.

    Attributes:
        location: A folder or a server's URL.
        name: Name of the collection on a server.
        api_key: API key for a server.
        timeout: Seconds to wait for a response. If None, the client's default.
        grpc: Whether to prefer gRPC.
        retries: Number of attempts for each request. If None, the collection's default.
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

    def open(self, *, device: str | None = None, shard_key: str | int | None = None) -> ColbertCollection:
        """Open the collection."""
        from jcv2_plugin.collection.collection import ColbertCollection

        self._prepare()
        return ColbertCollection.open(self.location, device=device, shard_key=shard_key, **self.arguments)

    def _prepare(self) -> None:
        quiet_client()
        parts = urlsplit(self.location)
        if self.api_key and parts.scheme == "http" and parts.hostname not in _THIS_MACHINE:
            remark(f"warning: the key goes to {parts.hostname} unencrypted. Use https://, if the server has it.")

    @contextmanager
    def client(self) -> Iterator[QdrantClient]:
        """Yield a client for operations on the server itself. Its exceptions are translated to ours."""
        from qdrant_client import QdrantClient

        from jcv2_plugin.engines.qdrant import address
        from jcv2_plugin.engines.retries import translated_errors

        self._prepare()
        client = QdrantClient(url=self.location, **self.client_options)
        try:
            with translated_errors(address(client)):
                yield client
        finally:
            client.close()
