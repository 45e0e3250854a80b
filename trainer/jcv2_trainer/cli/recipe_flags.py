"""Generate a command's flags from the fields of a recipe, so that none is missing or named differently."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer

from jcv2_trainer.cli.commands import failing_politely
from jcv2_trainer.recipes import Recipe, load_recipe

R = TypeVar("R", bound=Recipe)


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
