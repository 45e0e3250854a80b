"""LangChain's indexing API over ``JinaColbertVectorStore``: our tests, and langchain-core's own, unchanged."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_samples import documents

from jcv2_plugin import ColbertCollection
from langchain_jcv2 import JinaColbertVectorStore

SDIST = "JCV2_LANGCHAIN_CORE_SDIST"
SUITE = Path("tests", "unit_tests", "indexing", "test_indexing.py")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["memory", "folder"])
def test_langchain_cores_own_tests_of_its_indexing(engine, tmp_path):
    if not os.environ.get(SDIST):
        pytest.skip(f"set {SDIST} to the unpacked sdist of langchain-core")
    if importlib.util.find_spec("pytest_mock") is None:
        pytest.skip("langchain-core's tests need the package pytest-mock")
    suite = Path(os.environ[SDIST]) / SUITE
    assert suite.is_file(), f"{SDIST}: there is no {suite}"
    # Copied as it is, away from a conftest that needs more packages.
    shutil.copyfile(suite, tmp_path / suite.name)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    environment.pop("JCV2_SHIM_FOLDER", None)
    if engine == "folder":
        environment["JCV2_SHIM_FOLDER"] = str(tmp_path / "collections")
    options = ["-p", "langchain_indexing_shim", "-o", "asyncio_mode=auto", "--rootdir", str(tmp_path)]
    options += ["-c", os.devnull, "-p", "no:cacheprovider", "--junitxml", str(tmp_path / "results.xml")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", suite.name, *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout
    (results,) = ET.parse(tmp_path / "results.xml").getroot().iter("testsuite")
    counts = {name: int(results.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": counts["tests"], "failures": 0, "errors": 0, "skipped": 0}
    assert counts["tests"] >= 45
    assert int(done.stdout.rpartition("stores of ours: ")[2].split()[0]) > 30  # and not LangChain's own


@pytest.fixture
def store(mini, location):
    with ColbertCollection.create(location, encoder=mini, dim=32) as collection:
        yield JinaColbertVectorStore(collection)


@pytest.fixture
def records():
    manager = InMemoryRecordManager(namespace="rooms")
    manager.create_schema()
    return manager


def counts(added=0, updated=0, skipped=0, deleted=0):
    return {"num_added": added, "num_updated": updated, "num_skipped": skipped, "num_deleted": deleted}


def texts(store) -> set[str]:
    return {stored.text for stored in store.collection.scroll()}


@pytest.mark.parametrize("key_encoder", ["sha256", lambda document: f"key of {document.id}"])
def test_every_kind_of_key_is_an_id(store, records, key_encoder):
    given = documents()
    options = {"cleanup": "full", "source_id_key": "room", "key_encoder": key_encoder}
    assert index(given, records, store, batch_size=3, **options) == counts(added=4)
    assert index(given, records, store, **options) == counts(skipped=4)
    assert sorted(store.collection.ids()) == sorted(records.list_keys())
    assert given == documents()
    found = store.similarity_search("what do bees make?", k=1)[0]
    assert (found.page_content, found.metadata) == (given[2].page_content, given[2].metadata)


def test_a_source_that_has_changed_replaces_what_it_had(store, records):
    options = {"cleanup": "incremental", "source_id_key": "room", "key_encoder": "sha256"}
    assert index(documents(), records, store, **options) == counts(added=4)
    changed = documents()[0].model_copy(update={"page_content": "A stove bakes bread."})
    assert index([changed], records, store, **options) == counts(added=1, deleted=1)
    assert texts(store) == {changed.page_content, *(one.page_content for one in documents()[1:])}


async def test_without_blocking_and_by_force(store, records):
    options = {"cleanup": "full", "source_id_key": "room", "key_encoder": "sha256"}
    assert await aindex(documents(), records, store, **options) == counts(added=4)
    assert await aindex(documents(), records, store, force_update=True, **options) == counts(updated=4)
    assert await aindex(documents()[:1], records, store, **options) == counts(skipped=1, deleted=3)
    assert texts(store) == {documents()[0].page_content}


def test_an_unknown_argument_for_the_store_is_refused_before_it_is_recorded(store, records):
    with pytest.raises(TypeError, match="vector_field"):
        index(documents(), records, store, key_encoder="sha256", upsert_kwargs={"vector_field": "x"})
    assert records.list_keys() == []
    assert store.collection.count() == 0
