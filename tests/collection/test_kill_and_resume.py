"""A run that is killed goes on where it stopped: no document lost, none twice, none half written.

JCV2_KILLS sets how often each run is killed; 20 takes some minutes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.documents import point_id

KILLS = int(os.environ.get("JCV2_KILLS", "3"))
BATCH = 16
BATCHES = 6 * max(KILLS, 3)
DOCUMENTS = BATCH * BATCHES

# A line for each batch that is done, and the report's numbers at the end.
INGEST = """
import sys
from jcv2_plugin import ColbertCollection, Document
texts = [f"Report {n} tells of harbour {n % 97} and of ship {n % 89}." for n in range(int(sys.argv[2]))]
documents = (Document(text, str(n), {"n": n}) for n, text in enumerate(texts))
with ColbertCollection.open(sys.argv[1]) as collection:
    report = collection.ingest(documents, batch_documents=16, progress=lambda n: print("batch", flush=True))
    print(report.written, report.unchanged, flush=True)
"""
INGEST_WITH_JOURNAL = """
import sys
from jcv2_plugin import ColbertCollection
texts = (f"Report {n} tells of harbour {n % 97} and of ship {n % 89}." for n in range(int(sys.argv[2])))
with ColbertCollection.open(sys.argv[1]) as collection:
    report = collection.ingest(
        texts, batch_documents=16, progress=lambda n: print("batch", flush=True), journal=sys.argv[3]
    )
    print(report.written, report.unchanged, report.resumed_at, flush=True)
"""
MIGRATE = """
import sys
from jcv2_plugin import ColbertCollection
from jcv2_plugin.collection import migrate as migration
migration.BATCH_DOCUMENTS = 16
with ColbertCollection.open(sys.argv[1]) as collection:
    report = collection.migrate(dim=64, storage="turbo8", progress=lambda n: print("batch", flush=True))
    print(report.documents, report.encoded, flush=True)
"""

# Has imported what takes seconds, and gives birth to a process for each script that it is sent.
MOTHER = """
import json, os, sys
import jcv2_plugin.collection.collection, jcv2_plugin.encoder.model
for line in sys.stdin:
    script, arguments, output = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            sys.argv = ["script", *arguments]
            exec(script, {"__name__": "script"})
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def text(number: int) -> str:
    return f"Report {number} tells of harbour {number % 97} and of ship {number % 89}."


@pytest.fixture(scope="module")
def mother() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", MOTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.communicate(timeout=60)


class Run:
    """A script that may be killed."""

    def __init__(self, mother: subprocess.Popen[str], tmp_path: Path, script: str, *arguments: object) -> None:
        self._mother = mother
        self._order = json.dumps([script, [str(one) for one in arguments], str(tmp_path / "output")])
        self._output = tmp_path / "output"

    def _start(self) -> int:
        assert self._mother.stdin is not None
        self._output.write_text("")
        self._mother.stdin.write(self._order + "\n")
        self._mother.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self._mother.stdout is not None
        return int(self._mother.stdout.readline())

    def kill_after(self, batches: int, seconds: float) -> None:
        """Kill it a moment after so many batches; it may have come to its end in that moment."""
        process = self._start()
        until = time.monotonic() + 120
        while len(lines := self._output.read_text().splitlines()) < batches:
            assert time.monotonic() < until, f"no progress: {lines}"
            time.sleep(0.002)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)  # until its mother has asked for it, its number is no other's
        assert self._answer() in (0, signal.SIGKILL)

    def to_its_end(self) -> list[int]:
        """The numbers of its report."""
        self._start()
        assert self._answer() == 0
        return [int(one) for one in self._output.read_text().splitlines()[-1].split()]


def test_nothing_is_lost_and_nothing_comes_twice(
    mini: JinaColbertEncoder, mother: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder, chance = tmp_path / "collection", random.Random(5)
    ColbertCollection.create(folder, encoder=mini, dim=32).close()
    run = Run(mother, tmp_path, INGEST, folder, DOCUMENTS)
    counts = [0]
    for _ in range(KILLS):
        run.kill_after(counts[-1] // BATCH + chance.randint(1, 4), chance.uniform(0, 0.1))
        with ColbertCollection.open(folder) as collection:
            counts.append(collection.count())
            assert len(set(collection.ids())) == counts[-1]
    assert counts == sorted(counts)
    assert counts[-1] > 0
    written, unchanged = run.to_its_end()
    assert (written, unchanged) == (DOCUMENTS - counts[-1], counts[-1])
    with ColbertCollection.open(folder, encoder=mini) as collection:
        assert sorted(collection.ids(), key=int) == [str(n) for n in range(DOCUMENTS)]
        for number in chance.sample(range(DOCUMENTS), 40):
            found = collection.engine.retrieve([point_id(str(number))], with_payload=True, with_vectors=True)[0]
            assert found.payload["metadata"] == {"n": number}
            fresh = mini.document_vectors([found.payload["page_content"]], 32)[0]
            np.testing.assert_allclose(found.vectors, fresh, atol=2e-3)
        assert collection.verify(sample=0).problems == []


def test_documents_without_ids_come_once_with_a_journal(
    mini: JinaColbertEncoder, mother: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder, journal, chance = tmp_path / "collection", tmp_path / "run.journal", random.Random(6)
    ColbertCollection.create(folder, encoder=mini, dim=32).close()
    run = Run(mother, tmp_path, INGEST_WITH_JOURNAL, folder, DOCUMENTS, journal)
    counts = [0]
    for _ in range(KILLS):
        run.kill_after(counts[-1] // BATCH + chance.randint(1, 4), chance.uniform(0, 0.1))
        with ColbertCollection.open(folder) as collection:
            counts.append(collection.count())
            assert len({one.text for one in collection.scroll()}) == counts[-1]
        # The journal never says more than is stored.
        whole_lines = journal.read_text().split("\n")[:-1]
        seen = max((json.loads(line).get("seen", 0) for line in whole_lines if line), default=0)
        assert 0 < seen <= counts[-1]
    written, unchanged, resumed_at = run.to_its_end()
    assert (written, unchanged) == (DOCUMENTS - counts[-1], counts[-1])
    assert resumed_at == seen
    assert not journal.exists()
    with ColbertCollection.open(folder, encoder=mini) as collection:
        assert sorted(one.text for one in collection.scroll()) == sorted(map(text, range(DOCUMENTS)))
        assert collection.verify(sample=5).problems == []


def test_a_migration_leaves_the_old_collection_whole_until_it_is_done(
    mini: JinaColbertEncoder, mother: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder, chance = tmp_path / "collection", random.Random(7)
    with ColbertCollection.create(folder, encoder=mini, dim=32) as collection:
        collection.add(Document(text(n), str(n), {"n": n}) for n in range(DOCUMENTS))
    run = Run(mother, tmp_path, MIGRATE, folder)
    for number in range(KILLS):
        # At first while it copies; towards the end while it catches up, and swaps.
        batches = min(1 + 6 * number + chance.randint(0, 5), BATCHES)
        run.kill_after(batches, chance.uniform(0, 0.1))
        with ColbertCollection.open(folder, encoder=mini) as collection:
            if collection.dim == 64:  # it was quicker
                break
            assert (collection.count(), collection.schema.storage) == (DOCUMENTS, "float16")
            assert collection.search(text(7), k=1)[0].id == "7"
            assert collection.verify(sample=3).problems == []
    else:
        total, encoded = run.to_its_end()
        assert total == DOCUMENTS
        assert encoded < DOCUMENTS  # what was encoded before it was killed is not encoded again
    with ColbertCollection.open(folder, encoder=mini) as collection:
        assert (collection.dim, collection.schema.storage) == (64, "turbo8")
        assert sorted(collection.ids(), key=int) == [str(n) for n in range(DOCUMENTS)]
        report = collection.verify(sample=10)
        assert (report.problems, report.read) == ([], DOCUMENTS)
        assert collection.search(text(7), k=1)[0].id == "7"
    assert len([one for one in folder.iterdir() if one.name.startswith("shard")]) == 1
