"""What the commands of ``jcv2-finetune`` share: options, error handling and progress bars."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from jcv2_plugin.console import message
from jcv2_plugin.errors import Jcv2Error

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells."""

RecipeFile = Annotated[Path | None, typer.Option(help="YAML file with fields of the recipe.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... Defaults to the best one available.")]


def say(text: str, *, err: bool = False) -> None:
    """Print a line that may quote foreign text: names, texts of rows, errors. It cannot control the terminal."""
    typer.echo(message(text), err=err)


def with_pooling(factor: float) -> str:
    """Return what follows a dimension in a line of figures: nothing, or the token pooling factor."""
    return "" if factor == 1 else f", pooled by {factor:g}"


@contextmanager
def failing_politely(stopped: Callable[[], str] | None = None) -> Iterator[None]:
    """Exit with status 2 and a message on errors meant for the user, without a traceback. Warnings are one line.

    Args:
        stopped: Returns the message after Ctrl-C, which exits with status 130. None leaves Ctrl-C to Typer.
    """
    untyped: Any = warnings
    usual, untyped.formatwarning = warnings.formatwarning, lambda text, *where: f"warning: {message(str(text))}\n"
    try:
        yield
    except (Jcv2Error, OSError) as error:
        say(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        if stopped is None:
            raise
        say(stopped(), err=True)
        raise typer.Exit(INTERRUPTED) from error
    finally:
        untyped.formatwarning = usual


def quiet_libraries() -> None:
    """Import the underlying libraries and silence their progress bars and hints."""
    from jcv2_plugin.console import quiet_libraries as quiet

    quiet()


@contextmanager
def progress_bar(unit: str, total: int | None = None) -> Iterator[Any]:
    """Yield a tqdm bar that is shown on a terminal, from its first update on, and nowhere else."""
    from tqdm import tqdm

    with tqdm(total=total, unit=f" {unit}", disable=None, delay=1e-9) as bar:
        yield bar
