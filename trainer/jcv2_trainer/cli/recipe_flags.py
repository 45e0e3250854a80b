"""Generate a command's flags from the fields of a recipe, so that none is missing or named differently."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer

from jcv2_trainer.recipes import Recipe, RecipeError, load_recipe

R = TypeVar("R", bound=Recipe)
_PANEL = "Recipe"


def recipe_command(kind: type[R], name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each field of a recipe.

    The decorated function takes its own parameters, including ``recipe: Path | None`` (a YAML file), and ``settings``,
    the resulting recipe, which is not an option.

    Args:
        kind: The recipe class. Its field descriptions become the help texts.
        name: The packaged recipe with the default values.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        defaults = load_recipe(kind, name)

        def command(**given: Any) -> None:
            overrides = {field: given.pop(field) for field in kind.model_fields}
            try:
                settings = load_recipe(kind, name, given.get("recipe"), overrides)
            except RecipeError as error:
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(2) from error
            function(**given, settings=settings)

        own = [one for one in inspect.signature(function, eval_str=True).parameters.values() if one.name != "settings"]
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*own, *(_option(kind, field, getattr(defaults, field)) for field in kind.model_fields)]
        )
        command.__annotations__ = {one.name: one.annotation for one in command.__signature__.parameters.values()}  # type: ignore[attr-defined]
        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        return command

    return decorate


def _option(kind: type[Recipe], field: str, default: Any) -> inspect.Parameter:
    info = kind.model_fields[field]
    shown = ",".join(str(one) for one in default) if isinstance(default, (tuple, list)) else default
    text = f"{info.description} \\[recipe: {'-' if shown is None else shown}]"
    flag = f"--{field.replace('_', '-')}"
    plain: Any = _plain_type(info.annotation)
    names = (flag, f"--no-{flag[2:]}") if plain is bool else (flag,)
    declaration = "/".join(names)
    option = typer.Option(declaration, help=text, rich_help_panel=_PANEL)
    annotation: Any = Annotated[plain | None, option]
    return inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _plain_type(annotation: Any) -> Any:
    """Return a type that the command line can parse. Anything else is a string, parsed by the recipe class."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) in (Union, types.UnionType) and len(parts) == 1:
        annotation = parts[0]
    if annotation in (bool, int, float, str):
        return annotation
    if get_origin(annotation) is Literal:
        return str
    return str
