"""LlamaIndex over Jina-ColBERT-v2 collections: :class:`JinaColbertIndex` and the vector store beneath it.

Needs llama-index-core (``pip install 'jcv2-plugin[llama-index]'``); it is imported when a class is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jcv2_plugin.lazy import lazy_exports

if TYPE_CHECKING:
    from llama_index_jcv2.indices import JinaColbertIndex
    from llama_index_jcv2.vector_stores import JinaColbertVectorStore

_HOMES = {"JinaColbertIndex": "indices", "JinaColbertVectorStore": "vector_stores"}

__all__ = ["JinaColbertIndex", "JinaColbertVectorStore"]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES, extra="llama-index", requires="llama_index")
