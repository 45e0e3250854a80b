"""LlamaIndex integration for Jina-ColBERT-v2 collections: index, vector store, retriever, reranker and Qdrant import.

Requires llama-index-core (``pip install 'jcv2-plugin[llama-index]'``), which is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jcv2_plugin.lazy import lazy_exports

if TYPE_CHECKING:
    from llama_index_jcv2.indices import JinaColbertIndex
    from llama_index_jcv2.pipelines import EncodedByStore
    from llama_index_jcv2.postprocessors import JinaColbertRerank
    from llama_index_jcv2.qdrant_import import import_qdrant
    from llama_index_jcv2.results import ScoredNode
    from llama_index_jcv2.retrievers import JinaColbertRetriever
    from llama_index_jcv2.vector_stores import JinaColbertVectorStore

_HOMES = {
    "EncodedByStore": "pipelines",
    "JinaColbertIndex": "indices",
    "JinaColbertRerank": "postprocessors",
    "JinaColbertRetriever": "retrievers",
    "JinaColbertVectorStore": "vector_stores",
    "ScoredNode": "results",
    "import_qdrant": "qdrant_import",
}

__all__ = [
    "EncodedByStore",
    "JinaColbertIndex",
    "JinaColbertRerank",
    "JinaColbertRetriever",
    "JinaColbertVectorStore",
    "ScoredNode",
    "import_qdrant",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES, extra="llama-index", requires="llama_index")
