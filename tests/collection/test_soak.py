"""Mixed work of several threads for a while: no error, and at the end what each of them believes to be there."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from collection_samples import DIM, QUERIES, Create, both_engines, contents, documents, expected_contents, in_threads
from full import FULL
from qdrant_client import models

from jcv2_plugin import ColbertCollection, Document

SECONDS = 300 if FULL else 2
THREADS = 4
SEED = 11


class Worker:
    """A thread's documents as it believes them to be stored, and what it does with them. Ids are its own."""

    def __init__(self, number: int, collection: ColbertCollection) -> None:
        self.number = number
        self.collection = collection
        self.chance = random.Random(SEED + number)
        self.mine: dict[str, Document] = {}
        self.drawn = 0
        self.acts: dict[Callable[[], None], int] = {
            self.add: 6,
            self.replace: 5,
            self.delete: 4,
            self.exact: 4,
            self.two_stage: 4,
            self.get: 5,
            self.count_and_scroll: 4,
            self.ingest: 1,
            collection.optimize: 1,
        }
        self.migrations = 0

    def run(self) -> int:
        """Work for a while; gives how many things were done."""
        done, until = 0, time.monotonic() + SECONDS
        while time.monotonic() < until or (self.number == 0 and self.migrations < 2):
            [act] = self.chance.choices(list(self.acts), list(self.acts.values()))
            act()
            done += 1
            if self.number == 0 and done % 15 == 0:
                self.migrate()
        return done

    def new(self, id: str | None = None) -> Document:
        """A document of a text that was never there, with an id of its own or that of another."""
        self.drawn += 1
        [one] = documents(1, start=self.chance.randrange(1000))
        text = f"{one.text} Thread {self.number} wrote this as its text {self.drawn}."
        return Document(text, id or f"t{self.number}-{self.drawn}", {"thread": self.number, "drawn": self.drawn})

    def some(self, most: int) -> list[str]:
        ids = sorted(self.mine)
        return self.chance.sample(ids, min(len(ids), self.chance.randint(1, most)))

    def store(self, items: list[Document]) -> None:
        self.collection.add(items)
        self.mine.update({str(one.id): one for one in items})

    def check(self, found: list[Any]) -> None:
        """Of documents that are this thread's, each once and with the text that it gave them last."""
        assert len({one.id for one in found}) == len(found)
        for one in found:
            if one.metadata["thread"] == self.number:
                assert (one.text, one.metadata) == (self.mine[one.id].text, self.mine[one.id].metadata)

    def add(self) -> None:
        self.store([self.new() for _ in range(self.chance.randint(1, 4))])

    def replace(self) -> None:
        self.store([self.new(id) for id in self.some(3)])

    def ingest(self) -> None:
        items = [self.new() for _ in range(5)] + [self.mine[id] for id in self.some(3)]
        report = self.collection.ingest(items, batch_documents=3)
        self.mine.update({str(one.id): one for one in items})
        assert (report.written, report.seen) == (5, len(items))

    def delete(self) -> None:
        for id in self.some(3):
            del self.mine[id]
            if self.chance.random() < 0.5:
                self.collection.delete([id, "never there"])
            else:
                self.collection.delete(filter=having("_id", id))
            assert self.collection.get([id]) == []

    def exact(self) -> None:
        self.check(self.collection.search(self.chance.choice(QUERIES), k=20, exact=True))
        for id in self.some(1):
            # Its own text has the largest score that there can be, if perhaps not alone.
            own, mine = self.mine[id], having("metadata.thread", self.number)
            hits = self.collection.search(own.text, k=20, exact=True, filter=mine)
            assert id in [hit.id for hit in hits]
            self.check(hits)
            assert self.collection.explain(QUERIES[0], id).text == own.text

    def two_stage(self) -> None:
        hits = self.collection.search(self.chance.choice(QUERIES), k=10, candidates=15)
        self.check(hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        mine = having("metadata.thread", self.number)
        own = self.collection.search(QUERIES[0], k=10, candidates=10, filter=mine)
        assert len(own) == min(10, len(self.mine))
        assert all(hit.metadata["thread"] == self.number for hit in own)
        self.check(own)

    def get(self) -> None:
        ids = self.some(6)
        assert [one.id for one in self.collection.get([*ids, "never there"])] == ids
        self.check(self.collection.get(ids))

    def count_and_scroll(self) -> None:
        assert self.collection.count(having("metadata.thread", self.number)) == len(self.mine)
        assert self.collection.count() >= len(self.mine)
        found = list(self.collection.scroll())
        self.check(found)
        assert {one.id for one in found if one.metadata["thread"] == self.number} == set(self.mine)

    def migrate(self) -> None:
        """In turn one that copies and one that encodes; no reader may notice."""
        self.migrations += 1
        changes: list[dict[str, Any]] = [{"dim": DIM, "storage": "float16"}, {"dim": 64}, {"storage": "turbo8"}]
        report = self.collection.migrate(**changes[self.migrations % 3])
        assert report.documents >= len(self.mine)


def having(key: str, value: Any) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key=key, match=models.MatchValue(value=value))])


@both_engines
def test_each_thread_finds_what_it_believes_to_be_there(create: Create, engine: str) -> None:
    collection = create()
    workers = [Worker(number, collection) for number in range(THREADS)]
    assert sum(in_threads(*[one.run for one in workers], seconds=SECONDS + 120)) > 2 * THREADS
    expected = [one for worker in workers for one in worker.mine.values()]
    check(collection, expected)
    if engine == "edge":
        collection.close()
        path, encoder = collection.engine.path, collection.encoder
        with ColbertCollection.open(path, encoder=encoder) as again:
            check(again, expected)


def check(collection: ColbertCollection, expected: list[Document]) -> None:
    """All that each thread believes, nothing else, and all of it sound."""
    assert contents(collection) == expected_contents(expected)
    assert collection.count() == len(expected)
    assert [one.text for one in collection.get([str(one.id) for one in expected])] == [one.text for one in expected]
    report = collection.verify(sample=20)
    assert (report.problems, report.documents) == ([], len(expected))
