"""A run that is killed goes on where it stopped: no document lost, none twice, none half written."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import starting
from full import FULL

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.documents import point_id

KILLS = 20 if FULL else 2
BATCH = 16
BATCHES = 6 * KILLS
DOCUMENTS = BATCH * BATCHES

# Each prints a line for each batch that is done, and the report's numbers at the end.
COMMON = """
import sys
from jcv2_plugin import ColbertCollection, Document
from jcv2_plugin.collection import migrate as migration
migration.BATCH_DOCUMENTS = 16
texts = [f"Report {n} tells of harbour {n % 97} and of ship {n % 89}." for n in range(int(sys.argv[2]))]
documents = (Document(text, str(n), {"n": n}) for n, text in enumerate(texts))
with ColbertCollection.open(sys.argv[1]) as collection:
    options = {"progress": lambda n: print("batch", flush=True)}
"""
INGEST = (
    COMMON
    + """
    report = collection.ingest(documents, batch_documents=16, **options)
    print(report.written, report.unchanged, flush=True)
"""
)
INGEST_WITH_JOURNAL = (
    COMMON
    + """
    report = collection.ingest(texts, batch_documents=16, journal=sys.argv[3], **options)
    print(report.written, report.unchanged, report.resumed_at, flush=True)
"""
)
MIGRATE = (
    COMMON
    + """
    report = collection.migrate(dim=64, storage="turbo8", **options)
    print(report.documents, report.encoded, flush=True)
"""
)


def text(number: int) -> str:
    return f"Report {number} tells of harbour {number % 97} and of ship {number % 89}."


class Run:
    """A script that may be killed."""

    def __init__(self, script: str, *arguments: object) -> None:
        self._script = (script, *arguments)

    def kill_after(self, batches: int, seconds: float) -> None:
        """Kill it a moment after so many batches; it may have come to its end in that moment."""
        process = starting.start(*self._script)
        for _ in range(batches):
            assert process.stdout.readline() == "batch\n", process.communicate()
        time.sleep(seconds)
        process.kill()
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)

    def to_its_end(self) -> list[int]:
        """The numbers of its report."""
        done = starting.run(*self._script)
        assert done.returncode == 0, done.stderr
        return [int(one) for one in done.stdout.splitlines()[-1].split()]


@pytest.mark.parametrize("with_journal", [False, True])
def test_nothing_is_lost_and_nothing_comes_twice(mini: JinaColbertEncoder, tmp_path: Path, with_journal: bool) -> None:
    """Of documents with ids, and of texts without any by means of a journal."""
    folder, journal, chance = tmp_path / "collection", tmp_path / "run.journal", random.Random(5 + with_journal)
    ColbertCollection.create(folder, encoder=mini, dim=32).close()
    run = Run(INGEST_WITH_JOURNAL if with_journal else INGEST, folder, DOCUMENTS, journal)
    counts = [0]
    for _ in range(KILLS):
        run.kill_after(counts[-1] // BATCH + chance.randint(1, 4), chance.uniform(0, 0.1))
        with ColbertCollection.open(folder) as collection:
            counts.append(collection.count())
            assert len({one.text for one in collection.scroll()}) == len(set(collection.ids())) == counts[-1]
        if with_journal:  # it never says more than is stored
            whole_lines = journal.read_text().split("\n")[:-1]
            seen = max((json.loads(line).get("seen", 0) for line in whole_lines if line), default=0)
            assert 0 < seen <= counts[-1]
    assert counts == sorted(counts)
    assert counts[-1] > 0
    written, unchanged, *resumed_at = run.to_its_end()
    assert (written, unchanged) == (DOCUMENTS - counts[-1], counts[-1])
    assert resumed_at == ([seen] if with_journal else [])
    assert not journal.exists()
    with ColbertCollection.open(folder, encoder=mini) as collection:
        assert sorted(one.text for one in collection.scroll()) == sorted(map(text, range(DOCUMENTS)))
        assert collection.verify(sample=5).problems == []
        for number in [] if with_journal else chance.sample(range(DOCUMENTS), 40):
            found = collection.engine.retrieve([point_id(str(number))], with_payload=True, with_vectors=True)[0]
            assert (found.payload["metadata"], found.payload["page_content"]) == ({"n": number}, text(number))
            fresh = mini.document_vectors([text(number)], 32)[0]
            np.testing.assert_allclose(found.vectors, fresh, atol=2e-3)


def test_a_migration_leaves_the_old_collection_whole_until_it_is_done(mini: JinaColbertEncoder, tmp_path: Path) -> None:
    folder, chance = tmp_path / "collection", random.Random(7)
    with ColbertCollection.create(folder, encoder=mini, dim=32) as collection:
        collection.add(Document(text(n), str(n), {"n": n}) for n in range(DOCUMENTS))
    run = Run(MIGRATE, folder, 0)
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
