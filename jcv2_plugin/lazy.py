"""Packages whose names are imported when first used, so that importing the package itself is quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(
    package: str, homes: Mapping[str, str], *, extra: str | None = None, requires: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of such a package.

    Args:
        package: Its ``__name__``.
        homes: For each public name the submodule that defines it.
        extra: The extra of our distribution that the submodules need.
        requires: The import package that this extra brings; where it is missing, the error says how to install it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            home = importlib.import_module(f"{package}.{homes[name]}")
        except ModuleNotFoundError as error:
            if requires is None or (error.name or "").partition(".")[0] != requires:
                raise
            raise ImportError(
                f"{package}.{name} needs the package {requires}: pip install 'jcv2-plugin[{extra}]'"
            ) from error
        value = getattr(home, name)
        setattr(sys.modules[package], name, value)
        return value

    def listing() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, listing
