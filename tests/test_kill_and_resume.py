"""A run that is killed goes on where it stopped: no document lost, none twice, none half written.

JCV2_KILLS sets how often the run is killed; 20 takes some minutes.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jcv2_plugin import ColbertCollection, JinaColbertEncoder

KILLS = int(os.environ.get("JCV2_KILLS", "3"))
DOCUMENTS = 1500

SCRIPT = """
import sys
from jcv2_plugin import ColbertCollection, Document
from tests_documents import documents
with ColbertCollection.open(sys.argv[1]) as collection:
    collection.encoder
    print("ready", flush=True)
    report = collection.ingest(documents(), batch_documents=16)
    print(report.written, report.unchanged, flush=True)
"""

HELPER = f"""
from jcv2_plugin import Document
def documents():
    for n in range({DOCUMENTS}):
        yield Document(f"Report {{n}} tells of harbour {{n % 97}} and of ship {{n % 89}}.", str(n), {{"n": n}})
"""


def test_nothing_is_lost_and_nothing_comes_twice(mini: JinaColbertEncoder, tmp_path: Path) -> None:
    (tmp_path / "tests_documents.py").write_text(HELPER)
    folder = tmp_path / "collection"
    ColbertCollection.create(folder, encoder=mini, dim=32).close()
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    rng = random.Random(5)
    counts = [0]
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.05, 6.0 / KILLS))
        process.kill()
        process.wait()
        with ColbertCollection.open(folder) as collection:
            counts.append(collection.count())
            assert len(set(collection.ids())) == counts[-1]
    assert counts == sorted(counts)
    assert counts[-1] > 0
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    written, unchanged = map(int, done.stdout.split()[1:])
    assert (written, unchanged) == (DOCUMENTS - counts[-1], counts[-1])
    with ColbertCollection.open(folder, encoder=mini) as collection:
        assert sorted(collection.ids(), key=int) == [str(n) for n in range(DOCUMENTS)]
        for number in rng.sample(range(DOCUMENTS), 40):
            found = collection._engine.retrieve([point_of(number)], with_payload=True, with_vectors=True)[0]
            assert found.payload["metadata"] == {"n": number}
            fresh = mini.document_vectors([found.payload["page_content"]], 32)[0]
            np.testing.assert_allclose(found.vectors, fresh, atol=2e-3)


def point_of(number: int) -> str:
    from jcv2_plugin.documents import point_id

    return point_id(str(number))
