"""The documentation site is built without a warning, holds every public name, and fetches nothing from elsewhere."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "jcv2_plugin": "core",
    "langchain_jcv2": "langchain",
    "llama_index_jcv2": "llama-index",
    "jcv2_trainer": "trainer",
}
FETCHING = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.fetched: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        if given.get(FETCHING.get(tag, "")):
            self.fetched.append(str(given[FETCHING[tag]]))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: Path) -> _Elements:
    elements = _Elements()
    elements.feed(page.read_text(encoding="utf-8"))
    return elements


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not all(find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("the documentation's tools are not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    printed = build.stdout + build.stderr
    assert build.returncode == 0, printed
    assert "WARNING" not in printed, printed
    return folder


def test_every_public_name_error_and_method_is_in_the_reference(site: Path) -> None:
    from jcv2_plugin import ColbertCollection, errors

    for package, page in PACKAGES.items():
        names = [name for name in importlib.import_module(package).__all__ if not name.startswith("__")]
        if page == "core":
            names += [f"ColbertCollection.{name}" for name in dir(ColbertCollection) if not name.startswith("_")]
            names += [f"errors.{name}" for name, value in vars(errors).items() if isinstance(value, type)]
        ids = read(site / "api" / f"{page}.html").ids
        assert names
        assert [name for name in names if f"{package}.{name}" not in ids] == []


def test_roles_have_become_links(site: Path) -> None:
    pages = list((site / "api").glob("*.html"))
    text = "".join("".join(read(page).texts) for page in pages)
    assert not re.findall(r":(?:class|meth|func|attr|mod|data):", text)
    core = (site / "api" / "core.html").read_text(encoding="utf-8")
    assert re.search(r'href="#jcv2_plugin.JinaColbertEncoder"><code>JinaColbertEncoder</code>', core)
    assert not re.search(r"<autoref", "".join(page.read_text(encoding="utf-8") for page in pages))


def test_examples_are_shown_whole(site: Path) -> None:
    shown = "".join(read(site / "examples.html").texts)
    for file in (ROOT / "examples").glob("*/*.py"):
        assert file.read_text(encoding="utf-8").strip() in shown, file.name


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        assert [url for url in read(page).fetched if re.match(r"(https?:)?//", url)] == [], page
    styles = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.css"))
    assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", styles)
