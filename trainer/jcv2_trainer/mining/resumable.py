"""Write files of rows in batches, and resume after Ctrl-C, a crash or a kill.

Rows are written to ``OUT.partial``. After each batch, ``OUT.partial.json`` records the progress, the input and the
settings. ``OUT`` itself appears only when it is complete, compressed according to its suffix.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from filelock import FileLock, Timeout

from jcv2_plugin.errors import Jcv2Error
from jcv2_plugin.files import write_atomically
from jcv2_trainer.data.check import KINDS, row_faults
from jcv2_trainer.data.lines import DataError
from jcv2_trainer.data.records import data_files, normalise, read_entries, sound_record

Progress = Callable[[int, int], object]
"""Called with the number of input rows done, including those of an earlier run, and the total number."""

_NAME = re.compile(r"\.jsonl(\.(gz|xz|bz2|zst))?$", re.IGNORECASE)
_VERSION = 1


class OutputError(Jcv2Error):
    """An output cannot be written or resumed. The message names the file and the remedy."""


class OutOfMemoryError(Jcv2Error):
    """The device or the machine has too little memory for the batch size. What was written before is kept."""


def sound_rows(
    path: Path, *, skip: int = 0, needless: Collection[str] = (), passed: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a training file or folder with canonical field names, including unknown fields.

    Args:
        path: The file or folder, in any format of :mod:`jcv2_trainer.data.records`.
        skip: Number of rows to skip at the beginning.
        needless: Fields that are not checked.
        passed: Kinds of :data:`jcv2_trainer.data.check.KINDS` that are tolerated.

    Raises:
        DataError: A row has an error, or the file cannot be read.
    """
    for entry in islice(read_entries(path), skip, None):
        row, names = normalise(sound_record(entry))
        for fault in row_faults(row):
            if fault.kind not in passed and fault.field.partition("[")[0] not in needless:
                field = names.get(fault.field, fault.field)
                raise DataError(
                    f"{entry.position}: [{fault.kind}] {field}: {fault.message}. {KINDS[fault.kind][1]} "
                    f"See all errors with: jcv2-finetune check {path}"
                )
        yield row


def file_identity(path: Path) -> list[list[str | int]]:
    """Return ``[path, size in bytes, modification time in ns]`` of a file, or of each file in a folder."""
    found: list[list[str | int]] = []
    for one in data_files(path):
        found += _statuses([file for file in one.rglob("*") if file.is_file()] if one.is_dir() else [one])
    return found


def model_identity(name: str) -> str | list[list[str | int]]:
    """Return the paths, sizes and times of the weight files in a model folder, or the name of another model.

    A retrained model therefore has another identity.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    return _statuses(folder.rglob("*.safetensors"))


def _statuses(files: Iterable[Path]) -> list[list[str | int]]:
    found: list[list[str | int]] = []
    for file in sorted(files):
        status = file.stat()
        found.append([str(file.resolve()), status.st_size, status.st_mtime_ns])
    return found


class ResumableOutput:
    """An output file being written, created by :func:`open_output`.

    Attributes:
        out: The final file.
        rows: Number of input rows done.
        resumed_at: Number of them done in an earlier run.
        counts: Counters by name, kept when a run is resumed.
        scratch: Folder for other data that an interrupted run should keep. It is deleted at the end.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.out = out
        self.partial = out.with_name(out.name + ".partial")
        self.state = out.with_name(out.name + ".partial.json")
        self.lock = out.with_name(out.name + ".partial.lock")
        self.scratch = out.with_name(out.name + ".index")
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.rows = self.resumed_at = 0
        self.counts: Counter[str] = Counter()
        self._file: IO[bytes] | None = None

    def append(self, written: Iterable[Mapping[str, Any]], rows: int) -> None:
        """Write the results of the next ``rows`` input rows to disk. ``counts`` must already include them."""
        assert self._file is not None
        self._file.write(b"".join(_as_line(row) for row in written))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows += rows
        self._note()

    def _note(self) -> None:
        assert self._file is not None
        state = {
            "version": _VERSION,
            "identity": self.identity,
            "rows": self.rows,
            "bytes": self._file.tell(),
            "counts": dict(self.counts),
        }
        write_atomically(self.state, json.dumps(state, indent=1))

    def _begin(self, resume: bool, force: bool) -> None:
        there = self.partial.exists() or self.state.exists() or self.scratch.exists()
        if there and not resume and not force:
            raise OutputError(
                f"{self.partial} is left of a run that was stopped. Go on with it by --resume, or start anew with "
                "--force."
            )
        if there and resume:
            self._go_on()
            return
        self._remove()
        self._file = self.partial.open("wb")
        self._note()

    def _go_on(self) -> None:
        try:
            state = json.loads(self.state.read_text(encoding="utf-8"))
            begun, done, size = dict(state["identity"]), int(state["rows"]), int(state["bytes"])
            counts = Counter({str(name): int(count) for name, count in state["counts"].items()})
            written = self.partial.stat().st_size
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise OutputError(
                f"{self.partial} cannot be gone on with: it or {self.state.name} cannot be read ({error}). Start anew "
                "with --force."
            ) from error
        if state.get("version") != _VERSION or written < size:
            raise OutputError(
                f"{self.partial} has {written:,} bytes and {self.state.name} (version {state.get('version')}) speaks "
                f"of {size:,}, so they do not belong together. Start anew with --force."
            )
        for key in sorted(begun.keys() | self.identity.keys()):
            if begun.get(key) != self.identity.get(key):
                raise OutputError(f"{self.partial}: {_difference(key, begun.get(key), self.identity.get(key))}")
        self._file = self.partial.open("r+b")
        # Drop what was written after the last recorded batch, perhaps half a line.
        self._file.truncate(size)
        self._file.seek(size)
        self.rows = self.resumed_at = done
        self.counts = counts

    def _finish(self) -> None:
        self._close()
        suffix = self.out.suffix.lower()
        if suffix in _WRITERS:
            packed = self.out.with_name(self.out.name + ".packing")
            try:
                with packed.open("wb") as target, self.partial.open("rb") as source:
                    _WRITERS[suffix](source, target)
                    target.flush()
                    os.fsync(target.fileno())
                packed.replace(self.out)
            finally:
                packed.unlink(missing_ok=True)
        else:
            self.partial.replace(self.out)
        self._remove()

    def _abandon(self) -> None:
        """Keep what was done before an error, or delete the files if nothing was."""
        self._close()
        if not self.rows and not self.scratch.exists():
            self._remove()

    def _remove(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()


@contextmanager
def open_output(
    out: Path, identity: Mapping[str, Any], *, inputs: Sequence[Path], resume: bool, force: bool
) -> Iterator[ResumableOutput]:
    """Open an output that is moved to ``out`` on success. On an error, what was done is kept for ``resume``.

    Args:
        out: The file, ending in .jsonl, optionally followed by .gz, .xz, .bz2 or .zst.
        identity: What must stay the same to resume a run, as JSON: input, settings, model.
        inputs: Files that must not be overwritten.
        resume: Resume an interrupted run, if there is one.
        force: Replace an existing file and, without ``resume``, discard an interrupted run.

    Raises:
        OutputError: The file exists or has an unknown format, another run is writing it, or the interrupted run has
            another input or other settings.
    """
    out = out.expanduser()
    out = out.parent.resolve() / out.name
    _check_out(out, inputs, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    output = ResumableOutput(out, identity)
    lock = FileLock(output.lock, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(f"Another run is writing {output.partial}. Wait for it, or choose another --out.") from error
    try:
        output._begin(resume, force)
        try:
            yield output
        except BaseException:
            output._abandon()
            raise
        output._finish()
    finally:
        lock.release()
        with suppress(OSError):
            output.lock.unlink(missing_ok=True)


def _check_out(out: Path, inputs: Sequence[Path], force: bool) -> None:
    if not _NAME.search(out.name):
        raise OutputError(
            f"{out} is not the name of JSON lines. Let it end in .jsonl, .jsonl.gz, .jsonl.xz, .jsonl.bz2 or "
            ".jsonl.zst."
        )
    if out.suffix.lower() == ".zst":
        try:
            import zstandard  # noqa: F401
        except ImportError as error:
            raise OutputError(
                f"{out}: writing .zst needs the package zstandard. Install it with: pip install zstandard"
            ) from error
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise OutputError(f"{out} is the input. Choose another --out.")
    if out.is_dir():
        raise OutputError(f"{out} is a folder. Choose another --out.")
    if out.exists() and not force:
        raise OutputError(f"{out} is there already. Choose another --out, or replace it with --force.")


def _difference(key: str, begun: Any, now: Any) -> str:
    way_out = "Give the same again, or start anew with --force."
    if key.endswith("files"):
        changed = [str(one[0]) for one in now or [] if one not in (begun or [])] or ["the list of files"]
        return f"{changed[0]} is not what the run was begun with (path, size or time differ). {way_out}"
    if isinstance(begun, dict) and isinstance(now, dict):
        names = [name for name in sorted(begun.keys() | now.keys()) if begun.get(name) != now.get(name)]
        return _difference(names[0], begun.get(names[0]), now.get(names[0]))
    return f"the run was begun with {key} {begun!r:.80}, not {now!r:.80}. {way_out}"


def _as_line(row: Mapping[str, Any]) -> bytes:
    # Table columns may hold values that JSON does not have, such as dates.
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, in an unused field
        return json.dumps(row, default=str).encode() + b"\n"


@contextmanager
def short_of_memory(batch_size: int) -> Iterator[None]:
    """Convert out-of-memory errors to one that says which option to lower.

    Raises:
        OutOfMemoryError: PyTorch or Python is out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        known = ("out of memory", "can't allocate memory", "cannot allocate memory")
        if not isinstance(error, MemoryError) and not any(one in text for one in known):
            raise
        raise OutOfMemoryError(
            f"There is too little memory for --batch-size {batch_size}. Go on with --resume and "
            f"--batch-size {max(1, batch_size // 2)}."
        ) from error


def _copier(opener: Callable[..., Any]) -> Callable[[IO[bytes], IO[bytes]], None]:
    def copy(source: IO[bytes], target: IO[bytes]) -> None:
        with opener(target, "wb") as packed:
            shutil.copyfileobj(source, packed)

    return copy


def _zstd(source: IO[bytes], target: IO[bytes]) -> None:
    import zstandard

    zstandard.ZstdCompressor().copy_stream(source, target)


_WRITERS: dict[str, Callable[[IO[bytes], IO[bytes]], None]] = {
    ".gz": _copier(cast("Callable[..., Any]", gzip.open)),
    ".xz": _copier(cast("Callable[..., Any]", lzma.open)),
    ".bz2": _copier(cast("Callable[..., Any]", bz2.open)),
    ".zst": _zstd,
}
