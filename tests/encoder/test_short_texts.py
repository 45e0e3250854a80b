"""Single short texts by OpenVINO in float32: the same vectors as torch's, or torch itself."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_checkpoint import SENTENCES, TEXTS, write_checkpoint
from reference import assert_same

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder import dtypes
from jcv2_plugin.encoder.openvino_cpu import Network
from jcv2_plugin.encoder.short_texts import MOST_TOKENS
from jcv2_plugin.errors import InvalidOptionError, MissingPackageError

pytest.importorskip("openvino")
pytestmark = pytest.mark.usefixtures("one_thread")
DIM = 128
QUERY = "How do I store token vectors in a database?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("official") / "colbert", metadata={"doc_maxlen": 500})


@pytest.fixture(scope="module")
def plain(folder: Path) -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def built(folder: Path, one_thread: None) -> JinaColbertEncoder:
    return load(folder)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each text that OpenVINO encodes."""
    seen: list[int] = []
    run = Network.run

    def counted(self: Network, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(ids.shape[1])
        return run(self, ids, mask)

    monkeypatch.setattr(Network, "run", counted)
    return seen


def load(folder: Path | str, **options: Any) -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained(folder, device="cpu", query_engine="openvino", **options)


def each(encoder: JinaColbertEncoder) -> list[np.ndarray]:
    """One text a call."""
    return [
        vectors
        for text in TEXTS
        for vectors in (*encoder.query_vectors([text], encoder.dims[0]), *encoder.document_vectors([text], DIM))
    ]


def test_vectors_are_those_of_torch(
    plain: JinaColbertEncoder, built: JinaColbertEncoder, folder: Path, mini: JinaColbertEncoder, runs: list[int]
) -> None:
    assert_same(each(built), each(plain))
    assert len(runs) == 2 * len(TEXTS)
    assert built.head_fingerprint(DIM) == plain.head_fingerprint(DIM)
    fast = load("mini")
    for ours, theirs in zip(each(fast), each(mini), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_masked_expansion(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "unattended", metadata={"attend_to_mask_tokens": False})
    assert_same(each(load(folder)), each(JinaColbertEncoder.from_pretrained(folder, device="cpu")))


def test_batches_and_long_texts_run_in_torch(
    built: JinaColbertEncoder, plain: JinaColbertEncoder, runs: list[int]
) -> None:
    long = " ".join(SENTENCES * 4)
    assert len(plain.document_vectors([long], DIM)[0]) > MOST_TOKENS
    assert_same(built.document_vectors([long], DIM), plain.document_vectors([long], DIM))
    assert_same(built.query_vectors(TEXTS, DIM), plain.query_vectors(TEXTS, DIM))
    assert not runs
    assert built.encode_query(QUERY).shape == (32, DIM)
    assert runs == [32]


def test_copies_and_threads(built: JinaColbertEncoder, plain: JinaColbertEncoder, runs: list[int]) -> None:
    expected = plain.query_vectors([QUERY], DIM)
    for other in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert_same(other.query_vectors([QUERY], DIM), expected)
    assert runs.count(32) >= 2
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: built.query_vectors([QUERY], DIM), range(16)):
            assert_same(vectors, expected)


def _in_place(encoder: JinaColbertEncoder) -> None:
    with torch.no_grad():
        for parameter in encoder.backbone.model.parameters():
            parameter.mul_(1.1)


def _half(encoder: JinaColbertEncoder) -> None:
    encoder.to(torch.bfloat16)


def _replaced(encoder: JinaColbertEncoder) -> None:
    other = copy.deepcopy(encoder.backbone)
    _in_place(encoder)
    encoder[0] = other
    _in_place(encoder)


def _trained(encoder: JinaColbertEncoder) -> None:
    encoder.train()
    for parameter in encoder.backbone.model.parameters():
        parameter.data = parameter.data * 1.1
    encoder.eval()


@pytest.mark.parametrize("change", [_in_place, _half, _replaced, _trained])
def test_changed_weights_are_used_themselves(
    change: Callable[[JinaColbertEncoder], None], folder: Path, runs: list[int]
) -> None:
    encoder = load(folder)
    encoder.query_vectors([QUERY], DIM)
    before = len(runs)
    change(encoder)
    changed = encoder.query_vectors([QUERY], DIM)
    assert len(runs) == before
    encoder.query_engine = "torch"
    assert_same(changed, encoder.query_vectors([QUERY], DIM))


def test_gradients_come_from_torch(built: JinaColbertEncoder, runs: list[int]) -> None:
    features = built.preprocess([QUERY], prompt=built.prompts["query"], task="query")
    built(features, task="query", dim=DIM)["token_embeddings"].sum().backward()
    assert built.heads is not None
    assert next(built.backbone.model.parameters()).grad is not None
    built.zero_grad()
    assert not runs


def test_training_goes_on_as_it_was_and_the_network_with_unchanged_weights(
    built: JinaColbertEncoder, runs: list[int]
) -> None:
    built.train()
    built.query_vectors([QUERY], DIM)
    assert runs == [32]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes_in_torch(built: JinaColbertEncoder, runs: list[int]) -> None:
    expected = built.query_vectors([QUERY], DIM)
    child = os.fork()
    if child == 0:
        try:
            found = built.query_vectors([QUERY], DIM)
            same = len(runs) == 1 and np.allclose(found[0], expected[0], atol=1e-4)
            os._exit(0 if same else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_network_with_other_vectors_is_not_used(
    folder: Path, plain: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Network.run
    monkeypatch.setattr(Network, "run", lambda self, ids, mask: run(self, ids, mask) + torch.linspace(0, 1, 64))
    with pytest.warns(UserWarning, match="has other vectors in OpenVINO"):
        encoder = load(folder)
    assert_same(encoder.query_vectors([QUERY], DIM), plain.query_vectors([QUERY], DIM))


def test_it_is_not_saved(built: JinaColbertEncoder, tmp_path: Path, plain: JinaColbertEncoder) -> None:
    built.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    again = JinaColbertEncoder.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.query_engine == "torch"
    assert_same(again.query_vectors([QUERY], DIM), plain.query_vectors([QUERY], DIM))


def test_what_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidOptionError, match="query_engine must be one of"):
        JinaColbertEncoder.from_pretrained(folder, query_engine="onnx")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'jcv2-plugin\[int8\]'.*torch gives the same"):
        load(folder)


@pytest.mark.parametrize("hardware", [True, False])
def test_bfloat16_where_the_processor_and_the_checkpoint_have_it(
    hardware: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "multiplies_bfloat16", lambda: hardware)

    def chosen(model: Path | str, **options: Any) -> torch.dtype:
        return JinaColbertEncoder.from_pretrained(model, device="cpu", **options).dtype

    full = write_checkpoint(tmp_path / "full", dtype=torch.float32)
    assert chosen(folder) == (torch.bfloat16 if hardware else torch.float32)
    assert dtypes.cpu_dtype_of(str(folder)) == ("bfloat16" if hardware else "float32")
    assert [dtypes.cpu_dtype_of(name) for name in (str(full), "mini", "no/such", "nowhere")] == ["float32"] * 2 + [
        None
    ] * 2
    assert {chosen(full), chosen("mini"), chosen(folder, dtype="float32"), load(folder).dtype} == {torch.float32}
    one, other = (JinaColbertEncoder.from_pretrained(folder, device="cpu", dtype=dtype) for dtype in (None, "float32"))
    assert one.head_fingerprint(DIM) == other.head_fingerprint(DIM)


@pytest.mark.parametrize(
    "line, found",
    [
        ("flags\t\t: fpu avx512_bf16 avx2", True),
        ("flags : fpu amx_tile amx_bf16", True),
        ("Features\t: fp asimd sve svebf16 bf16", True),
        ("flags : fpu avx2 avx512f", False),
        ("model name : amx_bf16", False),
    ],
)
def test_what_a_processor_says(line: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\nbugs : none\n")
    monkeypatch.setattr(dtypes, "_CPU_INFO", tmp_path / "cpuinfo")
    assert dtypes.multiplies_bfloat16.__wrapped__() is found
