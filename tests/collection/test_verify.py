"""Verifying: a sound collection has no problems, and each kind of damage is named."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_samples import DIM, documents, encoded, store

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.documents import point_id
from jcv2_plugin.engines.base import Matrix, Point
from jcv2_plugin.engines.storage import storage_profile

ITEMS = documents(90)

Create = Callable[..., ColbertCollection]


@pytest.fixture(scope="module")
def vectors(mini: JinaColbertEncoder) -> list[Matrix]:
    return encoded(mini, ITEMS)


@pytest.fixture(params=["edge", "memory"])
def create(
    request: pytest.FixtureRequest, mini: JinaColbertEncoder, vectors: list[Matrix], tmp_path: Path
) -> Iterator[Create]:
    """Makes collections of the first so many documents on one of the engines, and closes them."""
    made: list[ColbertCollection] = []

    def make(number: int = 10, **options: Any) -> ColbertCollection:
        location = ":memory:" if request.param == "memory" else tmp_path / f"collection-{len(made)}"
        made.append(ColbertCollection.create(location, encoder=mini, dim=DIM, **options))
        store(made[-1], ITEMS[:number], vectors[:number])
        return made[-1]

    yield make
    for collection in made:
        collection.close()


def point_of(collection: ColbertCollection, id: str) -> Point:
    """A document's point as it is stored."""
    [record] = collection.engine.retrieve([point_id(id)], with_payload=True, with_vectors=True)
    assert record.vectors is not None
    return Point(record.id, record.vectors, record.payload, record.stages)


class TestSound:
    @pytest.mark.parametrize("stage", ["none", "pooled", "muvera", "bm25", "hybrid"])
    def test_it_has_no_problems(self, create: Create, stage: Any) -> None:
        collection = create(first_stage=stage)
        report = collection.verify()
        assert (report.ok, report.problems) == (True, [])
        assert (report.documents, report.read, report.encoded) == (10, 10, 10)
        assert report.vectors > 100
        assert 0 <= report.worst < 1e-5

    def test_an_empty_one(self, create: Create) -> None:
        report = create(0).verify()
        assert (report.ok, report.documents, report.read, report.encoded) == (True, 0, 0, 0)

    def test_more_than_a_page_of_them(self, create: Create) -> None:
        seen: list[int] = []
        report = create(90).verify(sample=3, progress=seen.append)
        assert (report.ok, report.read, report.encoded) == (True, 90, 3)
        assert seen == [1] * 90

    def test_what_is_lost_in_storage_is_measured(self, create: Create) -> None:
        collection = create(storage="turbo8")
        report = collection.verify()
        assert report.ok
        assert report.worst < storage_profile("turbo8").error
        if collection.engine.first_stage_pays:  # local mode keeps vectors as they are
            assert report.worst > 1e-6

    def test_after_all_kinds_of_changes(self, create: Create) -> None:
        collection = create()
        collection.add([Document("Replaced.", "d1"), Document("Äöü \U0001f600\u2028", "new", {"a": [None, 1.5]})])
        collection.add([Document("With more keys.", "more", payload={"extra": {"x": 1}})])
        collection.delete(["d2"])
        assert collection.verify().problems == []


class TestTheSample:
    def test_it_is_drawn_by_the_seed(self, create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
        collection = create(90)
        drawn: list[list[str]] = []
        monkeypatch.setattr(
            JinaColbertEncoder,
            "document_vectors",
            lambda self, texts, *rest, original=JinaColbertEncoder.document_vectors: (
                drawn.append(sorted(texts)),
                original(self, texts, *rest),
            )[1],
        )
        for seed in (0, 0, 1, 2):
            assert collection.verify(sample=5, seed=seed).encoded == 5
        assert drawn[0] == drawn[1]
        assert len({tuple(one) for one in drawn}) == 3
        # Not the first ones, but any of them.
        order = [one.text for one in collection.scroll()]
        assert max(order.index(text) for texts in drawn for text in texts) > 45

    def test_without_one_no_model_is_needed(self, tmp_path: Path, create: Create, monkeypatch: Any) -> None:
        with ColbertCollection.create(tmp_path / "c", encoder="mini", dim=DIM) as collection:
            collection.add(ITEMS[:3])
        monkeypatch.setattr(JinaColbertEncoder, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
        with ColbertCollection.open(tmp_path / "c") as collection:
            report = collection.verify(sample=0)
            assert (report.ok, report.read, report.encoded) == (True, 3, 0)


class TestDamage:
    """Done through the engine, as other software would."""

    def test_a_payload_that_was_changed(self, create: Create) -> None:
        for change in ({"page_content": "Another text."}, {"metadata": {"n": 99}}, {"extra": 1}, {"_hash": "0"}):
            collection = create(3)
            point = point_of(collection, "d1")
            collection.engine.upsert([replace(point, payload={**point.payload, **change})])
            [problem] = collection.verify().problems
            assert "Document 'd1'" in problem
            assert "its payload was changed by other software" in problem

    @pytest.mark.parametrize("lost", ["_id", "page_content"])
    def test_a_payload_that_is_not_ours(self, create: Create, lost: str) -> None:
        collection = create(3)
        point = point_of(collection, "d1")
        payload = {key: value for key, value in point.payload.items() if key != lost}
        collection.engine.upsert([replace(point, payload=payload)])
        [problem] = collection.verify().problems
        assert point.id in problem
        assert "has no id or no text: it was not written by this package" in problem

    def test_another_documents_point(self, create: Create) -> None:
        collection = create(3)
        stray = str(uuid.UUID(int=7))
        collection.engine.upsert([replace(point_of(collection, "d1"), id=stray)])
        report = collection.verify()
        assert [("d1" in one, stray in one, "another document's point" in one) for one in report.problems] == [
            (True, True, True)
        ]
        assert report.documents == 4

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_numbers_that_are_none(self, create: Create, value: float) -> None:
        collection = create(3)
        if np.isnan(value) and not collection.engine.first_stage_pays:
            pytest.skip("local mode takes no NaN")
        point = point_of(collection, "d1")
        broken = point.vectors.copy()
        broken[2, 5] = value
        collection.engine.upsert([replace(point, vectors=broken)])
        report = collection.verify()
        assert len(report.problems) == 1
        assert "'d1'" in report.problems[0]
        assert "has vectors that are not finite" in report.problems[0]
        assert report.encoded == 2

    def test_vectors_of_another_text(self, create: Create) -> None:
        collection = create(6)
        rows = {one: len(point_of(collection, one).vectors) for one in ("d0", "d1", "d2", "d3", "d4", "d5")}
        pairs = [(a, b) for a in rows for b in rows if a < b and rows[a] == rows[b]]
        ours, theirs = pairs[0]
        collection.engine.upsert([replace(point_of(collection, ours), vectors=point_of(collection, theirs).vectors)])
        report = collection.verify()
        [problem] = report.problems
        assert f"'{ours}': its vectors are not those of its text" in problem
        assert report.worst > 0.1

    def test_a_single_token_that_is_not_its_own(self, create: Create) -> None:
        collection = create(3, storage="turbo4")  # of which the most is let pass
        point = point_of(collection, "d1")
        turned = point.vectors.copy()
        turned[3] = turned[3, ::-1]
        collection.engine.upsert([replace(point, vectors=turned)])
        [problem] = collection.verify().problems
        assert "its vectors are not those of its text" in problem

    def test_vectors_that_are_missing(self, create: Create) -> None:
        collection = create(3)
        point = point_of(collection, "d1")
        collection.engine.upsert([replace(point, vectors=point.vectors[:-2])])
        [problem] = collection.verify().problems
        rows = len(point.vectors)
        assert f"'d1' has {rows - 2} vectors; encoded anew it has {rows}" in problem

    def test_more_numbers_than_a_server_takes(self, create: Create) -> None:
        collection = create(2)
        point = point_of(collection, "d1")
        many = np.tile(point.vectors, (1024 * 1024 // point.vectors.size + 1, 1))
        collection.engine.upsert([replace(point, vectors=many)])
        [problem] = collection.verify().problems
        assert "a Qdrant server takes fewer than 1,048,576" in problem

    @pytest.mark.parametrize(
        ("stage", "lost"),
        [("pooled", ["pooled"]), ("bm25", ["bm25"]), ("hybrid", ["bm25"]), ("hybrid", ["pooled", "bm25"])],
    )
    def test_a_first_stage_that_is_missing(self, create: Create, stage: Any, lost: list[str]) -> None:
        collection = create(5, first_stage=stage)
        for id in ("d1", "d3"):
            point = point_of(collection, id)
            kept = {name: vector for name, vector in point.stages.items() if name not in lost}
            collection.engine.delete([point.id])
            collection.engine.upsert([replace(point, stages=kept)])
        assert collection.verify().problems == [
            f"2 documents have no {name!r} vector, so the first stage cannot find them." for name in lost
        ]

    def test_documents_that_come_while_it_reads(self, create: Create) -> None:
        """No damage, but then the numbers do not agree, and it says what that may mean."""
        collection = create(70)
        added: list[int] = []

        def progress(number: int) -> None:
            if not added:
                added.append(1)
                collection.engine.upsert([replace(point_of(collection, "d1"), id=str(uuid.UUID(int=2**128 - 1)))])

        problems = collection.verify(sample=0, progress=progress).problems
        assert any("70 documents are counted, 71 can be read. If nobody was writing" in one for one in problems)

    def test_only_the_first_are_named(self, create: Create) -> None:
        collection = create(30)
        points = [point_of(collection, f"d{n}") for n in range(30)]
        collection.engine.upsert([replace(one, payload={**one.payload, "_hash": "0"}) for one in points])
        report = collection.verify()
        assert len(report.problems) == 20
        assert not report.ok
        assert (report.read, report.encoded) == (30, 0)

    def test_adding_it_again_mends_it(self, create: Create) -> None:
        collection = create(3)
        point = point_of(collection, "d1")
        collection.engine.upsert([replace(point, payload={**point.payload, "page_content": "x", "_hash": "0"})])
        assert not collection.verify().ok
        collection.add([ITEMS[1]])
        assert collection.verify().problems == []
