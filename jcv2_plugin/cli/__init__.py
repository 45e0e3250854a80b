"""The command ``jcv2``: index files, search them, see why something matched, evaluate a model."""

from __future__ import annotations

import sys

from jcv2_plugin.cli.app import app
from jcv2_plugin.errors import Jcv2Error

__all__ = ["app", "main"]


def main() -> None:
    """Run the command; errors of ours end it with a message and status 1, without a traceback."""
    try:
        app()
    except Jcv2Error as error:
        from rich.console import Console

        Console(stderr=True).print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
