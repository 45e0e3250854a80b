"""Every command, crashed at each of its writes: all is as before or as after, or said to be unfinished.

Repeating the command finishes it. Nothing is lost, nothing comes twice, and no temporary file is left.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crashes
import pytest
from collection_samples import DIM, copied, documents
from full import FULL
from qdrant_client import QdrantClient, models
from stage_samples import Letters
from typer.testing import CliRunner

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.cli import app
from jcv2_plugin.cli.collections import UNFINISHED, _drop_on_server, _of_folder, _of_server
from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.collection.snapshot import SnapshotError, check_snapshot
from jcv2_plugin.documents import point_id
from jcv2_plugin.engines.aliases import aliases_of
from jcv2_plugin.engines.base import Point
from jcv2_plugin.errors import (
    CollectionExistsError,
    CollectionMismatchError,
    CollectionNotFoundError,
    CollectionUnfinishedError,
    DiskFullError,
    Jcv2Error,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

ALL = FULL or "JCV2_CRASHES" in os.environ
TRIALS = int(os.environ.get("JCV2_CRASHES", 40 if FULL else 2))
TEXTS = [f"Text {number} of a lighthouse keeper." for number in range(9)]
FILE = "saved.snapshot"
STORE = "collection"
OWN = Letters()


@dataclass(frozen=True)
class Command:
    """A command, what it begins with, and the error by which it says that it was done already."""

    run: Callable[[Path, JinaColbertEncoder], object]
    prepare: Callable[[Path, JinaColbertEncoder], object] = lambda work, encoder: None
    done: tuple[type[Jcv2Error], ...] = ()
    whole: bool = True
    """Whether all documents change at once."""
    may_lack: bool = False
    """Whether there may be nothing or something unfinished meanwhile, where there was something before."""


def jcv2(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if result.exception is not None:
        raise result.exception


def store(work: Path, encoder: JinaColbertEncoder, **options: Any) -> None:
    with ColbertCollection.create(work / STORE, encoder=encoder, dim=DIM, **options) as collection:
        collection.add(documents(6))


def created(work: Path, encoder: JinaColbertEncoder) -> None:
    ColbertCollection.create(work / STORE, encoder=encoder, dim=DIM, payload_indexes={"metadata.n": "integer"}).close()


def created_over(work: Path, encoder: JinaColbertEncoder) -> None:
    ColbertCollection.create(work / STORE, encoder=encoder, dim=64, overwrite=True).close()


def opened(act: Callable[[ColbertCollection], object]) -> Callable[[Path, JinaColbertEncoder], None]:
    def run(work: Path, encoder: JinaColbertEncoder) -> None:
        with with_own_stage(path=work / STORE, encoder=encoder) as collection:
            act(collection)

    return run


def with_own_stage(**place: Any) -> ColbertCollection:
    """Open a collection, with the object of its first stage if it needs one."""
    try:
        return ColbertCollection.open(**place)
    except CollectionMismatchError:
        return ColbertCollection.open(**place, first_stage=OWN)


def ingested(work: Path, encoder: JinaColbertEncoder) -> None:
    with ColbertCollection.open(work / STORE, encoder=encoder) as collection:
        collection.ingest(TEXTS, batch_documents=3, journal=work / "run.journal")


def files(work: Path, *numbers: int, word: str = "harbour") -> None:
    (work / "docs").mkdir(exist_ok=True)
    for number in numbers:
        (work / "docs" / f"{number}.md").write_text(
            f"# Page {number}\n\nOf the {word}.\n\n## More\n\nOf page {number}."
        )


def index(work: Path, encoder: JinaColbertEncoder) -> None:
    jcv2("index", work / "docs", "-c", work / STORE, "--model", "mini", "--dim", DIM, "--prune")


def index_first(work: Path, encoder: JinaColbertEncoder) -> None:
    files(work, 0, 1, 2, 3)
    index(work, encoder)
    files(work, 1, 5, word="market")
    (work / "docs" / "2.md").unlink()


def snapshot_file(work: Path, encoder: JinaColbertEncoder) -> None:
    with ColbertCollection.create(":memory:", encoder=encoder, dim=64, first_stage=["pooled", OWN]) as collection:
        collection.add(TEXTS, ids=[f"t{number}" for number in range(len(TEXTS))])
        collection.snapshot(work / FILE)


def store_and_file(work: Path, encoder: JinaColbertEncoder) -> None:
    store(work, encoder)
    snapshot_file(work, encoder)


def bricked(work: Path, encoder: JinaColbertEncoder) -> None:
    """A folder whose log cannot be read, see ``test_repair``."""
    store(work, encoder)
    with ColbertCollection.open(work / STORE, encoder=encoder) as collection:
        [record] = collection.engine.retrieve([point_id("d3")], with_payload=True, with_vectors=True)
        deep: dict[str, Any] = {}
        for _ in range(123):
            deep = {"a": deep}
        assert record.vectors is not None
        payload = {**record.payload, "metadata": {"n": 3, "deep": deep}}
        collection.engine.upsert([Point(record.id, record.vectors, payload, record.stages)])


ONLY = models.Filter(must=[models.FieldCondition(key="metadata.n", range=models.Range(lt=3))])
CHANGED = [Document("Another text.", "d1", {"n": 1}), Document("A new one.", "new", {})]

COMMANDS = {
    "create": Command(created, done=(CollectionExistsError,)),
    "create --overwrite": Command(created_over, store, may_lack=True),
    "add": Command(opened(lambda one: one.add([*CHANGED, *documents(7, start=2)])), store, whole=False),
    "add, with a stage of one's own": Command(
        opened(lambda one: one.add([*CHANGED, *documents(7, start=2)])),
        lambda work, encoder: store(work, encoder, first_stage=["bm25", OWN]),
        whole=False,
    ),
    "ingest": Command(ingested, store, whole=False),
    "index": Command(index, lambda work, encoder: files(work, 0, 1, 2), whole=False),
    "index again": Command(index, index_first, whole=False),
    "delete": Command(opened(lambda one: one.delete(["d1", "d4"])), store, whole=False),
    "delete by filter": Command(opened(lambda one: one.delete(filter=ONLY)), store, whole=False),
    "optimize": Command(opened(lambda one: one.optimize()), store),
    "migrate by copying": Command(opened(lambda one: one.migrate(storage="turbo8")), store),
    "migrate to a stage of one's own": Command(opened(lambda one: one.migrate(first_stage=["pooled", OWN])), store),
    "migrate by encoding": Command(lambda work, _: jcv2("migrate", "-c", work / STORE, "--dim", "64"), store),
    "snapshot": Command(lambda work, _: jcv2("snapshot", work / FILE, "-c", work / STORE), store, (SnapshotError,)),
    "restore": Command(
        lambda work, _: jcv2("restore", work / FILE, "-c", work / STORE), snapshot_file, (CollectionExistsError,)
    ),
    "restore --overwrite": Command(
        lambda work, _: jcv2("restore", work / FILE, "-c", work / STORE, "--overwrite"), store_and_file
    ),
    "verify --repair": Command(
        lambda work, _: jcv2("verify", "--repair", "--sample", "0", "-c", work / STORE), bricked, may_lack=True
    ),
    "drop": Command(
        lambda work, _: jcv2("collections", "drop", "--yes", "-c", work / STORE),
        store,
        (CollectionNotFoundError,),
        may_lack=True,
    ),
}
# The others only in the long form.
SHORT = ["create --overwrite", "ingest", "migrate to a stage of one's own", "snapshot", "restore --overwrite"]
SHORT_REQUESTS = ["create --overwrite", "migrate by copying", "drop"]
State = Any  # (dim, storage and first stage, {(id, text, metadata): number}), or None, or UNFINISHED


def look(work: Path, encoder: JinaColbertEncoder) -> State:
    """What is in a folder, with all that is readable of it verified."""
    if (work / FILE).exists():
        check_snapshot(work / FILE)
    try:
        collection = with_own_stage(path=work / STORE, encoder=encoder)
    except CollectionNotFoundError:
        return None
    except CollectionUnfinishedError:
        [listed] = _of_folder(str(work / STORE))
        assert listed.state == UNFINISHED
        return UNFINISHED
    except Jcv2Error as error:  # before a repair
        return type(error).__name__
    return state_of(collection)


def state_of(opened: ColbertCollection) -> State:
    with opened as collection:
        assert collection.verify(sample=3).problems == []
        found = [(one.id, one.text, json.dumps(one.metadata, sort_keys=True)) for one in collection.scroll()]
        assert len({own_id for own_id, _, _ in found}) == len(found) == collection.count()
        # Ids of texts without one are random.
        seen = Counter((text if re.fullmatch("[0-9a-f]{32}", own) else own, text, data) for own, text, data in found)
        schema = collection.schema
    return (schema.dim, schema.storage, schema.first_stage), seen


def names(work: Path) -> list[str]:
    """What lies in the folder and the collection's; shards are numbered by what was done before."""
    below = [one.relative_to(work) for one in (*work.iterdir(), *(work / STORE).glob("*"))]
    return sorted(re.sub(r"shard-\d+$", "shard", str(one)) for one in below if one.name != "lock")


def between(state: State, before: State, after: State, command: Command) -> bool:
    """Whether a state may be seen between two others: of each document, what was before or is after."""
    if state in (before, after):
        return True
    if state == UNFINISHED:
        return before is None or command.may_lack
    if command.whole or state is None:
        return False
    before = before if before is not None else (after[0], Counter())
    after = after if after is not None else (before[0], Counter())
    if state[0] not in (before[0], after[0]) or any(number > 1 for number in state[1].values()):
        return False
    kept = set(before[1]) & set(after[1])
    return kept <= set(state[1]) <= set(before[1]) | set(after[1])


@pytest.fixture(scope="module")
def encoder() -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained("mini", device="cpu", dims=(DIM, 64))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few documents take several writes."""
    for module in ("ingest", "migrate"):
        monkeypatch.setattr(f"jcv2_plugin.collection.{module}.BATCH_DOCUMENTS", 3)
    monkeypatch.setattr("jcv2_plugin.collection.migrate._COPIED_AT_A_TIME", 2)
    monkeypatch.setattr("jcv2_plugin.collection.snapshot._FLOATS_A_PART", 1000)


@pytest.mark.parametrize("name", COMMANDS if ALL else SHORT)
def test_a_crash_at_any_write(name: str, encoder: JinaColbertEncoder, tmp_path: Path, small_batches: None) -> None:
    command = COMMANDS[name]
    template, work = tmp_path / "template", tmp_path / "work"  # documents of files are named by their paths
    work.mkdir()
    command.prepare(work, encoder)
    work.rename(template)
    copied(template, work)
    before = look(work, encoder)
    shutil.rmtree(work)
    copied(template, work)
    count = crashes.writes_of(lambda: command.run(work, encoder), work)
    after, expected = look(work, encoder), names(work)
    chance = random.Random(os.environ.get("JCV2_SEED", name))
    order = list(range(1, count + 1))
    chance.shuffle(order)
    for trial in range(TRIALS):
        at, by_signal = order[trial // 2 % count], trial % 2
        delay = chance.choice((0.0, 0.0, chance.uniform(0, 0.002), chance.uniform(0, 0.05)))
        first = chance.choice(("look", "repeat", "repeat", "drop"))
        what = (
            f"{name}: write {at} of {count}, {f'killed after {delay:.4f} s' if by_signal else 'raised'}, then {first}"
        )
        shutil.rmtree(work)
        copied(template, work)
        run = lambda: command.run(work, encoder)  # noqa: E731
        crashes.killed(run, work, at, delay) if by_signal else crashes.raised(run, work, at)
        if first == "drop" and (work / STORE).exists():
            there = look(copied(work, tmp_path / "other"), encoder)
            shutil.rmtree(tmp_path / "other")
            try:
                jcv2("collections", "drop", "--yes", "-c", work / STORE)
            except CollectionNotFoundError:
                assert there is None, what
                assert name in ("create", "restore", "drop", "index"), what
            else:
                assert not (work / STORE).exists(), (what, names(work))
            continue
        if first == "look":
            assert between(look(work, encoder), before, after, command), what
        if name != "ingest" or (work / "run.journal").exists() or look(work, encoder) != after:
            # A run that has removed its journal is over, and the next one is another.
            with suppress(*command.done):
                command.run(work, encoder)
        else:
            (work / "run.journal.lock").unlink(missing_ok=True)  # the next run would have
        assert look(work, encoder) == after, what
        assert names(work) == expected, what


def dropped(client: QdrantClient, encoder: JinaColbertEncoder, file: Path) -> None:
    _drop_on_server(client, Connection("http://localhost", "documents"), yes=True)


def at(act: Callable[[ColbertCollection, Path], object]) -> Callable[[QdrantClient, JinaColbertEncoder, Path], None]:
    def run(client: QdrantClient, encoder: JinaColbertEncoder, file: Path) -> None:
        with ColbertCollection.open(client=client, encoder=encoder) as collection:
            act(collection, file)

    return run


Requests = Callable[[QdrantClient, JinaColbertEncoder, Path], object]
REQUESTS: dict[str, tuple[Requests, int, tuple[type[Jcv2Error], ...], bool]] = {
    # what it does, to how many documents, the error of one that is done, whether all change at once
    "create": (
        lambda client, encoder, _: ColbertCollection.create(client=client, encoder=encoder, dim=DIM),
        -1,
        (CollectionExistsError,),
        True,
    ),
    "create --overwrite": (
        lambda client, encoder, _: ColbertCollection.create(client=client, encoder=encoder, dim=64, overwrite=True),
        6,
        (),
        True,
    ),
    "add": (at(lambda one, _: one.add([*CHANGED, *documents(7, start=2)])), 6, (), False),
    "ingest": (at(lambda one, file: one.ingest(TEXTS, batch_documents=3, journal=f"{file}.journal")), 6, (), False),
    "delete": (at(lambda one, _: one.delete(["d1", "d4"])), 6, (), False),
    "migrate by copying": (at(lambda one, _: one.migrate(storage="int8")), 6, (), True),
    "migrate by encoding": (at(lambda one, _: one.migrate(dim=64)), 6, (), True),
    "restore": (
        lambda client, _, file: ColbertCollection.restore(file, client=client),
        -1,
        (CollectionExistsError,),
        True,
    ),
    "restore --overwrite": (
        lambda client, _, file: ColbertCollection.restore(file, client=client, overwrite=True),
        6,
        (),
        True,
    ),
    "drop": (dropped, 6, (CollectionNotFoundError,), True),
}


def look_at(client: QdrantClient, encoder: JinaColbertEncoder) -> State:
    try:
        return state_of(with_own_stage(client=client, encoder=encoder))
    except CollectionNotFoundError:
        return None
    except CollectionUnfinishedError:
        [listed] = [one for one in _of_server(client) if one.name == "documents"]
        assert listed.state == UNFINISHED
        return UNFINISHED


@pytest.mark.parametrize("name", REQUESTS if ALL else SHORT_REQUESTS)
def test_a_crash_between_any_two_requests(
    name: str, encoder: JinaColbertEncoder, tmp_path: Path, small_batches: None
) -> None:
    act, count, done, whole = REQUESTS[name]
    snapshot_file(tmp_path, encoder)

    def prepared() -> QdrantClient:
        for left in tmp_path.glob("*.journal*"):
            left.unlink()
        client = QdrantClient(":memory:")
        if count >= 0:
            with ColbertCollection.create(client=client, encoder=encoder, dim=DIM) as collection:
                collection.add(documents(count))
        return client

    def names_of(client: QdrantClient) -> list[str]:
        known = [one.name for one in client.get_collections().collections]
        return sorted(re.sub(r"\d+$", "n", one) for one in known) + sorted(aliases_of(client))

    client = prepared()
    before = look_at(client, encoder)
    writes = crashes.writes_of(lambda: act(client, encoder, tmp_path / FILE), tmp_path)
    after, expected = look_at(client, encoder), names_of(client)
    command = Command(lambda work, encoder: None, whole=whole, may_lack="overwrite" in name and "create" in name)
    order = list(range(1, writes + 1))
    random.Random(os.environ.get("JCV2_SEED", name)).shuffle(order)
    for point in order[: writes if ALL else TRIALS]:
        client = prepared()
        crashes.raised(lambda: act(client, encoder, tmp_path / FILE), tmp_path, point)  # noqa: B023
        what = f"{name}: request {point} of {writes}"
        if point % 2:
            seen = look_at(client, encoder)
            # Until a drop is done, the name is gone, and the documents are not yet.
            assert between(seen, before, after, command), what
        # An ingest that has removed its journal is over, and the next one is another.
        if name != "ingest" or list(tmp_path.glob("*.journal")) or look_at(client, encoder) != after:
            with suppress(*done):
                act(client, encoder, tmp_path / FILE)
        assert look_at(client, encoder) == after, what
        assert names_of(client) == expected, what


DISK = os.environ.get("JCV2_SMALL_DISK", "")
SEARCH = {"search": Command(opened(lambda one: one.search("a harbour", k=3)), store)}


@pytest.fixture
def disk() -> Iterator[Path]:
    """An empty folder on a file system of its own."""
    folder = Path(DISK) / "crashes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def fill(ballast: Path, free: int) -> None:
    """Leave so many bytes of a disk free."""
    with ballast.open("wb") as file:
        taken = max(shutil.disk_usage(ballast.parent).free - free, 1)
        while True:
            try:
                os.posix_fallocate(file.fileno(), 0, taken)
                return
            except OSError:  # the file system needs some for itself
                taken -= 2**16


def status_of(run: Callable[[], None], error: Path) -> int:
    """Run in a child. Return its status: 0, or 4 if the disk is full; the error is written to a file."""
    child = os.fork()
    if not child:
        status = 3
        try:
            run()
            status = 0
        except DiskFullError as full:
            error.write_text(str(full))
            status = 4
        except BaseException:
            error.write_text(traceback.format_exc())
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


@pytest.mark.skipif(not DISK, reason="set JCV2_SMALL_DISK to a folder on a file system of 100 to 500 MB of its own")
@pytest.mark.parametrize("name", [*COMMANDS, *SEARCH] if DISK else [*SEARCH])
def test_a_full_disk(name: str, encoder: JinaColbertEncoder, disk: Path, tmp_path: Path) -> None:
    """However much is free: done, or an error that names the disk. With space again, the same command ends well."""
    command = {**COMMANDS, **SEARCH}[name]
    template, work, ballast, error = tmp_path / "template", disk / "work", disk / "ballast", tmp_path / "error"
    work.mkdir()
    command.prepare(work, encoder)
    shutil.move(copied(work, tmp_path / "moved"), template)
    before = look(work, encoder)
    shutil.rmtree(work)
    copied(template, work)
    command.run(work, encoder)
    after, expected = look(work, encoder), names(work)
    for kib in (0, 4, 40, 400, 1_000, 4_000, 12_000, 17_000, 20_000, 34_000, 50_000, 64_000, 66_000, 68_000, 80_000):
        ballast.unlink(missing_ok=True)
        shutil.rmtree(work)
        copied(template, work)
        fill(ballast, kib * 1024)
        status = status_of(lambda: command.run(work, encoder), error)
        what = f"{name} with {kib} KiB free: {error.read_text() if status else 'done'}"
        assert os.WIFEXITED(status), (what, status)
        assert os.WEXITSTATUS(status) in (0, 4), what
        if status:
            assert str(disk) in error.read_text(), what
        ballast.unlink()
        assert between(look(work, encoder), before, after, command), what
        if status:
            with suppress(*command.done):
                command.run(work, encoder)
        assert look(work, encoder) == after, what
        assert names(work) == expected, what
        print(what.replace(str(work), "..."))
