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
    """Return ``__getattr__`` and ``__dir__`` for a package that imports its names lazily, each from its submodule.

    If the import package ``requires`` is missing, the error says that ``extra`` of our distribution installs it.
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


def require_packages(what: str, names: tuple[str, ...], extra: str, otherwise: str = "") -> None:
    """Raise MissingPackageError unless the packages of one of our extras are installed. They are not imported.

    ``what`` needs them, as the subject of a sentence, and ``otherwise`` says how to do without.
    """
    absent = [name for name in names if find_spec(name) is None]
    if absent:
        advice = f"pip install 'jcv2-plugin[{extra}]'{'. ' if otherwise else ''}{otherwise}"
        raise MissingPackageError(f"{what} needs {' and '.join(absent)}: {advice}")
