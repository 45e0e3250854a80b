"""The released checkpoint itself, where it is to be had: JCV2_OFFICIAL_MODEL names its folder or repository."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jcv2_plugin import JinaColbertEncoder

MODEL = os.environ.get("JCV2_OFFICIAL_MODEL")
pytestmark = pytest.mark.skipif(not MODEL, reason="JCV2_OFFICIAL_MODEL names no copy of jinaai/jina-colbert-v2")


@pytest.fixture(scope="module")
def official() -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained(str(MODEL), device="cpu", dims=128)


def test_vectors_are_those_that_fastembed_publishes(official: JinaColbertEncoder, data_dir: Path) -> None:
    golden_file = data_dir.parent / "facts" / "hello-world-vectors.json"
    if not golden_file.exists():
        pytest.skip(f"no {golden_file}: fastembed's test vectors for 'Hello World'")
    golden = json.loads(golden_file.read_text())
    for task, vectors in (
        ("document", official.document_vectors(["Hello World"], 128)[0]),
        ("query", official.query_vectors(["Hello World"], 128)[0]),
    ):
        expected = np.array(golden[task])
        assert len(vectors) == len(expected)
        np.testing.assert_allclose(vectors[:, : expected.shape[1]], expected, atol=2e-3)


def test_it_finds_translations(official: JinaColbertEncoder) -> None:
    documents = ["Der Hund schläft.", "Die Bank erhöht den Zins.", "El tren llega tarde.", "雪が降っています。"]
    queries = ["the dog is asleep", "interest rates go up", "the train is late", "it is snowing"]
    scores = official.similarity(official.encode_query(queries), official.encode_document(documents))
    assert scores.argmax(dim=1).tolist() == [0, 1, 2, 3]
