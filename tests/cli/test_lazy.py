"""The list of commands is shown without importing what the commands need."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.main import get_command

from jcv2_plugin.cli import app
from jcv2_plugin.cli.lazy import LazyCommand

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_itself_says(name: str) -> None:
    listed = COMMANDS[name]
    assert isinstance(listed, LazyCommand)
    summary, *_ = listed.load().help.split("\n\n")
    assert " ".join(summary.split()) == listed.help


def test_help_imports_neither_torch_nor_the_client() -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from jcv2_plugin.cli import app\n"
        "print(CliRunner().invoke(app, ['--help']).output)\n"
        "print([name for name in ('torch', 'transformers', 'qdrant_client', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert "migrate" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
