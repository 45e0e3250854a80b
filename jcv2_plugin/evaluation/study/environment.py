"""Record the machine and package versions of a measurement."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "jcv2-plugin",
    "torch",
    "transformers",
    "sentence-transformers",
    "pytrec-eval-terrier",
    "bm25s",
    "numpy",
)


def machine() -> dict[str, Any]:
    """Return the CPU's name, the number of cores available to this process, and the GPU, if there is one."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {
        "cpu": cpu,
        "cores": cores,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of the given packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def clock(device: torch.device) -> float:
    """Return seconds for measuring durations: this thread's CPU time if it does all the work, else wall-clock time."""
    return time.thread_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def command() -> str:
    """Return this process's command line, quoted for a shell."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
