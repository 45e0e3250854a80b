"""The asynchronous twins: the same results, and an event loop that goes on meanwhile."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_samples import DIM, QUERIES, contents, documents, encoded, expected_contents, group, store
from qdrant_client import models

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.collection import asynchronous
from jcv2_plugin.engines.base import Matrix, Point
from jcv2_plugin.errors import InvalidDocumentError, InvalidQueryError

ITEMS = documents(60)
SYNC = ("add", "ingest", "delete", "search", "search_many", "search_mmr", "get", "count", "explain", "scroll")
TWINS = [f"a{name}" for name in SYNC]


@pytest.fixture(scope="module")
def vectors(mini: JinaColbertEncoder) -> list[Matrix]:
    return encoded(mini, ITEMS)


@pytest.fixture(params=["edge", "memory"])
def collection(
    request: pytest.FixtureRequest, mini: JinaColbertEncoder, vectors: list[Matrix], tmp_path: Path
) -> Iterator[ColbertCollection]:
    location = ":memory:" if request.param == "memory" else tmp_path / "collection"
    with ColbertCollection.create(location, encoder=mini, dim=DIM) as made:
        store(made, ITEMS, vectors)
        yield made


@pytest.mark.parametrize("name", TWINS)
def test_each_takes_what_its_twin_takes(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(ColbertCollection, one)) for one in (name, name[1:]))
    assert ours.parameters == theirs.parameters
    assert getattr(ColbertCollection, name).__doc__


class TestTwins:
    async def test_reading(self, collection: ColbertCollection) -> None:
        recent = models.Filter(must=[models.FieldCondition(key="metadata.n", range=models.Range(gte=30))])
        for options in (
            {},
            {"filter": recent},
            {"candidates": 9},
            {"exact": True},
            {"score_threshold": 3.0},
            {"first_stage": "bm25"},
        ):
            assert await collection.asearch(QUERIES[0], 4, **options) == collection.search(QUERIES[0], 4, **options)
            assert await collection.asearch_many(QUERIES, 3, **options) == collection.search_many(QUERIES, 3, **options)
        (hit,) = await collection.asearch(QUERIES[0], 1, with_explanation=True)
        (same,) = (await collection.asearch_many(QUERIES, 1, with_explanation=True))[0]
        assert hit.explanation is not None
        assert same.explanation is not None
        assert hit.explanation.score == pytest.approx(same.explanation.score, abs=1e-4)
        assert await collection.aget(["d3", "missing", "d1"]) == collection.get(["d3", "missing", "d1"])
        assert (await collection.acount(), await collection.acount(group("g7"))) == (60, 2)
        explanation = await collection.aexplain(QUERIES[0], "d3")
        again = await collection.aexplain(
            QUERIES[0], "d3", query_vectors=collection.encoder.query_vectors([QUERIES[0]], DIM)[0]
        )
        assert explanation.score == again.score == collection.explain(QUERIES[0], "d3").score

    async def test_writing(self, collection: ColbertCollection, tmp_path: Path) -> None:
        assert await collection.aadd(["One.", "Two."], ids=["one", "two"], metadata=[{"a": 1}, None]) == ["one", "two"]
        seen: list[int] = []
        report = await collection.aingest(
            documents(7, start=100), batch_documents=4, progress=seen.append, journal=tmp_path / "journal"
        )
        assert (report.written, seen) == (7, [4, 3])
        await collection.adelete(["d1", "two"])
        await collection.adelete(filter=group("g7"))
        kept = [one for one in ITEMS if one.id not in ("d1", "d7", "d57")]
        late = [one for one in documents(7, start=100) if one.metadata["group"] != "g7"]
        assert contents(collection) == expected_contents([*kept, Document("One.", "one", {"a": 1}), *late])

    async def test_scrolling(self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(asynchronous, "_PAGE", 7)
        assert [one async for one in collection.ascroll()] == list(collection.scroll())
        assert sorted([one.id async for one in collection.ascroll(group("g7"))]) == ["d57", "d7"]
        first = [one async for one in _first(collection.ascroll(), 10)]
        assert first == list(collection.scroll())[:10]
        # Going on after a write in between shows each that stays once.
        ids: list[str] = []
        async for one in collection.ascroll():
            ids.append(one.id)
            if len(ids) == 10:
                await collection.aadd(["Late."], ids=["late"])
        assert sorted(set(ids) - {"late"}) == sorted(str(one.id) for one in ITEMS)
        assert len(ids) == len(set(ids))

    async def test_errors_come_through(self, collection: ColbertCollection) -> None:
        with pytest.raises(InvalidQueryError):
            await collection.asearch(" ")
        with pytest.raises(InvalidDocumentError):
            await collection.aadd([""])
        with pytest.raises(ValueError, match="either ids or a filter"):
            await collection.adelete()
        assert await collection.acount() == 60


async def _first(items: Any, number: int) -> Any:
    async for one in items:
        yield one
        number -= 1
        if not number:
            return


async def test_readers_beside_a_writer(collection: ColbertCollection) -> None:
    """Many at a time; no reader sees a half of anything, or misses what stays."""

    async def write() -> None:
        for turn in range(6):
            await collection.aadd([Document(f"Turn {turn}, number {n}.", f"w{n}", {"turn": turn}) for n in range(3)])
        await collection.adelete(["w0"])

    async def read(number: int) -> None:
        for _ in range(6):
            one = ITEMS[number]
            assert (await collection.asearch(one.text, 1))[0].id == one.id
            assert await collection.acount() in (60, 63, 62)
            turns = {found.metadata["turn"] for found in await collection.aget(["w0", "w1", "w2"])}
            assert len(turns) <= 1  # written together, seen together

    await asyncio.gather(write(), *(read(number) for number in range(0, 60, 12)))
    assert await collection.acount() == 62
    assert collection.verify(sample=10).ok


async def test_the_loop_waits_for_one_engine_call_at_most(mini: JinaColbertEncoder, tmp_path: Path) -> None:
    """Edge holds Python's lock during a call, so the calls must be short, and the loop must get its turn in between."""
    rng = np.random.default_rng(0)
    points = []
    for number in range(1500):
        rows = rng.standard_normal((40, DIM)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        points.append(Point(f"00000000-0000-0000-0000-{number:012}", rows, {"_id": str(number), "page_content": "x"}))
    with ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM, first_stage="none") as collection:
        collection.engine.upsert(points)
        collection.search("warm up")
        calls: list[tuple[float, float]] = []
        engine: Any = collection.engine
        original = engine._call

        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = original(*arguments)
            calls.append((started, time.perf_counter()))
            return result

        engine._call = call
        beats = [time.perf_counter()]

        async def beat() -> None:
            while True:
                await asyncio.sleep(0.001)
                beats.append(time.perf_counter())

        beating = asyncio.create_task(beat())
        found = await collection.asearch_many([f"query number {n}" for n in range(128)], 5)
        beating.cancel()
    assert len(found) == 128
    assert len(calls) == 16
    longest = max(end - start for start, end in calls)
    assert max(later - earlier for earlier, later in itertools.pairwise(beats)) < longest + MARGIN
    # And it does get its turn between two calls, not only at their end.
    turns = [any(start <= one < later for one in beats) for (start, _), (later, _) in itertools.pairwise(calls)]
    assert sum(turns) >= len(turns) // 2


MARGIN = 0.3
"""Seconds, for a machine that does other things too."""
