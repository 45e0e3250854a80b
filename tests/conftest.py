"""Settings and fixtures for all tests: no hub, no tokenizer threads, the helper modules beside this file."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "TMPDIR" not in os.environ and Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free > 8e9:
    # Edge syncs its files often, which takes more time on a disk than all the rest of a test.
    tempfile.tempdir = os.environ["TMPDIR"] = "/dev/shm"
sys.path.insert(0, str(Path(__file__).parent / "trainer"))
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import sentence_transformers.base.model
import server_site
import starting
import torch

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.collection import workers
from jcv2_plugin.engines import retries as transport

# A shell starts jobs in the background with Ctrl-C ignored, and the programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that are slow as a whole come first, so that none is left to run alone when files run side by side."""
    items.sort(key=lambda item: item.parent is None or item.parent.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def mini() -> JinaColbertEncoder:
    """The offline model with all its heads. Tests that change an encoder load one of their own."""
    return JinaColbertEncoder.from_pretrained("mini", device="cpu")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real retrieval sets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("JCV2_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no retrieval sets in {folder}; set JCV2_DATA")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny models and texts, on which more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes need not import PyTorch anew. Other tests have them as they are."""
    for module in (workers, sentence_transformers.base.model.mp):
        monkeypatch.setattr(module, "get_context", lambda method: starting.CONTEXT)


@pytest.fixture(params=server_site.ALL)
def server(request: pytest.FixtureRequest) -> Iterator[server_site.Site]:
    """A server over REST and over gRPC: the loopback one, and the one of ``QDRANT_URL`` where that is set."""
    with server_site.open_site(request.param) as site:
        yield site


@pytest.fixture(params=server_site.LOOPBACKS)
def loopback(request: pytest.FixtureRequest) -> Iterator[server_site.Site]:
    """The loopback server over REST and over gRPC."""
    with server_site.open_site(request.param) as site:
        yield site


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that would have been, none of which takes time."""
    taken: list[float] = []
    monkeypatch.setattr(transport, "_sleep", taken.append)
    return taken
