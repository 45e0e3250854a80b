"""Which of several processes this is."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this is the process that writes, of those that torchrun or accelerate started; also before they meet."""
    return int(os.environ.get("RANK", "0")) == 0
