"""Folders: what is picked up when they are opened again, their lock, and what is wrong with some of them."""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import starting
from collection_samples import copied
from official_checkpoint import write_checkpoint

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.cli.collections import UNREADABLE, _of_folder
from jcv2_plugin.engines.base import Point, SearchRequest
from jcv2_plugin.errors import (
    CollectionAccessError,
    CollectionCorruptError,
    CollectionError,
    CollectionExistsError,
    CollectionLockedError,
    CollectionMismatchError,
    CollectionNotFoundError,
    DiskFullError,
    ModelNotFoundError,
)


@pytest.fixture(scope="module")
def original(mini: JinaColbertEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "collection"
    with ColbertCollection.create(path, encoder=mini, dim=64) as collection:
        collection.add(["Rice is cooked in water.", "The ferry sails at noon."], ids=["rice", "ferry"])
    return path


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return copied(original, tmp_path / "collection")


class TestReopening:
    def test_model_and_dim_are_picked_up(self, tmp_path: Path) -> None:
        encoder = JinaColbertEncoder.from_pretrained("mini", dims=(32, 96), device="cpu", document_length=50)
        encoder.skiplist = "pieces"
        with ColbertCollection.create(tmp_path / "c", encoder=encoder, dim=96, storage="float32") as collection:
            collection.add(["Rice is cooked in water."], ids=["rice"])
            before = collection.search("what is cooked?")[0].score
        with ColbertCollection.open(tmp_path / "c") as again:
            assert again.schema == collection.schema
            assert again.search("what is cooked?")[0].score == pytest.approx(before, abs=1e-5)
            assert again.encoder.dims == (96,)
            assert (again.encoder.document_length, again.encoder.skiplist) == (50, encoder.skiplist)

    def test_reading_needs_no_model(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(JinaColbertEncoder, "from_pretrained", lambda *a, **k: pytest.fail("a model was loaded"))
        with ColbertCollection.open(folder) as collection:
            assert collection.count() == 2
            assert collection.get(["rice"])[0].text == "Rice is cooked in water."
            collection.delete(["rice"])
        moved = folder.rename(folder.with_name("moved"))
        with ColbertCollection.open(moved) as collection:
            assert list(collection.ids()) == ["ferry"]


class TestMismatch:
    def test_another_dim(self, folder: Path, mini: JinaColbertEncoder) -> None:
        with pytest.raises(CollectionMismatchError, match="dim=64, not 128"):
            ColbertCollection.open(folder, dim=128)
        with ColbertCollection.open(folder, encoder=mini, dim=64) as collection:
            assert collection.dim == 64

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dims": 128}, r"dim=64; the model 'mini' has heads for \[128\]"),
            ({"dims": 64, "document_length": 100}, "document_length=300, the encoder has 100"),
            ({"dims": 64, "skiplist": "pieces"}, "skiplist=None, the encoder has"),
        ],
    )
    def test_another_head_or_preprocessing(self, folder: Path, options: dict[str, Any], message: str) -> None:
        encoder = JinaColbertEncoder.from_pretrained("mini", device="cpu", **options)
        with pytest.raises(CollectionMismatchError, match=message):
            ColbertCollection.open(folder, encoder=encoder)

    def test_another_model_also_under_the_same_name(self, folder: Path, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "model", dim=64, seed=0)
        with pytest.raises(CollectionMismatchError, match="was made with the model 'mini'"):
            ColbertCollection.open(folder, encoder=str(tmp_path / "model"))
        ColbertCollection.create(tmp_path / "c", encoder=tmp_path / "model").close()
        write_checkpoint(tmp_path / "model", dim=64, seed=1)
        collection = ColbertCollection.open(tmp_path / "c")
        with collection, pytest.raises(CollectionMismatchError, match="weights"):
            collection.search("anything")


class TestLock:
    def test_one_user_at_a_time(self, folder: Path, mini: JinaColbertEncoder) -> None:
        """In this process, and in another one."""
        script = (
            "import sys; from jcv2_plugin import ColbertCollection; from jcv2_plugin.errors import *\n"
            "try: ColbertCollection.open(sys.argv[1])\n"
            "except CollectionLockedError: print('locked')"
        )
        with ColbertCollection.open(folder) as collection:
            with pytest.raises(CollectionLockedError, match="Only one process can open"):
                ColbertCollection.open(folder)
            with pytest.raises(CollectionLockedError):
                ColbertCollection.create(folder, encoder=mini, overwrite=True)
            done = starting.run(script, folder)
            assert done.stdout == "locked\n", done.stderr
            assert collection.count() == 2
            closer = threading.Thread(target=collection.close)  # another thread may close it
            closer.start()
            closer.join()
            ColbertCollection.open(folder).close()

    def test_an_error_leaves_no_lock(self, folder: Path, tmp_path: Path, mini: JinaColbertEncoder) -> None:
        for options, error in (({"dim": 128}, CollectionMismatchError), ({"encoder": "none-such"}, ModelNotFoundError)):
            with pytest.raises(error):
                ColbertCollection.open(folder, **options)
        ColbertCollection.open(folder).close()
        with pytest.raises(ModelNotFoundError):
            ColbertCollection.create(tmp_path / "c", encoder="none-such")
        ColbertCollection.create(tmp_path / "c", encoder=mini).close()


class TestDamage:
    def test_there_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for path in (tmp_path / "nothing", tmp_path / "empty"):
            with pytest.raises(CollectionNotFoundError, match=str(path)):
                ColbertCollection.open(path)
        assert not (tmp_path / "nothing").exists()
        assert list((tmp_path / "empty").iterdir()) == []

    def test_there_is_one_already(self, folder: Path, mini: JinaColbertEncoder) -> None:
        with pytest.raises(CollectionExistsError, match="set overwrite"):
            ColbertCollection.create(folder, encoder=mini)
        with ColbertCollection.open(folder) as collection:
            assert collection.count() == 2
        with ColbertCollection.create(folder, encoder=mini, overwrite=True) as collection:
            assert collection.count() == 0

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_other_peoples_folders_are_left_alone(
        self, tmp_path: Path, mini: JinaColbertEncoder, overwrite: bool
    ) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(CollectionExistsError, match="is no collection"):
            ColbertCollection.create(tmp_path, encoder=mini, overwrite=overwrite)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is unreadable"),
            ("", "is unreadable"),
            ("[]", "no description of ours"),
            ("null", "no description of ours"),
            ('{"format": 99}', "has format 99"),
            ('{"format": 1, "dim": 64}', r"damaged \(missing \['document_length'"),
            ({"dim": "64"}, r"unreadable \['dim'\]"),
        ],
    )
    def test_a_damaged_description(self, folder: Path, content: Any, message: str) -> None:
        file = folder / "jcv2.json"
        is_change = isinstance(content, dict)
        file.write_text(json.dumps({**json.loads(file.read_text()), **content}) if is_change else content)
        with pytest.raises(CollectionCorruptError, match=message):
            ColbertCollection.open(folder)

    def test_a_creation_that_did_not_finish(self, folder: Path, mini: JinaColbertEncoder) -> None:
        (folder / "jcv2.json").unlink()
        with pytest.raises(CollectionCorruptError, match="did not finish"):
            ColbertCollection.open(folder)
        with ColbertCollection.create(folder, encoder=mini, overwrite=True) as collection:
            assert collection.count() == 0

    @pytest.mark.parametrize("beside", ["ingest.journal", "ingest.journal.lock", "shard-2.pending.json", "notes.txt"])
    def test_a_lost_description(self, folder: Path, beside: str) -> None:
        """Whatever lies beside the shard: the documents are not said not to be there."""
        content = (folder / "jcv2.json").read_text()
        (folder / "jcv2.json").unlink()
        (folder / beside).write_text("")
        with pytest.raises(CollectionCorruptError, match=r"jcv2\.json' is missing.*or drop it"):
            ColbertCollection.open(folder)
        assert [one.state for one in _of_folder(str(folder.parent))] == [UNREADABLE]
        (folder / "jcv2.json").write_text(content)
        with ColbertCollection.open(folder) as collection:
            assert collection.count() == 2

    def test_what_is_left_of_one_without_documents(self, folder: Path, mini: JinaColbertEncoder) -> None:
        (folder / "ingest.journal").write_text("")
        (folder / "jcv2.json").unlink()
        shutil.rmtree(folder / "shard")
        with pytest.raises(CollectionNotFoundError, match=r"only what is left of one: .*'ingest\.journal'"):
            ColbertCollection.open(folder)
        ColbertCollection.create(folder, encoder=mini, dim=64).close()

    @pytest.mark.parametrize("change", [{"dim": 32}, {"first_stage": "none"}, {"first_stage": "bm25"}])
    def test_a_description_of_another_shard(self, folder: Path, change: dict[str, Any]) -> None:
        file = folder / "jcv2.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        with pytest.raises(CollectionCorruptError, match=r"jcv2\.json' is damaged: it says dim="):
            ColbertCollection.open(folder)

    def test_a_lost_shard(self, folder: Path) -> None:
        shutil.rmtree(folder / "shard")
        with pytest.raises(CollectionCorruptError, match="is missing"):
            ColbertCollection.open(folder)


class TestErrorsOfEdge:
    def test_a_call_that_edge_refuses(self, folder: Path) -> None:
        with ColbertCollection.open(folder) as collection:
            engine = collection.engine
            request = SearchRequest(np.zeros((1, 5), np.float32))
            calls: list[Callable[[], Any]] = [
                lambda: engine.delete(["no-uuid"]),
                lambda: engine.retrieve(["no-uuid"], with_payload=True, with_vectors=False),
                lambda: engine.create_payload_index("a[", "keyword"),
                lambda: engine.upsert([Point("no-uuid", np.zeros((1, 64), np.float32), {})]),
                lambda: engine.upsert([Point(str(uuid.uuid4()), np.zeros((1, 5), np.float32), {})]),
                lambda: engine.search([request], 1, filter=None, score_threshold=None),
            ]
            for call in calls:
                with pytest.raises(CollectionError, match=f"The collection in '{folder}': Qdrant Edge failed: "):
                    call()
            assert collection.count() == 2

    def test_files_that_vanish_meanwhile(self, folder: Path) -> None:
        collection = ColbertCollection.open(folder)
        collection.delete(["rice"])
        shutil.rmtree(folder / "shard" / "segments")
        for call in (collection.optimize, collection.close):
            with pytest.raises(CollectionCorruptError, match=f"'{folder}': Qdrant Edge .*damaged, or were changed"):
                call()

    @pytest.mark.parametrize(
        ("text", "kind", "said"),
        [
            ("No space left on device (os error 28)", DiskFullError, "The collection itself is intact"),
            ("Permission denied (os error 13)", CollectionAccessError, "writable"),
            ("Too many open files (os error 24)", CollectionError, "ulimit -n"),
            ("Input/output error (os error 5)", CollectionCorruptError, "restore it"),
            ("Failed to deserialize payload", CollectionCorruptError, "jcv2 verify"),
        ],
    )
    def test_each_call_is_translated(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: type[Exception], said: str
    ) -> None:
        class Failing:
            def __getattr__(self, name: str) -> Any:
                def call(*arguments: Any) -> Any:
                    raise Exception(f"Service runtime error: {text}")

                return call

        request = SearchRequest(np.zeros((1, 64), np.float32))
        calls: list[Callable[[Any], Any]] = [
            lambda engine: engine.count(None),
            lambda engine: engine.optimize(),
            lambda engine: engine.delete([str(uuid.uuid4())]),
            lambda engine: engine.search([request], 1, filter=None, score_threshold=None),
            lambda engine: engine.retrieve([str(uuid.uuid4())], with_payload=True, with_vectors=False),
            lambda engine: list(engine.scroll(None, with_payload=True)),
        ]
        with ColbertCollection.open(folder) as collection, monkeypatch.context() as patch:
            patch.setattr(collection.engine, "_shard", Failing())
            for call in calls:
                with pytest.raises(kind, match=said) as caught:
                    call(collection.engine)
                assert type(caught.value) is kind
                assert str(folder) in str(caught.value)


class TestFilesOfStrangers:
    @pytest.mark.parametrize("name", ["shard", "shard/wal/open-1"])
    def test_links_are_not_written_through(self, folder: Path, tmp_path: Path, name: str) -> None:
        (folder / name).rename(tmp_path / "elsewhere")
        (folder / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CollectionAccessError, match="is a link"):
            ColbertCollection.open(folder)

    @pytest.mark.parametrize("name", ["shard/wal/open-1", "shard/edge_config.json"])
    def test_pipes_are_not_waited_for(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(CollectionAccessError, match=f"{name}' is not a regular file"):
            ColbertCollection.open(folder)

    def test_a_lock_that_is_none(self, folder: Path) -> None:
        (folder / "lock").unlink(missing_ok=True)
        (folder / "lock").mkdir()
        with pytest.raises(CollectionAccessError, match=f"{folder}/lock' cannot be locked"):
            ColbertCollection.open(folder)

    def test_a_description_that_never_ends(self, folder: Path) -> None:
        file = folder / "jcv2.json"
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(CollectionCorruptError, match="not a regular file"):
            ColbertCollection.open(folder)
        file.unlink()
        with file.open("wb") as stream:
            stream.truncate(2**40)
        with pytest.raises(CollectionCorruptError, match="larger than 64 MiB"):
            ColbertCollection.open(folder)


class TestFullDisk:
    """Beyond the checks, a full disk ends the process by a signal: Edge writes through memory maps."""

    @pytest.fixture
    def free(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Bytes that are free, to be changed."""
        left = [2**40]
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=left[0]))
        return left

    def test_each_step_says_what_it_needs(
        self, folder: Path, mini: JinaColbertEncoder, tmp_path: Path, free: list[int]
    ) -> None:
        with ColbertCollection.open(folder) as collection:
            free[0] = 2**20
            for step in (lambda: collection.add(["More."], ids=["more"]), collection.optimize):
                with pytest.raises(DiskFullError, match=f"The disk of '{folder}' has 1 MiB free"):
                    step()
            assert collection.count() == 2
        whole = shutil.copytree(folder, tmp_path / "whole")  # without the holes in its files, which need space too
        with pytest.raises(DiskFullError, match="16 MiB are needed"):
            ColbertCollection.open(whole)
        with pytest.raises(DiskFullError, match="64 MiB are needed"):
            ColbertCollection.create(tmp_path / "new", encoder=mini, dim=64)
        free[0] = 2**40
        with ColbertCollection.open(folder) as collection:
            assert collection.verify(sample=2).ok
        ColbertCollection.create(tmp_path / "new", encoder=mini, dim=64).close()

    def test_it_is_not_called_corruption(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(path: str) -> None:
            raise RuntimeError("Service runtime error: No space left on device (os error 28)")

        monkeypatch.setattr("jcv2_plugin.engines.edge.edge.EdgeShard", SimpleNamespace(load=full))
        with pytest.raises(DiskFullError, match="The collection itself is intact"):
            ColbertCollection.open(folder)
