"""Mixed work of several threads for a while: no error, and at the end exactly what each of them believes to be there.

JCV2_SOAK_SECONDS sets for how long, on each engine.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from collection_samples import DIM, QUERIES, contents, documents, expected_contents
from qdrant_client import models

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder

SECONDS = float(os.environ.get("JCV2_SOAK_SECONDS", "5"))
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
        self.done: Counter[str] = Counter()
        self.error: BaseException | None = None
        acts = (self.add, self.replace, self.delete, self.exact, self.two_stage, self.get, self.count, self.scroll)
        self.acts: list[tuple[Callable[[], None], int]] = list(zip(acts, (6, 5, 4, 4, 4, 5, 3, 2), strict=True))
        self.acts += [(self.ingest, 1), (self.optimize, 1)] + ([(self.migrate, 1)] if number == 0 else [])

    def run(self, until: float) -> None:
        """Work until a moment; an error is kept and ends it."""
        try:
            while time.monotonic() < until:
                [act] = self.chance.choices([act for act, _ in self.acts], [weight for _, weight in self.acts])
                act()
                self.done[act.__name__] += 1
        except BaseException as error:
            self.error = error

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
                self.collection.delete(filter=of(_id=id))
            assert self.collection.get([id]) == []

    def exact(self) -> None:
        self.check(self.collection.search(self.chance.choice(QUERIES), k=20, exact=True))
        for id in self.some(1):
            # Its own text has the largest score that there can be, if perhaps not alone.
            own = self.mine[id]
            hits = self.collection.search(own.text, k=20, exact=True, filter=of(thread=self.number))
            assert id in [hit.id for hit in hits]
            self.check(hits)

    def two_stage(self) -> None:
        hits = self.collection.search(self.chance.choice(QUERIES), k=10, candidates=15)
        self.check(hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        own = self.collection.search(QUERIES[0], k=10, candidates=10, filter=of(thread=self.number))
        assert len(own) == min(10, len(self.mine))
        assert all(hit.metadata["thread"] == self.number for hit in own)
        self.check(own)

    def get(self) -> None:
        ids = self.some(6)
        assert [one.id for one in self.collection.get([*ids, "never there"])] == ids
        self.check(self.collection.get(ids))

    def count(self) -> None:
        assert self.collection.count(of(thread=self.number)) == len(self.mine)
        assert self.collection.count() >= len(self.mine)

    def scroll(self) -> None:
        found = list(self.collection.scroll())
        self.check(found)
        assert {one.id for one in found if one.metadata["thread"] == self.number} == set(self.mine)

    def optimize(self) -> None:
        self.collection.optimize()

    def migrate(self) -> None:
        storage = "turbo8" if self.collection.schema.storage == "float16" else "float16"
        assert self.collection.migrate(storage=storage).documents >= len(self.mine)


def of(**values: Any) -> models.Filter:
    """Documents with a value of metadata, or of a key of ours."""
    conditions: list[models.Condition] = [
        models.FieldCondition(
            key=name if name.startswith("_") else f"metadata.{name}", match=models.MatchValue(value=value)
        )
        for name, value in values.items()
    ]
    return models.Filter(must=conditions)


@pytest.mark.parametrize("engine", ["edge", "memory"])
def test_each_thread_finds_what_it_believes_to_be_there(mini: JinaColbertEncoder, tmp_path: Path, engine: str) -> None:
    location = ":memory:" if engine == "memory" else tmp_path / "collection"
    with ColbertCollection.create(location, encoder=mini, dim=DIM) as collection:
        workers = [Worker(number, collection) for number in range(THREADS)]
        until = time.monotonic() + SECONDS
        threads = [threading.Thread(target=one.run, args=(until,)) for one in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=SECONDS + 120)
        for one in workers:
            if one.error is not None:
                raise one.error
        assert not any(thread.is_alive() for thread in threads)
        done = sum((one.done for one in workers), Counter())
        print(f"{engine}: {dict(done)}, {collection.count()} documents")
        assert sum(done.values()) > 2 * THREADS
        check(collection, workers)
    if engine == "edge":
        with ColbertCollection.open(location, encoder=mini) as again:
            check(again, workers)


def check(collection: ColbertCollection, workers: list[Worker]) -> None:
    """All that each thread believes, nothing else, and all of it sound."""
    expected = [one for worker in workers for one in worker.mine.values()]
    assert contents(collection) == expected_contents(expected)
    assert collection.count() == len(expected)
    assert [one.text for one in collection.get([str(one.id) for one in expected])] == [one.text for one in expected]
    report = collection.verify(sample=20)
    assert report.problems == []
    assert report.documents == len(expected)
