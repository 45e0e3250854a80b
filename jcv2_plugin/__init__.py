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

_HOMES = {
    "ColbertCollection": "collection.collection",
    "IngestReport": "collection.collection",
    "Document": "documents",
    "SearchHit": "documents",
    "StoredDocument": "documents",
    "SearchOptions": "collection.search",
    "Encoder": "encoder.base",
    "JinaColbertEncoder": "encoder.model",
    "RemoteEncoder": "encoder.remote",
    "Explanation": "scoring.explanation",
    "TokenMatch": "scoring.explanation",
    "explain": "scoring.explanation",
    "MatryoshkaHeads": "encoder.heads",
    "CollectionSchema": "engines.schema",
    "DenseParams": "engines.first_stage",
    "FirstStage": "engines.first_stage",
    "SparseParams": "engines.first_stage",
    "SparseVector": "engines.first_stage",
    "SentenceTransformerStage": "engines.model_stages",
    "SparseEncoderStage": "engines.model_stages",
    "ImportReport": "collection.qdrant_import",
    "import_qdrant": "collection.qdrant_import",
    "IndexBatch": "collection.cluster",
    "quantize": "encoder.quantization",
    "RerankResult": "scoring.rerank",
    "rerank": "scoring.rerank",
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

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
