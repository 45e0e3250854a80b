"""Requests to a Qdrant server that take too long, or fail, for a while or for good."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from collection_samples import contents, documents, encoded, expected_contents, store
from loopback_qdrant import Fault, Recorded
from qdrant_client import models
from server_site import Site

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.documents import point_id
from jcv2_plugin.engines.base import Matrix
from jcv2_plugin.errors import (
    CollectionError,
    CollectionExistsError,
    InvalidOptionError,
    ServerBusyError,
)

ITEMS = documents(24)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def vectors(mini: JinaColbertEncoder) -> list[Matrix]:
    return encoded(mini, ITEMS)


@pytest.fixture
def filled(loopback: Site, mini: JinaColbertEncoder, vectors: list[Matrix]) -> ColbertCollection:
    collection: ColbertCollection = loopback.create(mini)
    store(collection, ITEMS, vectors)
    return collection


def let_fail(site: Site, monkeypatch: pytest.MonkeyPatch, choose: Callable[[Recorded], Fault | None]) -> None:
    """Let a function choose which requests fail."""
    original = site.loopback.next_fault

    def next_fault(request: Recorded) -> Fault | None:
        original(request)
        return choose(request)

    monkeypatch.setattr(site.loopback, "next_fault", next_fault)


def lose_every_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Carry out each request twice, since its first answer is lost; but for the question that is asked first."""
    lost: list[str] = []
    waiting: set[str] = set()

    def choose(request: Recorded) -> Fault | None:
        sent = f"{request.method} {request.path} {request.size}"
        if sent in waiting:
            waiting.remove(sent)
            return None
        if request.path.endswith(("/exists", "/CollectionExists")):
            return None
        waiting.add(sent)
        lost.append(sent)
        return Fault(1, "", drop=True, carried_out=True)

    let_fail(site, monkeypatch, choose)
    return lost


class TestTime:
    def test_an_answer_that_takes_too_long(
        self, loopback: Site, filled: ColbertCollection, mini: JinaColbertEncoder
    ) -> None:
        collection = loopback.open(encoder=mini, retries=1, client_options={"timeout": 1})
        loopback.loopback.delay(1.5, times=1)
        started = time.perf_counter()
        with pytest.raises(CollectionError, match=r"did not answer in time.*longer timeout"):
            collection.count()
        assert 0.9 < time.perf_counter() - started < 1.5
        loopback.loopback.heal()
        assert collection.count() == len(ITEMS)

    def test_more_time_helps(self, loopback: Site, filled: ColbertCollection) -> None:
        collection = loopback.open(retries=1, client_options={"timeout": 20})
        loopback.loopback.delay(1.2, times=1)
        assert collection.count() == len(ITEMS)

    def test_it_is_tried_again(
        self, loopback: Site, filled: ColbertCollection, mini: JinaColbertEncoder, waits: list[float]
    ) -> None:
        collection = loopback.open(encoder=mini, client_options={"timeout": 1})
        loopback.loopback.delay(1.3, times=1)
        assert collection.search(ITEMS[7].text, k=1)[0].id == "d7"
        assert len(waits) == 1


class TestPassingFailures:
    @pytest.mark.parametrize("failure", [{"status": 503}, {"drop": True}])
    def test_everything_is_tried_again(
        self,
        loopback: Site,
        filled: ColbertCollection,
        mini: JinaColbertEncoder,
        waits: list[float],
        failure: dict[str, Any],
    ) -> None:
        acts: list[Callable[[], Any]] = [
            lambda: filled.add(["Another text."], ids=["new"]),
            lambda: filled.count(),
            lambda: filled.search(ITEMS[7].text, k=1)[0].id,
            lambda: filled.get(["new"])[0].text,
            lambda: len(list(filled.ids())),
            lambda: filled.delete(["new"]),
            lambda: filled.create_payload_index("metadata.n", "integer"),
            lambda: filled.migrate(first_stage="pooled").documents,
        ]
        expected = [["new"], 25, "d7", "Another text.", 25, None, None, 24]
        for act, result in zip(acts, expected, strict=True):
            waits.clear()
            loopback.loopback.fail(times=2, **failure)
            assert act() == result
            assert len(waits) == 2
        assert loopback.open(encoder=mini).verify(sample=3).problems == []

    def test_an_answer_of_the_first_contact_may_pass_too(
        self, loopback: Site, filled: ColbertCollection, mini: JinaColbertEncoder, waits: list[float]
    ) -> None:
        for act in (loopback.open, lambda: loopback.create(mini, overwrite=True)):
            waits.clear()
            loopback.loopback.fail(times=2, status=503)
            act()
            assert len(waits) == 2
        loopback.loopback.fail(times=1, drop=True)
        with pytest.raises(CollectionError, match="cannot be reached"):
            loopback.open()
        assert len(waits) == 2

    def test_lost_answers_lose_and_double_nothing(
        self, loopback: Site, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch, waits: list[float]
    ) -> None:
        lost = lose_every_answer(loopback, monkeypatch)
        indexes = {"metadata.group": "keyword"}
        collection = loopback.create(mini, payload_indexes=indexes)
        collection.add(ITEMS[:4])
        collection.add([Document("Replaced.", "d1")])
        collection.ingest(ITEMS[4:12], batch_documents=3)
        collection.delete(["d0"])
        collection.delete(filter=models.Filter(must=[models.HasIdCondition(has_id=[point_id("d2")])]))
        expected = expected_contents([Document("Replaced.", "d1"), *ITEMS[3:12]])
        assert contents(collection) == expected
        report = collection.migrate(first_stage="pooled")
        assert (report.documents, report.copied) == (10, 10)
        assert contents(loopback.open(encoder=mini)) == expected
        assert loopback.names() == [f"{loopback.name}.2"]
        assert loopback.create(mini, overwrite=True).count() == 0
        assert loopback.names() == [f"{loopback.name}.3"]
        assert len(lost) > 20

    def test_lost_answers_in_the_making_of_shards(
        self, loopback: Site, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch, waits: list[float]
    ) -> None:
        lose_every_answer(loopback, monkeypatch)
        custom = {"sharding_method": "custom"}
        collection = loopback.create(mini, shard_key="north", collection_options=custom)
        collection.add(ITEMS[:4])
        assert loopback.open(shard_key="north").count() == 4

    def test_a_collection_of_another_is_not_taken_for_a_lost_answer(
        self, loopback: Site, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch, waits: list[float]
    ) -> None:
        """Somebody creates a collection of the same name at the same moment."""
        raced: list[str] = []

        def choose(request: Recorded) -> Fault | None:
            is_create = request.path.endswith(("/Create", f"/{loopback.name}.1")) and request.method in ("PUT", "GRPC")
            if is_create and not raced:
                raced.append(request.path)
                loopback.create(mini, dim=64).add(ITEMS[:1])
            return None

        let_fail(loopback, monkeypatch, choose)
        with pytest.raises(CollectionExistsError):
            loopback.create(mini)
        assert loopback.open().count() == 1


class TestLastingFailures:
    def test_an_ingestion_leaves_what_was_stored_before(
        self, loopback: Site, mini: JinaColbertEncoder, waits: list[float]
    ) -> None:
        collection = loopback.create(mini, retries=3)

        def progress(number: int) -> None:
            path = "/points" if loopback.kind == "rest" else "Points/Upsert"
            loopback.loopback.fail(99, 503, path_contains=path)

        with pytest.raises(ServerBusyError, match=r"temporarily unavailable.*more retries"):
            collection.ingest(ITEMS, batch_documents=4, progress=progress)
        assert len(waits) in (2, 4), "of the batch that failed, and of one that was ready to be stored"
        loopback.loopback.heal()
        stored = contents(collection)
        assert 0 < len(stored) < len(ITEMS)
        assert stored == expected_contents(ITEMS[: len(stored)])
        report = collection.ingest(ITEMS, batch_documents=4)
        assert (report.written, report.unchanged) == (len(ITEMS) - len(stored), len(stored))
        assert contents(collection) == expected_contents(ITEMS)

    def test_retries_of_one_is_one_attempt(self, loopback: Site, filled: ColbertCollection, waits: list[float]) -> None:
        collection = loopback.open(retries=1)
        loopback.loopback.fail(status=503)
        with pytest.raises(ServerBusyError):
            collection.count()
        assert waits == []
        for retries in (0, -1, True, 2.5):
            with pytest.raises(InvalidOptionError, match="must be a positive integer"):
                loopback.open(retries=retries)

    @pytest.mark.parametrize("cleanup", ["works", "fails too"])
    def test_a_creation_that_fails_leaves_nothing_and_says_why(
        self,
        loopback: Site,
        mini: JinaColbertEncoder,
        vectors: list[Matrix],
        monkeypatch: pytest.MonkeyPatch,
        waits: list[float],
        cleanup: str,
    ) -> None:
        store(loopback.create(mini), ITEMS, vectors)

        def choose(request: Recorded) -> Fault | None:
            if request.path.endswith(("/index", "/CreateFieldIndex")):
                return Fault(1, "", status=507, reason="Insufficient storage: the disk is full")
            if cleanup == "fails too" and (request.method == "DELETE" or request.path.endswith("/Delete")):
                return Fault(1, "", drop=True)
            return None

        let_fail(loopback, monkeypatch, choose)
        with pytest.raises(CollectionError, match="the disk is full"):
            loopback.create(mini, overwrite=True, payload_indexes={"metadata.n": "integer"})
        monkeypatch.undo()
        assert loopback.open().count() == len(ITEMS)
        left = [f"{loopback.name}.2"] if cleanup == "fails too" else []
        assert loopback.names() == [f"{loopback.name}.1", *left]
        loopback.create(mini, overwrite=True)
        assert loopback.names() == [f"{loopback.name}.2"]
