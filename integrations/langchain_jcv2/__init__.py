"""LangChain integration for Jina-ColBERT-v2 collections.

:class:`JinaColbertVectorStore` stores and searches documents, :class:`JinaColbertRetriever` retrieves them in a chain,
:class:`JinaColbertReranker` reranks the documents of any retriever, and :func:`import_qdrant` imports a
langchain-qdrant collection.

Requires langchain-core (``pip install 'jcv2-plugin[langchain]'``), which is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jcv2_plugin.lazy import lazy_exports

if TYPE_CHECKING:
    from langchain_jcv2.qdrant_import import import_qdrant
    from langchain_jcv2.rerankers import JinaColbertReranker
    from langchain_jcv2.retrievers import JinaColbertRetriever
    from langchain_jcv2.vectorstores import JinaColbertVectorStore

_HOMES = {
    "JinaColbertReranker": "rerankers",
    "JinaColbertRetriever": "retrievers",
    "JinaColbertVectorStore": "vectorstores",
    "import_qdrant": "qdrant_import",
}

__all__ = ["JinaColbertReranker", "JinaColbertRetriever", "JinaColbertVectorStore", "import_qdrant"]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES, extra="langchain", requires="langchain_core")
