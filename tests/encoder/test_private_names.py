"""The private names of other packages that the encoder uses. pyproject.toml admits only versions that have them."""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from sentence_transformers import MultiVectorEncoder
from transformers import PreTrainedModel

import jcv2_plugin
from jcv2_plugin import JinaColbertEncoder

PACKAGE = Path(jcv2_plugin.__file__).parent


def test_the_encoding_loop_is_replaced_under_its_name() -> None:
    # Called by encode() and by the workers of a multi-process pool, with these arguments among others.
    theirs = inspect.signature(MultiVectorEncoder._inference).parameters
    used = {"inputs", "prompt", "batch_size", "output_value", "save_to_cpu", "normalize_embeddings", "task", "device"}
    assert used | {"show_progress_bar", "token_pooling", "kwargs"} == set(theirs) - {"self"}
    for name in ("encode", "_multi_process_worker"):
        assert "._inference(" in inspect.getsource(getattr(MultiVectorEncoder, name))


@pytest.mark.parametrize("name", ["_keys_to_ignore_on_load_unexpected", "_keys_to_ignore_on_load_missing"])
def test_transformers_knows_which_tensors_it_should_not_report(name: str) -> None:
    assert hasattr(PreTrainedModel, name)
    assert name in (PACKAGE / "encoder" / "official.py").read_text(encoding="utf-8")


def test_no_other_private_name_of_sentence_transformers_is_overridden() -> None:
    theirs = {
        name for one in MultiVectorEncoder.__mro__ if "sentence_transformers" in one.__module__ for name in vars(one)
    }
    ours = {name for name in vars(JinaColbertEncoder) if name.startswith("_") and not name.startswith("__")}
    assert ours & theirs - {"_abc_impl"} == {"_inference"}


OF_TORCH = {"_forward_hooks", "_version"}
"""Names of torch without a public form: whether a module has hooks, and whether a tensor was written to."""


def test_the_private_names_of_torch_exist() -> None:
    layer = torch.nn.Linear(1, 1)
    before = layer.weight._version
    with torch.no_grad():
        layer.weight.add_(1)
    assert layer.weight._version > before
    layer.register_forward_hook(print)
    assert len(layer._forward_hooks) == 1


def test_no_module_reaches_into_anothers_underscores() -> None:
    """Below ``self``, ``cls``, and what a module itself makes, names with an underscore are private to their module."""
    for file in [*(PACKAGE / "encoder").glob("*.py"), *(PACKAGE / "scoring").glob("*.py")]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node.value)}
        own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                known = node.attr in own or node.attr in OF_TORCH or is_self(node.value)
                assert known, f"{file.name}:{node.lineno}: {ast.unparse(node)}"


def is_self(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id in ("self", "cls")) or ast.unparse(node) == "super()"


def test_only_versions_that_were_tried_are_promised() -> None:
    lines = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    (promised,) = (line.strip(' ",') for line in lines if line.startswith('    "sentence-transformers'))
    specifier = Requirement(promised).specifier
    assert specifier.contains(version("sentence-transformers"))
    assert not specifier.contains("6.99.0")
