"""Encoder processes: the same vectors in the same order, and an end to one of them that loses nothing stored."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import official_checkpoint
import pytest
import torch
from collection_samples import DIM, contents, documents, encoded, expected_contents, stored_vectors

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.collection import workers
from jcv2_plugin.collection.workers import EncoderPool, WorkerError, as_devices
from jcv2_plugin.errors import InvalidDocumentError, InvalidOptionError, ModelNotFoundError

ITEMS = documents(40)


@pytest.fixture
def collection(mini: JinaColbertEncoder, tmp_path: Path) -> Iterator[ColbertCollection]:
    with ColbertCollection.create(tmp_path / "collection", encoder=mini, dim=DIM, storage="float32") as made:
        yield made


def test_two_workers_store_what_this_process_would(collection: ColbertCollection, mini: JinaColbertEncoder) -> None:
    """In the order of the stream, up to an error in it: also what is still with the workers when the error comes."""
    writes: list[str] = []
    engine = collection.engine
    upsert = engine.upsert
    engine.upsert = lambda points: (writes.extend(p.payload["_id"] for p in points), upsert(points))[1]  # type: ignore
    progress: list[int] = []
    with pytest.raises(InvalidDocumentError, match="the text is empty"):
        collection.ingest(
            [*ITEMS[:36], Document("", "bad"), *ITEMS[36:]], batch_documents=6, workers=2, progress=progress.append
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


def test_a_worker_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it encoded before is stored, here with an encoder that is nowhere on disk and has settings of its own."""
    loaded = JinaColbertEncoder.from_pretrained("mini", dims=DIM, device="cpu", document_length=20)
    encoder = JinaColbertEncoder(modules=list(loaded), prompts=dict(loaded.prompts), device="cpu")
    mask = encoder._mask
    assert mask is not None
    mask.skiplist_words = ["the", "a"]
    mask.resolve_with_tokenizer(encoder.tokenizer)
    assert (encoder._source, encoder.skiplist) == (None, "custom")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    saved: list[str] = []

    def progress(number: int) -> None:
        saved.extend(one.name for one in (tmp_path / "temporary").iterdir() if one.name.startswith("jcv2-model-"))
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGKILL)

    long_text = Document("The tide comes in and a tide goes out. " * 8, "long")
    stream = [long_text, *ITEMS]
    with ColbertCollection.create(
        tmp_path / "c", encoder=encoder, dim=DIM, storage="float32", pool_factor=2
    ) as collection:
        with pytest.raises(WorkerError, match="What was stored before stays"):
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
    assert not any(one.name.startswith("jcv2-model-") for one in (tmp_path / "temporary").iterdir())


def test_a_list_of_tokens_without_a_name_is_saved_with_the_model() -> None:
    encoder = JinaColbertEncoder.from_pretrained("mini", dims=DIM, device="cpu")
    for words, is_saved in ((None, False), (["the", "a"], True)):
        if words is not None and encoder._mask is not None:
            encoder._mask.skiplist_words = words
            encoder._mask.resolve_with_tokenizer(encoder.tokenizer)
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


class TestDevices:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [(0, []), (["cpu"], ["cpu"]), (("cpu", "cuda:1", "cpu"), ["cpu", "cuda:1", "cpu"]), ([], [])],
    )
    def test_as_given(self, given: Any, expected: list[str]) -> None:
        assert as_devices(given) == expected

    @pytest.mark.parametrize(("gpus", "expected"), [(0, ["cpu"] * 3), (2, ["cuda:0", "cuda:1", "cuda:0"])])
    def test_a_number_takes_the_gpus_in_turn(
        self, monkeypatch: pytest.MonkeyPatch, gpus: int, expected: list[str]
    ) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        assert as_devices(3) == expected

    @pytest.mark.parametrize("given", [-1, True, False, "cpu", 2.0, None, ["cpu", 0], {"cpu"}])
    def test_what_names_none(self, given: Any) -> None:
        with pytest.raises(InvalidOptionError, match="workers must be"):
            as_devices(given)
