"""The README and the docs are true: their Python runs, their commands exist, their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from loopback_grpc import LoopbackGrpc
from loopback_qdrant import LoopbackQdrant
from typer.testing import CliRunner

from jcv2_plugin.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    if not blocks:
        pytest.skip(f"{page.name} has no Python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    with LoopbackQdrant() as server, LoopbackGrpc(server) as wire:
        if page.name == "server.md":  # says itself that these are the reader's
            names.update(url=server.url, grpc_port=wire.port)
        exec(compile("\n".join(blocks), str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_the_results(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from docs_tables import render

    text = page.read_text(encoding="utf-8")
    if "<!-- table: " not in text:
        pytest.skip(f"{page.name} has no table of a benchmark's")
    assert render(text) == text, "run python benchmarks/docs_tables.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_options_shown_exist() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    shown = re.findall(r"^ +jcv2 ([\w-]+)(.*)$", text, re.MULTILINE) + re.findall(
        r"^jcv2 ([\w-]+)(.*)$", text, re.MULTILINE
    )
    assert {command for command, _ in shown} >= {"index", "search", "explain", "eval", "info"}
    for command, rest in shown:
        usage = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        assert usage.exit_code == 0, command
        plain = re.sub(r"\x1b\[[0-9;]*m", "", usage.output)
        for option in re.findall(r"(--[a-z0-9-]+)", rest):
            assert option in plain, (command, option)
