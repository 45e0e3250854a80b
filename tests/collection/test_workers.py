"""Encoder processes: the same vectors in the same order, and an end to one of them that loses nothing stored."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import official_checkpoint
import pytest
import starting
import torch
from collection_samples import DIM, Create, contents, documents, encoded, expected_contents, first, stored_vectors

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.collection import workers
from jcv2_plugin.collection.workers import EncoderPool, WorkerError, as_devices
from jcv2_plugin.errors import InvalidDocumentError, InvalidOptionError, ModelNotFoundError

ITEMS = documents(40)


@pytest.fixture
def collection(create: Create) -> ColbertCollection:
    return create(storage="float32")


def custom_encoder(**options: Any) -> JinaColbertEncoder:
    """One that is nowhere on disk: workers load it from where it is saved for them."""
    loaded = JinaColbertEncoder.from_pretrained("mini", dims=DIM, device="cpu", **options)
    encoder = JinaColbertEncoder(modules=list(loaded), prompts=dict(loaded.prompts), device="cpu")
    encoder.scoring_mask.skiplist_words = ["the", "a"]
    encoder.scoring_mask.resolve_with_tokenizer(encoder.tokenizer)
    assert (encoder.source, encoder.skiplist) == (None, "custom")
    return encoder


def test_two_workers_store_what_this_process_would(
    collection: ColbertCollection, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the stream, up to an error in it: also what is still with the workers when the error comes."""
    writes: list[str] = []
    first(monkeypatch, collection.engine, "upsert", lambda points: writes.extend(one.payload["_id"] for one in points))
    progress: list[int] = []
    with pytest.raises(InvalidDocumentError, match="the text is empty"):
        collection.ingest(
            [*ITEMS[:36], Document("", "bad"), *ITEMS[36:]],
            batch_documents=6,
            workers=2,
            progress=progress.append,
            on_blank="error",
        )
    assert writes == [one.id for one in ITEMS[:36]]
    assert progress == [6] * len(progress)
    assert contents(collection) == expected_contents(ITEMS[:36])
    stored = stored_vectors(collection)
    for one, matrix in zip(ITEMS[:36], encoded(mini, ITEMS[:36]), strict=True):
        np.testing.assert_allclose(stored[str(one.id)], matrix, atol=1e-5)
    assert multiprocessing.active_children() == []


def test_nothing_to_encode_starts_no_process(collection: ColbertCollection) -> None:
    collection.add(ITEMS[:4])
    assert collection.ingest(ITEMS[:4], workers=["cuda:99"]).unchanged == 4


@pytest.mark.usefixtures("quick_workers")
def test_a_worker_that_dies(create: Create, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it encoded before is stored, here with an encoder of settings of its own."""
    encoder = custom_encoder(document_length=20)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    saved: list[str] = []

    def progress(number: int) -> None:
        saved.extend(one.name for one in temporary.iterdir() if one.name.startswith("jcv2-model-"))
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGKILL)

    stream = [Document("The tide comes in and a tide goes out. " * 8, "long"), *ITEMS]
    collection = create(encoder=encoder, storage="float32", pool_factor=2)
    with pytest.raises(WorkerError, match="stored"):
        collection.ingest(stream, batch_documents=2, workers=1, progress=progress)
    stored = stored_vectors(collection)
    assert 2 <= len(stored) < len(stream)
    assert contents(collection) == expected_contents(stream[: len(stored)])
    exact = encoder.document_vectors([one.text for one in stream[: len(stored)]], DIM, "split", 2)
    for one, matrix in zip(stream, exact, strict=False):
        np.testing.assert_allclose(stored[str(one.id)], matrix, atol=1e-5)
    report = collection.ingest(stream)
    assert (report.unchanged, report.written) == (len(stored), len(stream) - len(stored))
    assert saved
    assert not any(one.name.startswith("jcv2-model-") for one in temporary.iterdir())


def test_a_list_of_tokens_without_a_name_is_saved_with_the_model(mini: JinaColbertEncoder) -> None:
    for encoder, is_saved in ((mini, False), (custom_encoder(), True)):
        with EncoderPool(encoder, ["cpu"]) as pool:  # nothing is submitted, so no process is started
            assert (pool._saved is not None) == is_saved


def test_a_model_that_was_changed_after_it_was_loaded(tmp_path: Path) -> None:
    """Workers load it from where it came from, and there it is another one: its vectors would be wrong."""
    folder = official_checkpoint.write_checkpoint(tmp_path / "model", dim=DIM)
    encoder = JinaColbertEncoder.from_pretrained(folder, device="cpu")
    options = {"document_length": 100, "skiplist": "pieces"}
    again = workers._load(str(folder), "cpu", options, {DIM: encoder.head_fingerprint(DIM)})
    assert (again.document_length, again.skiplist) == (100, "pieces")
    with torch.no_grad():
        next(encoder.backbone.parameters()).mul_(1.5)
    with pytest.raises(ModelNotFoundError, match="has other weights than the model that was loaded from it"):
        workers._load(str(folder), "cpu", options, {DIM: encoder.head_fingerprint(DIM)})


@pytest.mark.parametrize(
    ("given", "gpus", "expected"),
    [
        (0, 0, []),
        (["cpu"], 0, ["cpu"]),
        (("cpu", "cuda:1", "cpu"), 0, ["cpu", "cuda:1", "cpu"]),
        ([], 0, []),
        (3, 0, ["cpu"] * 3),
        (3, 2, ["cuda:0", "cuda:1", "cuda:0"]),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, given: Any, gpus: int, expected: list[str]) -> None:
    """As given; a number takes the GPUs in turn."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert as_devices(given) == expected


def test_what_names_no_device() -> None:
    wrong: list[Any] = [-1, True, False, "cpu", 2.0, None, ["cpu", 0], {"cpu"}, np.bool_(True), float("nan")]
    for given in wrong:
        with pytest.raises(InvalidOptionError, match="workers must be"):
            as_devices(given)
    assert as_devices(np.int64(0)) == []  # type: ignore[arg-type]
    assert len(as_devices(np.int64(2))) == 2  # type: ignore[arg-type]


PARENT = """
import sys, time
from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.collection.workers import EncoderPool

pool = EncoderPool(JinaColbertEncoder.from_pretrained(sys.argv[1], device="cpu"), ["cpu"])
pool.submit(["a text"], 32, "split", 1.0).result()
print(*pool._pool._processes, flush=True)
time.sleep(600)
"""


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """As the parent is killed, which leaves it no time to end them."""
    model = official_checkpoint.write_checkpoint(tmp_path / "model", dim=DIM)
    parent = starting.start(PARENT, model)
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    for _ in range(100):
        if not is_running(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker is still there")


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # One that has ended, and that nobody has asked for its status.
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
