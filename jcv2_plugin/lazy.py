"""Lazy imports: of a package's public names, and of modules, so that importing ours is fast; and absent packages."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from jcv2_plugin.errors import MissingPackageError


class _Lazy(types.ModuleType):
    """A stand-in for a module that is imported when it is first used."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, value)
        return value


if TYPE_CHECKING:
    from qdrant_client import models as models
else:
    # qdrant-client takes a second to import, and collections in a folder need it for filters only.
    models = _Lazy("qdrant_client.models")


def lazy_exports(
    package: str, homes: Mapping[str, str], *, extra: str | None = None, requires: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package that imports its names lazily.

    Args:
        package: The package's ``__name__``.
        homes: Submodule that defines each public name.
        extra: Extra of our distribution that the submodules need.
        requires: Import package that this extra installs. If it is missing, the error says how to install it.
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
        except AttributeError as error:  # of an installed package; raised from here, Python would take it for ours
            raise ImportError(f"{package}.{name} cannot be imported: {error}. Check the installed versions.") from error
        value = getattr(home, name)
        setattr(sys.modules[package], name, value)
        return value

    def listing() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, listing


def require_packages(what: str, names: tuple[str, ...], extra: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        what: What needs them, as the subject of a sentence.
        names: Import names.
        extra: The extra of our distribution.

    Raises:
        MissingPackageError: If one is not. The message says how to install it.
    """
    absent = [name for name in names if find_spec(name) is None]
    if absent:
        raise MissingPackageError(f"{what} needs {' and '.join(absent)}: pip install 'jcv2-plugin[{extra}]'")
