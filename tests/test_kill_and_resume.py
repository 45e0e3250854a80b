"""A run that is killed goes on where it stopped: no document lost, none twice, none half written.

JCV2_KILLS sets how often each run is killed; 20 takes some minutes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.documents import point_id

KILLS = int(os.environ.get("JCV2_KILLS", "3"))
DOCUMENTS = 1500
MIGRATED = 900

INGEST = """
import sys
from jcv2_plugin import ColbertCollection
from tests_documents import documents
with ColbertCollection.open(sys.argv[1]) as collection:
    collection.encoder
    print("ready", flush=True)
    report = collection.ingest(documents(), batch_documents=16)
    print(report.written, report.unchanged, flush=True)
"""

INGEST_WITH_JOURNAL = """
import sys
from jcv2_plugin import ColbertCollection
from tests_documents import texts
with ColbertCollection.open(sys.argv[1]) as collection:
    collection.encoder
    print("ready", flush=True)
    report = collection.ingest(texts(), batch_documents=16, journal=sys.argv[2])
    print(report.written, report.unchanged, report.resumed_at, flush=True)
"""

MIGRATE = """
import sys
from jcv2_plugin import ColbertCollection
with ColbertCollection.open(sys.argv[1]) as collection:
    collection.encoder
    print("ready", flush=True)
    report = collection.migrate(dim=64, storage="turbo8")
    print(report.documents, report.encoded, flush=True)
"""

HELPER = f"""
from jcv2_plugin import Document
def text(n):
    return f"Report {{n}} tells of harbour {{n % 97}} and of ship {{n % 89}}."
def documents(number={DOCUMENTS}):
    for n in range(number):
        yield Document(text(n), str(n), {{"n": n}})
def texts():
    for n in range({DOCUMENTS}):
        yield text(n)
"""


class Killed:
    """A script that is killed several times, each time a little after it has begun its work."""

    def __init__(self, tmp_path: Path, script: str, *arguments: Path, seed: int) -> None:
        (tmp_path / "tests_documents.py").write_text(HELPER)
        self.command = [sys.executable, "-c", script, *map(str, arguments)]
        self.environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        self.rng = random.Random(seed)

    def once(self, longest: float) -> bool:
        """Kill it after a random time; whether it was still at work."""
        process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True, env=self.environment)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(self.rng.uniform(0.05, longest))
        process.kill()
        return process.wait() != 0

    def to_its_end(self) -> list[int]:
        """The numbers that it prints at last."""
        done = subprocess.run(
            self.command, capture_output=True, text=True, env=self.environment, timeout=300, check=True
        )
        return [int(one) for one in done.stdout.split()[1:]]


def test_nothing_is_lost_and_nothing_comes_twice(mini: JinaColbertEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "collection"
    ColbertCollection.create(folder, encoder=mini, dim=32).close()
    run = Killed(tmp_path, INGEST, folder, seed=5)
    counts = [0]
    for _ in range(KILLS):
        run.once(6.0 / KILLS)
        with ColbertCollection.open(folder) as collection:
            counts.append(collection.count())
            assert len(set(collection.ids())) == counts[-1]
    assert counts == sorted(counts)
    assert counts[-1] > 0
    written, unchanged = run.to_its_end()
    assert (written, unchanged) == (DOCUMENTS - counts[-1], counts[-1])
    with ColbertCollection.open(folder, encoder=mini) as collection:
        assert sorted(collection.ids(), key=int) == [str(n) for n in range(DOCUMENTS)]
        for number in run.rng.sample(range(DOCUMENTS), 40):
            found = collection._engine.retrieve([point_id(str(number))], with_payload=True, with_vectors=True)[0]
            assert found.payload["metadata"] == {"n": number}
            fresh = mini.document_vectors([found.payload["page_content"]], 32)[0]
            np.testing.assert_allclose(found.vectors, fresh, atol=2e-3)
        assert collection.verify(sample=40).problems == []


def test_documents_without_ids_come_once_with_a_journal(mini: JinaColbertEncoder, tmp_path: Path) -> None:
    folder, journal = tmp_path / "collection", tmp_path / "run.journal"
    ColbertCollection.create(folder, encoder=mini, dim=32).close()
    run = Killed(tmp_path, INGEST_WITH_JOURNAL, folder, journal, seed=6)
    counts = [0]
    for _ in range(KILLS):
        run.once(6.0 / KILLS)
        with ColbertCollection.open(folder) as collection:
            counts.append(collection.count())
            texts = [one.text for one in collection.scroll()]
        assert len(set(texts)) == len(texts) == counts[-1]
        # The journal never says more than is stored.
        seen = [json.loads(line).get("seen", 0) for line in journal.read_text().split("\n")[:-1] if line]
        assert max(seen, default=0) <= counts[-1]
    assert counts[-1] > 0
    written, unchanged, resumed_at = run.to_its_end()
    assert (written, unchanged) == (DOCUMENTS - counts[-1], counts[-1])
    assert resumed_at <= counts[-1]
    assert not journal.exists()
    with ColbertCollection.open(folder, encoder=mini) as collection:
        expected = sorted(f"Report {n} tells of harbour {n % 97} and of ship {n % 89}." for n in range(DOCUMENTS))
        assert sorted(one.text for one in collection.scroll()) == expected
        assert collection.verify().problems == []


def test_a_migration_leaves_the_old_collection_whole_until_it_is_done(mini: JinaColbertEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "collection"
    run = Killed(tmp_path, MIGRATE, folder, seed=7)
    sys.path.insert(0, str(tmp_path))
    try:
        from tests_documents import documents  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    with ColbertCollection.create(folder, encoder=mini, dim=32) as collection:
        collection.add(documents(MIGRATED))
    for _ in range(KILLS):
        if not run.once(3.0 / KILLS):
            break
        with ColbertCollection.open(folder, encoder=mini) as collection:
            assert collection.count() == MIGRATED
            if collection.dim == 64:  # killed in the very moment after the swap
                break
            found = collection.search("Report 7 tells of harbour 7 and of ship 7.", k=1)[0]
            assert (
                found.text
                == f"Report {found.id} tells of harbour {int(found.id) % 97} and of ship {int(found.id) % 89}."
            )
            assert collection.verify(sample=3).problems == []
    with ColbertCollection.open(folder, encoder=mini) as collection:
        dim = collection.dim
    if dim == 32:
        total, encoded = run.to_its_end()
        assert total == MIGRATED
        assert encoded < MIGRATED  # what was encoded before it was killed is not encoded again
    with ColbertCollection.open(folder, encoder=mini) as collection:
        assert (collection.dim, collection.schema.storage) == (64, "turbo8")
        assert sorted(collection.ids(), key=int) == [str(n) for n in range(MIGRATED)]
        report = collection.verify(sample=20)
        assert (report.problems, report.read) == ([], MIGRATED)
        assert collection.search("Report 7 tells of harbour 7 and of ship 7.", k=1)[0].id == "7"
    assert len([one for one in folder.iterdir() if one.name.startswith("shard")]) == 1
