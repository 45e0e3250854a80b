"""Load training files as a memory-mapped ``datasets.Dataset``, and split off a dev set."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jcv2_trainer.data.check import text_key
from jcv2_trainer.data.lines import DataError
from jcv2_trainer.data.records import data_files
from jcv2_trainer.data.rows import OnBad, Row, read_rows

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("query", "positive", "negatives", "scores", "lang", "source", "query_key", "positive_key")

_LAYOUT = 1  # increment it when the columns or the rules for valid rows change, to invalidate older caches
_BATCH_ROWS = 1000
_BATCH_CHARACTERS = 2**24


def training_dataset(
    paths: Sequence[Path], cache: Path, *, on_bad: OnBad, languages: Sequence[str] | None = None
) -> tuple[Dataset, dict[str, int]]:
    """Load the valid rows of files of any supported format as a memory-mapped dataset, in the files' order.

    The files are read once and written to a folder in ``cache``. It is reused as long as the options and the files'
    paths, sizes and modification times stay the same. Only complete folders are reused. If several processes want the
    same one, one writes it and the others wait. Folders of files that have changed since are not removed.

    Args:
        paths: Files or folders that :mod:`jcv2_trainer.data.records` can read.
        cache: Cache folder, created if missing.
        on_bad: How to handle rows with errors: ``"stop"`` raises, ``"skip"`` skips and counts them.
        languages: Keep only rows with one of these ``lang`` values. "" selects rows without one.

    Returns:
        The dataset with ``COLUMNS``, and the number of skipped rows by kind: those of ``check.KINDS``, and
        "other-language". ``negatives`` are lists of texts, ``scores`` are lists of floats (empty without scores), and
        the keys are :func:`jcv2_trainer.data.check.text_key` of the texts (int64).

    Raises:
        DataError: A file cannot be read or changes while being read, a row has errors (with ``"stop"``), or no rows are
            left.
        ValueError: There are no paths, or ``languages`` is empty.
    """
    if not paths:
        raise ValueError("Give at least one training file.")
    if languages is not None and (isinstance(languages, str) or not languages):
        raise ValueError(f"languages must be a list of at least one language, or None for all; got {languages!r}.")
    _require_datasets()
    from filelock import FileLock

    wanted = None if languages is None else sorted(set(languages))
    state = _state(paths)
    key = _digest({"layout": _LAYOUT, "files": state, "on_bad": on_bad, "languages": wanted})
    cache.mkdir(parents=True, exist_ok=True)
    finished = cache / f"rows-{key}"
    with FileLock(cache / f".rows-{key}.lock"):
        if (found := _load(finished)) is not None:
            return found
        scratch = cache / f".rows-{key}.unfinished"
        for leftover in (scratch, finished):
            shutil.rmtree(leftover, ignore_errors=True)
        scratch.mkdir()
        try:
            _write(scratch, paths, on_bad, wanted)
            if _state(paths) != state:
                raise DataError(f"{', '.join(map(str, paths))} changed while being read. Start again when it is whole.")
            scratch.rename(finished)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if (written := _load(finished)) is None:
            raise DataError(f"{finished} cannot be read back. Check the disk, or choose another folder for the cache.")
        return written


def _require_datasets() -> None:
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise DataError(
            "Training needs the package datasets. Install it with: pip install 'jcv2-plugin[train]'"
        ) from error


def _state(paths: Iterable[Path]) -> list[list[Any]]:
    """Return the path, size in bytes and modification time in nanoseconds of each file to read."""
    state: list[list[Any]] = []
    for file in chain.from_iterable(map(data_files, paths)):
        for part in sorted(file.glob("*.*")) if file.is_dir() else [file]:
            status = part.stat()
            state.append([str(part.resolve()), status.st_size, status.st_mtime_ns])
    return state


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()


def _load(folder: Path) -> tuple[Dataset, dict[str, int]] | None:
    """Load the dataset and counts of a complete folder. Return None if it is missing or damaged."""
    from datasets import Dataset

    try:
        written = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        if (folder / "rows.arrow").stat().st_size != written["bytes"]:
            return None
        return Dataset.from_file(str(folder / "rows.arrow")), written["skipped"]
    except (OSError, ValueError, KeyError):
        return None


def _write(folder: Path, paths: Iterable[Path], on_bad: OnBad, languages: list[str] | None) -> None:
    import pyarrow as pa
    from tqdm import tqdm

    skipped: Counter[str] = Counter()
    others: Counter[str] = Counter()
    written = 0
    rows = chain.from_iterable(read_rows(path, on_bad=on_bad, skipped=skipped) for path in paths)
    kept = (row for row in rows if _is_wanted(row, languages, others))
    file = folder / "rows.arrow"
    with (
        tqdm(unit=" rows", desc="reading", disable=None, delay=1) as bar,
        file.open("wb") as sink,
        pa.ipc.new_stream(sink, _schema()) as writer,
    ):
        for batch in _batches(kept):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=_schema()))
            written += len(batch)
            bar.update(len(batch))
    skipped += Counter({"other-language": others.total()})
    if not written:
        raise DataError(_no_rows(paths, languages, skipped, others))
    with file.open("rb") as whole:
        os.fsync(whole.fileno())
    counts = {"bytes": file.stat().st_size, "rows": written, "skipped": dict(skipped.most_common())}
    (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")


def _schema() -> Any:
    import pyarrow as pa

    text, texts = pa.string(), pa.list_(pa.string())
    types = (text, text, texts, pa.list_(pa.float64()), text, text, pa.int64(), pa.int64())
    return pa.schema(list(zip(COLUMNS, types, strict=True)))


def _is_wanted(row: Row, languages: list[str] | None, others: Counter[str]) -> bool:
    if languages is None or row.lang in languages:
        return True
    others[row.lang] += 1
    return False


def _batches(rows: Iterable[Row]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    characters = 0
    for row in rows:
        batch.append(_columns(row))
        characters += len(row.query) + len(row.positive) + sum(map(len, row.negatives))
        if len(batch) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _columns(row: Row) -> dict[str, Any]:
    return {
        "query": row.query,
        "positive": row.positive,
        "negatives": row.negatives,
        "scores": row.scores or (),
        "lang": row.lang,
        "source": row.source,
        "query_key": text_key(row.query),
        "positive_key": text_key(row.positive),
    }


def _no_rows(paths: Iterable[Path], languages: list[str] | None, skipped: Counter[str], others: Counter[str]) -> str:
    names = ", ".join(map(str, paths))
    message = f"{names}: no row is left to train on."
    if skipped:
        message += " Skipped: " + ", ".join(f"{kind} {rows:,}" for kind, rows in skipped.most_common()) + "."
    if others:
        there = ", ".join(f"{name or '(none)'} {rows:,}" for name, rows in others.most_common(12))
        message += f" The languages wanted are {', '.join(languages or [])}; there are: {there}."
    return message + " See what is there with: jcv2-finetune check FILE"


def split_dev(dataset: Dataset, share: float = 0.05, most: int = 500, seed: int = 13) -> tuple[list[int], list[int]]:
    """Split off a dev set whose queries and positives do not occur as queries and positives of the other rows.

    Rows with the same positive stay together. Rows outside the dev set that share a query with it (with another
    positive) are in neither list. Their number is ``len(dataset) - len(train) - len(dev)``, and at most the target size
    of the dev set, because groups that would cost more are not drawn. The dev set is smaller than its target, or empty,
    if too few groups are small enough.

    Args:
        dataset: A dataset from :func:`training_dataset`, or rows selected from it.
        share: Target size of the dev set as a share of the rows, at least one row. 0 for none.
        most: Maximum target size, in rows.
        seed: Random seed. The same seed draws the same rows from the same dataset.

    Returns:
        The indices of the training rows and of the dev rows, both ascending.

    Raises:
        ValueError: ``share`` is not in [0, 1), or ``most`` is negative.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be at least 0 and less than 1, got {share!r}.")
    if most < 0:
        raise ValueError(f"most must not be negative, got {most!r}.")
    rows = len(dataset)
    target = min(most, max(1, round(share * rows))) if share else 0
    keys = dataset.select_columns(["query_key", "positive_key"]).with_format("numpy")[:]
    queries, positives = (
        np.unique(keys[name], return_inverse=True)[1].reshape(-1) for name in ("query_key", "positive_key")
    )
    dev = np.isin(positives, _draw_groups(queries, positives, target, seed)) if rows else np.zeros(0, bool)
    train = ~dev & ~np.isin(queries, queries[dev])
    return np.flatnonzero(train).tolist(), np.flatnonzero(dev).tolist()


def _draw_groups(queries: NDArray[np.int64], positives: NDArray[np.int64], target: int, seed: int) -> list[int]:
    """Draw positives at random, with at most ``target`` rows in total.

    At most ``target`` other rows share a query with these rows.

    Args:
        queries: Query numbers from 0, shape ``(rows,)``.
        positives: Positive numbers from 0, shape ``(rows,)``.
    """
    sizes = np.bincount(positives)
    pairs = np.unique(np.stack([positives, queries]), axis=1)
    with_query = np.bincount(pairs[0], weights=np.bincount(queries)[pairs[1]])
    costs = with_query.astype(np.int64) - sizes
    drawn: list[int] = []
    room, lossable = target, target
    for group in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if not room:
            break
        if sizes[group] <= room and costs[group] <= lossable:
            drawn.append(group)
            room -= int(sizes[group])
            lossable -= int(costs[group])
    return drawn
