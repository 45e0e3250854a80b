"""Verifying: a sound collection has no problems, and each kind of damage is named."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_samples import Create, both_engines, documents, on_call

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.documents import point_id
from jcv2_plugin.engines.base import Matrix, Point
from jcv2_plugin.engines.storage import storage_profile

ITEMS = documents(90)


def point_of(collection: ColbertCollection, id: str) -> Point:
    """A document's point as it is stored."""
    [record] = collection.engine.retrieve([point_id(id)], with_payload=True, with_vectors=True)
    return Point(record.id, record.vectors, record.payload, record.stages)


def damage(collection: ColbertCollection, name: str = "d1", *, lost: str = "", **change: Any) -> Point:
    """Change a point through the engine, as other software would, and return what it was.

    Args:
        collection: Where it is.
        name: Id of the document.
        lost: A key of its payload to leave out.
        change: Fields of the point; ``payload`` is added to what it has.
    """
    point = point_of(collection, name)
    payload = {key: value for key, value in {**point.payload, **change.pop("payload", {})}.items() if key != lost}
    collection.engine.upsert([replace(point, payload=payload, **change)])
    return point


def in_row(vectors: Matrix, number: int, value: Any) -> Matrix:
    """Other values in one row."""
    return np.where(np.arange(len(vectors))[:, None] == number, value, vectors).astype(np.float32)


@both_engines
class TestSound:
    @pytest.mark.parametrize("stage", ["none", "hybrid"])
    def test_it_has_no_problems(self, create: Create, stage: str) -> None:
        report = create(10, first_stage=stage).verify()
        assert (report.ok, report.problems) == (True, [])
        assert (report.documents, report.read, report.encoded) == (10, 10, 10)
        assert report.vectors > 100
        assert 0 <= report.worst < 1e-5

    def test_none_and_more_than_a_page_of_them(self, create: Create) -> None:
        report = create().verify()
        assert (report.ok, report.documents, report.read, report.encoded) == (True, 0, 0, 0)
        seen: list[int] = []
        report = create(90).verify(sample=3, progress=seen.append)
        assert (report.ok, report.read, report.encoded, seen) == (True, 90, 3, [1] * 90)

    def test_what_is_lost_in_storage_is_measured(self, create: Create, engine: str) -> None:
        report = create(10, storage="turbo8").verify()
        assert report.ok
        assert report.worst < storage_profile("turbo8").error
        if engine == "edge":  # local mode keeps vectors as they are
            assert report.worst > 1e-6

    def test_after_all_kinds_of_changes(self, create: Create) -> None:
        collection = create(10)
        collection.add([Document("Replaced.", "d1"), Document("Äöü \U0001f600\u2028", "new", {"a": [None, 1.5]})])
        collection.add([Document("With more keys.", "more", payload={"extra": {"x": 1}})])
        collection.delete(["d2"])
        assert collection.verify().problems == []


class TestTheSample:
    def test_it_is_drawn_by_the_seed(self, create: Create, encoded_texts: list[list[str]]) -> None:
        collection = create(90)
        for seed in (0, 0, 1, 2):
            assert collection.verify(sample=5, seed=seed).encoded == 5
        drawn = [sorted(texts) for texts in encoded_texts]
        assert drawn[0] == drawn[1]
        assert len({tuple(one) for one in drawn}) == 3
        # Not the first ones, but any of them.
        order = [one.text for one in collection.scroll()]
        assert max(order.index(text) for texts in drawn for text in texts) > 45

    def test_without_one_no_model_is_needed(self, create: Create, tmp_path: Path, monkeypatch: Any) -> None:
        create(3).close()
        monkeypatch.setattr(JinaColbertEncoder, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
        with ColbertCollection.open(tmp_path / "collection-0") as collection:
            report = collection.verify(sample=0)
            assert (report.ok, report.read, report.encoded) == (True, 3, 0)


class TestDamage:
    @both_engines
    @pytest.mark.parametrize(
        ("lost", "change", "message"),
        [
            ("", {"payload": {"page_content": "Another text."}}, "'d1'.*its payload was changed by other software"),
            ("", {"payload": {"metadata": {"n": 99}}}, "'d1'.*its payload was changed by other software"),
            ("", {"payload": {"extra": 1}}, "'d1'.*its payload was changed by other software"),
            ("", {"payload": {"_hash": "0"}}, "'d1'.*its payload was changed by other software"),
            ("_id", {}, f"{point_id('d1')}.*has no id or no text: it was not written by this package"),
            ("page_content", {}, f"{point_id('d1')}.*has no id or no text: it was not written by this package"),
            ("", {"id": str(uuid.UUID(int=7))}, f"'d1'.*{uuid.UUID(int=7)}.*another document's point"),
        ],
    )
    def test_payloads_and_ids(self, create: Create, lost: str, change: dict[str, Any], message: str) -> None:
        collection = create(3)
        damage(collection, lost=lost, **change)
        report = collection.verify()
        [problem] = report.problems
        assert re.search(message, problem)
        assert report.documents == (4 if "id" in change else 3)
        if "payload" in change and "_hash" in change["payload"]:  # adding it again mends it
            collection.add([ITEMS[1]])
            assert collection.verify().problems == []

    @pytest.mark.parametrize(
        ("engine", "storage", "change", "message"),
        [
            ("edge", "float16", lambda m: in_row(m, 2, np.nan), "has vectors that are not finite"),
            ("edge", "float16", lambda m: in_row(m, 2, np.inf), "has vectors that are not finite"),
            ("memory", "float16", lambda m: in_row(m, 2, np.inf), "has vectors that are not finite"),
            ("edge", "float16", lambda m: np.roll(m, 1, axis=0), "its vectors are not those of its text"),
            # A single token, in the storage of which the most is let pass.
            ("edge", "turbo4", lambda m: in_row(m, 3, m[:, ::-1]), "its vectors are not those of its text"),
            ("edge", "float16", lambda m: m[:-2], r"has \d+ vectors; encoded .* \d+"),
            ("edge", "float16", lambda m: np.tile(m, (2**20 // m.size + 1, 1)), "server takes fewer than 1,048,576"),
        ],
    )
    def test_vectors(self, create: Create, storage: str, change: Callable[[Matrix], Matrix], message: str) -> None:
        collection = create(3, storage=storage)
        rows = len(damage(collection, vectors=change(point_of(collection, "d1").vectors)).vectors)
        report = collection.verify()
        [problem] = report.problems
        assert re.search(f"'d1'.*{message}", problem)
        assert (report.worst > 0.1) == ("not those of its text" in problem)
        assert report.encoded == (2 if "finite" in problem or "server" in problem else 3)
        if "encoded" in message:
            assert re.findall(r"\d+", problem)[1:] == [str(rows - 2), str(rows)]

    @both_engines
    @pytest.mark.parametrize(
        ("stage", "lost"), [("pooled", ["pooled"]), ("hybrid", ["bm25"]), ("hybrid", ["pooled", "bm25"])]
    )
    def test_a_first_stage_that_is_missing(self, create: Create, stage: str, lost: list[str]) -> None:
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
        stray = str(uuid.UUID(int=2**128 - 1))
        progress = on_call(1, lambda: damage(collection, id=stray))
        problems = collection.verify(sample=0, progress=progress).problems
        assert any("70 documents are counted, 71 can be read. If nobody was writing" in one for one in problems)

    def test_only_the_first_are_named(self, create: Create) -> None:
        collection = create(30)
        for number in range(30):
            damage(collection, f"d{number}", payload={"_hash": "0"})
        report = collection.verify()
        assert (report.ok, len(report.problems), report.read, report.encoded) == (False, 20, 30, 0)
