"""The adapters can be imported without LangChain and LlamaIndex, and say what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import importlib, sys
sys.modules[{missing!r}] = None
import {package}
assert {name!r} in dir({package})
try:
    from {package} import {name}
except ImportError as error:
    print(error)
try:
    {package}.nothing
except AttributeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "package, name, missing, extra",
    [
        ("langchain_jcv2", "JinaColbertRetriever", "langchain_core", "langchain"),
        ("langchain_jcv2", "JinaColbertVectorStore", "langchain_core", "langchain"),
        ("langchain_jcv2", "JinaColbertReranker", "langchain_core", "langchain"),
        ("langchain_jcv2", "import_qdrant", "langchain_core", "langchain"),
        ("llama_index_jcv2", "JinaColbertIndex", "llama_index", "llama-index"),
        ("llama_index_jcv2", "JinaColbertVectorStore", "llama_index", "llama-index"),
        ("llama_index_jcv2", "JinaColbertRetriever", "llama_index", "llama-index"),
        ("llama_index_jcv2", "JinaColbertRerank", "llama_index", "llama-index"),
        ("llama_index_jcv2", "import_qdrant", "llama_index", "llama-index"),
        ("llama_index_jcv2", "EncodedByStore", "llama_index", "llama-index"),
    ],
)
def test_a_missing_library_is_named(package, name, missing, extra):
    script = _SCRIPT.format(package=package, name=name, missing=missing)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{package}.{name} needs" in done.stdout
    assert f"pip install 'jcv2-plugin[{extra}]'" in done.stdout
    assert "no attribute 'nothing'" in done.stdout
