"""The ``jcv2`` command: index and search files, explain matches, evaluate models, and manage collections."""

from __future__ import annotations

import sys

from jcv2_plugin.cli.app import app
from jcv2_plugin.errors import Jcv2Error

__all__ = ["app", "main"]


def main() -> None:
    """Run the command. Our exceptions and ``OSError`` end it with a message and status 1, without a traceback."""
    try:
        app()
    except (Jcv2Error, OSError) as error:
        from rich.text import Text

        from jcv2_plugin.console import CleanConsole, message

        said = Text.assemble(("error:", "bold red"), " ", message(str(error)))
        CleanConsole(stderr=True).print(said, soft_wrap=True)
        sys.exit(1)
