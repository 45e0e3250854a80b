"""Points, queries and checks that tests of the loopback server share."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from loopback_qdrant import LoopbackQdrant
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

DIM = 4
IDS: list[Any] = [str(uuid.UUID(int=number)) for number in range(1, 13)]
RNG = np.random.default_rng(5)
VECTORS = [RNG.standard_normal((2 + number % 3, DIM)).astype(np.float32).tolist() for number in range(12)]
QUERIES = [RNG.standard_normal((3, DIM)).astype(np.float32).tolist() for _ in range(4)]


def params(**settings: Any) -> dict[str, models.VectorParams]:
    settings.setdefault("size", DIM)
    comparator = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    return {"colbert": models.VectorParams(distance=models.Distance.DOT, multivector_config=comparator, **settings)}


def points(ids: list[Any] = IDS) -> list[models.PointStruct]:
    return [
        models.PointStruct(
            id=one,
            vector={"colbert": VECTORS[number % len(VECTORS)]},
            payload={"metadata": {"topic": f"t{number % 3}", "year": 2000 + number, "none": None}},
        )
        for number, one in enumerate(ids)
    ]


def topic(value: str) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="metadata.topic", match=models.MatchValue(value=value))])


def query(number: int = 0, **settings: Any) -> models.QueryRequest:
    settings = {"query": QUERIES[number], "using": "colbert", "limit": 5, "with_payload": True, **settings}
    return models.QueryRequest(**settings)


def refused(status: int, act: Callable[[], Any]) -> str:
    """The reason that the server gives."""
    with pytest.raises(UnexpectedResponse) as caught:
        act()
    assert caught.value.status_code == status
    reason = caught.value.structured()["status"]["error"]
    assert isinstance(reason, str)
    return reason


def remote(client: QdrantClient) -> Any:
    """The client's own REST client, for requests that it would not send itself."""
    return client._client


def filled_client(server: LoopbackQdrant) -> Iterator[QdrantClient]:
    """A client of a server, which has a collection ``c`` with twelve points."""
    opened = QdrantClient(url=server.url, check_compatibility=False, timeout=10, verify=False)
    opened.create_collection("c", vectors_config=params())
    opened.upsert("c", points())
    yield opened
    opened.close()


class FakeRpcError(grpc.RpcError):  # type: ignore[misc]
    """What gRPC raises, without a server."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details
