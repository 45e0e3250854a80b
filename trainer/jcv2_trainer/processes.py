"""Identify the main process in distributed training."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Return whether this is the process that writes, of those started by torchrun or accelerate.

    Works before the process group is initialised.
    """
    return int(os.environ.get("RANK", "0")) == 0
