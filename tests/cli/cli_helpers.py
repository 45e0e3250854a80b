"""Running the command, in this process or as in a shell."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import starting
from typer.testing import CliRunner

from jcv2_plugin import ColbertCollection
from jcv2_plugin.cli import app, main

PROGRAM = str(Path(sys.executable).with_name("jcv2"))
SHIPS = "# Ships\n\nThe ferry sails at noon, unless the harbour is frozen.\n"
FOOD = "# Food\n\nRice is cooked in twice its volume of water.\n"
MINI = ("--model", "mini", "--dim", "32")


def run(*arguments: str, code: int = 0, stdin: str | bytes | None = None) -> str:
    """What the command prints; errors of ours are raised."""
    return run_both(*arguments, code=code, stdin=stdin)[0]


def run_both(*arguments: str, code: int = 0, stdin: str | bytes | None = None) -> tuple[str, str]:
    """What the command prints, and what it says on stderr."""
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def run_json(*arguments: str, stdin: str | bytes | None = None) -> Any:
    return json.loads(run(*arguments, "--json", stdin=stdin))


def error(*arguments: str) -> str:
    """What the command says when an error ends it with status 1."""
    said, printed = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["jcv2", *arguments]),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(printed),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert (ended.value.code, printed.getvalue()) == (1, "")
    return said.getvalue()


def jcv2(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as installed, in a pipe."""
    command = [PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


start = functools.partial(starting.start, starting.COMMAND)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(0.02)


def write_rows(path: Path, numbers: Iterable[int], **more: Any) -> Path:
    """A JSONL file with a short document for each number."""
    rows = [{"id": str(n), "text": f"Report {n} tells of harbour {n % 97}.", **more} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ids(collection: str | Path) -> set[str]:
    with ColbertCollection.open(collection) as opened:
        return set(opened.ids())
