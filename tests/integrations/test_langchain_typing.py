"""The public names of ``langchain_jcv2``: typed for a user's mypy --strict, documented, and all of them listed."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import langchain_jcv2

SAMPLE = Path(__file__).parent / "langchain_typed_sample.py"
WRONG = """
from langchain_jcv2 import JinaColbertReranker, JinaColbertRetriever, JinaColbertVectorStore, import_qdrant

JinaColbertVectorStore.from_texts([1])
JinaColbertReranker(top_n="three")
JinaColbertRetriever.from_collection("folder").filter = "room"
import_qdrant("http://localhost:6333", "dense")
"""


# What the samples' own types do not come from is not read: that takes a minute.
CONFIG = """
[mypy]
strict = True
error_summary = False

[mypy-torch.*,transformers.*,sentence_transformers.*,huggingface_hub.*,numpy.*,qdrant_edge.*,httpx.*,grpc.*]
follow_imports = skip
"""


@pytest.mark.slow
def test_a_users_program_is_strictly_typed(tmp_path):
    (tmp_path / "mypy.ini").write_text(CONFIG)
    shutil.copyfile(SAMPLE, tmp_path / "right.py")
    (tmp_path / "wrong.py").write_text(WRONG)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "right.py", "wrong.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert not done.stderr
    assert [line.split(":")[:2] for line in done.stdout.splitlines()] == [["wrong.py", str(n)] for n in (4, 5, 6, 7)]


def test_the_sample_uses_every_public_name():
    text = SAMPLE.read_text()
    for name in langchain_jcv2.__all__:
        assert f"{name}(" in text or f"{name}." in text, name
    for cls in (langchain_jcv2.JinaColbertVectorStore, langchain_jcv2.JinaColbertRetriever):
        for name in vars(cls):
            if not name.startswith(("_", "model_")) and callable(getattr(cls, name)):
                assert f".{name}(" in text or "_by_vector" in name, name


def test_public_names_are_listed_and_documented():
    assert set(langchain_jcv2.__all__) <= set(dir(langchain_jcv2))
    for name in langchain_jcv2.__all__:
        value = getattr(langchain_jcv2, name)
        assert inspect.getdoc(value), name
        for member, function in vars(value).items() if inspect.isclass(value) else ():
            if not member.startswith(("_", "model_")) and callable(getattr(value, member)):
                assert (getattr(function, "__func__", function)).__doc__, (name, member)
