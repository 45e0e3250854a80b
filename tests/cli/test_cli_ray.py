"""``jcv2 index --ray``: what it refuses, and a local cluster of two workers, one of which is killed.

The cluster needs the extra ``ray``, and half a minute: it runs with ``JCV2_TEST_ALL=1``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import MINI, PROGRAM, error, jcv2, run, run_json, start, wait_until, write_rows
from full import FULL
from loopback_qdrant import LoopbackQdrant

from jcv2_plugin import ColbertCollection
from jcv2_plugin.collection.cluster import IndexDocuments, ReadFiles
from jcv2_plugin.collection.sources import SourceError
from jcv2_plugin.documents import point_id
from jcv2_plugin.errors import CollectionAccessError

HAS_RAY = find_spec("ray") is not None
with_ray = pytest.mark.skipif(
    not (HAS_RAY and FULL),
    reason="JCV2_TEST_ALL=1 starts a Ray cluster" if HAS_RAY else "Ray is not installed: pip install -e '.[ray]'",
)
ROWS, PARTS = 4000, 40


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("docs", "-c", "store"), "'store' is not a Qdrant server. One process at a time"),
            (("-", "-c", "http://host:6333"), "cannot read this one's stdin"),
            (("docs", "-c", "http://host:6333", "--journal", "run.journal"), "Leave out --journal"),
            (("docs", "-c", "http://host:6333", "--api-key", "secret"), "Set QDRANT_API_KEY here and in"),
        ],
    )
    def test_before_anything_is_done(self, folder: Path, arguments: tuple[str, ...], said: str) -> None:
        assert said in error("index", *arguments, "--ray", "local").replace("\n", " ")
        assert sorted(one.name for one in folder.iterdir()) == ["docs"]

    def test_without_ray(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("jcv2_plugin.lazy.find_spec", lambda name: None)
        said = error("index", "docs", "-c", "http://host:6333", "--ray", "local")
        assert "pip install 'jcv2-plugin[ray]'" in said


def workers(kind: str) -> dict[int, str]:
    """The processes below this one that Ray named after one of our classes."""
    names, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                names[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue

    def ours(process: int) -> bool:
        while process in parents:
            process = parents[process]
            if process == os.getpid():
                return True
        return False

    return {one: name for one, name in names.items() if name.startswith("ray::") and kind in name and ours(one)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@with_ray
@pytest.mark.slow
class TestTwoWorkers:
    def index(self, server: LoopbackQdrant, *more: str) -> Any:
        return run_json("index", "rows.jsonl", "docs", "-c", server.url, *MINI, "--ray", "local", *more)

    def points(self, server: LoopbackQdrant) -> Counter[str]:
        """How often the server holds each point, whoever wrote it."""
        with ColbertCollection.open(server.url, first_stage="none") as collection:
            return Counter(str(record.id) for record in collection.engine.scroll(None, with_payload=False))

    def test_one_is_killed(self, folder: Path, server: LoopbackQdrant) -> None:
        """And one that reads."""
        for part in range(PARTS):
            write_rows(folder / "docs" / f"{part}.jsonl", range(part, ROWS, PARTS))
        run = start("index", "docs", "-c", server.url, *MINI, "--ray", "local", "--workers", "2", "--json", cwd=folder)
        wait_until(lambda: len(server.sent("PUT", "/points")) > 2 and len(workers(IndexDocuments.__name__)) == 2, 120)
        killed = {min(workers(IndexDocuments.__name__)), *workers(ReadFiles.__name__)}
        for process in killed:
            os.kill(process, signal.SIGKILL)
        stored_then = sum(self.points(server).values())
        assert 0 < stored_then < ROWS  # in the middle
        printed, said = run.communicate(timeout=300)
        assert (run.returncode, said.count("Traceback")) == (0, 0), said
        report, passages = json.loads(printed), 2
        assert report["written"] + report["unchanged"] == report["documents"] == ROWS + passages
        points = self.points(server)
        assert set(points.values()) == {1}
        with ColbertCollection.open(server.url) as collection:
            ids = sorted(collection.ids())
            assert len(ids) == len(set(ids)) == ROWS + passages
            assert {str(n) for n in range(ROWS)} <= set(ids)
            assert {point_id(one) for one in ids} == set(points)
            texts = {one.id: one.text for one in collection.scroll()}
            assert all(texts[str(n)] == f"Report {n} tells of harbour {n % 97}." for n in range(ROWS))
            assert collection.verify(sample=20).problems == []

    def test_again_and_after_an_edit(self, cluster: None, folder: Path, server: LoopbackQdrant) -> None:
        write_rows(folder / "rows.jsonl", range(40))
        (folder / "docs" / "bad.txt").write_bytes(b"\xff\xfe\xfa")
        first = self.index(server)
        assert (first["written"], first["skipped_files"], first["files"]) == (42, 1, 3)
        again = self.index(server, "--workers", "1")
        assert (again["written"], again["unchanged"], again["removed"]) == (0, 42, 0)
        write_rows(folder / "rows.jsonl", range(38))
        edited = self.index(server)
        assert (edited["removed"], edited["documents"]) == (2, 40)
        here = run_json("index", "rows.jsonl", "docs", "-c", server.url)  # both ways give the same documents
        assert (here["written"], here["unchanged"], here["removed"]) == (0, 40, 0)
        with pytest.raises(SourceError, match=r"bad\.txt cannot be read as UTF-8"):
            self.index(server, "--strict")
        (folder / "more.jsonl").write_text('{"id": "7", "text": "Again."}\n')
        with pytest.raises(SourceError, match=r"the id '7' occurs a second time \(first in (rows|more)\.jsonl\)"):
            run("index", "rows.jsonl", "more.jsonl", "-c", server.url, "--ray", "local")
        assert run_json("info", "-c", server.url)["documents"] == 40

    def test_the_key_is_in_the_workers_environment(
        self, cluster: None, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with LoopbackQdrant(api_key="right") as server:
            monkeypatch.setenv("QDRANT_API_KEY", "right")  # here, and not where the workers were started
            with pytest.raises(CollectionAccessError, match="Workers of Ray take it from QDRANT_API_KEY"):
                run("index", "docs", "-c", server.url, *MINI, "--ray", "local")


@with_ray
@pytest.mark.slow
class TestACommandOfItsOwn:
    def test_it_starts_a_cluster_and_ends_it(self, folder: Path) -> None:
        with LoopbackQdrant(api_key="right") as server:
            write_rows(folder / "rows.jsonl", range(20_000))
            command = [PROGRAM, "index", "rows.jsonl", "-c", server.url, *MINI, "--ray", "local"]
            environment = {**os.environ, "QDRANT_API_KEY": "right"}
            pipe, others = subprocess.PIPE, workers("").keys()
            started = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
            )
            wait_until(lambda: len(server.sent("PUT", "/points")) > 2, 120)
            below = workers("").keys() - others
            os.killpg(started.pid, signal.SIGINT)  # as a terminal sends it
            _, said = started.communicate(timeout=60)
            assert started.returncode == 130
            assert len(below) >= 2
            lines = said.splitlines()
            assert [line for line in lines if line.startswith("Stopped with ")], said
            assert "Run the command again to continue." in said
            assert "right" not in said
            assert "Traceback" not in said
            wait_until(lambda: not workers("").keys() & below)

    def test_no_cluster(self, folder: Path, server: LoopbackQdrant) -> None:
        done = jcv2("index", "docs", "-c", server.url, *MINI, "--ray", "127.0.0.1:1", cwd=folder)
        assert done.returncode == 1
        assert "error: There is no Ray cluster at '127.0.0.1:1'" in done.stderr
        assert "ray start --head" in done.stderr
        assert "Traceback" not in done.stderr
