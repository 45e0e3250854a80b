"""Optimise an Edge shard in a process of its own.

Edge holds the GIL during a call. Optimising 30,000 documents takes up to half a minute, in which no other thread and
no event loop of this process would run.
"""

from __future__ import annotations

import signal
import subprocess
from multiprocessing.spawn import get_executable
from pathlib import Path

import qdrant_edge

# Imports nothing else, so the process starts in a tenth of a second.
_CODE = """
import sys
sys.path.append(sys.argv[1])
import qdrant_edge
print("started", flush=True)
shard = qdrant_edge.EdgeShard.load(sys.argv[2])
try:
    shard.optimize()
    shard.flush()
except BaseException as error:
    sys.exit(f"{error}")
shard.close()
"""


def optimize_apart(shard: Path) -> bool:
    """Optimise a shard that is closed in this process. Blocks this thread only.

    Returns whether another Python process could be started: programs that embed Python may have none. RuntimeError if
    the process failed, or a signal ended it. The shard is then as after a crash, and can be opened.
    """
    package = Path(qdrant_edge.__file__).parent.parent
    # -I: the user's environment and folder change nothing in it.
    command = [get_executable() or "", "-I", "-c", _CODE, str(package), str(shard)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    except OSError:
        return False
    if b"started" not in done.stdout:
        return False
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        ended = f"its process was ended by {_name(-done.returncode)}" if done.returncode < 0 else text
        raise RuntimeError(f"optimising failed: {ended or f'its process exited with {done.returncode}'}")
    return True


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
