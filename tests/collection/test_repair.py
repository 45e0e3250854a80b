"""Repairing a folder whose write-ahead log cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from collection_samples import DIM, copied
from typer.testing import CliRunner

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.cli import app
from jcv2_plugin.documents import point_id
from jcv2_plugin.engines.base import Point
from jcv2_plugin.engines.edge import EdgeEngine
from jcv2_plugin.errors import CollectionCorruptError, CollectionUnfinishedError

IDS = [f"d{number}" for number in range(20)]


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.fixture(scope="module")
def bricked(mini: JinaColbertEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As version 0.1 left it: one document's metadata is too deep for the log, another's for reading as well."""
    path = tmp_path_factory.mktemp("bricked") / "collection"
    with ColbertCollection.create(path, encoder=mini, dim=DIM) as collection:
        collection.add([f"Document {one} about rivers." for one in IDS], ids=IDS, metadata=[{"n": 1}] * 20)
        for own_id, levels in (("d3", 123), ("d4", 140)):
            [record] = collection.engine.retrieve([point_id(own_id)], with_payload=True, with_vectors=True)
            assert record.vectors is not None
            payload = {**record.payload, "metadata": {"n": 1, "deep": nested(levels)}}
            collection.engine.upsert([Point(record.id, record.vectors, payload, record.stages)])
    return path


@pytest.fixture
def folder(bricked: Path, tmp_path: Path) -> Path:
    return copied(bricked, tmp_path / "collection")


def test_all_that_can_be_read_is_kept_and_can_be_written_to(folder: Path) -> None:
    with pytest.raises(CollectionCorruptError, match="jcv2 verify --repair"):
        ColbertCollection.open(folder)
    report = ColbertCollection.repair(folder)
    assert (report.needed, report.documents, report.cut, report.lost) == (True, 19, ["d3"], [point_id("d4")])
    with ColbertCollection.open(folder) as collection:
        assert set(collection.ids()) == set(IDS) - {"d4"}
        assert collection.get(["d3"])[0].metadata == {"n": 1}
        assert collection.verify(sample=3).ok
        # With the log merely deleted, Edge would ignore these.
        collection.delete(["d0"])
        collection.add(["Changed."], ids=["d1"])
        assert (collection.count(), collection.get(["d1"])[0].text) == (18, "Changed.")
    with ColbertCollection.open(folder) as collection:
        assert collection.count() == 18
    assert not ColbertCollection.repair(folder).needed
    assert sorted(one.name for one in folder.iterdir()) == ["jcv2.json", "lock", "shard-2"]


@pytest.mark.parametrize("step", ["retrieve", "upsert", "adopt"])
def test_an_interrupted_repair_is_repeated(folder: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EdgeEngine, step, stop)
        with pytest.raises(KeyboardInterrupt):
            ColbertCollection.repair(folder)
    with pytest.raises(CollectionUnfinishedError, match="jcv2 verify --repair"):
        ColbertCollection.open(folder)
    assert ColbertCollection.repair(folder).documents == 19
    with ColbertCollection.open(folder) as collection:
        assert collection.count() == 19


def test_the_log_is_put_back_where_more_than_it_is_damaged(folder: Path) -> None:
    for config in folder.glob("shard/segments/*/segment.json"):
        config.write_text("{")
    before = sorted((one.name, one.stat().st_size) for one in (folder / "shard" / "wal").iterdir())
    with pytest.raises(CollectionCorruptError, match="cannot be loaded"):
        ColbertCollection.repair(folder)
    assert sorted((one.name, one.stat().st_size) for one in (folder / "shard" / "wal").iterdir()) == before
    with pytest.raises(CollectionCorruptError, match="cannot be loaded"):
        ColbertCollection.open(folder)


def test_the_command(folder: Path) -> None:
    command = ["verify", "--repair", "--sample", "2", "-c", str(folder)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "19 documents counted" in done.stdout
    assert "No problems." in done.stdout
    for said in ("19 documents without the write-ahead log", "'d3': metadata", point_id("d4")):
        assert said in done.stderr
    assert "nothing to repair" in CliRunner().invoke(app, command).stderr
