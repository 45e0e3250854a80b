"""Migrating, verifying and snapshots, on folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import error, run, run_both, run_json

from jcv2_plugin import ColbertCollection
from jcv2_plugin.collection.snapshot import SnapshotError
from jcv2_plugin.engines.base import Point
from jcv2_plugin.errors import InvalidOptionError, InvalidQueryError, UnknownDimError


class TestMigrate:
    def test_to_another_first_stage_and_dim(self, rows: Path) -> None:
        output, said = run_both("migrate", "-c", "store", "--first-stage", "pooled", "--storage", "int8")
        start = "30 documents are now at 32 dims of mini, storage int8, first stage pooled: 0 encoded, 30 copied, in "
        assert output == ""
        assert said.startswith(start)
        assert len(said.splitlines()) == 1
        _, said = run_both("migrate", "-c", "store", "--dim", "64", "--pool-factor", "2", "--model", "mini")
        assert "at 64 dims of mini" in said
        assert "30 encoded, 0 copied" in said
        described = run_json("info", "-c", "store")
        assert (described["dim"], described["pool_factor"], described["documents"]) == (64, 2.0, 30)
        assert run_json("search", "-c", "store", "harbour 7", "-k", "1")[0]["id"] == "7"
        # What was indexed before is known, and stays.
        assert run_json("index", "rows.jsonl", "-c", "store")["unchanged"] == 30

    def test_a_search_after_the_first_stage_is_gone(self, rows: Path) -> None:
        run("migrate", "-c", "store", "--first-stage", "none")
        with pytest.raises(InvalidQueryError, match=r"has no first stage.* migrate the collection to a first stage"):
            run("search", "-c", "store", "harbour 7", "--candidates", "3")
        assert run_json("search", "-c", "store", "harbour 7", "--exact", "-k", "1")[0]["id"] == "7"

    def test_what_cannot_be(self, rows: Path) -> None:
        with pytest.raises(InvalidOptionError, match="Give what to change: --dim"):
            run("migrate", "-c", "store")
        # As when the command was killed after it had replaced the collection.
        assert (
            "nothing to do: 30 documents are already at 32 dims" in run_both("migrate", "-c", "store", "--dim", "32")[1]
        )
        with pytest.raises(InvalidOptionError, match="storage must be one of"):
            run("migrate", "-c", "store", "--storage", "int3")
        with pytest.raises(InvalidOptionError, match="first_stage must be one of"):
            run("migrate", "-c", "store", "--first-stage", "second")
        with pytest.raises(UnknownDimError):
            run("migrate", "-c", "store", "--dim", "7")
        _, said = run_both("migrate", "-c", "store", "--dim", "64", "--keep-old", code=2)
        assert "jcv2 snapshot" in said
        assert run_json("info", "-c", "store")["dim"] == 32


class TestVerify:
    def test_all_is_well(self, rows: Path) -> None:
        output = run("verify", "-c", "store")
        assert output.startswith("30 documents counted, 30 read with ")
        assert "20 encoded again" in output
        assert output.endswith("No problems.\n")
        report = run_json("verify", "-c", "store", "--sample", "0")
        assert (report["ok"], report["documents"], report["encoded"], report["problems"]) == (True, 30, 0, [])

    def test_problems_are_told_and_end_it_with_1(self, rows: Path) -> None:
        with ColbertCollection.open("store") as collection:
            engine = collection.engine
            record = next(engine.scroll(None, with_payload=True, with_vectors=True))
            changed = {**record.payload, "page_content": "Another text."}
            stored = next(iter(engine.retrieve([record.id], with_payload=False, with_vectors=True)))
            assert stored.vectors is not None
            engine.upsert([Point(record.id, stored.vectors, changed, stored.stages)])
        output, said = run_both("verify", "-c", "store", "--sample", "0", code=1)
        assert "its payload was changed by other software" in output
        assert (output.endswith("1 problem.\n"), said) == (True, "")
        report = json.loads(run("verify", "-c", "store", "--json", code=1))
        assert (report["ok"], len(report["problems"])) == (False, 1)


class TestSnapshots:
    def test_there_and_back(self, rows: Path) -> None:
        output, said = run_both("snapshot", "-c", "store", "out/store.snapshot")
        assert output == ""
        assert said.startswith("out/store.snapshot: 30 documents, ")
        _, said = run_both("restore", "out/store.snapshot", "-c", "copy")
        assert said == "The collection in 'copy': 30 documents at 32 dims of mini.\n"
        assert run_json("verify", "-c", "copy", "--sample", "30")["ok"]
        assert run_json("search", "-c", "copy", "harbour 7") == run_json("search", "-c", "store", "harbour 7")
        assert run_json("index", "rows.jsonl", "-c", "copy")["unchanged"] == 30

    def test_nothing_is_replaced_unasked(self, rows: Path) -> None:
        run("snapshot", "-c", "store", "store.snapshot")
        with pytest.raises(SnapshotError, match="is there already"):
            run("snapshot", "-c", "store", "store.snapshot")
        assert "set overwrite to replace it" in error("restore", "store.snapshot", "-c", "store")
        with ColbertCollection.open("store") as collection:
            collection.add(["One more."])
        (rows / "store" / "ingest.journal").write_text("of a run that is over")
        run("restore", "store.snapshot", "-c", "store", "--overwrite")
        assert run_json("index", "rows.jsonl", "-c", "store")["resumed_at"] == 0
        assert run_json("info", "-c", "store")["documents"] == 30

    def test_what_is_no_snapshot(self, rows: Path) -> None:
        with pytest.raises(SnapshotError, match="no snapshot"):
            run("restore", "rows.jsonl", "-c", "store", "--overwrite")
        with pytest.raises(SnapshotError, match="There is no snapshot 'nowhere'"):
            run("restore", "nowhere", "-c", "copy")
        assert run_json("info", "-c", "store")["documents"] == 30
