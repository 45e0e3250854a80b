"""Qdrant Edge and qdrant-client's local mode give the same results on real text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import models

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.documents import Document, payload_of, point_id
from jcv2_plugin.engines.base import Point

PASSAGES, QUERIES = 200, 12


@pytest.fixture(scope="module")
def points(mini: JinaColbertEncoder, data_dir: Path) -> list[Point]:
    """Real passages, encoded once for all collections."""
    with (data_dir / "mlqa-en" / "corpus.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(PASSAGES), strict=False)]
    documents = [
        Document(row["text"][:400], row["_id"], {"number": n, "group": "abc"[n % 3], "long": len(row["text"]) > 900})
        for n, row in enumerate(rows)
    ]
    vectors = mini.document_vectors([document.text for document in documents], 64)
    return [
        Point(point_id(str(document.id)), matrix, payload_of(document))
        for document, matrix in zip(documents, vectors, strict=True)
    ]


@pytest.fixture(scope="module")
def queries(data_dir: Path) -> list[str]:
    with (data_dir / "mlqa-en" / "queries.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(QUERIES), strict=False)]


@pytest.fixture(scope="module", params=["float16", "float32"])
def pair(
    request: pytest.FixtureRequest,
    mini: JinaColbertEncoder,
    points: list[Point],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ColbertCollection, ColbertCollection]]:
    made = [
        ColbertCollection.create(location, encoder=mini, dim=64, storage=request.param)
        for location in (tmp_path_factory.mktemp("edge") / "collection", ":memory:")
    ]
    for collection in made:
        collection.engine.upsert(points)
    yield made[0], made[1]
    for collection in made:
        collection.close()


def field(key: str, **condition: object) -> models.FieldCondition:
    return models.FieldCondition(key=f"metadata.{key}", **condition)


FILTERS = {
    "none": None,
    "value": models.Filter(must=[field("group", match=models.MatchValue(value="a"))]),
    "any, not": models.Filter(
        must=[field("group", match=models.MatchAny(any=["a", "b"]))],
        must_not=[field("long", match=models.MatchValue(value=True))],
    ),
    "range": models.Filter(must=[field("number", range=models.Range(gte=100, lt=180))]),
    "should": models.Filter(
        should=[field("number", range=models.Range(lt=20)), field("group", match=models.MatchValue(value="c"))]
    ),
    "nothing": models.Filter(must=[field("group", match=models.MatchValue(value="z"))]),
}


@pytest.mark.parametrize("name", FILTERS)
def test_ids_and_scores_agree(pair: tuple[ColbertCollection, ColbertCollection], queries: list[str], name: str) -> None:
    edge, memory = pair
    tolerance = 1e-3 if edge.schema.storage == "float16" else 1e-5
    assert edge.count(FILTERS[name]) == memory.count(FILTERS[name])
    results = zip(
        edge.search_many(queries, 10, filter=FILTERS[name]),
        memory.search_many(queries, 10, filter=FILTERS[name]),
        strict=True,
    )
    for ours, theirs in results:
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=tolerance)
        if [hit.id for hit in ours] != [hit.id for hit in theirs]:
            # Half precision may turn documents round whose exact scores differ by less than its error, and only those.
            assert edge.schema.storage == "float16"
            exact = {hit.id: hit.score for hit in theirs}
            last = theirs[-1].score
            assert all(abs(exact.get(hit.id, last) - hit.score) < tolerance for hit in ours)
            continue
        assert [hit.metadata for hit in ours] == [hit.metadata for hit in theirs]
