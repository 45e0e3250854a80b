"""Runs that are killed or interrupted: they say how far they got, and go on when they are repeated."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from cli_helpers import MINI, error, run, run_both, run_json, start, wait_until, write_rows
from loopback_qdrant import LoopbackQdrant
from starting import Started

from jcv2_plugin.collection.journal import JournalError

DOCUMENTS = 900


def has_stored(journal: Path) -> bool:
    return journal.exists() and '"seen"' in journal.read_text()


def begun(process: Started, journal: Path) -> None:
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
        said = run_both(*command)[1]
        stopped_at = re.match(r"Continuing a run that was stopped after (\d+) documents\.", said)
        assert stopped_at
        assert 256 <= int(stopped_at[1]) < DOCUMENTS
        assert f"{DOCUMENTS} documents in the collection" in said
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
        assert message == f"Stopped with {stored} documents stored. Run the command again to continue.\n"
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
        assert message == "Stopped with 0 documents stored. Run the command again to continue.\n"

    def test_a_journal_elsewhere(self, rows: Path) -> None:
        write_rows(rows / "rows.jsonl", range(40))
        (rows / "run.journal").write_text(
            '{"journal": 1, "run": "6a204bd8-9a64-4d3c-8a3e-3f5a6f5e2b11"}\n{"seen": 30}\n'
        )
        _, said = run_both("index", "rows.jsonl", "-c", "store", "--journal", "run.journal")
        assert "Continuing a run that was stopped after 30 documents." in said
        assert not (rows / "run.journal").exists()
        with pytest.raises(JournalError, match=r"'rows\.jsonl' is no journal"):
            run("index", "rows.jsonl", "-c", "store", "--journal", "rows.jsonl")

    def test_a_server_has_none_unless_one_is_named(self, folder: Path, server: LoopbackQdrant) -> None:
        write_rows(folder / "rows.jsonl", range(3))
        before = set(folder.iterdir())
        run("index", "rows.jsonl", "-c", server.url, *MINI, "--first-stage", "none")
        assert set(folder.iterdir()) == before
        server.fail(times=9, status=400, path_contains="/points")
        said = error("index", "docs", "-c", server.url, "--journal", "run.journal")
        assert said.startswith("error: Qdrant at http://127.0.0.1:")
        assert (folder / "run.journal").exists()


class TestMigrate:
    def test_ctrl_c_leaves_the_collection_as_it_was(self, folder: Path) -> None:
        write_rows(folder / "rows.jsonl", range(800))
        run("index", "rows.jsonl", "-c", "store", *MINI, "--first-stage", "none")
        process = start("migrate", "-c", "store", "--dim", "64", cwd=folder)
        wait_until(lambda: (folder / "store" / "shard-2.pending.json").exists())
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=60)
        assert process.returncode == 130
        assert message == "Stopped. The collection is unchanged. Run the command again to continue.\n"
        described = run_json("info", "-c", "store")
        assert (described["dim"], described["documents"]) == (32, 800)
        _, said = run_both("migrate", "-c", "store", "--dim", "64")
        assert said.startswith("800 documents are now at 64 dims of mini, storage float16, first stage none: ")
        assert run_json("verify", "-c", "store", "--sample", "3")["ok"]
