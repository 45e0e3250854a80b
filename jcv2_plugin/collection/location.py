"""Location of a collection, which determines its engine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jcv2_plugin.engines.base import Engine, NewCollection
from jcv2_plugin.engines.edge import EdgeEngine, check_free
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.errors import InvalidOptionError

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

DEFAULT_NAME = "documents"
MEMORY = ":memory:"
API_KEY = "QDRANT_API_KEY"
"""Environment variable with the server's API key, used if none is passed."""

_HOST_AND_PORT = re.compile(r"[\w.-]+:\d{2,5}([?#].*)?|[^\s/]*:\S*@[\w.-]+(:\d+)?/?([?#].*)?", re.DOTALL)


@dataclass(frozen=True)
class Location:
    """A location: exactly one of a folder, a URL (a server's or ``":memory:"``) and a client."""

    path: Path | None
    url: str | None
    client: QdrantClient | None
    name: str

    @classmethod
    def parse(
        cls,
        location: str | os.PathLike[str] | None,
        *,
        path: str | os.PathLike[str] | None,
        url: str | None,
        client: QdrantClient | None,
        name: str,
    ) -> Location:
        """Parse the location arguments of ``ColbertCollection.create`` and ``open``, of which one must be given."""
        given = [value for value in (location, path, url, client) if value is not None]
        if len(given) != 1:
            raise InvalidOptionError(
                f"Say where the collection is by exactly one of a location, path=, url= and client=; got {len(given)}."
            )
        if location is not None:
            text = os.fspath(location)
            if text == MEMORY or "://" in text:
                url = text
            else:
                check_location(text)
                path = text
        if url is not None and url != MEMORY:
            check_url(url)
        if path is not None and not os.fspath(path).strip():
            raise InvalidOptionError("The path of a collection is empty.")
        return cls(Path(path) if path is not None else None, url, client, name)

    def check_can_create(self, *, overwrite: bool) -> None:
        """Raise CollectionExistsError unless a folder is free, before a model is loaded."""
        if self.path is not None:
            check_free(self.path.expanduser().absolute(), overwrite=overwrite)

    def create(
        self,
        schema: CollectionSchema,
        *,
        overwrite: bool,
        client_options: Mapping[str, Any] | None,
        options: NewCollection,
    ) -> Engine:
        """Create an empty collection at this location. Not all options are supported in a folder."""
        options.check()
        if self.path is not None:
            if options.engine_options or options.shard_key is not None:
                raise InvalidOptionError(
                    f"{str(self.path)!r} is a folder. Collection options and shard keys are for Qdrant servers."
                )
            return EdgeEngine.create(self.path, schema, overwrite=overwrite, indexes=options.payload_indexes)
        from jcv2_plugin.engines.qdrant import ClientEngine

        with self._connected(client_options) as client:
            return ClientEngine.create(
                client, self.name, schema, overwrite=overwrite, owns_client=self.client is None, options=options
            )

    def open(
        self, *, client_options: Mapping[str, Any] | None, retries: int, shard_key: str | int | None = None
    ) -> Engine:
        """Open the collection at this location."""
        NewCollection(retries=retries).check()
        if self.path is not None:
            return EdgeEngine.open(self.path)
        from jcv2_plugin.engines.qdrant import ClientEngine

        with self._connected(client_options) as client:
            return ClientEngine.open(
                client, self.name, owns_client=self.client is None, retries=retries, shard_key=shard_key
            )

    @contextmanager
    def _connected(self, options: Mapping[str, Any] | None) -> Iterator[QdrantClient]:
        """Yield a client, which is closed on failure unless it is the user's."""
        client = self._connect(options)
        try:
            yield client
        except BaseException:
            if self.client is None:
                client.close()
            raise

    def _connect(self, options: Mapping[str, Any] | None) -> QdrantClient:
        if self.client is not None:
            return self.client
        from qdrant_client import QdrantClient

        from jcv2_plugin.engines.deadlines import connect

        if self.url == MEMORY:
            return QdrantClient(MEMORY)
        assert self.url is not None  # parse() ensures that one of the three is given
        given = dict(options or {})
        if "auth_token_provider" not in given:
            given.setdefault("api_key", os.environ.get(API_KEY) or None)
        try:
            return connect(self.url, **given)
        except (TypeError, ValueError) as error:
            # The error may quote the URL, which may contain a password.
            shown = without_credentials(self.url)
            reason = str(error).replace(self.url, shown)
            raise InvalidOptionError(
                f"No client of {shown} with client_options {sorted(options or {})}: {reason}. They are keyword "
                "arguments of QdrantClient, such as api_key, prefer_grpc, grpc_port, timeout."
            ) from None


def check_url(url: str) -> None:
    """Raise InvalidOptionError unless a URL is a server's, before a model is loaded. The message shows no password."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if known and re.search("[?#]", url):
        raise InvalidOptionError(
            f"The URL of {without_credentials(url)!r} has a query (?) or a fragment (#), which is not sent. Leave it "
            f"out, and give an API key as client_options={{'api_key': ...}}, --api-key or {API_KEY}."
        )
    if not known:
        raise InvalidOptionError(
            f"{without_credentials(url)!r} is not the URL of a Qdrant server. Write it as http://host:6333 or "
            "https://host:6333, also to use gRPC, or give a folder."
        )


def check_location(location: str) -> None:
    """Raise InvalidOptionError for an invalid URL, or a server's address without ``http://``. No password is shown."""
    if "://" in location:
        check_url(location)
    elif looks_like_server(location):
        shown = without_credentials(location)
        raise InvalidOptionError(f"{shown!r} looks like a server's address: write it as 'http://{shown}'.")


def without_credentials(url: str) -> str:
    """Return a URL without its user name and password, which may contain any character, its query and its fragment."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    before, _, after = rest.rpartition("@")
    # With a ? or # before an @, the @ may be the password's or the query's. What follows may be a part of either.
    known = "..." if re.search("[?#]", before) else re.split("[?#]", after)[0]
    return f"{scheme}{separator}{known}"


def looks_like_server(location: str) -> bool:
    """Return whether a location is a URL, or a server's address without ``http://``, which is no folder."""
    return "://" in location or _HOST_AND_PORT.fullmatch(location) is not None
