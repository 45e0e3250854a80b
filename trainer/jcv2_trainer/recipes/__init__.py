"""Recipes: the settings of each stage, validated by pydantic models.

Every field has a default. The YAML files in this folder are the recipes that change some. Your own recipe (``--recipe
FILE``) sets only the fields it changes. A flag of the command overrides both.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from jcv2_plugin.errors import Jcv2Error
from jcv2_plugin.files import read_settings


class RecipeError(Jcv2Error, ValueError):
    """A recipe cannot be read, or a field is out of range. The message names the recipe, field and value."""


class Recipe(BaseModel):
    """Settings of a stage. They are immutable, and unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


R = TypeVar("R", bound=Recipe)


def load_recipe(
    kind: type[R], name: str, file: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> R:
    """Load a packaged recipe, overridden by a YAML ``file`` and then by ``overrides`` that are not None.

    Raises:
        RecipeError: The file cannot be read, or a field is unknown or out of range.
    """
    packaged = resources.files(__name__).joinpath(f"{name}.yaml")
    values: dict[str, Any] = yaml.safe_load(packaged.read_text(encoding="utf-8")) if packaged.is_file() else {}
    if file is not None:
        values.update(_read(Path(file), kind))
    values.update({field: value for field, value in (overrides or {}).items() if value is not None})
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = []
        for one in error.errors(include_url=False):
            field = ".".join(map(str, one["loc"]))
            found.append(f"{field}: {one['msg']}, got {_shown(one['input'])}" if field else one["msg"])
        source = f"recipe {name!r}" if file is None else file
        raise RecipeError(f"{source}: {'; '.join(found)}. Change the field in the recipe, or give its flag.") from error


def _shown(value: Any) -> str:
    """Return a value, cut short before it is written: YAML's aliases may stand for billions of values."""
    try:
        return f"{reprlib.repr(value):.80}"
    except ValueError:
        return "a number of thousands of digits"


def _read(path: Path, kind: type[Recipe]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(read_settings(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read ({error}). A recipe is YAML with one field a line.") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold fields and values such as 'epochs: 2', not {type(values).__name__}.")
    for field in values:
        if field not in kind.model_fields:
            near = get_close_matches(str(field), kind.model_fields, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The fields are: {', '.join(kind.model_fields)}."
            raise RecipeError(f"{path}: there is no field {field!r}. {hint}")
    return values
