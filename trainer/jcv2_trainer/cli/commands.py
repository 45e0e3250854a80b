"""What the commands of ``jcv2-finetune`` share: options, those of recipes, error handling and progress bars."""

from __future__ import annotations

import inspect
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer

from jcv2_plugin.console import message
from jcv2_plugin.errors import Jcv2Error
from jcv2_trainer.recipes import Recipe, load_recipe

R = TypeVar("R", bound=Recipe)

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
    except ImportError as error:
        say(f"error: more packages are needed ({error}): pip install 'jcv2-plugin[train]'", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        if stopped is None:
            raise
        say(stopped(), err=True)
        raise typer.Exit(INTERRUPTED) from error
    finally:
        untyped.formatwarning = usual


def quiet_libraries() -> None:
    """Silence the progress bars and hints of the underlying libraries."""
    from jcv2_plugin.console import quiet_libraries as quiet

    quiet()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@contextmanager
def progress_bar(unit: str, total: int | None = None) -> Iterator[Any]:
    """Yield a tqdm bar that is shown on a terminal, from its first update on, and nowhere else."""
    from tqdm import tqdm

    with tqdm(total=total, unit=f" {unit}", disable=None, delay=1e-9) as bar:
        yield bar


def recipe_command(kind: type[R], name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each field of a recipe.

    The decorated function takes its own parameters, which may include ``recipe: Path | None`` (a YAML file), and
    ``settings``, the resulting recipe, which is not an option.

    Args:
        kind: The recipe class. Its field descriptions become the help texts.
        name: The packaged recipe with the default values.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        defaults = load_recipe(kind, name)

        def command(**given: Any) -> None:
            overrides = {field: given.pop(field) for field in kind.model_fields}
            with failing_politely():
                settings = load_recipe(kind, name, given.get("recipe"), overrides)
            function(**given, settings=settings)

        own = [one for one in inspect.signature(function, eval_str=True).parameters.values() if one.name != "settings"]
        signature = inspect.Signature(
            [*own, *(_option(kind, field, getattr(defaults, field)) for field in kind.model_fields)]
        )
        untyped: Any = command
        untyped.__signature__ = signature
        untyped.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
        untyped.__name__, untyped.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def _option(kind: type[Recipe], field: str, default: Any) -> inspect.Parameter:
    info = kind.model_fields[field]
    shown = ",".join(map(str, default)) if isinstance(default, (tuple, list)) else "-" if default is None else default
    plain = _plain_type(info.annotation)
    name = field.replace("_", "-")
    declaration = f"--{name}/--no-{name}" if plain is bool else f"--{name}"
    option = typer.Option(declaration, help=f"{info.description} \\[default: {shown}]", rich_help_panel="Recipe")
    annotation: Any = Annotated[plain | None, option]
    return inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _plain_type(annotation: Any) -> Any:
    """Return a type that the command line can parse. Anything else is a string, parsed by the recipe class."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) in (Union, types.UnionType) and len(parts) == 1:
        annotation = parts[0]
    return annotation if annotation in (bool, int, float) else str
