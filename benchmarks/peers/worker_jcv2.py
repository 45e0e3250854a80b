"""This project: encoder, collection on Qdrant Edge, trainer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from worker import Engine, Matrix, serve

sys.path.append(str(Path(__file__).resolve().parents[1]))

from encoded import EncodedSet, store
from first_stages import search

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.collection.search import CANDIDATES, EXACT_UP_TO
from jcv2_plugin.documents import Document


class Jcv2(Engine):
    packages = ("jcv2-plugin", "sentence-transformers", "transformers", "torch", "qdrant-edge-py")
    encoder: JinaColbertEncoder
    collection: ColbertCollection

    def load(self, model: str | None, threads: int) -> None:
        torch.set_num_threads(threads)
        if model is not None:
            self.encoder = JinaColbertEncoder.from_pretrained(model, device="cpu")

    def encode(self, texts: list[str], role: str, batch: int | None) -> Any:
        encode = self.encoder.encode_query if role == "query" else self.encoder.encode_document
        return encode(texts, tokens_per_batch=batch)

    def store(self, vectors: list[Matrix], texts: list[str], folder: str, options: dict[str, Any]) -> None:
        self.collection = ColbertCollection.create(folder, encoder=self.encoder, **options)
        store(self.collection, [Document(text, str(number)) for number, text in enumerate(texts)], vectors)
        self.documents = len(texts)
        self.folder = folder

    def settle(self) -> None:
        self.collection.close()

    def reopen(self) -> None:
        self.collection = ColbertCollection.open(self.folder, encoder=self.encoder)

    def search(self, vectors: Matrix, text: str, k: int, effort: int | str | None) -> list[int]:
        """``effort`` is a number of candidates, or ``"exact"``."""
        number = CANDIDATES if self.documents > EXACT_UP_TO else "exact"
        number = number if effort is None else effort
        query = EncodedSet("", [], [], {"query": text}, {"query": vectors}, {})
        found = search(self.collection, query, "query", None if number == "exact" else int(number))[1]
        return [int(document) for document, _ in found[:k]]

    def ingest(self, texts: list[str], folder: str) -> None:
        with ColbertCollection.create(folder, encoder=self.encoder) as collection:
            collection.ingest(Document(text, str(number)) for number, text in enumerate(texts))

    def train(self, model: str, rows: list[dict[str, Any]], settings: dict[str, Any]) -> list[float]:
        from training import losses_of
        from training_throughput import ours

        trainer = ours(model, (settings["dim"],), rows, settings)
        trainer.train()
        return losses_of(trainer)


if __name__ == "__main__":
    serve(Jcv2())
