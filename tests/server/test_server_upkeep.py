"""Snapshots, verification and migration of collections on a Qdrant server, over REST and gRPC.

They run against the loopback server, and against the one of QDRANT_URL where that is set.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from collection_samples import DIM, contents, documents, expected_contents, group, store
from qdrant_client import models
from server_site import ANY_REST, REST, Site

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.engines.base import Matrix
from jcv2_plugin.errors import CollectionError

ITEMS = documents(30)

pytestmark = pytest.mark.usefixtures("one_thread")


class TestUpkeep:
    def test_a_snapshot_goes_from_server_to_server_and_folder(
        self, server: Site, filled: Callable[..., ColbertCollection], tmp_path: Path
    ) -> None:
        collection = filled(first_stage="hybrid")
        info = collection.snapshot(tmp_path / "s.snapshot")
        assert info.documents == 30
        restored = ColbertCollection.restore(
            tmp_path / "s.snapshot",
            server.url,
            name=f"{server.name}-restored",
            client_options=server.client_options,
            payload_indexes={"metadata.group": "keyword"},
        )
        folder = ColbertCollection.restore(tmp_path / "s.snapshot", tmp_path / "folder")
        with restored, folder:
            for copy in (restored, folder):
                assert contents(copy) == contents(collection)
                assert copy.schema == collection.schema
                assert copy.search(ITEMS[14].text, k=1, exact=False)[0].id == "d14"
                assert copy.verify(sample=5).problems == []
        indexes = server.client.get_collection(f"{server.name}-restored").payload_schema
        assert list(indexes) == ["metadata.group"]

    @ANY_REST
    def test_verifying_finds_what_was_damaged(self, server: Site, filled: Callable[..., ColbertCollection]) -> None:
        collection = filled(first_stage="pooled")
        assert collection.verify(sample=30).problems == []
        [point] = server.client.scroll(server.name, scroll_filter=group("g9"), limit=1)[0]
        server.client.set_payload(server.name, {"page_content": "changed"}, [point.id], wait=True)
        [problem] = collection.verify(sample=30).problems
        assert "its payload was changed by other software" in problem

    @ANY_REST
    def test_a_migration_is_never_seen(self, server: Site, filled: Callable[..., ColbertCollection]) -> None:
        """Neither by a second collection nor by another client of the name, while documents come and go."""
        collection = filled(first_stage="pooled")
        other = server.open(encoder=collection.encoder)
        stop, errors, rounds = threading.Event(), [], [0]

        def read() -> None:
            try:
                while not stop.is_set():
                    assert other.search(ITEMS[11].text, k=1)[0].id == "d11"
                    assert other.get(["d12"])[0].text == ITEMS[12].text
                    assert server.client.collection_exists(server.name)
                    assert server.client.count(server.name).count >= 28
                    rounds[0] += 1
            except BaseException as error:
                errors.append(error)

        def progress(number: int) -> None:
            if not written:
                written.append(number)
                other.add([Document("A new arrival.", "new"), Document("Replaced.", "d5")])
                other.delete(["d6"])

        reader = threading.Thread(target=read)
        reader.start()
        try:
            for number, change in enumerate(({"storage": "turbo4"}, {"dim": 64})):
                written: list[int] = []
                before = rounds[0]
                report = collection.migrate(**change, progress=progress)
                assert (report.documents, report.old, bool(written)) == (30, None, True)
                while rounds[0] < before + 2 and not errors:
                    stop.wait(0.01)
                assert server.names() == [f"{server.name}.{number + 2}"]
                if number == 0:
                    collection.delete(["new"])
                    collection.add([ITEMS[5], ITEMS[6]])
        finally:
            stop.set()
            reader.join(timeout=60)
        assert errors == []
        expected = [one for one in ITEMS if one.id not in ("d5", "d6")]
        assert contents(other) == expected_contents(
            [*expected, Document("A new arrival.", "new"), Document("Replaced.", "d5")]
        )
        assert (other.dim, other.verify(sample=30).problems) == (64, [])

    @ANY_REST
    def test_a_migration_may_keep_the_old_one(self, server: Site, filled: Callable[..., ColbertCollection]) -> None:
        collection = filled()
        report = collection.migrate(first_stage="bm25", keep_old=True)
        assert (report.copied, report.old) == (30, f"{server.name}.1")
        assert server.names() == [f"{server.name}.1", f"{server.name}.2"]
        assert server.physical() == f"{server.name}.2"
        old = server.open(name=report.old)
        assert (old.count(), old.schema.first_stage) == (30, "none")

    @REST
    @pytest.mark.parametrize("reopened", [False, True])
    def test_a_migration_that_was_stopped_goes_on(
        self,
        loopback: Site,
        mini: JinaColbertEncoder,
        vectors: list[Matrix],
        monkeypatch: pytest.MonkeyPatch,
        waits: list[float],
        reopened: bool,
    ) -> None:
        collection = loopback.create(mini, first_stage="hybrid")
        store(collection, ITEMS, vectors)
        monkeypatch.setattr("jcv2_plugin.collection.migrate.BATCH_DOCUMENTS", 10)

        def break_down(number: int) -> None:
            loopback.loopback.fail(times=99, status=503, path_contains="/points")

        with pytest.raises(CollectionError, match="temporarily unavailable"):
            collection.migrate(dim=64, progress=break_down)
        loopback.loopback.heal()
        assert (collection.dim, collection.count()) == (DIM, 30)
        assert loopback.open().search(ITEMS[11].text, k=1)[0].id == "d11"
        collection.add([Document("Changed since.", "d3")])
        if reopened:
            collection = loopback.open(encoder=mini)
        report = collection.migrate(dim=64)
        assert 0 < report.encoded <= 21
        assert report.documents == 30
        assert loopback.names() == [f"{loopback.name}.2"]
        assert collection.get(["d3"])[0].text == "Changed since."
        assert collection.verify(sample=30).problems == []

    def test_strict_mode_and_indexes_are_kept_by_a_migration(self, loopback: Site, mini: JinaColbertEncoder) -> None:
        limits = models.StrictModeConfig(enabled=True, upsert_max_batchsize=4, unindexed_filtering_retrieve=False)
        collection = loopback.create(
            mini,
            payload_indexes={"metadata.group": "keyword"},
            collection_options={"shard_number": 2, "strict_mode_config": limits},
        )
        collection.add(ITEMS[:6])
        collection.migrate(storage="turbo8")
        info = loopback.client.get_collection(loopback.name)
        assert info.config.strict_mode_config == models.StrictModeConfigOutput(**limits.model_dump())
        assert (info.config.params.shard_number, list(info.payload_schema)) == (2, ["metadata.group"])
        assert collection.count(group("g3")) == 1
