"""Snapshots and state files with any edits: refused with an error that names the file, or the same collection.

A good collection is never replaced by something worse, and no error is not one of ours.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import pytest
from collection_samples import DIM, contents, copied, documents, stored_vectors
from full import FULL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage_samples import Letters

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.cli.collections import _of_folder
from jcv2_plugin.collection.journal import IngestJournal, JournalError
from jcv2_plugin.collection.snapshot import SnapshotError, check_snapshot
from jcv2_plugin.errors import CollectionCorruptError, Jcv2Error

EXAMPLES = int(os.environ.get("JCV2_EXAMPLES", 2000 if FULL else 8))
OWN = Letters()
Members = list[tuple[str, bytes]]

some = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=not FULL,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
fraction = st.floats(0, 1, exclude_max=True)

DEEP: Any = "deep"
for _ in range(200):
    DEEP = {"a": DEEP}
ODD = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2, 31, 33, 64, 10**9, 2**63, 10**400, 1.5, -0.5, 1e308),
        *(float("nan"), float("inf"), float("-inf"), "", " ", "x", "\ud800", "\x1b[31m", "a\nb", "x" * 100_000),
        *("none", "bm25", "float32", "turbo8", "creation", "restoration", "shard-2", "../shard", "0" * 32),
        *([], {}, [[]], [1, 2], {"a": 1}, [DEEP], DEEP, {"a": float("nan")}, {"": ""}, ["\ud800"], [2**64]),
    ]
)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places in a JSON value."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in entries:
        yield from paths_of(one, (*path, key))


def edit_json(draw: st.DrawFn, content: bytes) -> bytes:
    """Replace, remove or add a value of a JSON text."""
    whole = json.loads(content)
    path = draw(st.sampled_from(list(paths_of(whole))))
    how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if not path:
        return dumped(draw(ODD))
    *parents, last = path
    at = whole
    for key in parents:
        at = at[key]
    if how == "remove":
        del at[last]
    elif how == "add" and isinstance(at[last], (dict, list)):
        if isinstance(at[last], dict):
            at[last][draw(st.sampled_from(["new", "unfinished", "shard", "_hash"]))] = draw(ODD)
        else:
            at[last].append(draw(ODD))
    else:
        at[last] = draw(ODD)
    return dumped(whole)


def dumped(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except ValueError:  # an integer of too many digits
        return b"1" + b"0" * 5000


def edit_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Flip bits, cut something off or out, or repeat some bytes."""
    at = int(draw(fraction) * len(content))
    until = min(len(content), at + draw(st.integers(1, 40)))
    how = draw(st.sampled_from(["flip", "flip", "cut", "cut off", "repeat", "zero"]))
    middle = {
        "flip": bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 : until] if content else b"x",
        "cut": b"",
        "cut off": b"",
        "repeat": content[at:until] * 2,
        "zero": bytes(until - at),
    }[how]
    return content[:at] + middle + (b"" if how == "cut off" else content[until:])


def edit_array(draw: st.DrawFn, content: bytes) -> bytes:
    """Change a number, the shape or the type of an array."""
    array = np.load(io.BytesIO(content)).copy()
    how = draw(st.sampled_from(["number", "number", "shape", "type", "fewer", "order"]))
    if how == "number" and array.size:
        with np.errstate(all="ignore"):
            odd = draw(st.sampled_from([0, 1, -1, 2, 7, 10**6, 2**40, np.nan, np.inf, -np.inf]))
            array.reshape(-1)[int(draw(fraction) * array.size)] = np.array(odd).astype(array.dtype)
    elif how == "shape":
        array = draw(st.sampled_from([array.reshape(-1), array.T, array[None], array[..., None], array[:0]]))
    elif how == "type":
        with np.errstate(all="ignore"):
            array = array.astype(draw(st.sampled_from(["f8", "f4", "f2", "i8", "i1", "u1", "?", "c8", "S4", "M8[s]"])))
    elif how == "fewer":
        array = array[: int(draw(fraction) * len(array))]
    else:
        array = array[::-1]
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue()


def edit_rows(draw: st.DrawFn, content: bytes) -> bytes:
    """Change, remove, repeat or move a line of JSON lines."""
    rows = content.split(b"\n")[:-1]
    at, to = (int(draw(fraction) * len(rows)) for _ in range(2))
    how = draw(st.sampled_from(["change", "change", "remove", "repeat", "move"]))
    if how == "change":
        rows[at] = edit_json(draw, rows[at])
    elif how == "remove":
        del rows[at]
    elif how == "repeat":
        rows.insert(to, rows[at])
    else:
        rows[at], rows[to] = rows[to], rows[at]
    return b"".join(row + b"\n" for row in rows)


def edit_contents(draw: st.DrawFn, members: Members) -> Members:
    """Edit what a member holds; its checksum is right again."""
    at = int(draw(fraction) * len(members))
    name, content = members[at]
    known = {"json": edit_json, "jsonl": edit_rows, "npy": edit_array}.get(name.rpartition(".")[2], edit_bytes)
    edit = draw(st.sampled_from([known, known, known, edit_bytes]))
    try:
        content = edit(draw, content)
    except (
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        SyntaxError,
        TokenError,
        EOFError,
    ):  # what was edited before is not what it was
        content = edit_bytes(draw, content)
    return [*members[:at], (name, content), *members[at + 1 :]]


def edit_members(draw: st.DrawFn, members: Members) -> Members:
    """Remove, repeat, rename or move members."""
    at, to = (int(draw(fraction) * len(members)) for _ in range(2))
    how = draw(st.sampled_from(["remove", "repeat", "rename", "exchange", "move", "add"]))
    (name, content), (other, other_content), edited = members[at], members[to], list(members)
    if how == "remove":
        del edited[at]
    elif how == "repeat":
        edited.insert(to, (name, content))
    elif how == "rename":
        new = draw(st.sampled_from(["000001/rows.npy", "../x", "/x", "x/y", name.upper(), name + "x", other]))
        edited[at] = (new, content)
    elif how == "exchange":
        edited[at], edited[to] = (name, other_content), (other, content)
    elif how == "move":
        edited.insert(to, edited.pop(at))
    else:
        edited.append((draw(st.sampled_from(["x", "000009/x", "x/y", "000000/new.places.npy"])), content))
    return edited


def packed(members: Members) -> bytes:
    written = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(written, "w") as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in members:
            archive.writestr(name, content)
    return written.getvalue()


@st.composite
def edited_snapshots(draw: st.DrawFn, members: Members) -> bytes:
    for _ in range(draw(st.integers(1, 2))):
        members = draw(st.sampled_from([edit_contents, edit_contents, edit_members]))(draw, members)
    return packed(members)


@pytest.fixture(scope="module")
def encoder() -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained("mini", device="cpu", dims=(DIM,))


@pytest.fixture(scope="module")
def original(encoder: JinaColbertEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "collection"
    stages: Any = ["pooled", "bm25", OWN]
    with ColbertCollection.create(path, encoder=encoder, dim=DIM, first_stage=stages) as collection:
        collection.add(documents(4))
        collection.snapshot(path.parent / "snapshot")
    return path


@pytest.fixture(scope="module")
def snapshot(original: Path) -> Path:
    return original.parent / "snapshot"


@pytest.fixture(scope="module")
def members(snapshot: Path) -> Members:
    with zipfile.ZipFile(snapshot) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


@pytest.fixture(scope="module")
def there(encoder: JinaColbertEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good collection that restorations are to replace."""
    path = tmp_path_factory.mktemp("there") / "collection"
    with ColbertCollection.create(path, encoder=encoder, dim=DIM) as collection:
        collection.add(["Not to be lost."], ids=["here"])
    return path


def refusal(file: Path, target: Path) -> str:
    """Restore an edited snapshot. Return the error if it is refused, in which case the collection is as it was."""
    said = ""
    try:
        ColbertCollection.restore(file, target, overwrite=True).close()
    except (SnapshotError, CollectionCorruptError) as error:
        said = str(error)
    if said:
        assert str(file) in said
        with ColbertCollection.open(target) as collection:
            assert list(collection.ids()) == ["here"]
    return said


def test_bytes_of_a_snapshot(snapshot: Path, original: Path, there: Path, tmp_path: Path) -> None:
    """Whatever happens to a file on its way, it is noticed."""
    whole, good, target, file = snapshot.read_bytes(), there, tmp_path / "target", tmp_path / "edited"
    copied(good, target)
    with ColbertCollection.open(original, first_stage=OWN) as collection:
        expected, vectors = contents(collection), stored_vectors(collection)

    @st.composite
    def edited(draw: st.DrawFn) -> bytes:
        return edit_bytes(draw, whole)

    @some
    @given(edited())
    def check(content: bytes) -> None:
        file.write_bytes(content)
        if refusal(file, target):
            return
        with ColbertCollection.open(target, first_stage="none") as collection:
            assert contents(collection) == expected
            for own_id, matrix in stored_vectors(collection).items():
                np.testing.assert_array_equal(matrix, vectors[own_id])
        shutil.rmtree(target)
        copied(good, target)

    check()


def test_contents_of_a_snapshot(
    members: Members, there: Path, encoder: JinaColbertEncoder, original: Path, tmp_path: Path
) -> None:
    """An author who knows the format can write other documents, but nothing that is no good collection."""
    target, file = tmp_path / "target", tmp_path / "edited"
    copied(there, target)

    @some
    @given(edited_snapshots(members))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        if refusal(file, target):
            return
        with ColbertCollection.open(target, first_stage="none") as collection:
            report = collection.verify(sample=0)
            # Its text or metadata are others', and its hash says so.
            assert [one for one in report.problems if "changed by other software" not in one] == []
            assert report.documents == len(set(collection.ids())) > 0
            (tmp_path / "again").unlink(missing_ok=True)
            assert collection.snapshot(tmp_path / "again").documents == report.documents
        check_snapshot(tmp_path / "again")
        with ColbertCollection.open(target, first_stage="none") as collection:
            found = collection.get(list(collection.ids()))
            assert len(found) == report.documents
            collection.optimize()
            try:
                collection.schema.check_encoder(encoder, "")
            except Jcv2Error:
                pass
            else:
                with ColbertCollection.create(":memory:", encoder=encoder, dim=DIM) as other:
                    other.ingest(one.as_document() for one in collection.scroll())
                    assert other.count() == report.documents
        shutil.rmtree(target)
        copied(there, target)

    check()


def test_arrays_of_other_numbers_or_another_shape_are_refused(members: Members, there: Path, tmp_path: Path) -> None:
    """Found with complex numbers, and lists for numbers, at which Edge raised errors of its own."""
    target, file = copied(there, tmp_path / "target"), tmp_path / "edited"
    arrays = [(number, name, content) for number, (name, content) in enumerate(members) if name.endswith(".npy")]
    assert len(arrays) == 10
    for number, name, content in arrays:
        array = np.load(io.BytesIO(content))
        for kind in ("shape", "c8", "?", "S4", "M8[s]", "i8" if array.dtype.kind == "f" else "f8"):
            written = io.BytesIO()
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                np.save(written, array[..., None] if kind == "shape" else array.astype(kind))
            file.write_bytes(packed([*members[:number], (name, written.getvalue()), *members[number + 1 :]]))
            assert f"{name} has the shape" in refusal(file, target), (name, kind)


def test_the_description_of_a_collection(original: Path, encoder: JinaColbertEncoder, tmp_path: Path) -> None:
    """Of an edited one, nothing is lost: with the old description it is what it was."""
    target = tmp_path / "target"
    copied(original, target)
    file = target / "jcv2.json"
    good = file.read_bytes()
    with ColbertCollection.open(original, first_stage=OWN) as collection:
        expected = contents(collection)

    @st.composite
    def edited(draw: st.DrawFn) -> bytes:
        return draw(st.sampled_from([edit_json, edit_json, edit_bytes]))(draw, good)

    @some
    @given(edited())
    def check(content: bytes) -> None:
        file.write_bytes(content)
        said = str(target)
        [listed] = _of_folder(str(target))
        try:
            with ColbertCollection.open(target, encoder=encoder, first_stage=OWN) as collection:
                assert contents(collection) == expected
                assert collection.verify(sample=0).problems == []
                assert collection.search(documents(3)[2].text, k=1)[0].id == "d2"
                assert listed.documents == len(expected)
                collection.add(["One more."], ids=["more"])
                collection.optimize()
        except Jcv2Error as error:
            said = str(error)
        assert str(target) in said
        file.write_bytes(good)
        with ColbertCollection.open(target, encoder=encoder, first_stage=OWN) as collection:
            collection.delete(["more"])
            assert contents(collection) == expected
            assert collection.verify(sample=2).problems == []

    check()


def test_a_journal(encoder: JinaColbertEncoder, tmp_path: Path) -> None:
    """It is refused, or the run that goes on loses nothing and stores nothing twice."""
    texts = [f"Text {number} of a lighthouse keeper." for number in range(6)]
    file, first = tmp_path / "run.journal", tmp_path / "first"

    def stopping() -> Iterator[str]:
        yield from texts[:4]
        raise KeyboardInterrupt

    ColbertCollection.create(first, encoder=encoder, dim=DIM).close()
    with ColbertCollection.open(first, encoder=encoder) as collection, pytest.raises(KeyboardInterrupt):
        collection.ingest(stopping(), batch_documents=2, journal=file)
    good = file.read_bytes()
    with IngestJournal.open(file) as journal:
        ids = [one.id for one in journal.named([documents(1)[0], *map(_unnamed, texts)])]

    @st.composite
    def edited(draw: st.DrawFn) -> bytes:
        lines = good.split(b"\n")
        if draw(st.booleans()):
            return edit_bytes(draw, good)
        at = draw(st.sampled_from([number for number, line in enumerate(lines) if line]))
        return b"\n".join([*lines[:at], edit_json(draw, lines[at]), *lines[at + 1 :]])

    @some
    @given(edited())
    def check(content: bytes) -> None:
        file.write_bytes(content)
        said = ""
        try:
            with IngestJournal.open(file) as journal:
                named = [one.id for one in journal.named([documents(1)[0], *map(_unnamed, texts)])]
        except JournalError as error:
            said = str(error)
        if said:
            assert str(file) in said
            assert file.read_bytes() == content
        else:
            assert named == ids or not content  # an empty file is a new journal

    check()
    file.write_bytes(good)
    with ColbertCollection.open(first, encoder=encoder) as collection:
        collection.ingest(texts, batch_documents=2, journal=file)
        assert sorted(one.text for one in collection.scroll()) == sorted(texts)


def _unnamed(text: str) -> Document:
    return Document(text)
