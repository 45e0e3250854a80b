"""A collection and other processes: forks, folders that are not writable, copies and pickling."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import starting

from jcv2_plugin import ColbertCollection, JinaColbertEncoder

FORK = """
import os, signal, sys
from jcv2_plugin import ColbertCollection
from jcv2_plugin.errors import ForkedProcessError

collection = ColbertCollection.create(sys.argv[1], encoder="mini", dim=64)
collection.add(["Tokens meet tokens.", "Cooking rice."], ids=["a", "b"])
done, told = os.pipe()
child = os.fork()
if not child:
    signal.alarm(30)
    refused = 0
    for call in (
        collection.count,
        lambda: collection.search("tokens"),
        lambda: collection.add(["New."]),
        collection.optimize,
    ):
        try:
            call()
        except ForkedProcessError as error:
            refused += str(os.getppid()) in str(error)
    collection.close()
    del collection
    os.write(told, bytes([refused]))
    signal.pause()  # an idle child, which must not keep the folder locked
assert os.read(done, 1) == bytes([4])
collection.add([f"Document {number}." for number in range(20)])
assert collection.count() == 22
assert collection.search("tokens", k=1)[0].id == "a"
assert collection.verify(sample=22).ok
if sys.argv[1] != ":memory:":
    collection.close()
    with ColbertCollection.open(sys.argv[1]) as collection:
        assert collection.count() == 22
        assert collection.verify(sample=22).ok
os.kill(child, 9)
os.waitpid(child, 0)
"""

BUSY_FORK = """
import os, signal, sys, threading
import torch
from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder, rerank
from jcv2_plugin.errors import ForkedProcessError
from llama_index.core.schema import TextNode
from llama_index_jcv2 import JinaColbertVectorStore

torch.set_num_threads(4)
encoder = JinaColbertEncoder.from_pretrained("mini")
os.mkdir(sys.argv[1] + "/real")
os.symlink("real", sys.argv[1] + "/link")
folder = sys.argv[1] + "/link/collection"
collection = ColbertCollection.create(folder, encoder=encoder, dim=64)
rerank(encoder, "tokens", [f"Document {number}. " * 50 for number in range(32)], dim=64)
store = JinaColbertVectorStore(collection)
writing, forked, encoding = threading.Event(), threading.Event(), threading.Event()

def documents():
    with encoder.tokenizer_lock, store.write_lock:
        writing.set()
        forked.wait()
    yield "A text."

thread = threading.Thread(target=lambda: collection.ingest(documents()))
thread.start()
writing.wait()
done, told = os.pipe()
child = os.fork()
if not child:
    signal.alarm(250)
    refused = 0
    for call in (
        lambda: collection.add(["New."]),
        lambda: collection.ingest(["New."]),
        lambda: collection.delete(["a"]),
        lambda: store.add([TextNode(text="New.")]),
    ):
        try:
            call()
        except ForkedProcessError:
            refused += 1
    with ColbertCollection.create(":memory:", encoder=encoder, dim=64) as own:
        own.add([f"Document {number}. " * 50 for number in range(8)])
        refused += own.count()
    os.write(told, bytes([refused]))
    signal.pause()  # an idle child
os.close(told)
assert os.read(done, 1) == bytes([12])
forked.set()
thread.join()
collection.close()
with ColbertCollection.open(folder) as collection:
    assert collection.count() == 1
os.kill(child, 9)
os.waitpid(child, 0)
"""

READ_ONLY = """
import os, sys
import jcv2_plugin.collection.collection, jcv2_plugin.engines.edge
from jcv2_plugin.errors import CollectionAccessError

if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
try:
    jcv2_plugin.ColbertCollection.open(sys.argv[1])
except CollectionAccessError as error:
    assert sys.argv[1] in str(error) and "Copy the folder" in str(error), error
else:
    raise AssertionError("opened")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("where", ["folder", ":memory:"])
def test_a_forked_child_refuses_and_leaves_its_parent_unharmed(where: str, tmp_path: Path) -> None:
    location = where if where == ":memory:" else str(tmp_path / "collection")
    starting.run(FORK, location).check_returncode()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_during_a_write_neither_waits_nor_keeps_the_folder(tmp_path: Path) -> None:
    """Its parent's threads hold locks, PyTorch has started threads, and the folder is given by a link."""
    pytest.importorskip("llama_index.core")
    starting.run(BUSY_FORK, tmp_path, timeout=300).check_returncode()


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that other users can read, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such permissions on this system")
def test_a_folder_that_is_not_writable_is_refused_with_the_way_out(
    mini: JinaColbertEncoder, public_folder: Path
) -> None:
    path = public_folder / "collection"
    ColbertCollection.create(path, encoder=mini, dim=64).close()
    path.chmod(0o555)
    (path / "lock").chmod(0o444)
    starting.run(READ_ONLY, path).check_returncode()


def test_copies_share_the_collection_and_pickling_is_refused(mini: JinaColbertEncoder) -> None:
    with ColbertCollection.create(":memory:", encoder=mini, dim=64) as collection:
        assert copy.copy(collection) is copy.deepcopy([collection])[0] is collection
        with pytest.raises(TypeError, match=r"cannot be pickled.*ColbertCollection\.open"):
            pickle.dumps(collection)
