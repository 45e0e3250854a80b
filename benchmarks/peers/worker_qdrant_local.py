"""qdrant-client's local mode, called as its documentation does: in memory, or in a folder."""

from __future__ import annotations

from typing import Any

from qdrant_client import QdrantClient, models
from worker import Engine, Matrix, serve

NAME = "documents"
POINTS_A_BATCH = 256


class QdrantLocal(Engine):
    packages = ("qdrant-client", "numpy")

    folder: str | None = None

    def store(self, vectors: list[Matrix], texts: list[str], folder: str, options: dict[str, Any]) -> None:
        """``options`` may say ``on_disk``."""
        self.folder = folder if options.get("on_disk") else None
        self.client = QdrantClient(":memory:") if self.folder is None else QdrantClient(path=self.folder)
        multi = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        self.client.create_collection(
            NAME,
            vectors_config=models.VectorParams(
                size=vectors[0].shape[1], distance=models.Distance.DOT, multivector_config=multi
            ),
        )
        for start in range(0, len(vectors), POINTS_A_BATCH):
            self.client.upsert(
                NAME,
                [
                    models.PointStruct(id=number, vector=vectors[number].tolist(), payload={"text": texts[number]})
                    for number in range(start, min(start + POINTS_A_BATCH, len(vectors)))
                ],
            )

    def settle(self) -> None:
        if self.folder is not None:
            self.client.close()

    def reopen(self) -> None:
        if self.folder is not None:
            self.client = QdrantClient(path=self.folder)

    def search(self, vectors: Matrix, text: str, k: int, effort: Any) -> list[int]:
        return [int(point.id) for point in self.client.query_points(NAME, query=vectors.tolist(), limit=k).points]


if __name__ == "__main__":
    serve(QdrantLocal())
