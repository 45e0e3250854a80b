"""Read plain or compressed text files line by line."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from jcv2_plugin.errors import Jcv2Error

LINE_LIMIT = 64 * 2**20
"""Maximum line length in bytes. A longer line means that the file is not JSON lines, and might not fit in memory."""

_CHUNK = 1024  # bytes of compressed input; zstd may expand them to 30,000 times as many
_MOST = 2**20  # bytes of output at once where it can be limited; bzip2 makes 45 MB of a block of 40 bytes


class DataError(Jcv2Error, ValueError):
    """A training file cannot be read. The message names the file, line and field."""


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield ``(line number, line)`` for the non-blank lines of a file, decompressed by its suffix.

    Raises:
        DataError: The file is missing, cannot be read or decompressed, has other data after the compressed data, or
            has a line over ``LINE_LIMIT``.
    """
    if not path.is_file():
        raise DataError(
            f"{path} does not exist or is not a file. "
            "Give a JSON-lines file (.jsonl, .jsonl.gz, .jsonl.xz, .jsonl.bz2, .jsonl.zst)."
        )
    new = _decompressor(path)
    number = 0
    try:
        with path.open("rb") as file:
            chunks = _decompressed(file, new) if new else iter(lambda: file.read(2**17), b"")
            for number, line in enumerate(_lines(chunks), start=1):
                if len(line) >= LINE_LIMIT:
                    raise DataError(
                        f"{path}:{number}: longer than {LINE_LIMIT // 2**20} MiB. Write one JSON object per line."
                    )
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read after line {number} ({error}). "
            "Check its permissions, and copy or compress it again."
        ) from error


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield lines without their ends. What follows a line of ``LINE_LIMIT`` bytes or more is cut off from it."""
    pending = bytearray()
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        pending += first
        for other in others:
            yield bytes(pending)
            pending = bytearray(other)
        if len(pending) >= LINE_LIMIT:
            yield bytes(pending)
            pending.clear()
    if pending:
        yield bytes(pending)


def _decompressor(path: Path) -> Callable[[], Any] | None:
    """Return what makes a decompressor for the file's suffix. All have the methods of ``bz2.BZ2Decompressor``."""
    match path.suffix.lower():
        case ".gz":
            return lambda: zlib.decompressobj(wbits=31)
        case ".xz":
            return lzma.LZMADecompressor
        case ".bz2":
            return bz2.BZ2Decompressor
        case ".zst":
            try:
                import zstandard
            except ImportError as error:
                raise DataError(
                    f"{path}: reading .zst needs the package zstandard. Install it with: pip install zstandard"
                ) from error
            return lambda: zstandard.ZstdDecompressor().decompressobj()
    return None


def _decompressed(file: IO[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    """Yield the content of all streams in a file. Python's own readers ignore other data after .xz and .bz2 streams.

    A stream that is damaged or cut short, or followed by data that is not one, is an ``OSError``.
    """
    decompressor: Any = new()
    rest, streams = b"", 0
    while chunk := rest or file.read(_CHUNK):
        rest = b""
        if decompressor is None:
            if not (chunk := chunk.lstrip(b"\0")):  # padding, as on tapes
                continue
            decompressor = new()
        limit = (_MOST,) if hasattr(decompressor, "needs_input") else ()
        try:
            yield decompressor.decompress(chunk, *limit)
            while limit and not decompressor.eof and not decompressor.needs_input:
                yield decompressor.decompress(b"", *limit)
        except Exception as error:  # each library has its own
            raise OSError(_AFTER_STREAM if streams else str(error)) from error
        if decompressor.eof:
            decompressor, rest, streams = None, decompressor.unused_data, streams + 1
    if decompressor is not None:
        raise OSError(_AFTER_STREAM if streams else "the compressed data is cut short")


_AFTER_STREAM = "after the compressed data comes other data, or a stream that is cut short"
