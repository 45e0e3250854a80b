"""Documents, filters and helpers for tests of whole collections."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import models

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.collection.ingest import NewDocument, points_of
from jcv2_plugin.documents import payload_of, point_id

DIM = 32

NAME = "papers"

Create = Callable[..., ColbertCollection]
Place = dict[str, Any]
both_engines = pytest.mark.parametrize("engine", ["edge", "memory"])

_WHO = ("A farmer", "The old captain", "My sister", "A painter", "The doctor", "One pilot", "The baker", "A child")
_DOES = ("mends", "sells", "hides", "washes", "finds", "paints", "counts", "carries", "forgets")
_WHAT = ("a red boat", "two violins", "the wooden clock", "fresh bread", "an umbrella", "some coins", "a map", "honey")
_WHERE = ("near the harbour", "in the snow", "behind the church", "at the market", "on a train", "under the bridge")

QUERIES = (
    "who sells bread at the market?",
    "violins on a train",
    "what did the captain hide?",
    "a pilot in the snow",
    "where are the coins counted?",
)


def documents(number: int, *, start: int = 0) -> list[Document]:
    """Different short texts with the ids ``d0``, ``d1``, ... and a little metadata."""
    return [
        Document(
            f"{_WHO[n % 8]} {_DOES[n % 9]} {_WHAT[n // 3 % 8]} {_WHERE[n // 5 % 6]}, as page {n} tells.",
            f"d{n}",
            {"n": n, "group": f"g{n % 50}"},
        )
        for n in range(start, start + number)
    ]


def group(value: str) -> models.Filter:
    """One document in fifty."""
    return models.Filter(must=[models.FieldCondition(key="metadata.group", match=models.MatchValue(value=value))])


def encoded(encoder: JinaColbertEncoder, items: Sequence[Document], dim: int = DIM) -> list[NDArray[np.float32]]:
    """Token vectors, to be stored in several collections."""
    return encoder.document_vectors([one.text for one in items], dim)


def store(collection: ColbertCollection, items: Sequence[Document], vectors: Sequence[NDArray[np.float32]]) -> None:
    """Add documents whose vectors are known, as ``add`` does but for encoding them."""
    new = [NewDocument(point_id(str(one.id)), one, payload_of(one)) for one in items]
    collection.engine.upsert(points_of(collection.current, new, vectors=vectors))
    collection.current.has_changed()


def first(patch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[..., Any]) -> None:
    """Let ``act`` see the arguments of each call of a method first."""
    original = getattr(owner, name)

    def acting(*arguments: Any, **options: Any) -> Any:
        act(*arguments, **options)
        return original(*arguments, **options)

    patch.setattr(owner, name, acting)


def on_call(number: int, act: Callable[[], Any]) -> Callable[..., None]:
    """A function that acts on its so manieth call, counted from 1, and does nothing else."""
    calls = itertools.count(1)

    def called(*arguments: Any, **options: Any) -> None:
        if next(calls) == number:
            act()

    return called


def fail(error: BaseException) -> None:
    """Raise an error."""
    raise error


def in_threads(*jobs: Callable[[], Any], seconds: float = 120) -> list[Any]:
    """The results of jobs that run at a time; an error of one of them is raised."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [one.result(timeout=seconds) for one in [pool.submit(job) for job in jobs]]


def contents(collection: ColbertCollection) -> dict[str, tuple[str, dict[str, Any]]]:
    """Text and metadata of each document by id."""
    return {one.id: (one.text, one.metadata) for one in collection.scroll()}


def expected_contents(items: Iterable[Document]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """What :func:`contents` is where these are stored."""
    return {str(one.id): (one.text, one.metadata) for one in items}


def stored_vectors(collection: ColbertCollection) -> dict[str, NDArray[np.float32]]:
    """The token vectors of each document by id."""
    records = collection.engine.scroll(None, with_payload=["_id"], with_vectors=True)
    return {record.payload["_id"]: record.vectors for record in records if record.vectors is not None}


def maxsim(query: NDArray[np.float32], document: NDArray[np.float32]) -> float:
    """As it is defined: the sum over query tokens of the largest dot product."""
    return float((query @ document.T).max(axis=1).sum())


def okapi(texts: Sequence[Sequence[int]], query: Sequence[int], k1: float, b: float, length: float) -> list[float]:
    """Robertson's BM25 of each text, with Lucene's idf and a fixed length to compare with, in plain Python."""
    counts = [Counter(text) for text in texts]
    scores = [0.0] * len(texts)
    for term in set(query):
        having = sum(term in count for count in counts)
        idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for position, count in enumerate(counts):
            tf = count[term]
            scores[position] += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(texts[position]) / length))
    return scores


def copied(source: Path | str, target: Path | str) -> Path:
    """Copy a folder: Edge's files have holes, which ``shutil`` fills."""
    if subprocess.run(["cp", "-a", "--sparse=always", str(source), str(target)], check=False).returncode:
        shutil.copytree(source, target)
    return Path(target)
