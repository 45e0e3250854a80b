"""Run examples one after the other in this process, each as a main program in an empty folder.

    python examples_runner.py EXAMPLES NAME...

Prints a JSON line for each: its name, what it printed to stdout, a traceback if it failed, and the files it left.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
import traceback
from typing import Any


def run(path: str) -> dict[str, Any]:
    """One example. Also what the processes that it starts print is caught."""
    failure = ""
    stdout = os.dup(1)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        os.chdir(folder)
        os.dup2(printed.fileno(), 1)
        sys.argv = [path]
        try:
            runpy.run_path(path, run_name="__main__")
        except BaseException:
            failure = traceback.format_exc()
        finally:
            sys.stdout.flush()
            os.dup2(stdout, 1)
            os.close(stdout)
        left = os.listdir(folder)
        os.chdir(os.path.dirname(path))
        printed.seek(0)
        return {"printed": printed.read(), "failure": failure, "left": left}


if __name__ == "__main__":
    root, *names = sys.argv[1:]
    for name in names:
        print(json.dumps({"name": name, **run(os.path.join(root, name))}), flush=True)
