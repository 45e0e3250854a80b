"""LangChain over Jina-ColBERT-v2 collections: :class:`JinaColbertRetriever`.

Needs langchain-core (``pip install 'jcv2-plugin[langchain]'``); it is imported when a class is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_jcv2.retrievers import JinaColbertRetriever

_HOMES = {"JinaColbertRetriever": "retrievers"}

__all__ = ["JinaColbertRetriever"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "langchain_core":
            raise
        raise ImportError(
            f"{__name__}.{name} needs the package langchain-core: pip install 'jcv2-plugin[langchain]'"
        ) from error
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
