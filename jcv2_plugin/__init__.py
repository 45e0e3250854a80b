"""Multilingual late-interaction retrieval with Jina-ColBERT-v2 and Qdrant.

Most users need two classes: :class:`JinaColbertEncoder` encodes texts into token vectors at a Matryoshka dimension,
and :class:`ColbertCollection` stores documents as multivectors, in a folder, in memory or on a Qdrant server. Names
are imported lazily, so ``import jcv2_plugin`` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jcv2_plugin.lazy import lazy_exports

__version__ = "0.2.0"

if TYPE_CHECKING:
    from jcv2_plugin.collection.cluster import IndexBatch
    from jcv2_plugin.collection.collection import ColbertCollection, IngestReport
    from jcv2_plugin.collection.qdrant_import import ImportReport, import_qdrant
    from jcv2_plugin.collection.search import SearchOptions
    from jcv2_plugin.documents import Document, SearchHit, StoredDocument
    from jcv2_plugin.encoder.base import Encoder
    from jcv2_plugin.encoder.heads import MatryoshkaHeads
    from jcv2_plugin.encoder.model import JinaColbertEncoder
    from jcv2_plugin.encoder.quantization import quantize
    from jcv2_plugin.encoder.remote import RemoteEncoder
    from jcv2_plugin.engines.first_stage import DenseParams, FirstStage, SparseParams, SparseVector
    from jcv2_plugin.engines.model_stages import SentenceTransformerStage, SparseEncoderStage
    from jcv2_plugin.engines.schema import CollectionSchema
    from jcv2_plugin.scoring.explanation import Explanation, TokenMatch, explain
    from jcv2_plugin.scoring.rerank import RerankResult, rerank

_NAMES = {
    "collection.cluster": ("IndexBatch",),
    "collection.collection": ("ColbertCollection", "IngestReport"),
    "collection.qdrant_import": ("ImportReport", "import_qdrant"),
    "collection.search": ("SearchOptions",),
    "documents": ("Document", "SearchHit", "StoredDocument"),
    "encoder.base": ("Encoder",),
    "encoder.heads": ("MatryoshkaHeads",),
    "encoder.model": ("JinaColbertEncoder",),
    "encoder.quantization": ("quantize",),
    "encoder.remote": ("RemoteEncoder",),
    "engines.first_stage": ("DenseParams", "FirstStage", "SparseParams", "SparseVector"),
    "engines.model_stages": ("SentenceTransformerStage", "SparseEncoderStage"),
    "engines.schema": ("CollectionSchema",),
    "scoring.explanation": ("Explanation", "TokenMatch", "explain"),
    "scoring.rerank": ("RerankResult", "rerank"),
}

__all__ = [
    "ColbertCollection",
    "CollectionSchema",
    "DenseParams",
    "Document",
    "Encoder",
    "Explanation",
    "FirstStage",
    "ImportReport",
    "IndexBatch",
    "IngestReport",
    "JinaColbertEncoder",
    "MatryoshkaHeads",
    "RemoteEncoder",
    "RerankResult",
    "SearchHit",
    "SearchOptions",
    "SentenceTransformerStage",
    "SparseEncoderStage",
    "SparseParams",
    "SparseVector",
    "StoredDocument",
    "TokenMatch",
    "__version__",
    "explain",
    "import_qdrant",
    "quantize",
    "rerank",
]

__getattr__, __dir__ = lazy_exports(__name__, {name: home for home, names in _NAMES.items() for name in names})
