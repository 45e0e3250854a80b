"""Read plain or compressed text files line by line, and parse JSON lines."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from jcv2_plugin.errors import Jcv2Error

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LINE_LIMIT = 64 * 2**20
"""Maximum line length in bytes. A longer line means that the file is not JSON lines, and might not fit in memory."""

_ZSTD_CHUNK = 8192  # bytes of compressed input; the decompressed chunk is held in memory


class DataError(Jcv2Error, ValueError):
    """A training file cannot be read. The message names the file, line and field."""


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield ``(line number, line)`` for the non-blank lines of a file, decompressed by its suffix.

    The suffixes are .gz, .xz, .bz2 and .zst, which requires the package ``zstandard``.

    Raises:
        DataError: The file is missing, cannot be read or decompressed, or has a line over ``LINE_LIMIT``.
    """
    if not path.is_file():
        raise DataError(
            f"{path} does not exist or is no file. Give a JSON-lines file (.jsonl, .jsonl.gz, .jsonl.xz, .jsonl.zst)."
        )
    number = 0
    try:
        with _OPENERS.get(path.suffix.lower(), _open_plain)(path) as file:
            while line := file.readline(LINE_LIMIT):
                number += 1
                if len(line) == LINE_LIMIT:
                    raise DataError(
                        f"{path}:{number}: longer than {LINE_LIMIT // 2**20} MiB. JSON lines have one object a line."
                    )
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.isspace() and line:
                    yield number, line
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read after line {number} ({error}). "
            "Check its permissions, and copy or compress it again."
        ) from error


def parse_json(line: bytes) -> Any:
    """Parse one line as JSON.

    Raises:
        ValueError: The line is not UTF-8 or not JSON.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _open_zstd(path: Path) -> IO[bytes]:
    try:
        import zstandard  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"{path}: reading .zst needs the package zstandard. Install it with: pip install zstandard"
        ) from error
    return io.BufferedReader(_ZstdFrames(path), buffer_size=2**17)


class _ZstdFrames(io.RawIOBase):
    """Decompressed bytes of a .zst file. Unlike zstandard's own reader, it raises on a truncated file."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = path.open("rb")
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        rest = b""
        while not self._ready:
            chunk = rest or self._file.read(_ZSTD_CHUNK)
            if not chunk:
                if self._frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            rest = self._feed(chunk)
        if rest:
            self._file.seek(-len(rest), io.SEEK_CUR)
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _feed(self, chunk: bytes) -> bytes:
        """Decompress into ``_ready`` and return the rest of the chunk, which belongs to the next frame."""
        self._frame = frame = self._frame or self._decompressor.decompressobj()
        try:
            self._ready = memoryview(frame.decompress(chunk))
        except self._error as error:
            raise OSError(str(error)) from error
        if not frame.eof:
            return b""
        self._frame = None
        return frame.unused_data

    def close(self) -> None:
        self._file.close()
        super().close()


_OPENERS = {
    **cast("dict[str, Callable[[Path], IO[bytes]]]", {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}),
    ".zst": _open_zstd,
}
