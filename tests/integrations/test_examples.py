"""The examples run as they are, offline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    "name, heading, source, expected",
    [
        ("langchain_chain.py", "Sources:\n", "bicycles", "Answer:   Bicycles belong in the shed"),
        ("llama_index_query.py", "All rooms:\n", "kettle", "The query engine's source: kettle"),
    ],
)
def test_examples_find_the_right_passage(name, heading, source, expected, tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    best = done.stdout.split(heading)[1].splitlines()[0]
    assert source in best
