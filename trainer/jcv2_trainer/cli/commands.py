"""What the commands of ``jcv2-finetune`` have in common: how they fail, and what they keep quiet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from jcv2_plugin.errors import Jcv2Error

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


@contextmanager
def failing_politely(stopped: Callable[[], str] | None = None) -> Iterator[None]:
    """Errors that have a message for the user end the command with it and status 2, and without a traceback.

    Args:
        stopped: What to say after Ctrl-C, with status 130; None leaves it to Typer.
    """
    try:
        yield
    except (Jcv2Error, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        if stopped is None:
            raise
        typer.echo(stopped(), err=True)
        raise typer.Exit(INTERRUPTED) from error


def quiet_libraries() -> None:
    """Keep loading bars and advice of the libraries below out of the output; imports them."""
    from jcv2_plugin.console import quiet_libraries as quiet

    quiet()
