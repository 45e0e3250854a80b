"""What a user's ``mypy --strict`` says: nothing about a program that uses every public name, and much about misuse."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from full import FULL

SAMPLE = Path(__file__).with_name("typing_sample.py")
PACKAGES = ("jcv2_plugin", "langchain_jcv2", "llama_index_jcv2", "jcv2_trainer")
WRONG = """\
import jcv2_plugin, jcv2_trainer, langchain_jcv2, llama_index_jcv2
jcv2_plugin.ColbertCollection.create("folder", encoder=7)
jcv2_plugin.ColbertCollection.create("folder", encoder="mini", first_stage="dense")
jcv2_plugin.ColbertCollection.open("folder").search("a", first_stage=7)
jcv2_plugin.ColbertCollection.open("folder").search("a")[0].id + 1
jcv2_plugin.Document(text=7)
jcv2_plugin.import_qdrant("http://localhost:6333", "a", "b", "langchain")
langchain_jcv2.JinaColbertVectorStore.from_texts([1])
langchain_jcv2.JinaColbertReranker(top_n="three")
langchain_jcv2.import_qdrant("http://localhost:6333", "dense")
llama_index_jcv2.JinaColbertIndex.from_documents(["text"])
llama_index_jcv2.JinaColbertRetriever.from_collection("folder").with_options(7)
llama_index_jcv2.import_qdrant("http://localhost:6333", "dense")
jcv2_trainer.check_file(7)
jcv2_trainer.no_such_name
"""


# Reading these takes most of the time. The short form takes whatever comes from them as it is.
SHORT = """\
[mypy]
warn_return_any = False
[mypy-torch.*,transformers.*,sentence_transformers.*,datasets.*,peft.*,accelerate.*,tokenizers.*,huggingface_hub.*]
follow_imports = skip
"""


@pytest.mark.slow
def test_a_users_program_is_strictly_typed(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    shutil.copyfile(SAMPLE, tmp_path / "right.py")
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text("[mypy]\n" if FULL else SHORT, encoding="utf-8")
    # What mypy learns of the frameworks is kept between runs.
    cache = request.config.cache.mkdir("typing-full" if FULL else "typing")
    options = ["--strict", "--cache-dir", str(cache), "--no-error-summary"]
    command = [sys.executable, "-m", "mypy", *options, "right.py", "wrong.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert not done.stderr
    errors = [line.split(":")[:2] for line in done.stdout.splitlines() if ": error: " in line]
    assert [line for line in done.stdout.splitlines() if not line.startswith("wrong.py:")] == []
    assert sorted({int(line) for _, line in errors}) == list(range(2, WRONG.count("\n") + 1)), done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_the_program_uses_every_public_name(package: str) -> None:
    tree = ast.parse(SAMPLE.read_text(encoding="utf-8"))
    imported = {
        alias.name: alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == package
        for alias in node.names
    }
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used = {name for name, own in imported.items() if own in names}
    used |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == package
    }
    assert set(importlib.import_module(package).__all__) - used == set()
