"""Workers as seen by the driver: a process each, asked one thing at a time."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from peer_environments import PEERS, PINS, PeerUnavailableError, python_of

_TAIL = 600


class WorkerError(PeerUnavailableError):
    """A worker that could not do what it was asked for."""


class Worker:
    """One engine in a process of its own; a context manager.

    Args:
        name: To be told by.
        peer: One of :data:`peer_environments.PEERS`.
        threads: For all libraries that listen to an environment variable.

    Raises:
        PeerUnavailableError: The peer cannot be installed.
    """

    def __init__(self, name: str, peer: str, threads: int) -> None:
        self.name = name
        self.threads = threads
        python = python_of(PEERS[peer])
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
        self._process = subprocess.Popen(
            [str(python), str(PEERS[peer].worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=PINS,
            env={**os.environ, **limits, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def load(self, model: Path | None) -> dict[str, Any]:
        """Have the engine ready; its seconds and the versions of its packages."""
        return self.ask("load", model=None if model is None else str(model), threads=self.threads)

    def ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        """What the worker answers.

        Raises:
            WorkerError: It failed, or ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            raise WorkerError(f"{self.name} ended with {code} in {method!r}: {self._log.read()[-_TAIL:].strip()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name} failed in {method!r}: {answer['error'][:_TAIL]}")
        result: dict[str, Any] = answer["result"]
        return result
