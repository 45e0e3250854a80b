from __future__ import annotations

import json
import os
import shutil
import string
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from official_checkpoint import write_checkpoint, write_sibling
from reference import assert_same
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

from jcv2_plugin import JinaColbertEncoder, MatryoshkaHeads
from jcv2_plugin.errors import ModelLayoutError, UnknownDimError

TEXTS = ["Late interaction compares tokens.", "A longer text: it has dots, dashes - and (brackets).", "Rice."]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> JinaColbertEncoder:
    folder = tmp_path_factory.mktemp("official") / "colbert"
    write_checkpoint(folder)
    write_sibling(folder.with_name("colbert-64"), folder)
    return JinaColbertEncoder.from_pretrained(folder, dims=(128, 64), device="cpu")


@pytest.fixture(scope="module")
def saved(mini: JinaColbertEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "mini"
    mini.save_pretrained(str(folder))
    return folder


class TestSavePretrained:
    def test_all_heads_and_settings_come_back(self, tmp_path: Path) -> None:
        encoder = JinaColbertEncoder.from_pretrained("mini", dims=(64, 32), device="cpu", document_length=77)
        encoder.skiplist = "stanford"
        encoder.save_pretrained(str(tmp_path / "saved"))
        again = JinaColbertEncoder.from_pretrained(tmp_path / "saved", device="cpu")
        assert (again.dims, again.document_length, again.skiplist) == ((64, 32), 77, "stanford")
        assert again.head_fingerprint(32) == encoder.head_fingerprint(32)
        for dim in (64, 32):
            assert_same(encoder.encode_document(TEXTS, dim=dim), again.encode_document(TEXTS, dim=dim))
            assert_same(encoder.encode_query(TEXTS, dim=dim), again.encode_query(TEXTS, dim=dim))
        assert JinaColbertEncoder.from_pretrained(tmp_path / "saved", dims=32).dims == (32,)
        with pytest.raises(UnknownDimError, match=r"it has \[64, 32\]"):
            JinaColbertEncoder.from_pretrained(tmp_path / "saved", dims=128)

    def test_nothing_but_safetensors_and_text_is_written(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        mini.save_pretrained(str(tmp_path))
        suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
        assert suffixes <= {".json", ".safetensors", ".md", ".txt"}
        with pytest.raises(ValueError, match="never reads"):
            mini.save_pretrained(str(tmp_path / "pickle"), safe_serialization=False)

    def test_a_card_of_ones_own_is_kept(self, saved: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(saved, tmp_path / "folder")
        (folder / "README.md").write_text("Our model.")
        JinaColbertEncoder(str(folder), device="cpu").save_pretrained(str(tmp_path / "again"))
        assert (tmp_path / "again" / "README.md").read_text() == "Our model."

    def test_damaged_heads_are_refused(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        heads = MatryoshkaHeads(8, (4, 2))
        heads.save(str(tmp_path))
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "dims": [4, 3]}))
        with pytest.raises(ModelLayoutError, match="expected the tensors"):
            MatryoshkaHeads.load(str(tmp_path))
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(ModelLayoutError, match="is missing"):
            MatryoshkaHeads.load(str(tmp_path))

    def test_the_constructor_takes_sentence_transformers_options(self, saved: Path) -> None:
        options = {"model_kwargs": {"dtype": torch.bfloat16}, "config_kwargs": {"layer_norm_eps": 1e-3}}
        encoder = JinaColbertEncoder(str(saved), device="cpu", prompts={"query": "Q: "}, **options)
        assert (encoder.dtype, encoder.backbone.config.layer_norm_eps) == (torch.bfloat16, 1e-3)
        assert encoder.prompts["query"] == "Q: "

    @pytest.mark.parametrize(
        ("position", "entry"),
        [
            (1, {"type": "os.system"}),
            (2, {"type": "os.system"}),
            (2, {"type": "sentence_transformers.util.get_device_name"}),
            (2, {"path": "../elsewhere"}),
        ],
    )
    def test_foreign_classes_and_paths_are_refused(
        self, saved: Path, tmp_path: Path, position: int, entry: dict[str, str]
    ) -> None:
        folder = shutil.copytree(saved, tmp_path / "folder")
        shutil.copytree(saved / "2_MultiVectorMask", tmp_path / "elsewhere")
        modules = json.loads((folder / "modules.json").read_text())
        modules[position].update(entry)
        (folder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ModelLayoutError, match="without remote code"):
            JinaColbertEncoder.from_pretrained(folder)


class TestExport:
    def test_sentence_transformers_and_we_read_it(
        self, mini: JinaColbertEncoder, official: JinaColbertEncoder, tmp_path: Path
    ) -> None:
        for encoder in (mini, official):
            folder = tmp_path / encoder.backbone.config.model_type
            encoder.export(folder, dim=64)
            plain = MultiVectorEncoder(str(folder), device="cpu")
            again = JinaColbertEncoder.from_pretrained(folder, device="cpu")
            assert (again.dims, again.head_fingerprint(64)) == ((64,), encoder.head_fingerprint(64))
            assert (again.query_length, again.document_length) == (encoder.query_length, encoder.document_length)
            assert again.skiplist == encoder.skiplist
            for one in (plain, again):
                assert_same(encoder.encode_document(TEXTS, dim=64), one.encode_document(TEXTS))
                assert_same(encoder.encode_query(TEXTS, dim=64), one.encode_query(TEXTS))

    def test_a_full_folder_is_not_overwritten(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        (tmp_path / "kept").write_text("x")
        with pytest.raises(FileExistsError, match="not empty"):
            mini.export(tmp_path, dim=64)
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]

    @pytest.mark.skipif("JCV2_PYLATE_PYTHON" not in os.environ, reason="JCV2_PYLATE_PYTHON names no Python with PyLate")
    def test_pylate_reads_it(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        mini.export(tmp_path / "exported", dim=64)
        script = (
            "import sys, json, numpy as np; from pylate.models import ColBERT;"
            "model = ColBERT(sys.argv[1], device='cpu'); texts = json.loads(sys.argv[2]);"
            "np.savez(sys.argv[3], *model.encode(texts, is_query=False), *model.encode(texts, is_query=True))"
        )
        result = tmp_path / "pylate.npz"
        arguments = [script, str(tmp_path / "exported"), json.dumps(TEXTS), str(result)]
        subprocess.run([os.environ["JCV2_PYLATE_PYTHON"], "-c", *arguments], check=True, timeout=300)
        theirs = list(np.load(result).values())
        ours = [*mini.encode_document(TEXTS, dim=64), *mini.encode_query(TEXTS, dim=64)]
        assert_same(ours, theirs)


class TestForeignLayouts:
    def test_a_sentence_transformers_folder_is_a_one_head_model(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        dense = Dense(384, 48, bias=False, activation_function=None, module_input_name="token_embeddings")
        plain = MultiVectorEncoder(
            modules=[
                mini.backbone,
                dense,
                MultiVectorMask(skiplist_words=list(string.punctuation)),
                Normalize(module_input_name="token_embeddings"),
            ],
            device="cpu",
        )
        plain.save_pretrained(str(tmp_path))
        ours = JinaColbertEncoder.from_pretrained(tmp_path, device="cpu")
        assert (ours.dims, ours.skiplist) == ((48,), "stanford")
        assert_same(plain.encode_document(TEXTS), ours.encode_document(TEXTS, dim=48))
        assert_same(plain.encode_query(TEXTS), ours.encode_query(TEXTS))
        with pytest.raises(UnknownDimError, match=r"\[48\]"):
            ours.encode_query("why?", dim=64)

    def test_a_pipeline_that_ends_otherwise_keeps_its_one_dim(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        dense = Dense(384, 48, bias=True, activation_function=torch.nn.Tanh(), module_input_name="token_embeddings")
        plain = MultiVectorEncoder(
            modules=[mini.backbone, dense, MultiVectorMask(), Normalize(module_input_name="token_embeddings")],
            device="cpu",
        )
        plain.save_pretrained(str(tmp_path))
        ours = JinaColbertEncoder.from_pretrained(tmp_path, device="cpu")
        assert ours.heads is None
        assert ours.dims == (48,)
        assert_same(plain.encode_document(TEXTS), ours.encode_document(TEXTS, dim=48))
        with pytest.raises(UnknownDimError, match=r"\[48\]"):
            ours.encode_query("why?", dim=64)
        with pytest.raises(ModelLayoutError, match="cannot be exported to PyLate's layout"):
            ours.export(tmp_path / "exported")
