"""Where a collection lives, and which engine that means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient

from jcv2_plugin.engines.base import Engine, NewCollection
from jcv2_plugin.engines.client import ClientEngine
from jcv2_plugin.engines.edge import EdgeEngine, check_free
from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.schema import CollectionSchema

DEFAULT_NAME = "documents"
MEMORY = ":memory:"


@dataclass(frozen=True)
class Place:
    """Exactly one of a folder, a server's URL (or ``":memory:"``), and a client."""

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
    ) -> Place:
        """Make sense of the arguments of ``ColbertCollection.create`` and ``open``.

        Raises:
            InvalidOptionError: If none or several places are given.
        """
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
                path = text
        if path is not None and not os.fspath(path).strip():
            raise InvalidOptionError("The path of a collection is empty.")
        return cls(Path(path) if path is not None else None, url, client, name)

    def check_can_create(self, *, overwrite: bool) -> None:
        """Fail before a model is loaded, where that is cheap to see.

        Raises:
            CollectionExistsError: The folder is not free.
        """
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
        """Create an empty collection here.

        Raises:
            InvalidOptionError: A folder is to have what only a server has, or a payload index of no known kind.
        """
        options.check()
        if self.path is not None:
            if options.engine_options or options.shard_key is not None:
                raise InvalidOptionError(
                    f"{str(self.path)!r} is a folder; collection_options and shard_key are for a Qdrant server "
                    "(url=...)."
                )
            engine = EdgeEngine.create(self.path, schema, overwrite=overwrite)
            for key, kind in options.payload_indexes.items():
                engine.create_payload_index(key, kind)
            return engine
        client = self._connect(client_options)
        try:
            return ClientEngine.create(
                client,
                self.name,
                schema,
                overwrite=overwrite,
                owns_client=self.client is None,
                options=options,
            )
        except BaseException:
            self._disconnect(client)
            raise

    def open(
        self, *, client_options: Mapping[str, Any] | None, retries: int, shard_key: str | int | None = None
    ) -> Engine:
        """Open the collection that is here."""
        if self.path is not None:
            return EdgeEngine.open(self.path)
        client = self._connect(client_options)
        try:
            return ClientEngine.open(
                client, self.name, owns_client=self.client is None, retries=retries, shard_key=shard_key
            )
        except BaseException:
            self._disconnect(client)
            raise

    def _connect(self, options: Mapping[str, Any] | None) -> QdrantClient:
        if self.client is not None:
            return self.client
        if self.url == MEMORY:
            return QdrantClient(MEMORY)
        return QdrantClient(url=self.url, **dict(options or {}))

    def _disconnect(self, client: QdrantClient) -> None:
        if self.client is None:
            client.close()
