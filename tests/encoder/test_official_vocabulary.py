"""The published layout with XLM-R's real 250,002 pieces: ids, markers, skip list, and a file of the published size."""

from __future__ import annotations

import os
import shutil
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_checkpoint import (
    DOCUMENT_MARKER,
    QUERY_MARKER,
    Vocabulary,
    load_json,
    write_checkpoint,
    write_full_size,
)
from reference import Reference, assert_same
from transformers import XLMRobertaTokenizer
from xlm_roberta import BEGIN, BY_LANGUAGE, END, MASK, PAD, UNKNOWN, ReferenceTokenizer, real_vocabulary

from jcv2_plugin import JinaColbertEncoder

QUERY, DOCUMENT = 250_002, 250_003
COMMA, FULL_STOP, SPACE = 4, 5, 6
DIM = 128
SYMBOLS = f"{' '.join(string.punctuation)} x{'x'.join(string.punctuation)}x. End , of - text..."
"""Every symbol of punctuation, at the start of a word and within one."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return real_vocabulary()


@pytest.fixture(scope="module")
def reference(vocabulary: Vocabulary) -> ReferenceTokenizer:
    return ReferenceTokenizer(vocabulary)


@pytest.fixture(scope="module")
def folder(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("official") / "colbert"
    return write_checkpoint(path, DIM, hidden=32, inner=64, vocabulary=vocabulary)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained(folder, device="cpu")


@pytest.fixture
def seen(encoder: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int]]]:
    """The rows that the backbone is given: ids and attention."""
    rows: list[tuple[list[int], list[int]]] = []
    original = encoder.backbone.forward

    def spy(features: dict[str, Any], **options: Any) -> dict[str, Any]:
        rows.extend(zip(features["input_ids"].tolist(), features["attention_mask"].tolist(), strict=True))
        return original(features, **options)

    monkeypatch.setattr(encoder.backbone, "forward", spy)
    return rows


def test_ids_are_those_of_the_reference(encoder: JinaColbertEncoder, reference: ReferenceTokenizer) -> None:
    for language, text in BY_LANGUAGE.items():
        assert encoder.tokenizer(text)["input_ids"] == [BEGIN, *reference.ids(text), END], language


def test_known_ids(encoder: JinaColbertEncoder, folder: Path) -> None:
    tokenizer = encoder.tokenizer
    assert len(tokenizer) == load_json(folder / "config.json")["vocab_size"] == 250_004
    assert tokenizer("Hello World")["input_ids"] == [BEGIN, 35378, 6661, END]
    known = {"<s>": BEGIN, "<pad>": PAD, "</s>": END, "<unk>": UNKNOWN, "<mask>": MASK}
    known |= {",": COMMA, ".": FULL_STOP, "▁": SPACE, QUERY_MARKER: QUERY, DOCUMENT_MARKER: DOCUMENT}
    assert tokenizer.convert_tokens_to_ids(list(known)) == list(known.values())


def test_the_loaded_tokenizer_normalises_all_that_the_table_has(
    encoder: JinaColbertEncoder, vocabulary: Vocabulary
) -> None:
    # This class makes its pipeline anew when it is loaded.
    assert type(encoder.tokenizer) is XLMRobertaTokenizer
    normalize = encoder.tokenizer.backend_tokenizer.normalizer.normalize_str
    assert {character: normalize(character) for character in vocabulary.normalised} == vocabulary.normalised
    assert encoder.tokenizer("Ｈｅｌｌｏ　Ｗｏｒｌｄ")["input_ids"] == [BEGIN, 35378, 6661, END]


def test_stanfords_skip_list(encoder: JinaColbertEncoder, reference: ReferenceTokenizer) -> None:
    assert encoder.skiplist == "stanford"
    skipped = sorted(encoder.skiplist_ids)
    assert skipped == reference.skipped_ids()
    assert (len(skipped), skipped[:10]) == (29, [6, 15, 20, 44, 101, 152, 242, 248, 378, 468])
    # Neither is a piece at the start of a word, so what stands there is the bare space mark.
    assert [reference.ids(symbol) for symbol in (",", ".")] == [[SPACE, COMMA], [SPACE, FULL_STOP]]
    assert not {COMMA, FULL_STOP} & set(skipped)


def test_a_documents_vectors_leave_out_the_skip_list_and_nothing_else(
    encoder: JinaColbertEncoder, reference: ReferenceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [BEGIN, DOCUMENT, *reference.ids(SYMBOLS), END]
    scored = np.array([token not in reference.skipped_ids() for token in ids])
    assert set(reference.skipped_ids()) < set(ids)
    assert {COMMA, FULL_STOP} <= {token for token, stays in zip(ids, scored, strict=True) if stays}
    (vectors,) = encoder.document_vectors([SYMBOLS], DIM)
    monkeypatch.setattr(encoder, "skiplist", None)
    (everything,) = encoder.document_vectors([SYMBOLS], DIM)
    assert len(everything) == len(ids)
    np.testing.assert_array_equal(vectors, everything[scored])


def test_queries_are_32_tokens_and_all_are_attended(
    encoder: JinaColbertEncoder, reference: ReferenceTokenizer, seen: list[tuple[list[int], list[int]]]
) -> None:
    for text in ("", "Hello World", *BY_LANGUAGE.values()):
        (vectors,) = encoder.query_vectors([text], DIM)
        assert vectors.shape == (32, DIM)
        ids, attention = seen.pop()
        expected = [BEGIN, QUERY, *reference.ids(text)[:29], END]
        assert ids == expected + [MASK] * (32 - len(expected))
        assert attention == [1] * 32


def test_documents_are_marked_and_their_padding_is_not_attended(
    encoder: JinaColbertEncoder, reference: ReferenceTokenizer, seen: list[tuple[list[int], list[int]]]
) -> None:
    texts = ["", "Hello World", *BY_LANGUAGE.values()]
    encoder.document_vectors(texts, DIM)
    assert any(PAD in ids for ids, _ in seen)
    found = sorted([token for token, attended in zip(*row, strict=True) if attended] for row in seen)
    assert found == sorted([BEGIN, DOCUMENT, *reference.ids(text), END] for text in texts)


def test_vectors_are_those_of_the_reference_network(encoder: JinaColbertEncoder, folder: Path) -> None:
    texts = [SYMBOLS, *list(BY_LANGUAGE.values())[::6]]
    network = Reference(folder)
    assert_same(encoder.query_vectors(texts, DIM), [network.query(text) for text in texts])
    assert_same(encoder.document_vectors(texts, DIM), [network.document(text) for text in texts])


@pytest.fixture
def emptied(tmp_path: Path) -> Iterator[Path]:
    """A folder that pytest does not keep as it keeps others: its content takes a gigabyte."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("JCV2_FULL_SIZE") != "1", reason="JCV2_FULL_SIZE=1 writes and loads 1.1 GB")
def test_a_file_of_the_published_size_is_read(
    vocabulary: Vocabulary, reference: ReferenceTokenizer, emptied: Path
) -> None:
    write_full_size(emptied, vocabulary)
    assert (emptied / "model.safetensors").stat().st_size == 1_119_027_888
    encoder = JinaColbertEncoder.from_pretrained(emptied, device="cpu")
    assert sum(map(torch.numel, encoder.parameters())) == 559_497_216
    assert encoder.max_document_length == 8190
    (query,) = encoder.query_vectors(["Hello World"], DIM)
    (document,) = encoder.document_vectors([BY_LANGUAGE["English"]], DIM)
    scored = [token for token in reference.ids(BY_LANGUAGE["English"]) if token not in encoder.skiplist_ids]
    assert (query.shape, document.shape) == ((32, DIM), (3 + len(scored), DIM))
    for vectors in (query, document):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        assert len(np.unique(vectors.round(3), axis=0)) == len(vectors)
