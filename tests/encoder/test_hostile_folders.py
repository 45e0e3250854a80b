"""Model folders that are damaged or made to do harm end in our error, before anything large is allocated."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from official_checkpoint import write_checkpoint

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.adapter import merge_adapter
from jcv2_plugin.errors import InvalidQueryError, Jcv2Error, ModelLayoutError
from jcv2_plugin.scoring.explanation import explain

DEEP = "[" * 200_000

pytestmark = pytest.mark.usefixtures("one_thread")

Edit = Callable[[Path], Any]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("official") / "tiny")


@pytest.fixture(scope="module")
def folders(official: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model in each layout: the published one, ours, and sentence-transformers'."""
    encoder = JinaColbertEncoder.from_pretrained(official, device="cpu")
    root = tmp_path_factory.mktemp("layouts")
    encoder.save_pretrained(str(root / "ours"))
    encoder.export(root / "plain")
    return {"official": official, "ours": root / "ours", "plain": root / "plain"}


@pytest.fixture
def folder(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders[request.param], tmp_path / request.param)


def named(file: str, *path: str | int, **values: Any) -> Edit:
    """Change settings in a file, at a place in it."""

    def edit(folder: Path) -> None:
        content = at = json.loads((folder / file).read_text())
        for key in path:
            at = at[key]
        at.update(values)
        (folder / file).write_text(json.dumps(content))

    return edit


def written(file: str, content: str | bytes) -> Edit:
    def edit(folder: Path) -> None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return edit


def pickled(file: str, *beside: str) -> Edit:
    """A pickle, and empty files."""

    def edit(folder: Path) -> None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"linear.weight": torch.zeros(2, 2)}, folder / file)
        for name in beside:
            (folder / name).write_bytes(b"")

    return edit


def moved(module: str) -> Edit:
    """The projection's weights as a pickle, in a folder of another name."""

    def edit(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        place = next(entry["path"] for entry in modules if entry["type"].endswith("Dense"))
        (folder / module).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).rename(folder / module)
        (folder / module / "model.safetensors").unlink()
        pickled(f"{module}/pytorch_model.bin")(folder)
        changed = [{**entry, "path": module if entry["path"] == place else entry["path"]} for entry in modules]
        (folder / "modules.json").write_text(json.dumps(changed))

    return edit


def headed(header: dict[str, Any], length: int = 0) -> bytes:
    """A safetensors file of this header and so many zeros."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(length)


HUGE_HEAD = headed({f"linears.{10**9}.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}, 4)

CASES: list[tuple[str, Edit, str]] = [
    *(("plain", moved(name), "is a pickle file") for name in ("a/b/c", "openvino", "onnx", "2_Dense")),
    ("plain", pickled("a/b/c/pytorch_model-00001.bin", "a/b/c/other.safetensors"), "is a pickle file"),
    ("plain", pickled("a/adapter_model.bin", "a/model.safetensors"), "is a pickle file"),
    ("ours", pickled("a/pytorch_model.bin", "a/model.safetensors"), "is a pickle file"),
    ("ours", written("model.safetensors.index.json", '{"weight_map": {"a": "evil.bin"}}'), "names 'evil.bin'"),
    ("ours", written("model.safetensors.index.json", '{"weight_map": {"a": "../a.safetensors"}}'), "names '../a"),
    ("ours", written("model.safetensors.index.json", DEEP), "nested too deeply"),
    ("plain", written("modules.json", DEEP), "nested too deeply"),
    ("ours", written("modules.json", DEEP), "nested too deeply"),
    ("ours", written("modules.json", '{"a": 1}'), "cannot be loaded"),
    ("ours", written("modules.json", '[{"idx": 0}]'), "cannot be loaded"),
    ("ours", written("modules.json", "[1e400]"), "cannot be loaded"),
    ("ours", written("config_sentence_transformers.json", DEEP), "nested too deeply"),
    ("ours", named("config_sentence_transformers.json", prompts=["x"]), "cannot be loaded"),
    ("ours", named("config_sentence_transformers.json", prompts={"query": 5}, similarity_fn_name="x"), "cannot be"),
    ("ours", written("config.json", DEEP), "nested too deeply"),
    ("ours", written("config.json", "[]"), "cannot be loaded"),
    ("ours", written("tokenizer.json", DEEP), "cannot be loaded"),
    ("ours", written("tokenizer.json", "{}"), "cannot be loaded"),
    *(
        (layout, named("tokenizer.json", "added_tokens", 1, content="<another>"), "the tokenizer has")
        for layout in ("ours", "plain")
    ),
    ("official", named("tokenizer_config.json", "added_tokens_decoder", "2", content="<another>"), "the tokenizer has"),
    ("ours", named("tokenizer.json", "normalizer", precompiled_charsmap="../x"), "cannot be loaded"),
    ("ours", named("2_MultiVectorMask/config.json", keep_only_token_ids="x"), "cannot be loaded"),
    ("ours", named("sentence_bert_config.json", "modality_config", "text", method=5), "cannot be loaded"),
    ("ours", named("config_sentence_transformers.json", "prompts", document="\ud800"), "cannot be loaded"),
    ("official", named("config.json", intermediate_size=None), "has no"),
    ("official", named("config.json", attention_probs_dropout_prob="a" * 10**5), "cannot be loaded"),
    ("ours", written("model.safetensors", b""), "not a readable safetensors"),
    ("ours", written("model.safetensors", b"\xff" * 100), "not a readable safetensors"),
    ("ours", written("model.safetensors", headed({"a": [1]})), "not a readable safetensors"),
    ("ours", written("model.safetensors", headed({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}})), ""),
    ("ours", written("1_MatryoshkaHeads/model.safetensors", b"x"), "not a readable safetensors"),
    ("ours", written("1_MatryoshkaHeads/model.safetensors", headed({})), "network of at least"),
    ("ours", named("1_MatryoshkaHeads/config.json", in_features=10**9), "network of at least"),
    ("ours", named("1_MatryoshkaHeads/config.json", dims=[10**9]), "network of at least"),
    ("ours", named("1_MatryoshkaHeads/config.json", dims="x"), "expected the tensors"),
    ("plain", named("1_Dense/config.json", out_features=10**9), "network of at least"),
    *(
        (layout, named("config.json", **{key: value}), "network of at least")
        for layout in ("official", "ours", "plain")
        for key, value in (
            ("hidden_size", 10**9),
            ("num_hidden_layers", 10**5),
            ("intermediate_size", 10**9),
            ("vocab_size", 10**9),
            ("type_vocab_size", 10**9),
            ("max_position_embeddings", 10**9),
        )
    ),
    ("official", written("artifact.metadata", DEEP), "nested too deeply"),
    ("official", named("artifact.metadata", query_maxlen=10**7), r"query_expansion.length=10000000"),
    ("official", named("artifact.metadata", doc_maxlen=10**9), r"document_length=1000000000"),
    ("official", written("artifact.metadata", '{"query_maxlen": 1e400}'), "not valid ColBERT metadata"),
    ("official", named("artifact.metadata", query_token_id=["x"]), "cannot be loaded"),
    ("official", named("config.json", num_attention_heads=10**9), ""),
    ("official", named("config.json", hidden_size="x"), ""),
    ("official", written("model.safetensors", headed({"roberta.encoder.layers.0.mixer.Wqkv": 5})), ""),
]


@pytest.mark.parametrize(("folder", "edit", "message"), CASES, indirect=["folder"])
def test_it_is_refused(folder: Path, edit: Edit, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pickle is read, and the error names the folder."""
    edit(folder)
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("a pickle was read"))
    with pytest.raises(ModelLayoutError, match=message or None) as caught:
        JinaColbertEncoder.from_pretrained(folder, device="cpu")
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("folder", ["ours", "plain"], indirect=True)
@pytest.mark.parametrize("length", [10**7, -1, True, "x"])
def test_a_padding_without_bound(folder: Path, length: Any) -> None:
    file = next(path for path in folder.rglob("sentence_bert_config.json"))
    content = json.loads(file.read_text())
    content.setdefault("query_expansion", {"strategy": "fixed", "attend": True})["length"] = length
    file.write_text(json.dumps(content))
    with pytest.raises(ModelLayoutError, match="query_expansion"):
        JinaColbertEncoder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("folder", ["official", "ours", "plain"], indirect=True)
def test_what_is_never_read_does_no_harm(folder: Path) -> None:
    """Pickles beside the same weights in safetensors, an optimizer's state, and OpenVINO's weights."""
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "openvino/openvino_model.bin"):
        pickled(name)(folder)
    JinaColbertEncoder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("content", [DEEP, "{}", '{"r": 0, "lora_alpha": 1}', '{"r": "x", "lora_alpha": 1}', "[]"])
def test_an_adapter_that_is_none(content: str, tmp_path: Path) -> None:
    written("adapter_config.json", content)(tmp_path)
    written("adapter_model.safetensors", b"x")(tmp_path)
    with pytest.raises(ModelLayoutError, match="is no adapter"):
        merge_adapter(torch.nn.Linear(2, 2), tmp_path)


def test_texts_that_are_not_unicode(mini: JinaColbertEncoder) -> None:
    for query, text in (("a", "\udcff"), ("\udcff", "a")):
        with pytest.raises(InvalidQueryError, match="lone surrogates") as caught:
            explain(mini, query, text)
        assert isinstance(caught.value, Jcv2Error)
