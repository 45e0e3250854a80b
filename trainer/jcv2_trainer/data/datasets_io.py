"""Load training files as a memory-mapped ``datasets.Dataset``, and split off a dev set."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jcv2_plugin.files import read_json
from jcv2_trainer.data.check import text_key
from jcv2_trainer.data.lines import DataError
from jcv2_trainer.data.reading import OnBad, read_rows
from jcv2_trainer.data.records import file_state

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("query", "positive", "negatives", "scores", "lang", "source", "query_key", "positive_key")

_LAYOUT = 2  # increment it when the columns or the rules for valid rows change, to invalidate older caches
_BATCH = 500  # rows in memory while writing


def training_dataset(
    paths: Sequence[Path], cache: Path, *, on_bad: OnBad, languages: Sequence[str] | None = None
) -> tuple[Dataset, dict[str, int]]:
    """Load the valid rows of files of any supported format as a memory-mapped dataset, in the files' order.

    The files are read once and cached, see :func:`cached_rows`. ``languages`` keeps only rows with one of these
    ``lang`` values; "" selects rows without one.

    Returns:
        The dataset with ``COLUMNS``, and the number of skipped rows by kind: those of ``check.KINDS``, and
        "other-language". ``scores`` are empty lists without scores, and the keys are
        :func:`jcv2_trainer.data.check.text_key` of the texts (int64).

    Raises:
        DataError: A file cannot be read or changes while being read, a row has errors (with ``"stop"``), or no rows are
            left.
        ValueError: There are no paths, or ``languages`` is empty.
    """
    if not paths:
        raise ValueError("Give at least one training file.")
    if languages is not None and (isinstance(languages, str) or not languages):
        raise ValueError(f"languages must be a list of at least one language, or None for all; got {languages!r}.")
    wanted = None if languages is None else sorted(set(languages))
    types = ("string", "string", "texts", "scores", "string", "string", "int64", "int64")
    return cached_rows(
        paths,
        cache,
        {"on_bad": on_bad, "languages": wanted},
        dict(zip(COLUMNS, types, strict=True)),
        lambda skipped: _training_rows(paths, on_bad, wanted, skipped),
    )


def _training_rows(
    paths: Iterable[Path], on_bad: OnBad, languages: list[str] | None, skipped: Counter[str]
) -> Iterator[dict[str, Any]]:
    others: Counter[str] = Counter()
    kept = 0
    for row in (row for path in paths for row in read_rows(path, on_bad=on_bad, skipped=skipped)):
        if languages is not None and row.lang not in languages:
            others[row.lang] += 1
            skipped["other-language"] += 1
            continue
        kept += 1
        keys = (text_key(row.query), text_key(row.positive))
        values = (row.query, row.positive, row.negatives, row.scores or (), row.lang, row.source, *keys)
        yield dict(zip(COLUMNS, values, strict=True))
    if kept:
        return
    message = f"{', '.join(map(str, paths))}: no row is left to train on."
    if skipped:
        message += " Skipped: " + ", ".join(f"{kind} {rows:,}" for kind, rows in skipped.most_common()) + "."
    if others:
        there = ", ".join(f"{name or '(none)'} {rows:,}" for name, rows in others.most_common(12))
        message += f" The requested languages are {', '.join(languages or [])}; the files have: {there}."
    raise DataError(f"{message} See what is in a file with: jcv2-finetune check FILE")


def cached_rows(
    paths: Sequence[Path],
    cache: Path,
    options: dict[str, Any],
    columns: dict[str, str],
    rows: Callable[[Counter[str]], Iterator[dict[str, Any]]],
) -> tuple[Dataset, dict[str, int]]:
    """Write rows made from files to a folder in ``cache``, and load them as a memory-mapped dataset.

    The folder is reused as long as the options and the files' paths, sizes and modification times stay the same. If
    several processes want the same one, one writes it and the others wait.

    Args:
        paths: The files that the rows are made from.
        cache: Cache folder, created if missing.
        options: What the rows depend on besides the files, as JSON.
        columns: Arrow type of each column, or "texts", "scores" (lists of float64) or "tokens" (lists of uint32).
        rows: Yields the rows, and counts in its argument what there is to count. The counts are returned too.

    Raises:
        DataError: A file cannot be read or changes while being read, or the package datasets is missing.
    """
    try:
        from datasets import Dataset
        from filelock import FileLock
    except ImportError as error:
        raise DataError(
            "Training needs the package datasets. Install it with: pip install 'jcv2-plugin[train]'"
        ) from error
    state = file_state(paths)
    identity = json.dumps([_LAYOUT, state, options, columns])
    folder = cache / f"rows-{hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()}"
    scratch = cache / f".{folder.name}.unfinished"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):
        if (counts := _counts(folder)) is None:
            for leftover in (scratch, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            scratch.mkdir()
            try:
                counts = _write(scratch, columns, rows)
                if file_state(paths) != state:
                    raise DataError(
                        f"{', '.join(map(str, paths))} changed while being read. Start again when it is complete."
                    )
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return Dataset.from_file(str(folder / "rows.arrow")), counts


def _counts(folder: Path) -> dict[str, int] | None:
    """Read the counts of a complete folder. Return None if it is missing or damaged."""
    try:
        written = read_json(folder / "counts.json")
        whole = (folder / "rows.arrow").stat().st_size == written["bytes"]
        return dict(written["counts"]) if whole else None
    except (OSError, ValueError, KeyError):
        return None


def _write(
    folder: Path, columns: dict[str, str], rows: Callable[[Counter[str]], Iterator[dict[str, Any]]]
) -> dict[str, int]:
    import pyarrow as pa
    from tqdm import tqdm

    types = {"texts": pa.list_(pa.string()), "scores": pa.list_(pa.float64()), "tokens": pa.list_(pa.uint32())}
    schema = pa.schema([(name, types.get(kind, kind)) for name, kind in columns.items()])
    counter: Counter[str] = Counter()
    left = iter(tqdm(rows(counter), unit=" rows", desc="reading", disable=None, delay=1))
    with (folder / "rows.arrow").open("wb") as sink:
        with pa.ipc.new_stream(sink, schema) as writer:
            while batch := list(islice(left, _BATCH)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
        sink.flush()
        os.fsync(sink.fileno())
        size = sink.tell()
    counts = dict(counter.most_common())
    (folder / "counts.json").write_text(json.dumps({"bytes": size, "counts": counts}), encoding="utf-8")
    return counts


def split_dev(dataset: Dataset, share: float = 0.05, most: int = 500, seed: int = 13) -> tuple[list[int], list[int]]:
    """Split off a dev set whose queries and positives do not occur as queries and positives of the other rows.

    Rows with the same positive stay together. Rows outside the dev set that share a query with it (with another
    positive) are in neither list. They are at most as many as the target size of the dev set, because positives that
    would cost more are not drawn. The dev set is smaller than its target, ``share`` of the rows but at most ``most``,
    or empty, if too few are small enough. The same seed draws the same rows.

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
    if not rows or not share or not most:
        return list(range(rows)), []
    keys = dataset.select_columns(["query_key", "positive_key"]).with_format("numpy")[:]
    queries, positives = (np.unique(keys[name], return_inverse=True)[1].reshape(-1) for name in keys)
    sizes = np.bincount(positives)
    pairs = np.unique(np.stack([positives, queries]), axis=1)
    # Of each positive: the rows of all its queries, less its own.
    costs = np.bincount(pairs[0], weights=np.bincount(queries)[pairs[1]]).astype(np.int64) - sizes
    drawn: list[int] = []
    room = lossable = min(most, max(1, round(share * rows)))
    for positive in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if room and sizes[positive] <= room and costs[positive] <= lossable:
            drawn.append(positive)
            room -= int(sizes[positive])
            lossable -= int(costs[positive])
    dev = np.isin(positives, drawn)
    train = ~dev & ~np.isin(queries, queries[dev])
    return np.flatnonzero(train).tolist(), np.flatnonzero(dev).tolist()
