"""Read training data lazily: JSON lines, plain or compressed."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from jcv2_plugin.errors import Jcv2Error

LINE_LIMIT = 64 * 2**20
"""Bytes; a longer line means that the file is no JSON lines, and would not fit in memory for long."""

_OPENERS = cast("dict[str, Callable[[Path], IO[bytes]]]", {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open})


class DataError(Jcv2Error, ValueError):
    """A training file is unreadable; the message names file, line and field."""


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield ``(line number, line)`` of a file decompressed by its suffix (.gz, .xz, .bz2), without blank lines.

    Raises:
        DataError: If the file is missing, cannot be read or decompressed, or has a line over ``LINE_LIMIT``.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file. Give a JSON-lines file (.jsonl, .jsonl.gz, .jsonl.xz).")
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


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def parse_json(line: bytes) -> Any:
    """The value of one line.

    Raises:
        ValueError: If it is not UTF-8 or not JSON.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number, object)``; blank lines are passed over.

    Raises:
        DataError: At the first line that is not a JSON object.
    """
    for number, line in read_lines(path):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not valid JSON ({error}).") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}.")
        yield number, row


def read_pairs(path: Path, lang: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield ``(query, positive)`` of the rows whose ``lang`` is the given one (None: of all rows).

    Raises:
        DataError: At the first row that has no text in either field.
    """
    for number, row in read_jsonl(path):
        if lang is not None and row.get("lang") != lang:
            continue
        for field in ("query", "positive"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise DataError(
                    f"{path}:{number}: {field!r} must be a text, got {row.get(field)!r:.60}. "
                    f"See all such rows with: jcv2-finetune check {path}"
                )
        yield row["query"], row["positive"]


def sample_texts(path: Path, count: int, seed: int, lang: str | None = None) -> tuple[list[str], list[str]]:
    """``(queries, positives)`` of rows drawn by a shuffle: ``count`` texts in all, half of each kind.

    The rows are shuffled by ``random.Random(seed)``; the positives and the queries are those of its first
    rows. An odd count has one positive more. A file with too few rows gives all its texts. The file is read
    twice, so that only the sample is held in memory.

    Raises:
        DataError: If the file is unreadable, or has no row in ``lang``.
        ValueError: If ``count`` is less than 2.
    """
    if count < 2:
        raise ValueError(f"A sample needs at least 2 texts (a query and a positive), got {count!r}.")
    order = list(range(sum(1 for _ in read_pairs(path, lang))))
    if not order:
        raise DataError(_nothing_in(path, lang))
    random.Random(seed).shuffle(order)
    rank = {row: position for position, row in enumerate(order[: (count + 1) // 2])}
    drawn = {rank[row]: pair for row, pair in enumerate(read_pairs(path, lang)) if row in rank}
    pairs = [drawn[position] for position in range(len(rank))]
    return [query for query, _ in pairs[: count // 2]], [positive for _, positive in pairs]


def _nothing_in(path: Path, lang: str | None) -> str:
    if lang is None:
        return f"{path} has no rows. Give a file of pairs or triplets."
    languages = Counter(str(row.get("lang")) for _, row in read_jsonl(path))
    known = ", ".join(f"{name} ({rows:,} rows)" for name, rows in languages.most_common(12))
    return f"{path} has no row with lang {lang!r}. It has: {known or 'no rows'}."
