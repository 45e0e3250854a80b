"""Record the machine and package versions of a measurement."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    *("jcv2-plugin", "torch", "transformers", "sentence-transformers"),
    *("pytrec-eval-terrier", "bm25s", "numpy"),
)


def machine() -> dict[str, Any]:
    """Return the CPU's name, the number of cores available to this process, and the GPU, if there is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    return {**found, "gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else found


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
    """Return seconds for measuring durations, once an accelerator has finished its queued work.

    They are this thread's CPU time if it does all the work, else wall-clock time.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.thread_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()
