"""Read a single tensor from a local or remote safetensors file.

The format (https://github.com/huggingface/safetensors#format) is the header length as eight little-endian bytes, a JSON
header ``{name: {dtype, shape, data_offsets}}``, and the data. Two ranged reads get the header and a third the tensor:
128 KiB instead of 1.1 GB for the 64-dimensional head of jina-colbert-v2.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

from jcv2_plugin.errors import ModelLayoutError
from jcv2_plugin.files import parse_json

ReadRange = Callable[[int, int], bytes]
"""``read(start, length)`` returns ``length`` bytes from offset ``start``."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_HEADER_BYTES = 100 * 1024 * 1024  # limit of the reference implementation


def file_reader(path: str | Path) -> ReadRange:
    """Return a function for ranged reads of a local file. What is not a regular file has no bytes."""

    def read(start: int, length: int) -> bytes:
        if not Path(path).is_file():  # opening a FIFO would wait for ever
            return b""
        with Path(path).open("rb") as file:
            file.seek(start)
            # No more than there is: the length may come from a damaged header.
            return file.read(min(length, max(0, os.fstat(file.fileno()).st_size - start)))

    return read


def hub_reader(
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    token: bool | str | None = None,
    endpoint: str | None = None,
) -> ReadRange:
    """Return a function for ranged reads of a file on the hub. A server without ``Range`` is an error."""
    url = hf_hub_url(repo_id, filename, revision=revision, endpoint=endpoint)
    headers = build_hf_headers(token=token)

    def read(start: int, length: int) -> bytes:
        wanted = {**headers, "Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=wanted, follow_redirects=True) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:
                raise ModelLayoutError(
                    f"{url} does not support ranged reads (status {response.status_code}), and the whole file is not "
                    "downloaded for one head. Download the repository and pass its folder."
                )
            content: bytes = response.read()
            return content

    return read


def read_header(read: ReadRange, source: str) -> tuple[dict[str, Any], int]:
    """Return the header's tensor entries and the offset of the data. Raises ModelLayoutError for another format."""
    try:
        start = read(0, 8)
        length = int.from_bytes(start, "little") if len(start) == 8 else 0
        if not 2 <= length <= _MAX_HEADER_BYTES:
            raise ValueError(f"header length {length}")
        header = parse_json(read(8, length))
        if not isinstance(header, dict):
            raise ValueError("the header is no JSON object")
    except (ValueError, UnicodeDecodeError) as error:
        raise ModelLayoutError(f"{source} is not a readable safetensors file ({error}).") from error
    header.pop("__metadata__", None)
    return header, 8 + length


def read_tensor(read: ReadRange, name: str, source: str) -> torch.Tensor:
    """Read one tensor of floats by name, in its stored dtype. Raises ModelLayoutError if it is not there whole."""
    header, data_start = read_header(read, source)
    entry = header.get(name)
    if entry is None:
        raise ModelLayoutError(f"{source} has no tensor {name!r}; it has {sorted(header)[:8]}...")
    if entry["dtype"] not in _DTYPES:
        raise ModelLayoutError(f"{source}: tensor {name!r} has dtype {entry['dtype']}, not a float.")
    begin, end = entry["data_offsets"]
    data = read(data_start + begin, end - begin)
    if len(data) != end - begin:
        raise ModelLayoutError(f"{source} is cut short: {name!r} has {len(data)} of {end - begin} bytes.")
    return torch.frombuffer(bytearray(data), dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])
