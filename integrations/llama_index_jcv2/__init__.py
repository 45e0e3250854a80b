"""LlamaIndex over Jina-ColBERT-v2 collections: :class:`JinaColbertIndex` and the vector store beneath it.

Needs llama-index-core (``pip install 'jcv2-plugin[llama-index]'``); it is imported when a class is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index_jcv2.indices import JinaColbertIndex
    from llama_index_jcv2.vector_stores import JinaColbertVectorStore

_HOMES = {"JinaColbertIndex": "indices", "JinaColbertVectorStore": "vector_stores"}

__all__ = ["JinaColbertIndex", "JinaColbertVectorStore"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "llama_index":
            raise
        raise ImportError(
            f"{__name__}.{name} needs the package llama-index-core: pip install 'jcv2-plugin[llama-index]'"
        ) from error
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
