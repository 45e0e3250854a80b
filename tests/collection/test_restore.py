"""Restoring: what a snapshot may contain, and what an interrupted or failed restoration leaves."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_samples import DIM
from qdrant_client import QdrantClient

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.cli.collections import UNREADABLE, _of_folder
from jcv2_plugin.collection import snapshot
from jcv2_plugin.collection.opening import open_or_create
from jcv2_plugin.collection.snapshot import SnapshotError
from jcv2_plugin.engines.qdrant import ClientEngine
from jcv2_plugin.errors import (
    CollectionCorruptError,
    CollectionError,
    CollectionExistsError,
    CollectionNotFoundError,
    CollectionUnfinishedError,
    InvalidOptionError,
)

TEXTS = [f"Document number {number} about rivers." for number in range(20)]


@pytest.fixture(scope="module")
def file(mini: JinaColbertEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snapshot") / "snapshot.zip"
    with ColbertCollection.create(":memory:", encoder=mini, dim=DIM) as collection:
        collection.add(TEXTS, ids=[f"d{number}" for number in range(20)])
        collection.snapshot(path)
    return path


@pytest.fixture
def there(mini: JinaColbertEncoder, tmp_path: Path) -> Path:
    """A collection that a restoration is to replace."""
    with ColbertCollection.create(tmp_path / "there", encoder=mini, dim=DIM) as collection:
        collection.add(["Not to be lost."], ids=["here"])
    return tmp_path / "there"


def edit_rows(change: Callable[[list[Any]], None]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        rows = [json.loads(line) for line in content.decode().splitlines()]
        change(rows)
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    return edit


def edit_array(value: float) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        array = np.load(io.BytesIO(content)).copy()
        array.reshape(-1)[3] = value
        written = io.BytesIO()
        np.save(written, array)
        return written.getvalue()

    return edit


def described(**change: Any) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        whole = json.loads(content)
        schema = {name: value for name, value in change.items() if name in whole["schema"]}
        rest = {name: value for name, value in change.items() if name not in schema}
        return json.dumps({**whole, **rest, "schema": {**whole["schema"], **schema}}).encode()

    return edit


def all_alike(rows: list[Any]) -> None:
    for row in rows:
        row["id"] = rows[0]["id"]


def nested(levels: int) -> dict[str, Any]:
    return {"a": nested(levels - 1)} if levels else {}


def set_first(**payload: Any) -> Callable[[list[Any]], None]:
    return lambda rows: rows[0]["payload"].update(payload)


@pytest.mark.parametrize(
    ("member", "edit", "message"),
    [
        ("000000/payloads.jsonl", edit_rows(all_alike), "occurs twice"),
        ("000000/payloads.jsonl", edit_rows(lambda rows: rows[0]["payload"].clear()), "000000/.*has no id or no text"),
        ("000000/payloads.jsonl", edit_rows(set_first(page_content=7)), "has no id or no text"),
        ("000000/payloads.jsonl", edit_rows(set_first(metadata="x")), "metadata that is not a dict"),
        ("000000/payloads.jsonl", edit_rows(set_first(_id="other")), "under another document's point"),
        ("000000/payloads.jsonl", edit_rows(set_first(metadata=nested(40))), "nested more than 32 levels"),
        ("000000/payloads.jsonl", edit_rows(set_first(metadata={"a": float("nan")})), "cannot be stored as JSON"),
        ("000000/payloads.jsonl", edit_rows(set_first(_hash=float("nan"))), "a hash that is not a str: nan"),
        ("000000/payloads.jsonl", edit_rows(set_first(page_content="\ud800")), "lone surrogates"),
        ("000000/payloads.jsonl", edit_rows(lambda rows: rows.__setitem__(0, "x")), "without an id and a payload"),
        ("000000/pooled.places.npy", edit_array(0), "positions that are not those of 20 rows"),
        ("000000/vectors.npy", edit_array(np.nan), "NaN or infinite"),
        ("000000/vectors.npy", edit_array(np.inf), "NaN or infinite"),
        ("000000/pooled.dense.npy", edit_array(np.nan), "invalid vector 'pooled'"),
        ("000000/bm25.values.npy", edit_array(np.nan), "invalid vector 'bm25'"),
        ("000000/bm25.indices.npy", edit_array(-1), "invalid vector 'bm25'"),
        ("snapshot.json", described(long_documents="x"), "long_documents must be one of"),
        ("snapshot.json", described(skiplist="junk"), "skiplist must be one of"),
        ("snapshot.json", described(pool_factor=-1), "pool_factor must be"),
        ("snapshot.json", described(pool_factor=float("nan")), "pool_factor must be"),
        ("snapshot.json", described(storage="float8"), "storage must be one of"),
        ("snapshot.json", described(first_stage="pooled"), "has a vector 'bm25'"),
        ("snapshot.json", described(dim=0), "dim must be positive"),
        ("snapshot.json", described(parts=0, documents=0), "too many"),
    ],
)
def test_contents_that_no_collection_has_replace_nothing(
    file: Path, there: Path, tmp_path: Path, member: str, edit: Callable[[bytes], bytes], message: str
) -> None:
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(tmp_path / "edited", "w") as archive:
        for name in whole.namelist():
            content = whole.read(name)
            archive.writestr(name, edit(content) if name == member else content)
    with pytest.raises((SnapshotError, CollectionCorruptError), match=message):
        ColbertCollection.restore(tmp_path / "edited", there, overwrite=True)
    with ColbertCollection.open(there) as collection:
        assert list(collection.ids()) == ["here"]


def test_a_server_that_keeps_nothing_replaces_nothing(
    mini: JinaColbertEncoder, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = QdrantClient(":memory:")
    with ColbertCollection.create(client=client, encoder=mini, dim=DIM) as collection:
        collection.add(["Not to be lost."], ids=["here"])
    monkeypatch.setattr(ClientEngine, "upsert", lambda self, points: None)
    with pytest.raises(CollectionError, match="0 of the snapshot's 20 documents were stored"):
        ColbertCollection.restore(file, client=client, overwrite=True)
    with ColbertCollection.open(client=client) as collection:
        assert list(collection.ids()) == ["here"]


@pytest.mark.parametrize("engine", ["folder", "client"])
def test_a_new_collection_is_unfinished_until_all_is_restored(engine: str, file: Path, tmp_path: Path) -> None:
    location: dict[str, Any] = (
        {"path": tmp_path / "new"} if engine == "folder" else {"client": QdrantClient(":memory:")}
    )

    def stop(documents: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ColbertCollection.restore(file, **location, progress=stop)
    with pytest.raises(CollectionUnfinishedError, match="restoration was interrupted"):
        ColbertCollection.open(**location)
    with ColbertCollection.restore(file, **location) as collection:  # the same again
        assert collection.count() == 20
    with ColbertCollection.open(**location) as collection:
        assert collection.verify(sample=3).ok
    with pytest.raises(CollectionExistsError):
        ColbertCollection.restore(file, **location)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_crash_between_the_swap_and_the_end_leaves_no_collection_behind(
    overwrite: bool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = QdrantClient(":memory:")

    def crash(name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "delete_collection", crash)
        with pytest.raises(KeyboardInterrupt):
            ColbertCollection.restore(file, client=client)
    assert len(client.get_collections().collections) == 2
    if overwrite:
        ColbertCollection.restore(file, client=client, overwrite=True).close()
    else:
        with pytest.raises(CollectionExistsError):
            ColbertCollection.restore(file, client=client)
    assert len(client.get_collections().collections) == 1
    with ColbertCollection.open(client=client) as collection:
        assert collection.count() == 20


@pytest.mark.parametrize("engine", ["folder", "client"])
def test_a_payload_index_that_cannot_be_made_leaves_no_collection(
    mini: JinaColbertEncoder, engine: str, tmp_path: Path
) -> None:
    location: dict[str, Any] = (
        {"path": tmp_path / "new"} if engine == "folder" else {"client": QdrantClient(":memory:")}
    )
    with pytest.raises(InvalidOptionError, match=r"'metadata\.a\[' is not a payload key"):
        ColbertCollection.create(**location, encoder=mini, dim=DIM, payload_indexes={"metadata.a[": "keyword"})
    with pytest.raises(CollectionNotFoundError):
        ColbertCollection.open(**location)


@pytest.mark.parametrize(
    "opening",
    [
        lambda path, encoder: ColbertCollection.create(path, encoder=encoder, dim=DIM),
        lambda path, encoder: open_or_create(location=path, encoder=encoder, dim=DIM),
    ],
    ids=["create", "open_or_create"],
)
def test_a_folder_whose_creation_was_interrupted_is_created_again(
    mini: JinaColbertEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    opening: Callable[[Path, JinaColbertEncoder], ColbertCollection],
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jcv2_plugin.engines.edge._new_shard", stop)
        with pytest.raises(KeyboardInterrupt):
            ColbertCollection.create(tmp_path / "new", encoder=mini, dim=DIM)
    with pytest.raises(CollectionUnfinishedError, match="creation was interrupted"):
        ColbertCollection.open(tmp_path / "new")
    with opening(tmp_path / "new", mini) as collection:
        collection.add(TEXTS)
        assert collection.count() == 20


@pytest.mark.parametrize("kind", ["restoration", "repair"])
def test_what_else_was_interrupted_is_not_created_again(mini: JinaColbertEncoder, there: Path, kind: str) -> None:
    described = json.loads((there / "jcv2.json").read_text())
    (there / "jcv2.json").write_text(json.dumps({**described, "unfinished": kind}))
    with pytest.raises(CollectionUnfinishedError, match=f"its {kind} was interrupted"):
        open_or_create(location=there, encoder=mini, dim=DIM)


def claimed(shape: tuple[int, ...]) -> Callable[[bytes], bytes]:
    """An array whose header claims another shape than its bytes have."""

    def edit(content: bytes) -> bytes:
        written = io.BytesIO()
        np.lib.format.write_array_header_1_0(written, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return written.getvalue() + content[-16:]

    return edit


@pytest.mark.parametrize(
    ("member", "edit", "message"),
    [
        ("000000/payloads.jsonl", lambda content: content + b" " * (200 << 20), "would inflate from"),
        ("snapshot.json", lambda content: content + b" " * (200 << 20), "would inflate from"),
        ("000000/vectors.npy", claimed((10**12, DIM)), "has the shape"),
        ("000000/rows.npy", claimed((10**15,)), "has the shape"),
        ("000000/rows.npy", lambda content: b"\x80\x04N.", "damaged"),
        ("000000/payloads.jsonl", lambda content: b"[" * 200_000, "nested too deeply"),
        ("snapshot.json", lambda content: b"[" * 200_000, "nested too deeply"),
        ("snapshot.json", lambda content: content.replace(b'"documents": 20', b'"documents": 1e400'), "damaged"),
        ("snapshot.json", described(dim=10**30), "at most"),
        ("snapshot.json", described(query_length="x"), "unreadable"),
        ("snapshot.json", described(revision=["x"]), "unreadable"),
    ],
)
def test_sizes_that_are_not_there_are_not_allocated(
    file: Path, there: Path, tmp_path: Path, member: str, edit: Callable[[bytes], bytes], message: str
) -> None:
    with (
        zipfile.ZipFile(file) as whole,
        zipfile.ZipFile(tmp_path / "edited", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name in whole.namelist():
            content = whole.read(name)
            archive.writestr(name, edit(content) if name == member else content)
    with pytest.raises((SnapshotError, CollectionCorruptError), match=message) as caught:
        ColbertCollection.restore(tmp_path / "edited", there, overwrite=True)
    assert str(tmp_path / "edited") in str(caught.value)
    with ColbertCollection.open(there) as collection:
        assert list(collection.ids()) == ["here"]


def test_what_is_no_file_is_not_waited_for(there: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(SnapshotError, match=f"{file}' is no snapshot, or is damaged: it is not a regular file"):
            ColbertCollection.restore(file, there, overwrite=True)


@pytest.mark.parametrize(
    "content",
    [b"[" * 200_000, b"\xff\xfe", b"", b"1e400", b'{"shard": "shard-' + b"9" * 5000 + b'"}', b'{"format": "x"}'],
)
def test_a_description_that_is_none(there: Path, content: bytes) -> None:
    """It is an error that names the file, and one line in the list of collections."""
    (there / "jcv2.json").write_bytes(content)
    with pytest.raises(CollectionCorruptError, match=r"jcv2\.json|there"):
        ColbertCollection.open(there)
    [listed] = _of_folder(str(there))
    assert listed.state == UNREADABLE


def test_text_that_is_large_is_cut_into_parts(
    mini: JinaColbertEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no member grows beyond what may be read."""
    monkeypatch.setattr(snapshot, "_TEXT_A_PART", 1000)
    with ColbertCollection.create(":memory:", encoder=mini, dim=DIM) as collection:
        collection.add(TEXTS[:6], ids=list("abcdef"), metadata=[{"x": "y" * 400}] * 6)
        assert collection.snapshot(tmp_path / "s").parts == 3
    with ColbertCollection.restore(tmp_path / "s", tmp_path / "again") as again:
        assert sorted(again.ids()) == list("abcdef")
