"""Runs that are killed or interrupted: they say how far they got, and go on when they are repeated."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from cli_helpers import MINI, jcv2, run, run_both, run_json, start, wait_until, write_rows
from loopback_qdrant import LoopbackQdrant

from jcv2_plugin.collection.journal import JournalError

DOCUMENTS = 3000


def has_stored(journal: Path) -> bool:
    return journal.exists() and '"seen"' in journal.read_text()


def begun(process: subprocess.Popen[str], journal: Path) -> None:
    wait_until(lambda: has_stored(journal) or process.poll() is not None)
    assert process.poll() is None, process.communicate()


class TestIndex:
    def test_a_killed_run_goes_on(self, folder: Path) -> None:
        write_rows(folder / "rows.jsonl", range(DOCUMENTS))
        command = ("index", "rows.jsonl", "-c", "store", *MINI, "--first-stage", "none")
        journal = folder / "store" / "ingest.journal"
        process = start(*command, cwd=folder)
        begun(process, journal)
        process.kill()
        process.communicate()
        done = jcv2(*command, cwd=folder)
        assert done.stderr.startswith("going on with a run that was stopped after ")
        stopped_at = int(done.stderr.split()[9])
        assert 256 <= stopped_at < DOCUMENTS
        assert f"{DOCUMENTS} documents in the collection" in done.stderr
        assert not journal.exists()
        again = run_json("index", "rows.jsonl", "-c", "store")
        assert (again["unchanged"], again["removed"], again["resumed_at"]) == (DOCUMENTS, 0, 0)

    def test_ctrl_c_keeps_what_is_stored(self, folder: Path) -> None:
        write_rows(folder / "rows.jsonl", range(DOCUMENTS))
        process = start("index", "rows.jsonl", "-c", "store", *MINI, "--first-stage", "none", cwd=folder)
        begun(process, folder / "store" / "ingest.journal")
        process.send_signal(signal.SIGINT)
        output, message = process.communicate(timeout=60)
        assert (process.returncode, output) == (130, "")
        stored = run_json("info", "-c", "store")["documents"]
        assert message == f"Stopped with {stored} documents stored. Run the command again to go on.\n"
        assert 256 <= stored < DOCUMENTS
        assert run_json("verify", "-c", "store", "--sample", "3")["ok"]

    def test_ctrl_c_while_waiting_for_a_pipe(self, folder: Path) -> None:
        reading, writing = os.pipe()
        process = start("index", "-", "-c", "store", *MINI, cwd=folder, stdin=reading)
        wait_until(lambda: (folder / "store" / "ingest.journal").exists())
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=60)
        os.close(writing)
        os.close(reading)
        assert process.returncode == 130
        assert message == "Stopped with 0 documents stored. Run the command again to go on.\n"

    def test_a_journal_elsewhere(self, rows: Path) -> None:
        write_rows(rows / "rows.jsonl", range(40))
        (rows / "run.journal").write_text(
            '{"journal": 1, "run": "6a204bd8-9a64-4d3c-8a3e-3f5a6f5e2b11"}\n{"seen": 30}\n'
        )
        _, said = run_both("index", "rows.jsonl", "-c", "store", "--journal", "run.journal")
        assert "going on with a run that was stopped after 30 documents" in said
        assert not (rows / "run.journal").exists()
        with pytest.raises(JournalError, match=r"'rows\.jsonl' is no journal"):
            run("index", "rows.jsonl", "-c", "store", "--journal", "rows.jsonl")

    def test_a_server_has_none_unless_one_is_named(self, folder: Path, server: LoopbackQdrant) -> None:
        write_rows(folder / "rows.jsonl", range(3))
        before = set(folder.iterdir())
        run("index", "rows.jsonl", "-c", server.url, *MINI, "--first-stage", "none")
        assert set(folder.iterdir()) == before
        server.fail(times=9, status=400, path_contains="/points")
        failed = jcv2("index", "docs", "-c", server.url, "--journal", "run.journal", cwd=folder)
        assert failed.returncode == 1
        assert failed.stderr.startswith("error: Qdrant at http://127.0.0.1:")
        assert (folder / "run.journal").exists()


class TestMigrate:
    def test_ctrl_c_leaves_the_collection_as_it_was(self, folder: Path) -> None:
        write_rows(folder / "rows.jsonl", range(1500))
        run("index", "rows.jsonl", "-c", "store", *MINI, "--first-stage", "none")
        process = start("migrate", "-c", "store", "--dim", "64", cwd=folder)
        wait_until(lambda: (folder / "store" / "shard-2.pending.json").exists())
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=60)
        assert process.returncode == 130
        assert message == "Stopped: the collection is as it was. Run the command again to go on.\n"
        described = run_json("info", "-c", "store")
        assert (described["dim"], described["documents"]) == (32, 1500)
        _, said = run_both("migrate", "-c", "store", "--dim", "64")
        assert said.startswith("1500 documents are now at 64 dims of mini, storage float16, first stage none: ")
        assert run_json("verify", "-c", "store", "--sample", "3")["ok"]
