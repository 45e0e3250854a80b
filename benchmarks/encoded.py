"""Real retrieval sets with their token vectors, encoded once and kept in build/encoded for the benchmarks.

Documents are truncated to the model's window, as in published figures.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.documents import Document, payload_of, point_id
from jcv2_plugin.engines.base import Matrix, Point
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.metrics import Qrels

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("JCV2_DATA") or ROOT / ".." / "shared" / "data")
CACHE = ROOT / "build" / "encoded"
ENGLISH = ("xquad-en", "mlqa-en", "qed-nq-en", "cranfield", "tydi-en", "scifact", "cosqa-dev")
UNION = "all-english"
PACKAGES = ("torch", "sentence-transformers", "transformers", "qdrant-edge-py", "qdrant-client")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class EncodedSet:
    """A data set with the vectors of its documents and queries.

    Attributes:
        name: Of the set.
        documents: Ids are ``set/id``.
        vectors: Of each document, ``(tokens, dim)``.
        queries: Texts by id.
        query_vectors: By id.
        qrels: Judgments.
    """

    name: str
    documents: list[Document]
    vectors: list[Matrix]
    queries: dict[str, str]
    query_vectors: dict[str, Matrix]
    qrels: Qrels

    @property
    def tokens(self) -> int:
        """Token vectors of all documents."""
        return sum(len(one) for one in self.vectors)

    def first(self, documents: int) -> EncodedSet:
        """The same with fewer documents, evenly spaced; judgments of the others are lost."""
        step = max(1, len(self.documents) // documents)
        return EncodedSet(
            self.name,
            self.documents[::step][:documents],
            self.vectors[::step][:documents],
            self.queries,
            self.query_vectors,
            self.qrels,
        )


def read_set(name: str, encoder: JinaColbertEncoder, dim: int, queries: int) -> EncodedSet:
    """A set by name, or the union of all English ones, with at most so many queries of each."""
    if name == UNION:
        parts = [read_set(one, encoder, dim, queries) for one in ENGLISH]
        return EncodedSet(
            UNION,
            [document for part in parts for document in part.documents],
            [vectors for part in parts for vectors in part.vectors],
            {key: text for part in parts for key, text in part.queries.items()},
            {key: vectors for part in parts for key, vectors in part.query_vectors.items()},
            {key: judged for part in parts for key, judged in part.qrels.items()},
        )
    dataset = BeirDataset.read(DATA / name)
    documents = [Document(one.text, f"{name}/{one.id}") for one in dataset.documents()]
    vectors = _cached(name, encoder, dim, [document.text for document in documents])
    chosen = list(dataset.queries)[:queries]
    encoded = encoder.query_vectors([dataset.queries[query] for query in chosen], dim)
    return EncodedSet(
        name,
        documents,
        vectors,
        {f"{name}/{query}": dataset.queries[query] for query in chosen},
        {f"{name}/{query}": matrix for query, matrix in zip(chosen, encoded, strict=True)},
        {
            f"{name}/{query}": {f"{name}/{document}": grade for document, grade in dataset.qrels[query].items()}
            for query in chosen
        },
    )


def _cached(name: str, encoder: JinaColbertEncoder, dim: int, texts: list[str]) -> list[Matrix]:
    folder = CACHE / f"{encoder.head_fingerprint(dim)}-{dim}"
    file, lengths = folder / f"{name}.npy", folder / f"{name}.lengths.json"
    if not lengths.exists():
        say(f"{name}: encoding {len(texts)} documents at {dim} dims, once")
        folder.mkdir(parents=True, exist_ok=True)
        encoded = encoder.document_vectors(texts, dim)
        np.save(file, np.concatenate(encoded))
        lengths.write_text(json.dumps([len(one) for one in encoded]))
    ends = np.cumsum(json.loads(lengths.read_text()))[:-1]
    flat: NDArray[np.float32] = np.load(file, mmap_mode="r")
    return np.split(flat, ends)


def store(collection: ColbertCollection, documents: list[Document], vectors: list[Matrix]) -> None:
    """Put documents into a collection with the vectors they have, and tidy up."""
    for points in _points(collection, documents, vectors):
        collection.engine.upsert(points)
    collection.optimize()


def _points(collection: ColbertCollection, documents: list[Document], vectors: list[Matrix]) -> Iterator[list[Point]]:
    for start in range(0, len(documents), 256):
        part = slice(start, start + 256)
        matrices = [np.asarray(matrix) for matrix in vectors[part]]
        stages = collection.current.stage_vectors([one.text for one in documents[part]], matrices)
        yield [
            Point(point_id(str(document.id)), matrix, payload_of(document), own)
            for document, matrix, own in zip(documents[part], matrices, stages, strict=True)
        ]
