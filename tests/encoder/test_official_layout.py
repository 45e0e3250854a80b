"""The published layout of jina-colbert-v2 is read, and its token vectors are those of the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from official_checkpoint import (
    DOCUMENT_MARKER,
    MAX_POSITIONS,
    QUERY_MARKER,
    SENTENCES,
    TEXTS,
    edit_tensors,
    file_size,
    load_json,
    official_config,
    write_checkpoint,
    write_sibling,
)
from reference import Reference, assert_same

from jcv2_plugin.encoder.model import JinaColbertEncoder
from jcv2_plugin.encoder.official import check_tensors, is_official_layout, native_config, tensor_shapes
from jcv2_plugin.errors import ModelLayoutError

LONG = " ".join(SENTENCES)
UNKNOWN_MARKERS = {"query_token_id": "[unused0]", "doc_token_id": "[unused0]"}
UNNAMED_MARKERS = {"query_token_id": None, "doc_token_id": None}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a head of 128, and beside it the sibling with one of 64."""
    folder = write_checkpoint(tmp_path_factory.mktemp("official") / "tiny-colbert")
    write_sibling(folder.with_name("tiny-colbert-64"), folder)
    return folder


@pytest.fixture(scope="module")
def encoder(official: Path) -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained(official, dims=(128, 64), device="cpu")


@pytest.fixture(scope="module")
def references(official: Path) -> dict[int, Reference]:
    return {128: Reference(official), 64: Reference(official, head_folder=official.with_name("tiny-colbert-64"))}


def load(folder: Path, **options: Any) -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained(folder, device="cpu", **options)


def largest_difference(got: Sequence[NDArray], wanted: Sequence[NDArray]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(got, wanted, strict=True))


@pytest.mark.parametrize("tokens_per_batch", [1, 100_000], ids=["one by one", "in one padded batch"])
def test_both_heads_equal_the_reference(
    encoder: JinaColbertEncoder, references: dict[int, Reference], tokens_per_batch: int
) -> None:
    options: dict[str, Any] = {"dim": (128, 64), "tokens_per_batch": tokens_per_batch, "convert_to_numpy": True}
    queries, documents = encoder.encode_query(TEXTS, **options), encoder.encode_document(TEXTS, **options)
    for dim, reference in references.items():
        assert_same(queries[dim], [reference.query(text) for text in TEXTS])
        assert_same(documents[dim], [reference.document(text) for text in TEXTS])


def test_the_64_head_is_the_siblings_own_and_no_prefix(encoder: JinaColbertEncoder) -> None:
    vectors = encoder.encode_document(LONG, dim=(128, 64), convert_to_numpy=True)
    prefix = vectors[128][:, :64] / np.linalg.norm(vectors[128][:, :64], axis=1, keepdims=True)
    assert np.abs(prefix - vectors[64]).max() > 0.1


@pytest.mark.parametrize(
    ("written", "reference", "query", "document"),
    [
        ({"rotary_emb_base": 10000.0}, {}, {}, {}),
        ({"rotary_emb_base": 20000.0}, {"theta": 20000.0}, {}, {}),
        ({"with_model_type": True}, {}, {}, {}),
        ({"with_pooler": False}, {}, {}, {}),
        ({"dtype": torch.float32, "heads": 2, "layers": 3}, {}, {}, {}),
        ({"metadata": {"attend_to_mask_tokens": False}}, {}, {"attend_to_masks": False}, {}),
        (
            {"metadata": {"query_maxlen": 24, "doc_maxlen": 40, "mask_punctuation": False}},
            {},
            {"length": 24},
            {"length": 40, "skiplist": None},
        ),
        ({"metadata": UNKNOWN_MARKERS}, {}, {}, {}),
        ({"metadata": UNNAMED_MARKERS}, {}, {}, {}),
        ({"metadata": None}, {}, {}, {}),
    ],
    ids=lambda value: ", ".join(value) or None,
)
def test_variants_of_the_files_equal_the_reference(
    tmp_path: Path, official: Path, written: dict, reference: dict, query: dict, document: dict
) -> None:
    folder = write_checkpoint(tmp_path / "model", **written)
    if "metadata" in written and written["metadata"] is None:  # the released values hold
        (folder / "artifact.metadata").unlink()
    encoder, network = load(folder), Reference(folder, **reference)
    texts = [*TEXTS, LONG]
    assert encoder.prompts == {"query": f"{QUERY_MARKER} ", "document": f"{DOCUMENT_MARKER} "}
    assert encoder.query_length == query.get("length", 32)
    assert encoder.document_length == document.get("length", 300)
    assert encoder.skiplist == document.get("skiplist", "stanford")
    queries, documents = encoder.query_vectors(texts, 128), encoder.document_vectors(texts, 128)
    assert_same(queries, [network.query(text, **query) for text in texts])
    assert_same(documents, [network.document(text, **document) for text in texts])
    if reference or query.get("attend_to_masks") is False:  # the choice shows
        plain = Reference(official)
        assert largest_difference(queries, [plain.query(text) for text in texts]) > 0.01


def test_the_plain_constructor_equals_from_pretrained(official: Path, encoder: JinaColbertEncoder) -> None:
    plain = JinaColbertEncoder(str(official), device="cpu", prompts={"query": "[DocumentMarker] "})
    assert plain.dims == (128,)
    assert plain.prompts == {"query": f"{DOCUMENT_MARKER} ", "document": f"{DOCUMENT_MARKER} "}
    assert_same(plain.document_vectors(TEXTS, 128), encoder.document_vectors(TEXTS, 128))
    assert plain.head_fingerprint(128) == encoder.head_fingerprint(128)


def test_bfloat16_files_are_float32_on_a_cpu_unless_asked_for(official: Path, encoder: JinaColbertEncoder) -> None:
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    half = load(official, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert largest_difference(half.query_vectors(TEXTS, 128), encoder.query_vectors(TEXTS, 128)) < 0.2


def test_a_saved_model_reads_back_with_equal_vectors(tmp_path: Path, encoder: JinaColbertEncoder) -> None:
    encoder.save_pretrained(str(tmp_path / "saved"))
    again = load(tmp_path / "saved")
    assert (again.dims, again.query_length, again.document_length) == ((128, 64), 32, 300)
    assert (again.skiplist, again.prompts) == ("stanford", encoder.prompts)
    for dim in again.dims:
        assert again.head_fingerprint(dim) == encoder.head_fingerprint(dim)
        assert_same(again.query_vectors(TEXTS, dim), encoder.query_vectors(TEXTS, dim))
        assert_same(again.document_vectors(TEXTS, dim), encoder.document_vectors(TEXTS, dim))


def test_queries_are_32_vectors_of_length_one(encoder: JinaColbertEncoder, references: dict[int, Reference]) -> None:
    ids = references[128].query_ids(LONG)
    assert (len(ids), ids[-1]) == (32, 2)
    texts = [*TEXTS, LONG, LONG + " and so on"]
    for vectors in encoder.query_vectors(texts, 128):
        assert vectors.shape == (32, 128)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert_same(encoder.query_vectors(texts[-2:], 128), [references[128].query(LONG)] * 2)


def test_document_length_can_be_set_up_to_the_backbones_limit(official: Path) -> None:
    longest = MAX_POSITIONS - 4
    encoder = load(official, document_length=longest)
    text = " ".join([LONG] * 8)
    assert_same(encoder.document_vectors([text], 128), [Reference(official).document(text, length=longest)])
    for rejected in (longest + 1, 3, 0, -1):
        with pytest.raises(ValueError, match=f"between 4 and {longest}.*got {rejected}"):
            encoder.document_length = rejected
    with pytest.raises(ValueError, match=str(longest + 1)):
        load(official, document_length=longest + 1)


@pytest.mark.parametrize(("skiplist", "dropped"), [("stanford", ["▁", "▁(", "▁"]), ("pieces", [",", "."]), (None, [])])
def test_skiplists_drop_exactly_their_tokens(official: Path, skiplist: Any, dropped: list[str]) -> None:
    text = "Paris , ( the capital. x"
    tokens = ["<s>", DOCUMENT_MARKER, "▁Paris", "▁", ",", "▁(", "▁the", "▁capital", ".", "▁", "x", "</s>"]
    encoder = load(official, skiplist=skiplist)
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.tokenizer(DOCUMENT_MARKER + text)["input_ids"]) == tokens
    reference = Reference(official)
    assert (encoder.skiplist, encoder.skiplist_ids) == (skiplist, reference.skipped_ids(skiplist))
    everything = reference.document(text, skiplist=None)
    kept = everything[[token not in dropped for token in tokens]]
    assert_same(encoder.document_vectors([text], 128), [kept])
    assert_same(encoder.document_vectors(TEXTS, 128), [reference.document(t, skiplist=skiplist) for t in TEXTS])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roberta.encoder.layers.1.mlp.fc2.bias": None}, r"missing \['roberta.encoder.layers.1.mlp.fc2.bias'\]"),
        ({"linear.weight": None}, r"missing \['linear.weight'\]"),
        ({"roberta.lm_head.bias": torch.zeros(3)}, r"unexpected \['roberta.lm_head.bias'\]"),
        ({"roberta.emb_ln.weight": torch.zeros(32)}, r"emb_ln.weight has shape \(32,\), config.json says \(64,\)"),
        ({"linear.weight": torch.zeros(128, 32)}, r"shape \(128, 32\)"),
    ],
)
def test_tensors_that_do_not_fit_the_layout_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    config = native_config(load_json(folder / "config.json"))
    assert check_tensors(folder, config) == 128
    edit_tensors(folder, changes)
    assert is_official_layout(folder)
    with pytest.raises(ModelLayoutError, match=message):
        load(folder)


def replace_in_files(folder: Path, pattern: str, old: str, new: str) -> None:
    for file in folder.glob(pattern):
        file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "tokenizer_config.json"),
        (lambda folder: replace_in_files(folder, "config.json", '"hidden_size"', '"size"'), "hidden_size"),
        (lambda folder: replace_in_files(folder, "config.json", '"rotary"', '"absolute"'), "needs 'rotary'"),
        (
            lambda folder: replace_in_files(folder, "*token*.json", QUERY_MARKER, "[Other]"),
            rf"marker '\{QUERY_MARKER[:-1]}\]'",
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            r"pytorch_model\.bin is a pickle",
        ),
        *(
            (lambda folder, content=content: (folder / "artifact.metadata").write_text(content), "is not valid")
            for content in ("{", "[]", '{"doc_maxlen": "many"}', "")
        ),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    damage(folder)
    with pytest.raises(ModelLayoutError, match=message):
        load(folder)


def test_the_size_arithmetic_is_the_librarys(official: Path) -> None:
    content = (official / "model.safetensors").read_bytes()
    start, size = file_size(tensor_shapes(load_json(official / "config.json"), 128))
    assert content.startswith(start)
    assert len(content) == size


@pytest.mark.parametrize(
    ("dim", "parameters", "size"), [(128, 559_497_216, 1_119_027_888), (64, 559_431_680, 1_118_896_816)]
)
def test_the_layout_has_the_published_size_to_the_byte(dim: int, parameters: int, size: int) -> None:
    shapes = tensor_shapes(official_config(250004, 24, 1024, 16, 4096, torch.bfloat16), dim)
    assert len(shapes) == 295
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters
    assert file_size(shapes)[1] == size


def test_a_missing_pooler_leaves_the_fingerprint_the_same_at_each_load(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", with_pooler=False)
    assert load(folder).head_fingerprint(128) == load(folder).head_fingerprint(128)
