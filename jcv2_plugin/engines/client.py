"""qdrant-client: a Qdrant server or cluster, or the client's own local mode (``":memory:"``)."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException
from qdrant_client.local.qdrant_local import QdrantLocal

from jcv2_plugin.engines.base import Matrix, Point, Record, record_of
from jcv2_plugin.errors import CollectionError, CollectionExistsError, CollectionNotFoundError, InvalidOptionError
from jcv2_plugin.schema import METADATA_FIELD, VECTOR_NAME, CollectionSchema

_SCROLL_PAGE = 1000
# A server takes 32 MiB a request, and a float32 is up to 21 bytes of JSON.
_BYTES_PER_REQUEST = 24 * 1024 * 1024
_BYTES_PER_FLOAT = 21
_DATATYPES = {"float16": models.Datatype.FLOAT16, "float32": models.Datatype.FLOAT32}


def address(client: QdrantClient) -> str:
    """Where a client goes, without credentials: ``"local mode"`` or the server's scheme, host and port."""
    if isinstance(client._client, QdrantLocal):
        return "local mode"
    parts = urlsplit(str(getattr(client._client, "rest_uri", "") or ""))
    host = parts.hostname or "a server"
    return f"{parts.scheme or 'http'}://{host}" + (f":{parts.port}" if parts.port else "")


@contextmanager
def translated_errors(where: str) -> Iterator[None]:
    """Turn the client's errors into ours, naming the server and the way out.

    Raises:
        CollectionError: The server is out of reach, or refuses.
    """
    try:
        yield
    except ResponseHandlingException as error:
        raise CollectionError(
            f"Qdrant at {where} is out of reach ({error.source}). Check that it runs, its address, and the timeout "
            "(client_options={'timeout': seconds}); a folder (path=...) needs no server."
        ) from error
    except grpc.RpcError as error:
        reason = error.details() if isinstance(error, grpc.Call) else error
        raise CollectionError(f"Qdrant at {where} did not answer over gRPC: {reason}.") from error
    except (ApiException, QdrantException) as error:
        raise CollectionError(f"Qdrant at {where} refused: {error}. Check the key and the request.") from error


class ClientEngine:
    """One collection, by name, of a client; made by :meth:`create` or :meth:`open`."""

    def __init__(self, client: QdrantClient, name: str, *, storage: str, owns_client: bool) -> None:
        self.client = client
        self.name = name
        self.is_local = isinstance(client._client, QdrantLocal)
        self._address = address(client)
        self.place = f"The collection {name!r} {'in' if self.is_local else 'at'} {self._address}"
        # Local mode ignores the datatype; rounding here makes its scores those of a server.
        self._round = self.is_local and storage == "float16"
        self._owns_client = owns_client
        self._closed = False
        # Local mode has no locks of its own.
        self._guard: AbstractContextManager[Any] = threading.RLock() if self.is_local else nullcontext()

    @classmethod
    def create(
        cls,
        client: QdrantClient,
        name: str,
        schema: CollectionSchema,
        *,
        overwrite: bool = False,
        owns_client: bool = False,
        **options: Any,
    ) -> ClientEngine:
        """Create the collection. ``options`` go to ``QdrantClient.create_collection`` (shards, replicas, ...).

        Raises:
            CollectionExistsError: There is one of this name, and ``overwrite`` is not set.
        """
        _check_options(client, options)
        params = models.VectorParams(
            size=schema.dim,
            distance=models.Distance.DOT,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            datatype=_DATATYPES[schema.storage],
            # A graph over MaxSim costs minutes to build and finds the wrong documents: m=0 turns it off.
            hnsw_config=models.HnswConfigDiff(m=0),
        )
        with translated_errors(address(client)):
            if client.collection_exists(name):
                if not overwrite:
                    raise CollectionExistsError(
                        f"There is a collection {name!r} already. Open it, choose another name, or pass "
                        "overwrite=True to replace it."
                    )
                client.delete_collection(name)
            client.create_collection(
                name,
                vectors_config={VECTOR_NAME: params},
                metadata={METADATA_FIELD: schema.to_dict()},
                **options,
            )
        engine = cls(client, name, storage=schema.storage, owns_client=owns_client)
        if engine.describe() != schema.to_dict():
            client.delete_collection(name)
            raise CollectionError(
                f"Qdrant at {address(client)} does not keep a collection's metadata, in which the model and dim are "
                "stored. Upgrade the server, or use a folder (path=...)."
            )
        return engine

    @classmethod
    def open(cls, client: QdrantClient, name: str, *, owns_client: bool = False) -> ClientEngine:
        """Open a collection that exists.

        Raises:
            CollectionNotFoundError: There is none of this name.
        """
        with translated_errors(address(client)):
            if not client.collection_exists(name):
                known = sorted(one.name for one in client.get_collections().collections)
                raise CollectionNotFoundError(f"There is no collection {name!r}; there are {known}. Create it first.")
        engine = cls(client, name, storage="float32", owns_client=owns_client)
        described = engine.describe()
        storage = described.get("storage") if isinstance(described, dict) else None
        engine._round = engine.is_local and storage == "float16"
        return engine

    def describe(self) -> Any:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        with self._using():
            metadata = self.client.get_collection(self.name).config.metadata or {}
        return metadata.get(METADATA_FIELD)

    def upsert(self, points: Sequence[Point]) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`. In requests that stay under the server's 32 MiB."""
        for batch in _request_batches(points):
            structs = [
                models.PointStruct(
                    id=point.id, vector={VECTOR_NAME: self._stored(point.vectors)}, payload=point.payload
                )
                for point in batch
            ]
            with self._using():
                self.client.upsert(self.name, structs, wait=True)

    def search(
        self,
        queries: Sequence[Matrix],
        limit: int,
        *,
        filter: models.Filter | None,
        score_threshold: float | None,
    ) -> list[list[Record]]:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        if not queries:
            return []
        requests = [
            models.QueryRequest(
                query=query.tolist(),
                using=VECTOR_NAME,
                limit=limit,
                filter=filter,
                score_threshold=score_threshold,
                with_payload=True,
                with_vector=False,
            )
            for query in queries
        ]
        with self._using():
            responses = self.client.query_batch_points(self.name, requests)
        return [[record_of(point, score=point.score) for point in response.points] for response in responses]

    def retrieve(self, ids: Sequence[str], *, with_payload: bool | list[str], with_vectors: bool) -> list[Record]:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        if not ids:
            return []
        with self._using():
            points = self.client.retrieve(self.name, list(ids), with_payload=with_payload, with_vectors=with_vectors)
        return [record_of(point) for point in points]

    def scroll(self, filter: models.Filter | None, *, with_payload: bool | list[str]) -> Iterator[Record]:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        offset: Any = None
        while True:
            with self._using():
                points, offset = self.client.scroll(
                    self.name,
                    scroll_filter=filter,
                    limit=_SCROLL_PAGE,
                    offset=offset,
                    with_payload=with_payload,
                )
            yield from (record_of(point) for point in points)
            if offset is None:
                return

    def delete(self, ids: Sequence[str]) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        if ids:
            with self._using():
                self.client.delete(self.name, models.PointIdsList(points=list(ids)), wait=True)

    def delete_where(self, filter: models.Filter) -> None:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        with self._using():
            self.client.delete(self.name, models.FilterSelector(filter=filter), wait=True)

    def count(self, filter: models.Filter | None) -> int:
        """See :class:`~jcv2_plugin.engines.base.Engine`."""
        with self._using():
            return int(self.client.count(self.name, count_filter=filter, exact=True).count)

    def optimize(self) -> None:
        """Nothing to do: a server optimises by itself, local mode has nothing to optimise."""

    def close(self) -> None:
        """Close the client, if it was made for this collection; a client of the user's stays open."""
        if not self._closed and self._owns_client:
            self.client.close()
        self._closed = True

    @contextmanager
    def _using(self) -> Iterator[None]:
        if self._closed:
            raise CollectionError(f"{self.place} is closed. Open it again with ColbertCollection.open(...).")
        with self._guard, translated_errors(self._address):
            yield

    def _stored(self, vectors: Matrix) -> list[list[float]]:
        rounded = vectors.astype(np.float16).astype(np.float32) if self._round else vectors
        values: list[list[float]] = rounded.tolist()
        return values


def _check_options(client: QdrantClient, options: dict[str, Any]) -> None:
    """Before anything is replaced: a misspelt option must not cost the collection that was there."""
    known = set(inspect.signature(client.create_collection).parameters) - {"kwargs"}
    ours = {"collection_name", "vectors_config", "metadata"}
    if wrong := sorted(set(options) - (known - ours)):
        raise InvalidOptionError(
            f"collection_options {wrong} are not to be given; there are {sorted(known - ours)} (see "
            "QdrantClient.create_collection)."
        )


def _request_batches(points: Sequence[Point]) -> Iterator[list[Point]]:
    batch: list[Point] = []
    filled = 0
    for point in points:
        size = point.vectors.size * _BYTES_PER_FLOAT + len(json.dumps(point.payload).encode())
        if batch and filled + size > _BYTES_PER_REQUEST:
            yield batch
            batch, filled = [], 0
        batch.append(point)
        filled += size
    if batch:
        yield batch
