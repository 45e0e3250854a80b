"""The distribution: one wheel, four packages, two commands, no file that is not ours."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("jcv2_plugin", "jcv2_trainer", "langchain_jcv2", "llama_index_jcv2")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("jcv2_plugin-*.whl"))


def test_the_wheel_holds_the_four_packages_and_the_heads(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert tops == set(PACKAGES)
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
    assert "jcv2_plugin/models/mini/heads/model.safetensors" in names
    assert "jcv2_plugin/models/mini-multilingual/heads/model.safetensors" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 5 * 1024 * 1024


def test_installed_elsewhere_it_imports_and_runs(wheel: Path, tmp_path: Path) -> None:
    # JCV2_FULL_INSTALL=1 installs the dependencies too, from the package index; else this environment's serve.
    full = os.environ.get("JCV2_FULL_INSTALL") == "1"
    venv.create(tmp_path / "venv", with_pip=full)
    python = tmp_path / "venv" / "bin" / "python"
    if full:
        pins = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins, str(wheel)], check=True, timeout=1200)
    else:
        site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
        target = ["--no-deps", "--no-index", "--prefix", str(tmp_path / "venv"), "--ignore-installed"]
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", *target, str(wheel)], check=True, timeout=120
        )
        import torch

        # addsitedir would also read our own editable install's .pth file; a plain path does not.
        (site / "dependencies.pth").write_text(str(Path(torch.__file__).parent.parent) + "\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = f"import {', '.join(PACKAGES)}; print(jcv2_plugin.__file__)"
    done = subprocess.run(
        [python, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout
    for command in ("jcv2", "jcv2-finetune"):
        program = tmp_path / "venv" / "bin" / command
        shown = subprocess.run(
            [program, "--help"], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
        )
        assert shown.returncode == 0, shown.stderr
        assert "Usage" in shown.stdout


IMPORTING = """
import sys, time
HEAVY = ("torch", "transformers", "sentence_transformers", "langchain_core", "llama_index", "qdrant_client", "numpy")
loaded = lambda: [name for name in HEAVY if name in sys.modules]
report = {}
start = time.process_time()
import jcv2_plugin
report["core"] = [time.process_time() - start, loaded()]
import langchain_jcv2, llama_index_jcv2, jcv2_trainer
report["all"] = [time.process_time() - start, loaded()]
from typer.main import get_command
from typer.testing import CliRunner
from jcv2_plugin.cli import app
assert "migrate" in CliRunner().invoke(app, ["--help"]).output
report["help"] = [time.process_time() - start, loaded()]
from jcv2_plugin import ColbertCollection, Document, SearchHit
for command in get_command(app).commands.values():
    command.load()
report["model"] = [time.process_time() - start, [name for name in loaded() if name in HEAVY[:3]]]
for package in (langchain_jcv2, llama_index_jcv2):
    for name in package.__all__:
        getattr(package, name)
report["adapters"] = [time.process_time() - start, [name for name in loaded() if name in HEAVY[:3]]]
print(report)
"""


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    """Seconds of the processor, and modules. All but models do without torch."""
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = ast.literal_eval(done.stdout)
    assert {step: modules for step, (_, modules) in report.items()} == {step: [] for step in report}
    for step, most in (("core", 0.5), ("all", 0.5), ("help", 1.0)):
        assert report[step][0] < most, report


def test_every_public_name_is_there_and_documented() -> None:
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert inspect.getdoc(thing), f"{package}.{name}"


def test_the_packages_keep_their_distance() -> None:
    """The core knows neither trainer nor integrations; these know the core only."""
    for package in PACKAGES:
        others = set(PACKAGES) - {package, "jcv2_plugin"}
        for file in Path(str(importlib.import_module(package).__file__)).parent.rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(rf"(import|from) ({'|'.join(others)})\b", text), file


def imports_of(file: Path, package: str) -> Iterator[str]:
    """The package's modules that a file imports when it is imported or when it runs: types alone do not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for below in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in for_types:
            module = node.module or ""
            if module == package or module.startswith(f"{package}."):
                below = [f"{module}.{alias.name}" for alias in node.names]
                modules = [name for name in below if module_file(name).exists()]
                yield from modules or [module]


def module_file(name: str) -> Path:
    path = ROOT / {"jcv2_trainer": "trainer"}.get(name.partition(".")[0], ".") / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def graph_of(package: str) -> dict[str, set[str]]:
    folder = module_file(package).parent
    graph = {}
    for file in folder.rglob("*.py"):
        name = ".".join((package, *file.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
        graph[name] = set(imports_of(file, package))
    return graph


@pytest.mark.parametrize(
    ("package", "levels"),
    [
        ("jcv2_plugin", ({"encoder"}, {"engines", "scoring"}, {"collection", "serving"}, {"evaluation"}, {"cli"})),
        ("jcv2_trainer", ({"recipes", "data"}, {"mining", "loss"}, {"heads"}, {"training"}, {"cli"})),
    ],
)
def test_imports_run_one_way(package: str, levels: tuple[set[str], ...]) -> None:
    """A package imports those of the levels below it; no two modules import each other, however far around."""
    level = {name: number for number, names in enumerate(levels, start=1) for name in names}
    graph = graph_of(package)
    assert len(graph) > 20
    role = {name: next((one for one in name.split(".")[1:2] if one in level), "") for name in graph}
    for name in graph.keys() - {package, f"{package}.__main__"}:
        for other in graph[name]:
            same = role[other] == role[name]
            assert same or level.get(role[other], 0) < level.get(role[name], 0), f"{name} imports {other}"
    list(graphlib.TopologicalSorter(graph).static_order())
