"""Read records of training files in any supported format, and normalise their field names.

Supported are JSON lines (plain, .gz, .xz, .bz2, .zst), Parquet, a folder written by ``datasets.Dataset.save_to_disk``
(for a ``DatasetDict``, its split "train" is read), and a folder that contains only JSON-lines and Parquet files, which
are read in the order of their names. All are read lazily. JSON lines are not read by ``datasets``, which does not tell
the number of a faulty line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jcv2_plugin.files import parse_json, read_json
from jcv2_trainer.data.lines import DataError, read_lines

Unit = Literal["line", "row"]

_BATCH = 256  # rows of a table held in memory at once
_FORMATS = (
    "Give JSON lines (.jsonl, also with .gz, .xz, .bz2, .zst), Parquet (.parquet), "
    "a folder of such files, or a folder saved by datasets"
)
_DATA_FILE = re.compile(r"\.(jsonl(\.(gz|xz|bz2|zst))?|parquet)$", re.IGNORECASE)
_NEGATIVE = re.compile(r"negative(?:_[0-9]{1,6})?")


class Fault(NamedTuple):
    """An error in a line or row, without its position. The field is empty for the whole line."""

    kind: str
    field: str
    message: str


class Entry(NamedTuple):
    """A non-blank line of a JSON-lines file, or a row of a table, which ``number`` counts from 1.

    ``value`` is the record, with field names as in the file, or why the line is not a record.
    """

    file: Path
    unit: Unit
    number: int
    value: dict[str, Any] | Fault

    @property
    def position(self) -> str:
        """The entry's position, for messages."""
        return position_of(self.file, self.unit, self.number)


def position_of(file: Path | str, unit: Unit, number: int) -> str:
    """Return ``file:3`` for a line, ``file row 3`` for a row."""
    return f"{file}:{number}" if unit == "line" else f"{file} row {number}"


def sound_record(entry: Entry) -> dict[str, Any]:
    """Return the record of an entry. One that is not a record is a ``DataError``."""
    if isinstance(entry.value, Fault):
        raise DataError(f"{entry.position}: {entry.value.message}. Write one JSON object per line.")
    return entry.value


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file or folder of any format, including lines that are not records.

    Raises:
        DataError: The file does not exist, or cannot be read or decompressed.
    """
    for file in data_files(path):
        yield from _table(file) if file.is_dir() or file.suffix.lower() == ".parquet" else json_lines(file)


def data_files(path: Path) -> list[Path]:
    """Return what to read for ``path``: itself, the files in it, or the folder of a dataset's split "train".

    Raises:
        DataError: ``path`` does not exist, or is a folder with other content than data.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist. {_FORMATS}.")
    if (path / "dataset_dict.json").is_file():
        return [_train_split(path)]
    if not path.is_dir() or (path / "dataset_info.json").is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    for file in files:
        if not (file.is_file() and _DATA_FILE.search(file.name)):
            raise DataError(
                f"{path} was not saved by datasets, and {file.name} in it is neither .jsonl nor .parquet. {_FORMATS}."
            )
    if not files:
        raise DataError(f"{path} is an empty folder. {_FORMATS}.")
    return files


def _train_split(path: Path) -> Path:
    try:
        splits = [str(one) for one in read_json(path / "dataset_dict.json")["splits"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}/dataset_dict.json cannot be read ({error}). Save the dataset again.") from error
    if "train" not in splits:
        raise DataError(
            f"{path} has no split 'train'. It has: {', '.join(splits) or 'no splits'}. "
            "Give the folder of one of its splits."
        )
    return path / "train"


def file_state(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return the path, size in bytes and modification time in nanoseconds of each file to read."""
    state = []
    for file in (file for path in paths for file in data_files(path)):
        for part in sorted(file.glob("*.*")) if file.is_dir() else [file]:
            status = part.stat()
            state.append((str(part.resolve()), status.st_size, status.st_mtime_ns))
    return state


def json_lines(file: Path) -> Iterator[Entry]:
    """Yield the non-blank lines of a JSON-lines file. One that cannot be read is a ``DataError``."""
    for number, line in read_lines(file):
        value: Any
        try:
            value = parse_json(line.decode("utf-8"))
        except json.JSONDecodeError as error:
            value = Fault("bad-json", "", f"not valid JSON: {error.msg} at character {error.pos + 1}")
        except ValueError as error:
            value = Fault("bad-json", "", f"not valid JSON: {error}")
        if not isinstance(value, (dict, Fault)):
            value = Fault("not-an-object", "", f"expected a JSON object, got {type(value).__name__}")
        yield Entry(file, "line", number, value)


def _table(path: Path) -> Iterator[Entry]:
    number = 0
    try:
        for batch in _arrow_batches(path):
            for record in batch.to_pylist():
                number += 1
                yield Entry(path, "row", number, record)
    except ImportError as error:
        raise DataError(
            f"{path}: reading it needs the package datasets. Install it with: pip install 'jcv2-plugin[train]'"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError) as error:  # Arrow's errors are subclasses
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"{path}: cannot be read after row {number} ({reason}). Check its permissions, and write it again."
        ) from error


def _arrow_batches(path: Path) -> Iterator[Any]:
    if path.is_dir():
        import datasets

        dataset = datasets.load_from_disk(str(path), keep_in_memory=False)
        # As Arrow, to avoid decoding columns of images or audio.
        yield from dataset.with_format("arrow").iter(batch_size=_BATCH)
    else:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as table:
            yield from table.iter_batches(batch_size=_BATCH)


def normalise(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Rename the fields of a record to their canonical names.

    ``anchor`` becomes ``query``; ``negative``, ``negative_1``, ``negative_2``, ... become the list ``negatives``. An
    alias that is null counts as absent. If the canonical field is present too (and not null), the alias is kept.

    Returns:
        The record, and the original names of the renamed fields, such as ``{"negatives[0]": "negative_1"}``.
    """
    aliases = [name for name in record if name == "anchor" or _NEGATIVE.fullmatch(name)]
    if not aliases:
        return record, {}
    row = {name: value for name, value in record.items() if value is not None or name not in aliases}
    own_names: dict[str, str] = {}
    if row.get("query") is None and "anchor" in row:
        own_names["query"] = "anchor"
        row["query"] = row.pop("anchor")
    names = sorted((name for name in aliases if name in row and name != "anchor"), key=_number)
    if names and row.get("negatives") is None:
        own_names |= {f"negatives[{index}]": name for index, name in enumerate(names)}
        row["negatives"] = [row.pop(name) for name in names]
    return row, own_names


def _number(name: str) -> int:
    return int(name.partition("_")[2] or 0)
