"""What Ray's workers do with files and batches, in this process and without Ray. tests/cli/test_cli_ray.py has Ray."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from collection_samples import DIM, contents
from server_site import LOOPBACKS, Site

from jcv2_plugin import ColbertCollection, IndexBatch, JinaColbertEncoder
from jcv2_plugin.collection.cluster import Cluster, IndexDocuments, Outcome, ReadFiles
from jcv2_plugin.collection.sources import PassageReader, SourceError, find_files
from jcv2_plugin.errors import (
    CollectionNotFoundError,
    InvalidDocumentError,
    InvalidOptionError,
    MissingPackageError,
)

REST = pytest.mark.parametrize("loopback", LOOPBACKS[:1], indirect=True)
ROWS = {
    "id": np.array(["a", "b", "c"]),
    "text": np.array(["A red boat.", "Fresh bread.", " \n"], dtype=object),
    "metadata": np.array(['{"page": 1, "tags": ["x"]}', None, "{}"], dtype=object),
}


@pytest.fixture
def collection(loopback: Site, mini: JinaColbertEncoder) -> ColbertCollection:
    return loopback.create(mini)


def batches(site: Site, kind: type[IndexBatch] = IndexBatch) -> IndexBatch:
    return kind(site.url, name=site.name, client_options=site.client_options, device="cpu")


@REST
class TestBatches:
    def test_a_batch_is_stored_and_its_repeat_changes_nothing(
        self, loopback: Site, collection: ColbertCollection
    ) -> None:
        index = batches(loopback)
        assert index(ROWS) == {"written": [2], "unchanged": [0], "blank": [1]}
        stored = {"a": ("A red boat.", {"page": 1, "tags": ["x"]}), "b": ("Fresh bread.", {})}
        assert contents(collection) == stored
        writes = len(loopback.writes())
        assert batches(loopback)(ROWS) == {"written": [0], "unchanged": [2], "blank": [1]}  # by another worker
        assert len(loopback.writes()) == writes
        assert contents(collection) == stored

    def test_metadata_as_dicts_and_ids_as_integers(self, loopback: Site, collection: ColbertCollection) -> None:
        rows = {"id": np.array([7, 8]), "text": ["Seven.", "Eight."], "metadata": [{"n": np.int64(7)}, {"n": 8}]}
        assert batches(loopback)(rows)["written"] == [2]
        assert contents(collection) == {"7": ("Seven.", {"n": 7}), "8": ("Eight.", {"n": 8})}

    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            ({"text": ["A."]}, "no column 'id', only .*rename_columns"),
            ({"id": ["a"]}, "no column 'text'"),
            ({"id": [None], "text": ["A."]}, "id must be a non-empty str or an int, got None"),
            ({"id": [0.5], "text": ["A."]}, "got 0.5"),
            ({"id": ["a"], "text": ["A."], "metadata": ["{"]}, "Document 'a': metadata '{' is not JSON"),
            ({"id": ["a"], "text": ["A."], "metadata": ["[1]"]}, "is not a JSON object"),
            ({"id": ["a"], "text": ["A."], "metadata": [3]}, "metadata must be a dict, got int"),
            ({"id": ["a", "a"], "text": ["A.", "B."]}, "this id comes twice"),
        ],
    )
    def test_what_cannot_be_stored(
        self, loopback: Site, collection: ColbertCollection, rows: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(InvalidDocumentError, match=said):
            batches(loopback)(rows)
        assert not loopback.writes()

    def test_the_collection_must_exist(self, loopback: Site) -> None:
        with pytest.raises(CollectionNotFoundError):
            batches(loopback)(ROWS)

    @pytest.mark.parametrize("location", ["folder", "/tmp/folder", ":memory:"])
    def test_a_folder_has_one_writer(self, loopback: Site, location: str) -> None:
        with pytest.raises(InvalidOptionError, match=r"is not a Qdrant server\. One process at a time"):
            IndexBatch(location)


def listed(rows: Iterable[Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    """The rows that Ray would put into one block."""
    block: dict[str, list[Any]] = {"file": [], "id": [], "text": [], "more": [], "note": []}
    for part in rows:
        for name in block:
            block[name] += part.get(name, [])
    return block


def outcome(answer: Mapping[str, list[bytes]]) -> Outcome:
    found = pickle.loads(answer["outcome"][0])
    assert isinstance(found, Outcome)
    return found


@REST
class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.md").write_text("# Ships\n\nThe ferry sails at noon.\n")
        rows = [{"id": "1", "text": "One.", "metadata": {"n": 1.5, "none": None}}, {"id": "2", "text": ""}]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
        return tmp_path

    def read(self, reader: PassageReader, strict: bool = False) -> Iterator[Mapping[str, list[Any]]]:
        files = [
            {"file": number, "path": bytes(file.path.absolute()), "name": file.name.encode()}
            for number, file in enumerate(find_files(["."]))
        ]
        columns = {name: [file[name] for file in files] for name in ("file", "path", "name")}
        # As Ray sends it to a worker, and without the model.
        sent = cloudpickle.dumps(ReadFiles(reader, strict))
        assert len(sent) < 2_000_000
        return pickle.loads(sent)(columns)

    def test_they_are_stored_as_index_stores_them(
        self, folder: Path, loopback: Site, collection: ColbertCollection, mini: JinaColbertEncoder
    ) -> None:
        reader = PassageReader(mini)
        done = outcome(batches(loopback, IndexDocuments)(listed(self.read(reader))))
        assert (done.error, done.written, done.unchanged, done.files) == (None, 2, 0, [0, 2])
        assert done.blank == ["2"]
        assert sorted(done.read) == [0, 2]
        assert [number for number, _ in done.skipped] == [1]
        assert "cannot be read as UTF-8" in done.skipped[0][1]
        assert done.bytes_read == sum((folder / name).stat().st_size for name in ("a.md", "bad.txt", "rows.jsonl"))
        here = [one for file in find_files(["a.md", "rows.jsonl"]) for one in reader.read(file)]
        with ColbertCollection.create(":memory:", encoder=mini, dim=DIM, first_stage="none") as expected:
            expected.ingest(here)
            payloads = sorted((one.payload for one in expected.scroll()), key=lambda one: str(one["_id"]))
        assert sorted((one.payload for one in collection.scroll()), key=lambda one: str(one["_id"])) == payloads
        again = outcome(batches(loopback, IndexDocuments)(listed(self.read(reader))))
        assert (again.written, again.unchanged, sorted(again.ids)) == (0, 2, sorted(collection.ids()))

    def test_an_id_given_twice_is_told_of_and_stored_once(
        self, folder: Path, loopback: Site, collection: ColbertCollection, mini: JinaColbertEncoder
    ) -> None:
        (folder / "more.jsonl").write_text('{"id": "1", "text": "Another one."}\n')
        done = outcome(batches(loopback, IndexDocuments)(listed(self.read(PassageReader(mini)))))
        assert done.ids.count("1") == 2
        assert contents(collection)["1"][0] in ("One.", "Another one.")

    def test_errors_reach_the_driver_as_they_are(
        self, folder: Path, loopback: Site, collection: ColbertCollection, mini: JinaColbertEncoder
    ) -> None:
        (folder / "rows.jsonl").write_text('{"id": "1", "text": "One."}\n{"id": 2}\n')
        done = outcome(batches(loopback, IndexDocuments)(listed(self.read(PassageReader(mini)))))
        assert isinstance(done.error, SourceError)
        assert "rows.jsonl:2: expected" in str(done.error)
        assert 2 not in done.read  # its stale documents are not known
        strict = outcome(batches(loopback, IndexDocuments)(listed(self.read(PassageReader(mini), strict=True))))
        assert "bad.txt cannot be read" in str(strict.error)
        loopback.loopback.fail(status=400, reason="no", times=99)
        failed = outcome(batches(loopback, IndexDocuments)(listed(self.read(PassageReader(mini)))))
        assert failed.error is not None
        assert (failed.ids, failed.read) == ([], [])


class TestCluster:
    URL = "http://host:6333"

    def test_only_servers(self) -> None:
        with pytest.raises(InvalidOptionError, match="'somewhere' is not a Qdrant server"):
            Cluster("local", "somewhere", {})

    @pytest.mark.parametrize(
        ("location", "options"), [(URL, {"client_options": {"api_key": "secret"}}), ("http://me:secret@host:6333", {})]
    )
    def test_secrets_do_not_travel(
        self, location: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("QDRANT_API_KEY", raising=False)
        with pytest.raises(InvalidOptionError, match=r"not sent to the workers of Ray.*QDRANT_API_KEY") as caught:
            Cluster("local", location, options)
        assert "secret" not in str(caught.value)

    def test_the_key_of_the_environment_stays_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("jcv2_plugin.lazy.find_spec", lambda name: name)
        monkeypatch.setenv("QDRANT_API_KEY", "secret")
        made = Cluster("local", self.URL, {"client_options": {"api_key": "secret", "timeout": 7}, "name": "books"})
        assert made.worker_options == {"client_options": {"timeout": 7}, "name": "books"}
        assert "secret" not in repr(made)

    def test_without_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("jcv2_plugin.lazy.find_spec", lambda name: None)
        with pytest.raises(MissingPackageError, match=r"Indexing on a cluster needs ray.*'jcv2-plugin\[ray\]'"):
            Cluster("local", self.URL, {})
