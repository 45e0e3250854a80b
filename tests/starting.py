"""Programs in processes of their own that need not import PyTorch and the rest anew: they are forked where it is done.

Tests of what is imported start a Python of their own.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

COMMAND = "from jcv2_plugin.cli import main\nmain()"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["sentence_transformers", "jcv2_plugin.collection.collection", "jcv2_plugin.cli.app"])


@dataclass
class Started:
    """A process, with those methods of ``subprocess.Popen`` that tests use."""

    process: BaseProcess
    stdout: IO[str]
    stderr: IO[str]
    pid: int = field(init=False)

    def __post_init__(self) -> None:
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        assert self.process.exitcode is not None, "it runs still"
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it prints until it ends, on stdout and stderr. It is killed if it does not end in time."""
        with ThreadPoolExecutor(2) as pool:
            printed, said = pool.submit(self.stdout.read), pool.submit(self.stderr.read)
            try:
                self.wait(timeout)
            except AssertionError:
                self.kill()  # which ends both reads
                raise
            return printed.result(), said.result()


def start(code: str, *arguments: object, cwd: Path | str = ".", stdin: int | None = None) -> Started:
    """Run Python code as a main program; ``stdin`` is a file descriptor."""
    (printed, stdout), (said, stderr) = (CONTEXT.Pipe(duplex=False) for _ in range(2))
    given = Connection(os.open(os.devnull, os.O_RDONLY) if stdin is None else os.dup(stdin), writable=False)
    theirs = (given, stdout, stderr)
    words = [str(one) for one in arguments]
    process = CONTEXT.Process(target=_main, args=(code, words, str(Path(cwd).absolute()), theirs))
    process.start()
    for pipe in theirs:
        pipe.close()
    return Started(process, *(os.fdopen(os.dup(pipe.fileno()), encoding="utf-8") for pipe in (printed, said)))


def run(code: str, *arguments: object, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same, to its end."""
    started = start(code, *arguments, **options)
    printed, said = started.communicate(timeout)
    return subprocess.CompletedProcess([*map(str, arguments)], started.wait(), printed, said)


def _main(code: str, words: list[str], cwd: str, pipes: tuple[Connection, ...]) -> None:
    for number, pipe in enumerate(pipes):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, 1) for number, mode in enumerate("rww"))
    os.chdir(cwd)
    sys.argv = ["jcv2", *words]
    try:
        exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()
