"""Write files of rows in batches, and resume after Ctrl-C, a crash or a kill.

Rows are written to ``OUT.partial``. After each batch, ``OUT.partial.json`` records the progress, the input and the
settings. ``OUT`` itself appears only when it is complete, compressed according to its suffix. Training recognises its
input and its settings by the same functions (:mod:`jcv2_trainer.training.runs`).
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from filelock import FileLock, Timeout

from jcv2_plugin.errors import Jcv2Error
from jcv2_plugin.files import new_file, parse_json, read_json, write_atomically
from jcv2_trainer.data.records import data_files
from jcv2_trainer.errors import out_of_memory

Progress = Callable[[int, int], object]
"""Called with the number of input rows done, including those of an earlier run, and the total number."""

_NAME = re.compile(r"\.jsonl(\.(gz|xz|bz2|zst))?$", re.IGNORECASE)
_VERSION = 2
_ANEW = "Start anew with --force."


class OutputError(Jcv2Error):
    """An output cannot be written or resumed. The message names the file and the remedy."""


class OutOfMemoryError(Jcv2Error):
    """The device or the machine has too little memory for the batch size. What was written before is kept."""


def file_identity(path: Path | None) -> list[list[str | int]]:
    """Return ``[path, bytes, modification time in ns, hash]`` of a training file, or of each file in a folder of them.

    In a folder in BEIR layout, these are all files.
    """
    if path is None:
        return []
    found = [path] if (path / "corpus.jsonl").is_file() else data_files(path)
    return _statuses(file for one in found for file in (one.rglob("*") if one.is_dir() else [one]))


def model_identity(name: str, role: str = "model") -> dict[str, Any]:
    """Return the name of a model, and for a folder the identity of its weights, which change if it is trained again."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return {role: name}
    return {role: str(folder.resolve()), f"{role} files": _statuses(folder.rglob("*.safetensors"))}


def _statuses(files: Iterable[Path]) -> list[list[str | int]]:
    return [_status(file) for file in sorted(files) if file.is_file()]


def _status(file: Path) -> list[str | int]:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    status = file.stat()
    return [str(file.resolve()), status.st_size, status.st_mtime_ns, digest.hexdigest()]


def difference(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return how a run's identity differs from the one it started with, and what to do; None if it does not.

    Keys that end in ``files`` hold :func:`file_identity`.
    """
    key = next((key for key in sorted({*begun, *now}) if begun.get(key) != now.get(key)), None)
    if key is None:
        return None
    old, new = begun.get(key), now.get(key)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return difference(old, new)
    if key.endswith("files"):
        changed = [str(one[0]) for one in new or [] if one not in (old or [])] or ["The list of files"]
        return (
            f"{changed[0]} has changed since the run started (path, size, time or content). Restore it, or start anew "
            "with --force."
        )
    return f"The run was started with {key} {old!r:.200}, not {new!r:.200}. Give the same value, or {_ANEW.lower()}"


class ResumableOutput:
    """An output file being written, created by :func:`open_output`.

    ``rows`` counts the input rows done, ``resumed_at`` those done in an earlier run. ``counts`` are kept when a run is
    resumed, and ``scratch`` is a folder that an interrupted run keeps.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.out = out
        self.partial, self.state, self.lock, self.scratch = (
            out.with_name(out.name + suffix) for suffix in (".partial", ".partial.json", ".partial.lock", ".index")
        )
        self.identity: dict[str, Any] = parse_json(json.dumps(identity))
        self.rows = self.resumed_at = 0
        self.counts: Counter[str] = Counter()
        self._file: IO[bytes]

    def append(self, written: Iterable[Mapping[str, Any]], rows: int) -> None:
        """Write the results of the next ``rows`` input rows to disk. ``counts`` must already include them."""
        self._file.write(b"".join(map(_as_line, written)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows += rows
        self._note()

    def _note(self) -> None:
        progress = {"rows": self.rows, "bytes": self._file.tell(), "counts": dict(self.counts)}
        write_atomically(self.state, json.dumps({"version": _VERSION, "identity": self.identity, **progress}, indent=1))

    def _begin(self, resume: bool, force: bool) -> None:
        parts = (self.partial, self.state, self.scratch)
        if links := [path for path in parts if path.is_symlink()]:
            raise OutputError(f"{links[0]} is a link, which would be written through. Remove it.")
        there = any(path.exists() for path in parts)
        if there and resume:
            self._go_on()
            return
        if there and not force:
            raise OutputError(f"{self.partial} is an unfinished run. Continue it with --resume, or {_ANEW.lower()}")
        self._remove()
        self._file = self.partial.open("xb")
        self._note()

    def _go_on(self) -> None:
        try:
            state = read_json(self.state)
            begun, done, size = dict(state["identity"]), int(state["rows"]), int(state["bytes"])
            counts = Counter({str(name): int(count) for name, count in state["counts"].items()})
            written = self.partial.stat().st_size
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise OutputError(
                f"The run cannot be resumed, because {self.partial} or {self.state.name} cannot be read ({error}). "
                f"{_ANEW}"
            ) from error
        if state.get("version") != _VERSION or written < size:
            raise OutputError(
                f"The run cannot be resumed: {self.partial} has {written:,} bytes, and {self.state.name} (version "
                f"{state.get('version')}) lists {size:,}. {_ANEW}"
            )
        if found := difference(begun, self.identity):
            raise OutputError(f"{self.partial}: {found}")
        self._file = self.partial.open("r+b")
        # Drop what was written after the last recorded batch, perhaps half a line.
        self._file.truncate(size)
        self._file.seek(size)
        self.rows = self.resumed_at = done
        self.counts = counts

    def _finish(self) -> None:
        self._file.close()
        if (opener := _OPENERS.get(self.out.suffix.lower())) is not None:
            with (
                new_file(self.out) as packed,
                self.partial.open("rb") as source,
                opener(packed, "wb") as target,
            ):
                shutil.copyfileobj(source, target)
        else:
            self.partial.replace(self.out)
        self._remove()

    def _abandon(self) -> None:
        """Keep what was done before an error, or delete the files if nothing was."""
        self._file.close()
        if not self.rows and not self.scratch.exists():
            self._remove()

    def _remove(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)


@contextmanager
def open_output(
    out: Path, identity: Mapping[str, Any], *, data: Path, resume: bool, force: bool
) -> Iterator[ResumableOutput]:
    """Open an output that is moved to ``out`` on success. On an error, what was done is kept for ``resume``.

    Args:
        out: The file, ending in .jsonl, optionally followed by .gz, .xz, .bz2 or .zst.
        identity: What must stay the same to resume a run, as JSON: input, settings, model.
        data: The input, which must not be overwritten.
        resume: Resume an interrupted run, if there is one.
        force: Replace an existing file and, without ``resume``, discard an interrupted run.

    Raises:
        OutputError: The file exists or has an unknown format, another run is writing it, or the interrupted run has
            another input or other settings.
    """
    out = out.expanduser()
    out = out.parent.resolve() / out.name
    _check_out(out, data, force)
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


def _check_out(out: Path, data: Path, force: bool) -> None:
    other = "Choose another --out"
    if not _NAME.search(out.name):
        raise OutputError(f"{out} must end in .jsonl, .jsonl.gz, .jsonl.xz, .jsonl.bz2 or .jsonl.zst. {other}.")
    if out.suffix.lower() == ".zst":
        try:
            import zstandard  # noqa: F401
        except ImportError as error:
            raise OutputError(
                f"{out}: writing .zst needs the package zstandard. Install it with: pip install zstandard"
            ) from error
    if out.exists() and data.exists() and out.samefile(data):
        raise OutputError(f"{out} is the input. {other}.")
    if out.is_dir():
        raise OutputError(f"{out} is a folder. {other}.")
    if out.exists() and not force:
        raise OutputError(f"{out} already exists. {other}, or replace it with --force.")


def _as_line(row: Mapping[str, Any]) -> bytes:
    # Table columns may hold values that JSON does not have, such as dates.
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, in an unused field
        return json.dumps(row, default=str).encode() + b"\n"


def short_of_memory(batch_size: int) -> AbstractContextManager[None]:
    """Raise ``OutOfMemoryError``, which says which option to lower, when memory runs out."""
    return out_of_memory(
        OutOfMemoryError(
            f"There is too little memory for --batch-size {batch_size}. Continue with --resume and "
            f"--batch-size {max(1, batch_size // 2)}."
        )
    )


def _open_zstd(file: IO[bytes], mode: str) -> Any:
    import zstandard

    return zstandard.open(cast("BinaryIO", file), mode)


_OPENERS: dict[str, Callable[[IO[bytes], str], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _open_zstd,
}
