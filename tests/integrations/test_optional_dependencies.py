"""The adapters can be imported without LangChain and LlamaIndex, and say what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import importlib, sys
sys.modules[{missing!r}] = None
import {package}
for name in {package}.__all__:
    assert name in dir({package})
    try:
        getattr({package}, name)
    except ImportError as error:
        assert "jcv2-plugin[{extra}]" in str(error) and f"{package}.{{name}} needs" in str(error), error
    else:
        raise AssertionError(name)
{package}.nothing
"""


@pytest.mark.parametrize(
    "package, missing, extra",
    [("langchain_jcv2", "langchain_core", "langchain"), ("llama_index_jcv2", "llama_index", "llama-index")],
)
def test_a_missing_library_is_named(package, missing, extra):
    script = _SCRIPT.format(package=package, missing=missing, extra=extra)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "has no attribute 'nothing'" in done.stderr.splitlines()[-1], done.stderr
