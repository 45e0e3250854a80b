"""Qdrant Edge optimises much in another process; meanwhile, this one goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from collection_samples import copied

from jcv2_plugin.documents import Document, payload_of, point_id
from jcv2_plugin.engines import edge, edge_process
from jcv2_plugin.engines.base import Point, SearchRequest
from jcv2_plugin.engines.edge import EdgeEngine
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.errors import CollectionError, DiskFullError

DIM = 64
SCHEMA = CollectionSchema(
    model="mini",
    revision=None,
    fingerprint="",
    dim=DIM,
    document_length=300,
    query_length=32,
    skiplist="none",
    long_documents="truncate",
    first_stage="pooled",
    storage="float16",
)
COUNT, ROWS = 1_500, 60  # fewer, and Edge sees nothing to optimise


def points(count: int, seed: int = 0) -> list[Point]:
    drawn = np.random.default_rng(seed).standard_normal((count, ROWS, DIM)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=2, keepdims=True)
    return [
        Point(
            point_id(f"{seed}-{number}"),
            vectors,
            payload_of(Document("text", f"{seed}-{number}")),
            {"pooled": vectors.mean(axis=0)},
        )
        for number, vectors in enumerate(drawn)
    ]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = EdgeEngine.create(tmp_path_factory.mktemp("original") / "collection", SCHEMA)
    made.upsert(points(COUNT))
    made.close()
    return made.path


@pytest.fixture
def filled(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EdgeEngine]:
    monkeypatch.setattr(edge, "_BYTES_TO_OPTIMIZE_HERE", 1)
    opened = EdgeEngine.open(copied(original, tmp_path / "collection"))
    yield opened
    opened.close()


def found(engine: EdgeEngine) -> list[str]:
    request = SearchRequest(points(1)[0].vectors)
    return [str(one.id) for one in engine.search([request], 5, filter=None, score_threshold=None)[0]]


def segments(engine: EdgeEngine) -> set[str]:
    return {one.name for one in (engine.path / "shard" / "segments").iterdir()}


def test_an_event_loop_goes_on(filled: EdgeEngine) -> None:
    before = segments(filled)

    async def ticks_meanwhile() -> int:
        ticks = 0
        work = asyncio.create_task(asyncio.to_thread(filled.optimize))
        while not work.done():
            await asyncio.sleep(0.002)
            ticks += 1
        await work
        return ticks

    # In this process, 1 or 2 ticks: Edge holds the GIL.
    assert asyncio.run(ticks_meanwhile()) > 20
    assert segments(filled) != before
    assert filled.size() == COUNT


def test_searches_wait_and_find_the_same(filled: EdgeEngine) -> None:
    expected = found(filled)
    work = threading.Thread(target=filled.optimize)
    work.start()
    results = [found(filled)]
    while work.is_alive():
        results.append(found(filled))
    work.join()
    assert all(one == expected for one in results)


def test_closing_waits(filled: EdgeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()
    real = edge_process.optimize_apart

    def optimize(shard: Path) -> bool:
        begun.set()
        return real(shard)

    monkeypatch.setattr(edge, "optimize_apart", optimize)
    work = threading.Thread(target=filled.optimize)
    work.start()
    assert begun.wait(30)
    filled.close()
    work.join()
    with pytest.raises(CollectionError, match="is closed"):
        filled.size()
    again = EdgeEngine.open(filled.path)
    assert again.size() == COUNT
    again.close()


def test_a_killed_process_loses_nothing(filled: EdgeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = found(filled)
    with monkeypatch.context() as patch:
        kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        patch.setattr(edge_process, "_CODE", edge_process._CODE.replace("    shard.flush()", f"    {kill}"))
        with pytest.raises(CollectionError, match="its process was ended by SIGKILL"):
            filled.optimize()
    assert found(filled) == expected
    filled.optimize()
    assert (filled.size(), found(filled)) == (COUNT, expected)


def test_an_error_there_is_an_error_here(filled: EdgeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = edge_process._CODE.replace("shard.optimize()", "raise Exception('No space left on device (os error 28)')")
    monkeypatch.setattr(edge_process, "_CODE", broken)
    with pytest.raises(DiskFullError, match="the disk is full"):
        filled.optimize()
    assert filled.size() == COUNT


@pytest.mark.parametrize("executable", ["", "/no/such/python", "/bin/false"])
def test_without_another_python(monkeypatch: pytest.MonkeyPatch, filled: EdgeEngine, executable: str) -> None:
    monkeypatch.setattr(edge_process, "get_executable", lambda: executable)
    assert edge_process.optimize_apart(filled.path / "shard") is False
    if not executable:
        before = segments(filled)
        filled.optimize()
        assert segments(filled) != before
        assert filled.size() == COUNT


def test_few_new_points_are_optimised_here(filled: EdgeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.optimize()
    monkeypatch.setattr(edge, "_BYTES_TO_OPTIMIZE_HERE", 10**6)
    monkeypatch.setattr(edge, "optimize_apart", lambda shard: pytest.fail("another process for ten points"))
    filled.upsert(points(10, seed=1))
    filled.optimize()
    assert filled.size() == COUNT + 10


def test_what_a_deletion_leaves_is_optimised_apart(filled: EdgeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment of which a fifth is deleted is written anew."""
    filled.optimize()
    monkeypatch.setattr(edge, "_BYTES_TO_OPTIMIZE_HERE", 10**6)
    apart: list[Path] = []
    monkeypatch.setattr(edge, "optimize_apart", lambda shard: apart.append(shard) or edge_process.optimize_apart(shard))
    filled.delete([point.id for point in points(COUNT)[: COUNT // 2]])
    before = segments(filled)
    filled.optimize()
    assert apart
    assert segments(filled) != before
    assert filled.size() == COUNT - COUNT // 2


def test_the_log_does_not_grow_with_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take as much disk as all vectors in float32 until the collection is optimised or closed."""
    monkeypatch.setattr(edge, "_BYTES_PER_FLUSH", 2**24)
    engine = EdgeEngine.create(tmp_path / "collection", SCHEMA)
    stored = 0
    for seed in range(4):
        batch = points(COUNT, seed=seed)
        engine.upsert(batch)
        stored += sum(one.vectors.nbytes for one in batch)
    log = sum(file.stat().st_blocks * 512 for file in (engine.path / "shard" / "wal").iterdir())
    engine.close()
    assert stored > 1.3 * 2**26
    assert log < 2**26
