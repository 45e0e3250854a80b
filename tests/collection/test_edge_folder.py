from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from official_checkpoint import write_checkpoint

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.errors import (
    CollectionCorruptError,
    CollectionExistsError,
    CollectionLockedError,
    CollectionMismatchError,
    CollectionNotFoundError,
    ModelNotFoundError,
)


@pytest.fixture
def folder(mini: JinaColbertEncoder, tmp_path: Path) -> Path:
    path = tmp_path / "collection"
    with ColbertCollection.create(path, encoder=mini, dim=64) as collection:
        collection.add(["Rice is cooked in water.", "The ferry sails at noon."], ids=["rice", "ferry"])
    return path


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
        with ColbertCollection.open(folder) as collection:
            assert list(collection.ids()) == ["ferry"]

    def test_a_moved_folder_opens(self, folder: Path, mini: JinaColbertEncoder) -> None:
        moved = folder.rename(folder.with_name("moved"))
        with ColbertCollection.open(moved, encoder=mini) as collection:
            assert collection.search("when does the ship leave?", k=1)[0].id == "ferry"

    def test_writes_survive_a_process_that_dies(self, folder: Path) -> None:
        script = (
            "import os, sys; from jcv2_plugin import ColbertCollection;"
            "c = ColbertCollection.open(sys.argv[1]); c.add(['A late arrival.'], ids=['late']); os._exit(9)"
        )
        assert subprocess.run([sys.executable, "-c", script, str(folder)], timeout=120).returncode == 9
        with ColbertCollection.open(folder) as collection:
            assert sorted(collection.ids()) == ["ferry", "late", "rice"]


class TestMismatch:
    def test_another_dim(self, folder: Path, mini: JinaColbertEncoder) -> None:
        with pytest.raises(CollectionMismatchError, match="dim=64, not 128"):
            ColbertCollection.open(folder, dim=128)
        other = JinaColbertEncoder.from_pretrained("mini", dims=128, device="cpu")
        with pytest.raises(CollectionMismatchError, match=r"dim=64; the model 'mini' has heads for \[128\]"):
            ColbertCollection.open(folder, encoder=other)
        with ColbertCollection.open(folder, encoder=mini, dim=64) as collection:
            assert collection.dim == 64

    def test_another_model(self, folder: Path, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "other", dim=64)
        with pytest.raises(CollectionMismatchError, match="was made with the model 'mini'"):
            ColbertCollection.open(folder, encoder=str(tmp_path / "other"))

    def test_another_model_under_the_same_name(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "model", dim=64, seed=0)
        with ColbertCollection.create(tmp_path / "c", encoder=tmp_path / "model") as collection:
            collection.add(["Rice is cooked in water."])
        write_checkpoint(tmp_path / "model", dim=64, seed=1)
        with (
            ColbertCollection.open(tmp_path / "c") as collection,
            pytest.raises(CollectionMismatchError, match="weights"),
        ):
            collection.search("anything")

    def test_other_preprocessing(self, folder: Path) -> None:
        encoder = JinaColbertEncoder.from_pretrained("mini", dims=64, device="cpu", document_length=100)
        with pytest.raises(CollectionMismatchError, match="document_length=300, the encoder has 100"):
            ColbertCollection.open(folder, encoder=encoder)
        encoder = JinaColbertEncoder.from_pretrained("mini", dims=64, device="cpu", skiplist="pieces")
        with pytest.raises(CollectionMismatchError, match="skiplist=None, the encoder has"):
            ColbertCollection.open(folder, encoder=encoder)

    def test_a_failed_opening_leaves_the_folder_free(self, folder: Path) -> None:
        with pytest.raises(CollectionMismatchError):
            ColbertCollection.open(folder, dim=128)
        with pytest.raises(ModelNotFoundError):
            ColbertCollection.open(folder, encoder="no-such-model")
        ColbertCollection.open(folder).close()


class TestLock:
    def test_a_second_opening_in_the_process(self, folder: Path, mini: JinaColbertEncoder) -> None:
        with ColbertCollection.open(folder):
            with pytest.raises(CollectionLockedError, match="Only one process can open a folder"):
                ColbertCollection.open(folder)
            with pytest.raises(CollectionLockedError):
                ColbertCollection.create(folder, encoder=mini, overwrite=True)
        ColbertCollection.open(folder).close()

    def test_another_process(self, folder: Path) -> None:
        script = (
            "import sys; from jcv2_plugin import ColbertCollection; from jcv2_plugin.errors import *\n"
            "try: ColbertCollection.open(sys.argv[1])\n"
            "except CollectionLockedError: print('locked')"
        )
        command = [sys.executable, "-c", script, str(folder)]
        with ColbertCollection.open(folder) as collection:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert done.stdout == "locked\n", done.stderr
            assert collection.count() == 2

    def test_another_thread_may_close(self, folder: Path) -> None:
        collection = ColbertCollection.open(folder)
        closer = threading.Thread(target=collection.close)
        closer.start()
        closer.join()
        ColbertCollection.open(folder).close()


class TestDamage:
    def test_there_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for path in (tmp_path / "nothing", tmp_path / "empty"):
            with pytest.raises(CollectionNotFoundError, match="no collection in"):
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
        ],
    )
    def test_a_damaged_description(self, folder: Path, content: str, message: str) -> None:
        (folder / "jcv2.json").write_text(content)
        with pytest.raises(CollectionCorruptError, match=message):
            ColbertCollection.open(folder)

    def test_a_description_of_wrong_types(self, folder: Path) -> None:
        raw = json.loads((folder / "jcv2.json").read_text())
        (folder / "jcv2.json").write_text(json.dumps({**raw, "dim": "64"}))
        with pytest.raises(CollectionCorruptError, match=r"unreadable \['dim'\]"):
            ColbertCollection.open(folder)

    def test_a_creation_that_did_not_finish(self, folder: Path, mini: JinaColbertEncoder) -> None:
        (folder / "jcv2.json").unlink()
        with pytest.raises(CollectionCorruptError, match="did not finish"):
            ColbertCollection.open(folder)
        with ColbertCollection.create(folder, encoder=mini, overwrite=True) as collection:
            assert collection.count() == 0

    def test_a_lost_shard(self, folder: Path) -> None:
        import shutil

        shutil.rmtree(folder / "shard" / "segments")
        shutil.rmtree(folder / "shard")
        with pytest.raises(CollectionCorruptError, match="is missing"):
            ColbertCollection.open(folder)

    def test_an_error_while_creating_leaves_no_lock(self, tmp_path: Path, mini: JinaColbertEncoder) -> None:
        with pytest.raises(ModelNotFoundError):
            ColbertCollection.create(tmp_path / "c", encoder="no-such-model")
        ColbertCollection.create(tmp_path / "c", encoder=mini).close()
