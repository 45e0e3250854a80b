"""Jina-ColBERT-v2 as something people can use: multilingual late-interaction retrieval over Qdrant.

The two classes most people need are :class:`JinaColbertEncoder` (token vectors at a Matryoshka dimension)
and :class:`ColbertCollection` (documents as multivectors, in a folder, in memory or on a Qdrant server).
Names are imported when first used, so ``import jcv2_plugin`` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jcv2_plugin.lazy import lazy_exports

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jcv2_plugin.collection import ColbertCollection, IngestReport
    from jcv2_plugin.documents import Document, SearchHit, StoredDocument
    from jcv2_plugin.encoder import JinaColbertEncoder
    from jcv2_plugin.explanation import Explanation, TokenMatch, explain
    from jcv2_plugin.handover import HandOverReport, hand_over
    from jcv2_plugin.heads import MatryoshkaHeads
    from jcv2_plugin.quantizing import quantize
    from jcv2_plugin.reranking import RerankResult, rerank
    from jcv2_plugin.schema import CollectionSchema

_HOMES = {
    "ColbertCollection": "collection",
    "IngestReport": "collection",
    "Document": "documents",
    "SearchHit": "documents",
    "StoredDocument": "documents",
    "JinaColbertEncoder": "encoder",
    "Explanation": "explanation",
    "TokenMatch": "explanation",
    "explain": "explanation",
    "MatryoshkaHeads": "heads",
    "CollectionSchema": "schema",
    "HandOverReport": "handover",
    "hand_over": "handover",
    "quantize": "quantizing",
    "RerankResult": "reranking",
    "rerank": "reranking",
}

__all__ = [
    "ColbertCollection",
    "CollectionSchema",
    "Document",
    "Explanation",
    "HandOverReport",
    "IngestReport",
    "JinaColbertEncoder",
    "MatryoshkaHeads",
    "RerankResult",
    "SearchHit",
    "StoredDocument",
    "TokenMatch",
    "__version__",
    "explain",
    "hand_over",
    "quantize",
    "rerank",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
