"""Read records of training files in any supported format, and normalise their field names.

Supported are JSON lines (plain, .gz, .xz, .bz2, .zst), Parquet, a folder written by ``datasets.Dataset.save_to_disk``
(for a ``DatasetDict``, its split "train" is read), and a folder that contains only JSON-lines and Parquet files, which
are read in the order of their names. All are read lazily.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jcv2_trainer.data.lines import DataError, parse_json, read_lines

Unit = Literal["line", "row"]

_BATCH = 256  # rows of a table held in memory at once
_FORMATS = (
    "Give JSON lines (.jsonl, also with .gz, .xz, .bz2, .zst), Parquet (.parquet), "
    "a folder of such files, or a folder saved by datasets"
)
_JSON_LINES = re.compile(r"\.jsonl(\.(gz|xz|bz2|zst))?$", re.IGNORECASE)
_NEGATIVE = re.compile(r"negative(?:_([0-9]{1,6}))?")


class NoRecord(NamedTuple):
    """Placeholder for a line that is not a record.

    Attributes:
        kind: ``"bad-json"`` or ``"not-an-object"``.
        message: What is wrong.
    """

    kind: str
    message: str


class Entry(NamedTuple):
    """A non-blank line of a JSON-lines file, or a row of a table.

    Attributes:
        file: The file, or the folder of a saved dataset.
        unit: What ``number`` counts.
        number: Line or row number, from 1.
        value: The record, with field names as in the file.
    """

    file: Path
    unit: Unit
    number: int
    value: dict[str, Any] | NoRecord

    @property
    def position(self) -> str:
        """The entry's position, for messages."""
        return position_of(self.file, self.unit, self.number)


def position_of(file: Path | str, unit: Unit, number: int) -> str:
    """Return ``file:3`` for a line, ``file row 3`` for a row."""
    return f"{file}:{number}" if unit == "line" else f"{file} row {number}"


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line or row number from 1, record)`` of a file or folder of any format.

    Raises:
        DataError: A line is not a JSON object, or the file cannot be read.
    """
    return ((entry.number, sound_record(entry)) for entry in read_entries(path))


def sound_record(entry: Entry) -> dict[str, Any]:
    """Return the record of an entry.

    Raises:
        DataError: The entry is not a record.
    """
    if not isinstance(entry.value, NoRecord):
        return entry.value
    if entry.value.kind == "bad-json":
        raise DataError(f"{entry.position}: not valid JSON ({entry.value.message}).")
    raise DataError(f"{entry.position}: {entry.value.message}.")


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file or folder of any format, including lines that are not records.

    Raises:
        DataError: The file does not exist, or cannot be read or decompressed.
    """
    for file in data_files(path):
        if file.is_dir():
            yield from _saved_dataset(file)
        elif _is_parquet(file):
            yield from _parquet(file)
        else:
            yield from json_lines(file)


def data_files(path: Path) -> list[Path]:
    """Return what to read for ``path``: itself, the files in it, or the folder of a dataset's split "train".

    Raises:
        DataError: ``path`` does not exist, or is a folder with other content than data.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist. {_FORMATS}.")
    if not path.is_dir():
        return [path]
    if (path / "dataset_dict.json").is_file():
        return [_train_split(path)]
    if (path / "dataset_info.json").is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    for file in files:
        if not (file.is_file() and (_is_parquet(file) or _JSON_LINES.search(file.name))):
            raise DataError(
                f"{path} is no dataset saved by datasets, and {file.name} in it is neither .jsonl nor .parquet. "
                f"{_FORMATS}."
            )
    if not files:
        raise DataError(f"{path} is an empty folder. {_FORMATS}.")
    return files


def _train_split(path: Path) -> Path:
    try:
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}/dataset_dict.json cannot be read ({error}). Save the dataset again.") from error
    if "train" not in splits:
        raise DataError(
            f"{path} has no split 'train'. It has: {', '.join(splits) or 'no splits'}. "
            "Give the folder of one of them, which is inside."
        )
    return path / "train"


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


def json_lines(file: Path) -> Iterator[Entry]:
    """Yield the non-blank lines of a JSON-lines file.

    Raises:
        DataError: The file does not exist, or cannot be read or decompressed.
    """
    for number, line in read_lines(file):
        value: Any
        try:
            value = parse_json(line)
        except ValueError as error:
            value = NoRecord("bad-json", str(error))
        if not isinstance(value, (dict, NoRecord)):
            value = NoRecord("not-an-object", f"expected a JSON object, got {type(value).__name__}")
        yield Entry(file, "line", number, value)


def _parquet(file: Path) -> Iterator[Entry]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise _missing(file, "Parquet") from error

    def batches() -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield from table.iter_batches(batch_size=_BATCH)

    yield from _rows(file, batches())


def _saved_dataset(folder: Path) -> Iterator[Entry]:
    try:
        import datasets
    except ImportError as error:
        raise _missing(folder, "a saved dataset") from error

    def batches() -> Iterator[Any]:
        dataset = datasets.load_from_disk(str(folder), keep_in_memory=False)
        # As Arrow, to avoid decoding columns of images or audio.
        yield from dataset.with_format("arrow").iter(batch_size=_BATCH)

    yield from _rows(folder, batches())


def _rows(file: Path, batches: Iterable[Any]) -> Iterator[Entry]:
    """Yield the rows of Arrow batches or tables."""
    number = 0
    try:
        for batch in batches:
            for record in batch.to_pylist():
                number += 1
                yield Entry(file, "row", number, record)
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError) as error:  # Arrow's errors are subclasses
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"{file}: cannot be read after row {number} ({reason}). Check its permissions, and write it again."
        ) from error


def _missing(file: Path, what: str) -> DataError:
    return DataError(
        f"{file}: reading {what} needs the package datasets. Install it with: pip install 'jcv2-plugin[train]'"
    )


def normalise(record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Rename the fields of a record to their canonical names.

    ``anchor`` becomes ``query``; ``negative``, ``negative_1``, ``negative_2``, ... become the list ``negatives``. An
    alias that is null counts as absent. If the canonical field is present too (and not null), the alias is kept
    unchanged, as an unknown field.

    Returns:
        The record, and the original names of the renamed fields, such as
        ``{"query": "anchor", "negatives[0]": "negative_1"}``.
    """
    if not any(name == "anchor" or (name.startswith("negative") and name != "negatives") for name in record):
        return record, {}
    anchors = ["anchor"] if "anchor" in record else []
    numbers = {name: int(match[1] or 0) for name in record if (match := _NEGATIVE.fullmatch(name))}
    aliases = {name for name in [*anchors, *numbers] if record[name] is None}
    own_names: dict[str, str] = {}
    renamed: dict[str, Any] = {}
    if record.get("query") is None and (given := _given(record, anchors)):
        own_names["query"] = "anchor"
        renamed["query"] = record["anchor"]
        aliases.update(given)
    if record.get("negatives") is None and (given := _given(record, sorted(numbers, key=lambda name: numbers[name]))):
        own_names |= {f"negatives[{index}]": name for index, name in enumerate(given)}
        renamed["negatives"] = [record[name] for name in given]
        aliases.update(given)
    return {name: value for name, value in record.items() if name not in aliases} | renamed, own_names


def _given(record: dict[str, Any], names: list[str]) -> list[str]:
    return [name for name in names if record[name] is not None]
