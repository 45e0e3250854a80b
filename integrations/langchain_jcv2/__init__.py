"""LangChain over Jina-ColBERT-v2 collections: :class:`JinaColbertRetriever`.

Needs langchain-core (``pip install 'jcv2-plugin[langchain]'``); it is imported when a class is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jcv2_plugin.lazy import lazy_exports

if TYPE_CHECKING:
    from langchain_jcv2.retrievers import JinaColbertRetriever

_HOMES = {"JinaColbertRetriever": "retrievers"}

__all__ = ["JinaColbertRetriever"]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES, extra="langchain", requires="langchain_core")
