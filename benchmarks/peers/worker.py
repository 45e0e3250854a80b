"""What every worker speaks: one JSON object a line, over the standard streams.

A worker is one engine in one process, in the virtual environment of its own package. A request is ``{"method": name,
"arguments": {...}}`` and its answer ``{"result": ...}`` or ``{"error": text}``. The worker itself takes the times, so
that neither JSON nor files are in them. Nothing is imported here but numpy: each environment has that.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]


class Engine:
    """An engine under test; a subclass has those of the methods that its package can do.

    Attributes:
        packages: Whose versions are reported.
    """

    packages: tuple[str, ...] = ()

    def load(self, model: str | None, threads: int) -> None:
        """Get ready: load the checkpoint in the folder ``model`` where one is given, for so many threads."""

    def encode(self, texts: list[str], role: str, batch: int | None) -> Sequence[Any]:
        """Token vectors of queries or documents (``role``); ``batch`` None is the package's default."""
        raise NotImplementedError

    def store(self, vectors: list[Matrix], texts: list[str], folder: str, options: dict[str, Any]) -> None:
        """Make an index of vectors. ``options`` are the package's own; one without files leaves ``folder`` alone."""
        raise NotImplementedError

    def settle(self) -> None:
        """Write to disk what :meth:`store` left to be written; its time is not taken."""

    def reopen(self) -> None:
        """Open what is on disk, as a program does that starts anew. One without files has nothing to do."""

    def search(self, vectors: Matrix, text: str, k: int, effort: Any) -> list[int]:
        """Positions of the best documents for one query. ``effort`` is a setting of the package's, None its default."""
        raise NotImplementedError

    def ingest(self, texts: list[str], folder: str) -> None:
        """From texts to an index that can be searched, by the package's own means."""
        raise NotImplementedError

    def train(self, model: str, rows: list[dict[str, Any]], settings: dict[str, Any]) -> list[float]:
        """Train on triplets; the losses of all steps."""
        raise NotImplementedError


class Requests:
    """The methods that the driver calls, each taking its times."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def load(self, model: str | None, threads: int) -> dict[str, Any]:
        _, times = timed(lambda: self.engine.load(model, threads))
        return {**times, "versions": {name: version(name) for name in self.engine.packages}}

    def encode(self, texts: str, role: str, batch: int | None = None, save: str | None = None) -> dict[str, Any]:
        """All texts of a JSON file at once; the vectors go to ``save``."""
        read = json.loads(Path(texts).read_text(encoding="utf-8"))
        vectors, times = timed(lambda: self.engine.encode(read, role, batch))
        arrays = [np.asarray(one, dtype=np.float32) for one in vectors]
        if save is not None:
            write_vectors(Path(save), arrays)
        return {**times, "texts": len(read), "vectors": sum(map(len, arrays))}

    def encode_each(self, texts: str, role: str, save: str | None = None) -> dict[str, Any]:
        """One text a call; the seconds of each. The vectors go to ``save``."""
        read = json.loads(Path(texts).read_text(encoding="utf-8"))
        self.engine.encode(read[:1], role, None)
        each = [timed(lambda text=text: self.engine.encode([text], role, None)) for text in read]  # type: ignore[misc]
        if save is not None:
            write_vectors(Path(save), [np.asarray(vectors[0], dtype=np.float32) for vectors, _ in each])
        return {name: [times[name] for _, times in each] for name in ("clock", "processor")}

    def store(self, vectors: str, texts: str, folder: str, options: dict[str, Any]) -> dict[str, Any]:
        read, matrices = json.loads(Path(texts).read_text(encoding="utf-8")), read_vectors(Path(vectors))
        _, times = timed(lambda: self.engine.store(matrices, read, folder, options))
        self.engine.settle()
        found = {**times, "bytes": bytes_on_disk(Path(folder))}
        # With a search, as some read their files then only.
        _, times = timed(lambda: (self.engine.reopen(), self.engine.search(matrices[0][:32], read[0], 10, None)))
        return {**found, "opening": times["clock"]}

    def search(self, vectors: str, texts: str, k: int, effort: Any = None) -> dict[str, Any]:
        """One query after another; the seconds and the results of each."""
        read, matrices = json.loads(Path(texts).read_text(encoding="utf-8")), read_vectors(Path(vectors))
        self.engine.search(matrices[0], read[0], k, effort)
        each = [
            timed(lambda text=text, matrix=matrix: self.engine.search(matrix, text, k, effort))  # type: ignore[misc]
            for text, matrix in zip(read, matrices, strict=True)
        ]
        return {
            "found": [found for found, _ in each],
            "clock": [times["clock"] for _, times in each],
            "processor": [times["processor"] for _, times in each],
        }

    def ingest(self, texts: str, folder: str) -> dict[str, Any]:
        read = json.loads(Path(texts).read_text(encoding="utf-8"))
        _, times = timed(lambda: self.engine.ingest(read, folder))
        return {**times, "bytes": bytes_on_disk(Path(folder))}

    def train(self, model: str, rows: str, settings: dict[str, Any]) -> dict[str, Any]:
        read = json.loads(Path(rows).read_text(encoding="utf-8"))
        losses, times = timed(lambda: self.engine.train(model, read, settings))
        return {**times, "losses": losses}


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """A call's value with its seconds by the clock and of the processor, and the peak of memory in bytes."""
    forget_peak()
    clock, processor = time.perf_counter(), time.process_time()
    value = work()
    times = {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}
    return value, {**times, "peak_bytes": peak_memory()}


def forget_peak() -> None:
    """Let the peak count from now on, where the system (Linux) allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory() -> int:
    """Most resident memory so far, in bytes: since :func:`forget_peak` on Linux, of the whole life elsewhere."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def bytes_on_disk(folder: Path) -> int:
    """What the files take on disk, sparse parts not counted."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def write_vectors(file: Path, vectors: Sequence[Matrix]) -> None:
    """Matrices of one width, as one array and its parts' lengths."""
    np.savez(file, flat=np.concatenate(vectors), lengths=[len(one) for one in vectors])


def read_vectors(file: Path) -> list[Matrix]:
    """What :func:`write_vectors` wrote."""
    with np.load(file) as stored:
        return np.split(stored["flat"], np.cumsum(stored["lengths"])[:-1])


def serve(engine: Engine) -> None:
    """Answer requests until the input ends. What packages print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests = Requests(engine)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(requests, request["method"])(**request["arguments"])}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
