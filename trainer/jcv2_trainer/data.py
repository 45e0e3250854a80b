"""Read training data lazily: JSON lines, plain or compressed."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jcv2_plugin.errors import Jcv2Error

_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


class DataError(Jcv2Error, ValueError):
    """A training file is unreadable; the message names file, line and field."""


def open_text(path: Path) -> IO[str]:
    """Open a text file, decompressed by its suffix (.gz, .xz, .bz2)."""
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file. Give a JSON-lines file (.jsonl, .jsonl.gz, .jsonl.xz).")
    opener = _OPENERS.get(path.suffix)
    return opener(path, "rt", encoding="utf-8") if opener else path.open(encoding="utf-8")


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number, object)``; blank lines are passed over.

    Raises:
        DataError: At the first line that is not a JSON object.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: not valid JSON ({error}).") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}.")
            yield number, row
