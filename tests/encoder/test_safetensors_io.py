"""One tensor is read out of a safetensors file, local or on the hub, without the rest of the file."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import close_session, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from official_checkpoint import write_checkpoint, write_sibling
from safetensors.torch import load_file, save_file

from jcv2_plugin.encoder import safetensors_io
from jcv2_plugin.encoder.hub import ModelSource
from jcv2_plugin.encoder.model import JinaColbertEncoder
from jcv2_plugin.encoder.official import load_heads
from jcv2_plugin.encoder.safetensors_io import ReadRange, file_reader, hub_reader, read_header, read_tensor
from jcv2_plugin.errors import ModelLayoutError, UnknownDimError

REPOSITORY = "acme/tiny-colbert"
HEAD = "linear.weight"
CHUNK = 1 << 16


class Hub(ThreadingHTTPServer):
    """A server on the loopback that has ``<root>/<owner>/<name>/<file>`` at the hub's addresses.

    Attributes:
        served: Bytes of file content sent.
        requests: The ``Range`` header of each request.
        ranges: Whether the server heeds ``Range``.
    """

    daemon_threads = False  # closing waits for the answers under way, and so for the count

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.served = 0
        self.requests: list[str | None] = []
        self.ranges = True
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def close(self) -> None:
        """Stop, once every answer under way is done."""
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append(asked)
        address = re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/([^/?]+)", self.path)
        path = self.server.root / address[1] / address[2] if address else Path("none")
        size = path.stat().st_size if path.is_file() else 0
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "") if self.server.ranges else None
        start, stop = (int(span[1]), min(int(span[2]) + 1, size)) if span else (0, size)
        self.send_response(404 if not path.is_file() else 416 if start >= size else 206 if span else 200)
        if not path.is_file():
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(max(stop - start, 0)))
        self.end_headers()
        while start < stop:
            with path.open("rb") as file:
                file.seek(start)
                content = file.read(min(CHUNK, stop - start))
            try:
                self.wfile.write(content)
            except OSError:  # the client hung up
                return
            start += len(content)
            self.server.served += len(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkpoint with a head of 128, and its sibling with one of 64, as ``<owner>/<name>`` folders."""
    folder = write_checkpoint(tmp_path / "hub" / REPOSITORY)
    write_sibling(tmp_path / "hub" / f"{REPOSITORY}-64", folder)
    return tmp_path / "hub"


@pytest.fixture
def hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, with the client let out to it (and to it alone: nothing else is asked for)."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()  # a client reads the proxies' settings when it is made
    server = Hub(root)
    yield server
    server.close()
    close_session()


@pytest.fixture(params=["file", "hub"])
def reader(request: pytest.FixtureRequest, root: Path) -> Callable[[], ReadRange]:
    """Makes a reader of the checkpoint's weights, after a test has changed them."""
    if request.param == "file":
        return lambda: file_reader(root / REPOSITORY / "model.safetensors")
    server: Hub = request.getfixturevalue("hub")
    return lambda: hub_reader(REPOSITORY, "model.safetensors", token=False, endpoint=server.endpoint)


def weights(root: Path) -> Path:
    return root / REPOSITORY / "model.safetensors"


@pytest.mark.parametrize("name", [HEAD, "roberta.emb_ln.bias", "roberta.pooler.dense.weight"])
def test_the_tensor_asked_for_is_read_in_its_stored_type(
    root: Path, reader: Callable[[], ReadRange], name: str
) -> None:
    tensor = read_tensor(reader(), name, "source")
    assert tensor.dtype == torch.bfloat16
    assert torch.equal(tensor, load_file(weights(root))[name])


def test_other_types(root: Path, reader: Callable[[], ReadRange]) -> None:
    tensors = {
        str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in (torch.float64, torch.float32, torch.float16)
    }
    save_file({**tensors, "whole": torch.zeros(3, dtype=torch.int64)}, weights(root))
    for name, tensor in tensors.items():
        read = read_tensor(reader(), name, "source")
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
    with pytest.raises(ModelLayoutError, match="dtype I64, not a float"):
        read_tensor(reader(), "whole", "source")
    with pytest.raises(ModelLayoutError, match=r"source has no tensor 'colbert_linear.weight'"):
        read_tensor(reader(), "colbert_linear.weight", "source")


def test_only_the_header_and_the_tensor_are_transferred(root: Path, hub: Hub) -> None:
    tensors = {**load_file(weights(root)), "roberta.large": torch.zeros(1 << 20)}
    save_file(tensors, weights(root), metadata={"format": "pt"})
    _, data_start = read_header(file_reader(weights(root)), "source")
    read = hub_reader(REPOSITORY, "model.safetensors", token=False, endpoint=hub.endpoint)
    tensor = read_tensor(read, HEAD, "source")
    hub.close()
    assert torch.equal(tensor, tensors[HEAD])
    assert hub.served == data_start + tensor.nbytes
    assert hub.served < weights(root).stat().st_size / 100
    assert len(hub.requests) == 3


def test_a_server_that_ignores_ranges_is_refused_without_a_download(root: Path, hub: Hub) -> None:
    hub.ranges = False
    with weights(root).open("r+b") as file:
        file.truncate(1 << 28)  # sparse; far more than the sockets' buffers hold
    read = hub_reader(REPOSITORY, "model.safetensors", token=False, endpoint=hub.endpoint)
    with pytest.raises(ModelLayoutError, match=r"does not support ranged reads \(status 200\)"):
        read_tensor(read, HEAD, "source")
    hub.close()
    assert len(hub.requests) == 1
    assert hub.served < 1 << 26


def test_a_file_cut_short_in_the_tensor_is_refused(root: Path, reader: Callable[[], ReadRange]) -> None:
    header, data_start = read_header(file_reader(weights(root)), "source")
    with weights(root).open("r+b") as file:
        file.truncate(data_start + header[HEAD]["data_offsets"][1] - 10)
    with pytest.raises(ModelLayoutError, match=r"cut short: 'linear.weight' has 16374 of 16384 bytes"):
        read_tensor(reader(), HEAD, "source")


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1119027888\n",
        b"PK\x03\x04" + bytes(200),
        b"\x02" + bytes(7) + b"[]",
        b"\x02" + bytes(7) + b"\xff\xff",
        b"abc",
        (1000).to_bytes(8, "little") + b'{"linear.weight": {',
    ],
    ids=["git-lfs pointer", "zip archive", "a list", "no text", "three bytes", "cut short in the header"],
)
def test_a_file_of_another_kind_is_refused(root: Path, reader: Callable[[], ReadRange], content: bytes) -> None:
    weights(root).write_bytes(content)
    with pytest.raises(ModelLayoutError, match="source is not a readable safetensors file"):
        read_tensor(reader(), HEAD, "source")


def test_a_file_that_the_hub_lacks_is_an_error_of_the_hub(hub: Hub) -> None:
    read = hub_reader(REPOSITORY, "other.safetensors", token=False, endpoint=hub.endpoint)
    with pytest.raises(EntryNotFoundError) as caught:
        read_tensor(read, HEAD, "source")
    assert isinstance(caught.value, HfHubHTTPError)


def test_nothing_is_asked_of_the_hub_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    read = hub_reader(REPOSITORY, "model.safetensors", token=False, endpoint=hub.endpoint)
    with pytest.raises(ConnectionError, match="offline mode"):
        read_tensor(read, HEAD, "source")
    assert hub.requests == []


@pytest.fixture
def sibling_of(hub: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Loads the heads of the checkpoint as if it had been fetched from the server."""

    def at_server(*args: str, **kwargs: str | None) -> str:
        return hf_hub_url(*args, **{**kwargs, "endpoint": hub.endpoint})

    monkeypatch.setattr(safetensors_io, "hf_hub_url", at_server)
    source = ModelSource(name=REPOSITORY, folder=root / REPOSITORY, is_hub=True)
    return lambda *dims: load_heads(source, 128, dims, token=False, cache_folder=str(tmp_path / "cache"))


def test_the_siblings_head_is_read_from_the_hub_alone(hub: Hub, root: Path, sibling_of: Callable[..., dict]) -> None:
    heads = sibling_of(128, 64)
    hub.close()
    for dim, folder in ((128, REPOSITORY), (64, f"{REPOSITORY}-64")):
        assert torch.equal(heads[dim], load_file(root / folder / "model.safetensors")[HEAD])
    assert hub.served < weights(root).stat().st_size / 10


def test_a_sibling_that_the_hub_lacks_is_an_unknown_dim(sibling_of: Callable[..., dict]) -> None:
    with pytest.raises(UnknownDimError, match=r"no head for dim=96.*acme/tiny-colbert-96"):
        sibling_of(96)


def test_a_hub_out_of_reach_is_an_unknown_dim(hub: Hub, sibling_of: Callable[..., dict]) -> None:
    hub.close()
    with pytest.raises(UnknownDimError, match="no head for dim=64"):
        sibling_of(64)


def test_a_dim_without_a_sibling_folder_is_an_unknown_dim(root: Path) -> None:
    with pytest.raises(UnknownDimError, match=r"dim=96.*tiny-colbert-96"):
        JinaColbertEncoder.from_pretrained(root / REPOSITORY, dims=(128, 96), device="cpu")


def test_weights_cut_short_are_refused_before_they_are_loaded(root: Path) -> None:
    weights(root).write_bytes(weights(root).read_bytes()[:-100])
    with pytest.raises(ModelLayoutError, match="cut short"):
        JinaColbertEncoder.from_pretrained(root / REPOSITORY, device="cpu")
