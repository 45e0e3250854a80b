"""The README and the docs are true: their Python runs, their commands exist, their links lead somewhere.

The documentation site is tested in ``test_docs_site.py``.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from encoder_server import EncoderServer
from loopback_grpc import LoopbackGrpc
from loopback_qdrant import LoopbackQdrant
from stage_samples import dense_model, sparse_model
from typer.main import get_command

import jcv2_plugin.cli
import jcv2_trainer.cli.app
from jcv2_plugin import JinaColbertEncoder

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
APPS = {"jcv2": jcv2_plugin.cli.app, "jcv2-finetune": jcv2_trainer.cli.app.app}
OTHERS_COMMANDS = re.compile(r"(accelerate|docker|pip|python)\s[^`]*")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[str]:
    """The Python of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def write_ragatouille_index(folder: Path) -> Path:
    """What RAGatouille keeps beside its vectors: a document of two passages, a deleted one, and one after it."""
    folder.mkdir()
    texts = ["Bicycles belong in the shed.", "The shed opens with the front-door key.", "Guests may park in the yard."]
    (folder / "collection.json").write_text(json.dumps(texts), encoding="utf-8")
    numbers = {"0": "bicycles", "1": "bicycles", "3": "guests"}
    (folder / "pid_docid_map.json").write_text(json.dumps(numbers), encoding="utf-8")
    (folder / "docid_metadata_map.json").write_text(json.dumps({"guests": {"room": "yard"}}), encoding="utf-8")
    return folder


@pytest.fixture
def reader_has(tmp_path: Path, mini: JinaColbertEncoder) -> Iterator[dict[str, dict[str, Any]]]:
    """The names that a page says are the reader's."""
    with LoopbackQdrant() as server, LoopbackGrpc(server) as wire, EncoderServer(mini) as encoders:
        yield {
            "two-stage.md": {"dense_model": dense_model(), "sparse_model": sparse_model()},
            "scaling.md": {"url": server.url},
            "server.md": {"url": server.url, "grpc_port": wire.port},
            "encoders-on-another-machine.md": {"encoder_url": encoders.url},
            "migrating.md": {"ragatouille_index": str(write_ragatouille_index(tmp_path / "theirs"))},
        }


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=page_id)
def test_the_python_of_a_page_runs(
    page: Path, reader_has: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__", **reader_has.get(page.name, {})}
    exec(compile("\n".join(blocks_of(page)), str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_fenced_block_of_a_page_goes_untested(page: Path) -> None:
    """Each is Python that runs here, or an example put in whole, which runs with the examples."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^[ \t]+```|^~~~|^````", text, re.MULTILINE)
    for language, block in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        put_in = re.fullmatch(r'--8<-- "(examples/\w+/\w+\.py)"\n', block)
        assert language == ("py" if put_in else "python"), block
        assert not put_in or (ROOT / put_in[1]).is_file(), block


def test_the_page_of_examples_has_all_of_them() -> None:
    shown = re.findall(r'^--8<-- "(.*)"$', (ROOT / "docs" / "examples.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(shown) == sorted(str(file.relative_to(ROOT)) for file in (ROOT / "examples").glob("*/*.py"))


def test_the_demo_asks_what_no_page_says_in_these_words() -> None:
    """What it finds has to be an answer, not the question."""
    tree = ast.parse((ROOT / "examples" / "demo.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Question"]
    asked = [ast.literal_eval(argument) for call in calls for argument in call.args[1:]]
    assert len(asked) == 6
    text = "\n".join(" ".join(page.read_text(encoding="utf-8").split()) for page in PAGES).lower()
    assert [question for question in asked if question.lower().rstrip("?؟？") in text] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_tables_of_a_page_are_those_of_the_results(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from docs_tables import render

    text = page.read_text(encoding="utf-8")
    if "<!-- table: " not in text:
        pytest.skip(f"{page.name} has no table of a benchmark's")
    assert render(text) == text, "run python benchmarks/docs_tables.py"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def commands_of(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A command and those below it, by the words that call them; those of entry points too."""
    command = command.load() if hasattr(command, "load") else command
    yield words, command
    if hasattr(command, "commands"):  # a group
        for name in command.list_commands(None):
            yield from commands_of(command.get_command(None, name), *words, name)


COMMANDS = {words: command for name, app in APPS.items() for words, command in commands_of(get_command(app), name)}
ALL_OPTIONS = set().union(*(options_of(command) for command in COMMANDS.values()))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_commands_shown_exist_with_their_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = re.sub(
        r"^\|(?:.*\|)? jcv2(?:,| \|).*$", "", text, flags=re.MULTILINE
    )  # a table's cell that is only our name
    for line in re.findall(r"^(?: {4}|[ `|]*)(?:.* \| )?(jcv2(?:-finetune)? .*)$", text, re.MULTILINE):
        check_command(line.partition("    #")[0].partition("`")[0])


def check_command(line: str) -> None:
    words = line.split()
    if words[-1] == "--help":
        return
    called = max((known for known in COMMANDS if tuple(words[: len(known)]) == known), key=len)
    assert not hasattr(COMMANDS[called], "commands"), f"{line}: there is no such command"
    for option in re.findall(r"(?<= )(--?[a-z][a-z0-9-]*)", line):
        assert option in options_of(COMMANDS[called]), f"{line}: {option}"


def test_the_commands_are_all_described() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for words, command in COMMANDS.items():
        if not hasattr(command, "commands") and not command.hidden:
            assert re.search(rf"`{words[-1]}\b|{' '.join(words)}\b", text), f"{' '.join(words)} is nowhere described"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_options_named_in_a_text_exist(page: Path) -> None:
    """Some command of ours has each. Lines that call other programs are left out."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", text):
        for option in re.findall(r"(?:^|\s)(--[a-z][a-z0-9-]*)", OTHERS_COMMANDS.sub("", code)):
            assert option in ALL_OPTIONS, option


def test_every_promise_has_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| (?!what )", line)]
    assert len(rows) > 30
    for row in rows:
        found = re.search(r"`(tests/[\w/]+\.py)::([\w:]+)` \|$", row)
        assert found, row
        body = ast.parse((ROOT / found[1]).read_text(encoding="utf-8")).body
        for name in found[2].split("::"):
            [defined] = [one for one in body if isinstance(one, (ast.ClassDef, ast.FunctionDef)) and one.name == name]
            body = defined.body
