"""The published layout of jina-colbert-v2 is read, and its token vectors are those of the reference."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

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
    write_json,
    write_sibling,
)
from reference import Reference, maxsim
from transformers import JinaEmbeddingsV3Model

from jcv2_plugin.encoder.model import JinaColbertEncoder
from jcv2_plugin.encoder.official import check_tensors, is_official_layout, native_config, tensor_shapes
from jcv2_plugin.errors import ModelLayoutError, ModelNotFoundError

TOLERANCE = 1e-5
LONG = " ".join(SENTENCES)


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
    sibling = official.with_name("tiny-colbert-64")
    return {128: Reference(official), 64: Reference(official, head_folder=sibling)}


def load(folder: Path, document_length: int | None = None) -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained(folder, device="cpu", document_length=document_length)


def assert_same(got: Sequence[NDArray], wanted: Sequence[NDArray]) -> None:
    """The same number of arrays, each of the same shape and with the same values."""
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE)


def largest_difference(got: Sequence[NDArray], wanted: Sequence[NDArray]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(got, wanted, strict=True))


def assert_matches(encoder: JinaColbertEncoder, reference: Reference) -> None:
    assert_same(encoder.query_vectors(TEXTS, 128), [reference.query(text) for text in TEXTS])
    assert_same(encoder.document_vectors(TEXTS, 128), [reference.document(text) for text in TEXTS])


@pytest.mark.parametrize("dim", [128, 64])
@pytest.mark.parametrize("tokens_per_batch", [1, 100_000], ids=["one by one", "in one padded batch"])
def test_queries_and_documents_equal_the_reference(
    encoder: JinaColbertEncoder, references: dict[int, Reference], dim: int, tokens_per_batch: int
) -> None:
    options = {"dim": dim, "tokens_per_batch": tokens_per_batch, "convert_to_numpy": True}
    assert_same(encoder.encode_query(TEXTS, **options), [references[dim].query(text) for text in TEXTS])
    assert_same(encoder.encode_document(TEXTS, **options), [references[dim].document(text) for text in TEXTS])


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_encoded_alone_equals_the_reference_at_both_dims(
    encoder: JinaColbertEncoder, references: dict[int, Reference], text: str
) -> None:
    query = encoder.encode_query(text, dim=(128, 64), convert_to_numpy=True)
    document = encoder.encode_document(text, dim=(128, 64), convert_to_numpy=True)
    for dim, reference in references.items():
        assert_same([query[dim], document[dim]], [reference.query(text), reference.document(text)])


def test_the_64_head_is_the_siblings_own_and_no_prefix(encoder: JinaColbertEncoder) -> None:
    vectors = encoder.encode_document(LONG, dim=(128, 64), convert_to_numpy=True)
    prefix = vectors[128][:, :64] / np.linalg.norm(vectors[128][:, :64], axis=1, keepdims=True)
    assert np.abs(prefix - vectors[64]).max() > 0.1


def test_similarity_is_the_maxsim_of_the_reference(
    encoder: JinaColbertEncoder, references: dict[int, Reference]
) -> None:
    queries, documents = TEXTS[:3], TEXTS[2:7]
    got = encoder.similarity(encoder.encode_query(queries), encoder.encode_document(documents))
    reference = references[128]
    wanted = [[maxsim(reference.query(q), reference.document(d)) for d in documents] for q in queries]
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-4)


def test_masked_document_tokens_do_not_score(references: dict[int, Reference]) -> None:
    query, document = references[128].query(TEXTS[0]), references[128].document(TEXTS[1])
    padded = np.concatenate([document, query])
    mask = [True] * len(document) + [False] * len(query)
    assert maxsim(query, padded, document_mask=mask) == maxsim(query, document)
    assert maxsim(query, padded) == pytest.approx(32.0)
    assert maxsim(query, padded, query_mask=[True] + [False] * 31) == pytest.approx(1.0)


@pytest.mark.parametrize(("written", "theta"), [(None, 10000.0), (10000.0, 10000.0), (20000.0, 20000.0)], ids=str)
def test_rotary_base_is_the_files_or_else_10000(tmp_path: Path, written: float | None, theta: float) -> None:
    folder = write_checkpoint(tmp_path / "model", rotary_emb_base=written)
    assert_matches(load(folder), Reference(folder, theta=theta))


def test_rotary_bases_10000_and_20000_give_different_vectors(official: Path) -> None:
    vectors = [Reference(official, theta=theta).document(LONG) for theta in (10000.0, 20000.0)]
    assert largest_difference(vectors[:1], vectors[1:]) > 0.01


@pytest.mark.parametrize(
    "options",
    [{"with_model_type": True}, {"with_pooler": False}, {"dtype": torch.float32}, {"heads": 2, "layers": 3}],
    ids=lambda options: ", ".join(options),
)
def test_variants_of_the_files_equal_the_reference(tmp_path: Path, options: dict) -> None:
    folder = write_checkpoint(tmp_path / "model", **options)
    assert ("model_type" in load_json(folder / "config.json")) == ("with_model_type" in options)
    assert_matches(load(folder), Reference(folder))


def test_the_plain_constructor_equals_from_pretrained(official: Path, encoder: JinaColbertEncoder) -> None:
    plain = JinaColbertEncoder(str(official), device="cpu")
    assert plain.dims == (128,)
    assert_same(plain.query_vectors(TEXTS, 128), encoder.query_vectors(TEXTS, 128))
    assert_same(plain.document_vectors(TEXTS, 128), encoder.document_vectors(TEXTS, 128))


def test_bfloat16_files_are_float32_on_a_cpu_unless_asked_for(official: Path, encoder: JinaColbertEncoder) -> None:
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    half = JinaColbertEncoder.from_pretrained(official, device="cpu", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert largest_difference(half.query_vectors(TEXTS, 128), encoder.query_vectors(TEXTS, 128)) < 0.2


def test_a_saved_model_reads_back_with_equal_vectors(tmp_path: Path, encoder: JinaColbertEncoder) -> None:
    encoder.save_pretrained(str(tmp_path / "saved"))
    again = load(tmp_path / "saved")
    assert again.dims == (128, 64)
    assert (again.query_length, again.document_length, again.skiplist) == (32, 300, "stanford")
    for dim in again.dims:
        for one, other in zip(again.query_vectors(TEXTS, dim), encoder.query_vectors(TEXTS, dim), strict=True):
            np.testing.assert_array_equal(one, other)
        assert_same(again.document_vectors(TEXTS, dim), encoder.document_vectors(TEXTS, dim))
    assert again.head_fingerprint(128) == encoder.head_fingerprint(128)


def test_every_query_has_32_vectors_of_length_one(encoder: JinaColbertEncoder) -> None:
    for vectors in encoder.query_vectors([*TEXTS, LONG], 128):
        assert vectors.shape == (32, 128)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_a_long_query_is_cut_to_32_tokens(encoder: JinaColbertEncoder, references: dict[int, Reference]) -> None:
    ids = references[128].query_ids(LONG)
    assert len(ids) == 32
    assert ids[-1] == 2
    long, longer = encoder.query_vectors([LONG, LONG + " and so on"], 128)
    assert_same([long, longer], [references[128].query(LONG)] * 2)


def test_attending_to_masks_is_as_the_metadata_says(
    tmp_path: Path, official: Path, encoder: JinaColbertEncoder
) -> None:
    folder = write_checkpoint(tmp_path / "model", metadata={"attend_to_mask_tokens": False})
    vectors = load(folder).query_vectors(TEXTS, 128)
    reference = Reference(official)
    assert_same(vectors, [reference.query(text, attend_to_masks=False) for text in TEXTS])
    assert largest_difference(vectors, encoder.query_vectors(TEXTS, 128)) > 0.01


def test_query_length_is_the_metadatas(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", metadata={"query_maxlen": 24})
    vectors = load(folder).query_vectors([TEXTS[0], LONG], 128)
    assert_same(vectors, [Reference(folder).query(text, length=24) for text in (TEXTS[0], LONG)])


def test_document_length_and_punctuation_are_as_the_metadata_says(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", metadata={"doc_maxlen": 40, "mask_punctuation": False})
    encoder = load(folder)
    assert encoder.document_length == 40
    assert encoder.skiplist is None
    assert encoder.skiplist_ids == frozenset()
    vectors = encoder.document_vectors([LONG], 128)
    assert len(vectors[0]) == 40
    assert_same(vectors, [Reference(folder).document(LONG, length=40, skiplist=None)])


def test_document_length_can_be_set_up_to_the_backbones_limit(official: Path) -> None:
    longest = MAX_POSITIONS - 4
    encoder = load(official, document_length=longest)
    text = " ".join([LONG] * 8)
    assert_same(encoder.document_vectors([text], 128), [Reference(official).document(text, length=longest)])
    for rejected in (longest + 1, 3, 0, -1):
        with pytest.raises(ValueError, match=f"between 4 and {longest}"):
            encoder.document_length = rejected
    with pytest.raises(ValueError, match=str(longest + 1)):
        load(official, document_length=longest + 1)


@pytest.mark.parametrize(("skiplist", "dropped"), [("stanford", ["▁", "▁(", "▁"]), ("pieces", [",", "."]), (None, [])])
def test_skiplists_drop_exactly_their_tokens(official: Path, skiplist: str | None, dropped: list[str]) -> None:
    text = "Paris , ( the capital. x"
    tokens = ["<s>", DOCUMENT_MARKER, "▁Paris", "▁", ",", "▁(", "▁the", "▁capital", ".", "▁", "x", "</s>"]
    encoder = JinaColbertEncoder.from_pretrained(official, device="cpu", skiplist=skiplist)
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.tokenizer(DOCUMENT_MARKER + text)["input_ids"]) == tokens
    assert encoder.skiplist == skiplist
    reference = Reference(official)
    assert encoder.skiplist_ids == reference.skipped_ids(skiplist)
    everything = reference.document(text, skiplist=None)
    assert len(everything) == len(tokens)
    kept = everything[[token not in dropped for token in tokens]]
    assert_same(encoder.document_vectors([text], 128), [kept])
    assert_same(encoder.document_vectors(TEXTS, 128), [reference.document(t, skiplist=skiplist) for t in TEXTS])


@pytest.mark.parametrize("named", ["[unused0]", None])
def test_unknown_markers_in_the_metadata_fall_back_to_the_models(tmp_path: Path, named: str | None) -> None:
    metadata = {"query_token_id": named, "doc_token_id": named}
    folder = write_checkpoint(tmp_path / "model", metadata=metadata)
    encoder = load(folder)
    assert encoder.prompts == {"query": f"{QUERY_MARKER} ", "document": f"{DOCUMENT_MARKER} "}
    assert_matches(encoder, Reference(folder))


def test_a_vocabulary_without_markers_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace(QUERY_MARKER, "[Other]"), encoding="utf-8")
    write_json(folder / "artifact.metadata", {"query_token_id": "[unused0]"})
    with pytest.raises(ModelLayoutError, match=r"neither the marker '\[unused0\]'"):
        load(folder)


def test_without_metadata_the_released_values_hold(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "artifact.metadata").unlink()
    encoder = load(folder)
    assert (encoder.query_length, encoder.document_length, encoder.skiplist) == (32, 300, "stanford")
    assert_matches(encoder, Reference(folder))


@pytest.mark.parametrize("content", ["{", "[]", '{"doc_maxlen": "many"}', ""])
def test_corrupt_metadata_is_refused(tmp_path: Path, content: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "artifact.metadata").write_text(content, encoding="utf-8")
    with pytest.raises(ModelLayoutError, match=r"artifact\.metadata is not valid"):
        load(folder)


def test_transformers_reads_every_tensor_but_the_head(tmp_path: Path, official: Path) -> None:
    shutil.copy(official / "model.safetensors", tmp_path)
    write_json(tmp_path / "config.json", native_config(load_json(official / "config.json")))
    model, info = JinaEmbeddingsV3Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert set(info["unexpected_keys"]) <= {"linear.weight"}
    assert model.config.rope_parameters["rope_theta"] == 10000.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"roberta.encoder.layers.1.mlp.fc2.bias": None},
            r"missing \['roberta.encoder.layers.1.mlp.fc2.bias'\]",
        ),
        ({"roberta.encoder.layers.0.mixer.Wqkv.weight": None}, "missing"),
        ({"linear.weight": None}, r"missing \['linear.weight'\]"),
        ({"roberta.lm_head.bias": torch.zeros(3)}, r"unexpected \['roberta.lm_head.bias'\]"),
        (
            {"roberta.emb_ln.weight": torch.zeros(32)},
            r"emb_ln.weight has shape \(32,\), config.json says \(64,\)",
        ),
        ({"linear.weight": torch.zeros(128, 32)}, r"shape \(128, 32\)"),
    ],
)
def test_tensors_that_do_not_fit_the_layout_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    config = native_config(load_json(folder / "config.json"))
    assert check_tensors(folder, config) == 128
    edit_tensors(folder, changes)
    assert is_official_layout(folder)
    for attempt in (lambda: check_tensors(folder, config), lambda: load(folder)):
        with pytest.raises(ModelLayoutError, match=message):
            attempt()


def test_the_size_arithmetic_is_the_librarys(official: Path) -> None:
    content = (official / "model.safetensors").read_bytes()
    start, size = file_size(tensor_shapes(load_json(official / "config.json"), 128))
    assert content.startswith(start)
    assert len(content) == size


@pytest.mark.parametrize(
    ("dim", "parameters", "size"),
    [(128, 559_497_216, 1_119_027_888), (64, 559_431_680, 1_118_896_816), (96, 559_464_448, 1_118_962_352)],
)
def test_the_layout_has_the_published_size_to_the_byte(dim: int, parameters: int, size: int) -> None:
    published = official_config(250004, 24, 1024, 16, 4096, torch.bfloat16)
    shapes = tensor_shapes(published, dim)
    assert len(shapes) == 295
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters
    assert file_size(shapes)[1] == size


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(ModelLayoutError, match=name):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"hidden_size": None}, "hidden_size"), ({"position_embedding_type": "absolute"}, "needs 'rotary'")],
)
def test_a_config_that_does_not_describe_the_network_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    write_json(folder / "config.json", {**load_json(folder / "config.json"), **change})
    with pytest.raises(ModelLayoutError, match=message):
        load(folder)


def test_a_missing_pooler_leaves_the_fingerprint_the_same_at_each_load(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", with_pooler=False)
    assert load(folder).head_fingerprint(128) == load(folder).head_fingerprint(128)


def test_a_hub_name_out_of_reach_points_to_the_model_that_needs_no_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="'mini'"):
        JinaColbertEncoder.from_pretrained("nobody/no-such-model", cache_folder=str(tmp_path), device="cpu")


def test_a_folder_with_pickled_weights_only_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelLayoutError, match=r"pytorch_model\.bin is a pickle"):
        load(folder)
