"""The asynchronous twins: the same results, and an event loop that goes on meanwhile."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_samples import DIM, QUERIES, Create, both_engines, contents, documents, expected_contents, group

from jcv2_plugin import ColbertCollection, Document
from jcv2_plugin.collection import asynchronous
from jcv2_plugin.documents import point_id
from jcv2_plugin.engines.base import Point
from jcv2_plugin.errors import InvalidDocumentError, InvalidQueryError

ITEMS = documents(60)
TWINS = ("add", "ingest", "delete", "search", "search_many", "search_mmr", "get", "count", "explain", "scroll")


@pytest.fixture
def collection(create: Create) -> ColbertCollection:
    return create(60)


def test_each_takes_what_its_twin_takes() -> None:
    for name in TWINS:
        ours, theirs = (getattr(ColbertCollection, one) for one in (f"a{name}", name))
        assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters
        assert ours.__doc__


@both_engines
async def test_reading(collection: ColbertCollection) -> None:
    options: Any
    for options in ({}, {"filter": group("g7"), "score_threshold": 3.0}, {"first_stage": "bm25"}):
        assert await collection.asearch(QUERIES[0], 4, **options) == collection.search(QUERIES[0], 4, **options)
        assert await collection.asearch_many(QUERIES, 3, **options) == collection.search_many(QUERIES, 3, **options)
    assert await collection.asearch_mmr(QUERIES[0], 3) == collection.search_mmr(QUERIES[0], 3)
    (hit,) = await collection.asearch(QUERIES[0], 1, with_explanation=True)
    explanation = await collection.aexplain(QUERIES[0], hit.id)
    assert hit.explanation.score == pytest.approx(explanation.score, abs=1e-4)
    assert await collection.aget(["d3", "missing", "d1"]) == collection.get(["d3", "missing", "d1"])
    assert (await collection.acount(), await collection.acount(group("g7"))) == (60, 2)


async def test_writing(collection: ColbertCollection, tmp_path: Path) -> None:
    assert await collection.aadd(["One.", "Two."], ids=["one", "two"], metadata=[{"a": 1}, None]) == ["one", "two"]
    seen: list[int] = []
    late = documents(7, start=100)
    report = await collection.aingest(late, batch_documents=4, progress=seen.append, journal=tmp_path / "journal")
    assert (report.written, seen) == (7, [4, 3])
    await collection.adelete(["d1", "two"])
    await collection.adelete(filter=group("g7"))
    kept = [one for one in [*ITEMS, *late] if one.id != "d1" and one.metadata["group"] != "g7"]
    assert contents(collection) == expected_contents([*kept, Document("One.", "one", {"a": 1})])


async def test_scrolling(collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asynchronous, "_PAGE", 7)
    assert [one async for one in collection.ascroll()] == list(collection.scroll())
    assert sorted([one.id async for one in collection.ascroll(group("g7"))]) == ["d57", "d7"]
    # Going on after a write in between shows each that stays once.
    ids: list[str] = []
    async for one in collection.ascroll():
        ids.append(one.id)
        if len(ids) == 10:
            await collection.aadd(["Late."], ids=["late"])
    assert sorted(set(ids) - {"late"}) == sorted(str(one.id) for one in ITEMS)
    assert len(ids) == len(set(ids))


async def test_errors_come_through(collection: ColbertCollection) -> None:
    for call, error in (
        (collection.asearch(" "), InvalidQueryError),
        (collection.aadd([""], on_blank="error"), InvalidDocumentError),
        (collection.adelete(), ValueError),
    ):
        with pytest.raises(error):
            await call
    assert await collection.acount() == 60


@both_engines
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

    await asyncio.gather(write(), *(read(number) for number in range(0, 60, 20)))
    assert collection.verify(sample=10).ok


async def test_the_loop_waits_for_one_engine_call_at_most(create: Create) -> None:
    """Edge holds Python's lock during a call, so the calls must be short, and the loop must get its turn in between."""
    rows = np.random.default_rng(0).standard_normal((1500, 40, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    collection = create(first_stage="none")
    engine: Any = collection.engine
    engine.upsert(
        [
            Point(point_id(str(number)), matrix, {"_id": str(number), "page_content": "x"})
            for number, matrix in enumerate(rows)
        ]
    )
    collection.search("warm up")
    calls: list[tuple[float, float]] = []
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
    assert len(await collection.asearch_many([f"query number {n}" for n in range(64)], 5)) == 64
    beating.cancel()
    assert len(calls) == 8
    longest = max(end - start for start, end in calls)
    margin = 0.3  # seconds, for a machine that does other things too
    assert max(later - earlier for earlier, later in itertools.pairwise(beats)) < longest + margin
    # And it does get its turn between two calls, not only at their end.
    turns = [any(start <= one < later for one in beats) for (start, _), (later, _) in itertools.pairwise(calls)]
    assert sum(turns) >= len(turns) // 2
