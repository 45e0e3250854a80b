"""Encoding in eight bits by OpenVINO."""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from official_checkpoint import SENTENCES, TEXTS, write_checkpoint
from reference import assert_same
from sentence_transformers.base.modules import Transformer

from jcv2_plugin import ColbertCollection, JinaColbertEncoder, quantize
from jcv2_plugin.encoder.int8 import FOLDER, QuantizedTransformer
from jcv2_plugin.errors import InvalidOptionError, MissingPackageError, ModelLayoutError

openvino = pytest.importorskip("openvino")
pytest.importorskip("nncf")

from jcv2_plugin.encoder import quantization as quantizing  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
DIM = 128
HAS_VNNI = "vnni" in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("official") / "colbert")


@pytest.fixture(scope="module")
def official(folder: Path) -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def quantized(official: JinaColbertEncoder, one_thread: None) -> JinaColbertEncoder:
    return quantize(official, SENTENCES * 3, samples=30)


@pytest.fixture(scope="module")
def saved(quantized: JinaColbertEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "int8"
    quantized.save_pretrained(str(folder))
    return folder


def both(encoder: JinaColbertEncoder) -> list[np.ndarray]:
    return [*encoder.document_vectors(TEXTS, DIM), *encoder.query_vectors(TEXTS, DIM)]


def mean_cosine(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return float(np.mean(np.concatenate([(a * b).sum(axis=1) for a, b in zip(one, other, strict=True)])))


def signal_stack() -> tuple[int | None, int]:
    """Where the calling thread's is, and its bytes."""

    class Stack(ctypes.Structure):
        _fields_: ClassVar = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.start, stack.size


class TestConversion:
    """What is not quantised yet computes what torch does, for texts of any number, length and padding."""

    @pytest.mark.parametrize("model", ["mini", "official"])
    def test_it_is_torchs_model(self, model: str, folder: Path) -> None:
        encoder = JinaColbertEncoder.from_pretrained("mini" if model == "mini" else folder, device="cpu")
        network = encoder.backbone.model.eval()
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
        compiled = openvino.Core().compile_model(quantizing.converted(network), "CPU", options)
        generator = torch.Generator().manual_seed(0)
        for texts, tokens, left, right in (
            (1, 1, 0, 0),
            (1, 16, 0, 0),
            (1, 30, 0, 11),
            (2, 16, 0, 7),
            (3, 7, 2, 3),
            (5, 40, 0, 39),
            (2, 300, 100, 0),
        ):
            ids = torch.randint(4, 60, (texts, tokens), generator=generator)
            mask = torch.ones(texts, tokens, dtype=torch.int64)
            mask[0, :left] = 0
            mask[-1, tokens - right :] = 0
            with torch.no_grad():
                expected = network(input_ids=ids, attention_mask=mask).last_hidden_state
            states = compiled({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
            torch.testing.assert_close(torch.from_numpy(states)[mask > 0], expected[mask > 0], atol=1e-4, rtol=0)


class TestQuantize:
    def test_vectors_are_like_those_of_the_float_weights_but_not_those(
        self, official: JinaColbertEncoder, quantized: JinaColbertEncoder
    ) -> None:
        alike = mean_cosine(both(quantized), both(official))
        assert 0.98 < alike < 0.99999
        assert type(official.backbone) is Transformer
        assert isinstance(quantized.backbone, QuantizedTransformer)
        assert quantized.head_fingerprint(DIM) == official.head_fingerprint(DIM)

    def test_a_quantised_encoder_is_quantised_anew_from_its_float_weights_and_silently(
        self, quantized: JinaColbertEncoder, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("CI", raising=False)
        again = quantize(quantized, SENTENCES * 3, samples=30)
        assert capfd.readouterr() == ("", "")
        assert "CI" not in os.environ
        assert_same(both(again), both(quantized))

    def test_ctrl_c_ends_it_early(self, official: JinaColbertEncoder) -> None:
        class Interrupting(list[dict[str, np.ndarray]]):
            taken = 0

            def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
                for batch in super().__iter__():
                    self.taken += 1
                    if self.taken == 3:
                        os.kill(os.getpid(), signal.SIGINT)
                    yield batch

        batch = {name: np.ones((1, 8), np.int64) for name in ("input_ids", "attention_mask")}
        batches = Interrupting([batch] * 20_000)
        with quantizing._quiet(), pytest.raises(KeyboardInterrupt):
            quantizing.calibrated(quantizing.converted(official.backbone.model), batches)
        assert 3 <= batches.taken < 10_000

    @pytest.mark.parametrize(
        ("texts", "samples", "error", "message"),
        [
            ([*SENTENCES[:9], "", "  \n"], 100, InvalidOptionError, "at least 10 texts that are not empty, got 9"),
            (SENTENCES, 3, InvalidOptionError, "samples must be an integer of 10 or more, got 3"),
            (SENTENCES[0], 100, TypeError, "single string"),
            ([*SENTENCES, 3], 100, TypeError, "Texts must be str, got int"),
        ],
    )
    def test_what_is_refused(
        self, official: JinaColbertEncoder, texts: Any, samples: int, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            quantize(official, texts, samples=samples)

    def test_without_nncf(self, official: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "nncf", None)
        with pytest.raises(MissingPackageError, match=r"needs nncf: pip install 'jcv2-plugin\[int8\]'"):
            quantize(official, SENTENCES)

    def test_texts_are_drawn_from_all(self) -> None:
        texts = [str(number) for number in range(1000)]
        drawn = quantizing._draw(iter(texts), 50)
        assert drawn == quantizing._draw(texts, 50)
        assert len(set(drawn)) == 50
        assert 300 < np.mean([int(text) for text in drawn]) < 700

    def test_attended_mask_tokens_are_calibrated_on(
        self, official: JinaColbertEncoder, mini: JinaColbertEncoder
    ) -> None:
        mask = official.tokenizer.mask_token_id
        seen = [features["input_ids"] for features in quantizing._calibration_batches(official, list(SENTENCES))]
        assert len(seen) == 13
        assert sum(bool((ids == mask).any()) for ids in seen) == 3
        assert len(list(quantizing._calibration_batches(mini, list(SENTENCES)))) == 10


class TestModule:
    def test_gradients_come_from_the_float_weights(self, quantized: JinaColbertEncoder) -> None:
        features = quantized.preprocess(list(SENTENCES[:2]), task="document")
        states = quantized.backbone(dict(features))["token_embeddings"]
        assert states.requires_grad
        with torch.no_grad():
            eight = quantized.backbone(dict(features))["token_embeddings"]
            quantized.backbone.train()
            in_training = quantized.backbone(dict(features))["token_embeddings"]
            quantized.backbone.eval()
        assert not torch.equal(eight, in_training)
        assert 1e-3 < (eight - states).abs().max() < 3

    def test_several_threads_encode_at_once(self, quantized: JinaColbertEncoder) -> None:
        expected = both(quantized)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: both(quantized), range(8)):
                assert_same(found, expected)

    def test_copies_encode_the_same(self, quantized: JinaColbertEncoder) -> None:
        expected = both(quantized)
        assert_same(both(copy.deepcopy(quantized)), expected)
        assert_same(both(pickle.loads(pickle.dumps(quantized))), expected)

    def test_changed_weights_are_used_themselves(
        self, official: JinaColbertEncoder, quantized: JinaColbertEncoder
    ) -> None:
        trained, expected = copy.deepcopy(quantized), copy.deepcopy(official)
        both(trained)
        for encoder in (trained, expected):
            encoder.train()
            with torch.no_grad():
                for parameter in encoder.backbone.model.parameters():
                    parameter.mul_(1.1)
        with pytest.warns(UserWarning, match="Quantise the model again"):
            found = both(trained)
        assert_same(found, both(expected))

    def test_the_states_have_the_type_of_the_weights(self, saved: Path, quantized: JinaColbertEncoder) -> None:
        half = JinaColbertEncoder.from_pretrained(saved, device="cpu", dtype="bfloat16")
        assert mean_cosine(both(half), both(quantized)) > 0.999


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO sets a stack for signals on Linux only")
def test_signals_keep_their_stack(official: JinaColbertEncoder, quantized: JinaColbertEncoder) -> None:
    # Else a signal ends the process with a segmentation fault, once a model is released.
    before = signal_stack()
    models = [quantize(official, SENTENCES, samples=10), copy.deepcopy(quantized)]
    for model in models:
        both(model)
        assert signal_stack() == before
    models.pop(0)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(models.clear).result()
    gc.collect()
    assert signal_stack() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_uses_the_float_weights(saved: Path, official: JinaColbertEncoder) -> None:
    """OpenVINO's threads do not survive the fork: a child that was forked while they computed waited for ever."""
    encoder, expected = JinaColbertEncoder.from_pretrained(saved, device="cpu"), both(official)
    both(encoder)
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(100)
            later = JinaColbertEncoder.from_pretrained(saved, device="cpu")
            for found in (both(encoder), both(later)):
                assert all(np.allclose(one, other, atol=1e-4) for one, other in zip(found, expected, strict=True))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not all(np.allclose(one, other, atol=1e-4) for one, other in zip(both(encoder), expected, strict=True))


class TestFolder:
    def test_it_comes_back(self, saved: Path, quantized: JinaColbertEncoder) -> None:
        again = JinaColbertEncoder.from_pretrained(saved, device="cpu")
        assert isinstance(again.backbone, QuantizedTransformer)
        assert_same(both(again), both(quantized))

    def test_the_float_weights_alone(
        self, saved: Path, official: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        plain = JinaColbertEncoder.from_pretrained(saved, device="cpu", quantized=False)
        assert type(plain.backbone) is Transformer
        assert_same(both(plain), both(official))

    def test_without_openvino_the_error_says_what_to_do(
        self, saved: Path, quantized: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        says = r"pip install 'jcv2-plugin\[int8\]'.*quantized=False"
        with pytest.raises(MissingPackageError, match=says):
            JinaColbertEncoder.from_pretrained(saved, device="cpu")
        with pytest.raises(MissingPackageError, match=says):
            copy.deepcopy(quantized).document_vectors(TEXTS, DIM)

    def test_a_folder_without_the_copy_is_refused(self, saved: Path, tmp_path: Path) -> None:
        broken = shutil.copytree(saved, tmp_path / "broken")
        (broken / FOLDER / "quantized.json").write_text(json.dumps({}))
        with pytest.raises(ModelLayoutError, match="the int8 copy cannot be read"):
            JinaColbertEncoder.from_pretrained(broken, device="cpu")
        shutil.rmtree(broken / FOLDER)
        with pytest.raises(ModelLayoutError, match="quantized=False"):
            JinaColbertEncoder.from_pretrained(broken, device="cpu")
        assert JinaColbertEncoder.from_pretrained(broken, device="cpu", quantized=False).dims == (DIM,)

    def test_it_is_written_where_it_was_read(self, saved: Path, tmp_path: Path, quantized: JinaColbertEncoder) -> None:
        copied = shutil.copytree(saved, tmp_path / "copied")
        JinaColbertEncoder.from_pretrained(copied, device="cpu").save_pretrained(str(copied))
        assert_same(both(JinaColbertEncoder.from_pretrained(copied, device="cpu")), both(quantized))
        assert len(list((copied / FOLDER).iterdir())) == 3

    def test_a_collection_of_one_is_searched_with_the_other(
        self, saved: Path, official: JinaColbertEncoder, tmp_path: Path
    ) -> None:
        eight = JinaColbertEncoder.from_pretrained(saved, device="cpu")
        found = []
        with ColbertCollection.create(tmp_path / "c", encoder=eight, dim=DIM) as collection:
            collection.add(SENTENCES, ids=[str(number) for number in range(len(SENTENCES))])
            found.append(collection.search(TEXTS[0], k=10))
        with ColbertCollection.open(tmp_path / "c", encoder=official) as collection:
            found.append(collection.search(TEXTS[0], k=10))
        own, other = ({hit.id: hit.score for hit in hits} for hits in found)
        # Without VNNI, sums of products saturate at 16 bits: scores differ more.
        assert other == pytest.approx(own, rel=0.05 if HAS_VNNI else 0.1)
        assert other != pytest.approx(own, rel=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("JCV2_TEST_ALL"), reason="takes long: JCV2_TEST_ALL=1")
def test_mini_keeps_its_vectors(mini: JinaColbertEncoder) -> None:
    lines = [
        line for line in Path(__file__).parents[1].joinpath("official_checkpoint.py").read_text().splitlines() if line
    ]
    eight = quantize(mini, lines[:80], samples=80)
    assert eight.dims == mini.dims
    unseen = lines[80:140]
    assert mean_cosine(eight.document_vectors(unseen, DIM), mini.document_vectors(unseen, DIM)) > 0.99
