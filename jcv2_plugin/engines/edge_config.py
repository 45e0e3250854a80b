"""Convert collection schemas, points and search requests to Qdrant Edge's classes."""

from __future__ import annotations

from typing import Any

import qdrant_edge as edge

from jcv2_plugin.engines.base import Fusion, Matrix, Point, SearchRequest
from jcv2_plugin.engines.first_stage import SparseParams, SparseVector, StageVector
from jcv2_plugin.engines.schema import VECTOR_NAME, CollectionSchema
from jcv2_plugin.engines.storage import storage_profile

_DATATYPES = {
    "float16": edge.VectorStorageDatatype.Float16,
    "float32": edge.VectorStorageDatatype.Float32,
    "turbo8": edge.VectorStorageDatatype.Turbo8,
    # Exists in the extension but not in its type stubs.
    "turbo4": getattr(edge.VectorStorageDatatype, "Turbo4", None),
}
# Qdrant's defaults, which the binding requires explicitly.
_EF_CONSTRUCT = 100
_FULL_SCAN_KB = 10_000
_NO_GRAPH = edge.HnswIndexConfig(m=0, ef_construct=_EF_CONSTRUCT, full_scan_threshold=_FULL_SCAN_KB)
_GRAPH = edge.HnswIndexConfig(m=16, ef_construct=_EF_CONSTRUCT, full_scan_threshold=_FULL_SCAN_KB)


def edge_config(schema: CollectionSchema) -> edge.EdgeConfig:
    """Return the shard configuration for a collection schema."""
    profile = storage_profile(schema.storage)
    quantization = None
    if profile.quantized:
        quantization = edge.ScalarQuantizationConfig(edge.ScalarType.Int8, quantile=0.99, memory=edge.Memory.Pinned)
    vectors = {
        VECTOR_NAME: edge.EdgeVectorParams(
            size=schema.dim,
            distance=edge.Distance.Dot,
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            datatype=_DATATYPES[profile.datatype],
            # An HNSW graph over MaxSim takes minutes to build and finds the wrong documents: m=0 disables it.
            hnsw_config=_NO_GRAPH,
            quantization_config=quantization,
            # Read as searches need them. Else Edge reads all of them when it opens, which takes five times as long at
            # 20,000 documents and holds the GIL. The first searches are slower, by half to twice; later ones are not.
            memory=edge.Memory.Cold,
        )
    }
    sparse = {}
    for name, params in schema.stages.items():
        if isinstance(params, SparseParams):
            sparse[name] = edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if params.idf else None)
        else:
            distance = getattr(edge.Distance, params.distance.capitalize())
            vectors[name] = edge.EdgeVectorParams(size=params.size, distance=distance, hnsw_config=_GRAPH)
    return edge.EdgeConfig(vectors=vectors, sparse_vectors=sparse or None)


def edge_vectors(point: Point) -> dict[str, Any]:
    """Return all named vectors of a point."""
    return {VECTOR_NAME: _rows(point.vectors), **{name: _stage(one) for name, one in point.stages.items()}}


def edge_query(
    request: SearchRequest,
    limit: int,
    filter: edge.Filter | None,
    score_threshold: float | None,
    oversampling: float | None,
) -> edge.QueryRequest:
    """Build a MaxSim query over all points, or over the first stage's candidates. The filter applies to both stages."""
    prefetches = None
    if request.candidates is not None:
        most = max(request.candidates.limit, limit)
        # hnsw_ef must be at least the number of candidates.
        walk = edge.SearchParams(hnsw_ef=most)
        stages = [
            edge.Prefetch(
                limit=most,
                query=edge.Query.Nearest(_stage(vector), using=name),
                filter=filter,
                params=None if isinstance(vector, SparseVector) else walk,
            )
            for name, vector in request.candidates.stages.items()
        ]
        prefetches = stages
        if len(stages) > 1:
            fusion = request.candidates.fusion or Fusion()
            # The type stubs declare it as a separate class.
            fused: Any = edge.Fusion.Rrf(k=fusion.k, weights=fusion.of(request.candidates.stages))
            prefetches = [edge.Prefetch(limit=most, prefetches=stages, query=fused, filter=filter)]
    params: edge.SearchParams | None = None
    if oversampling is not None:
        params = edge.SearchParams(
            quantization=edge.QuantizationSearchParams(ignore=False, rescore=True, oversampling=oversampling)
        )
    return edge.QueryRequest(
        limit=limit,
        query=edge.Query.Nearest(_rows(request.vectors), using=VECTOR_NAME),
        prefetches=prefetches,
        filter=filter,
        score_threshold=score_threshold,
        params=params,
        with_payload=True,
        with_vector=False,
    )


def _rows(matrix: Matrix) -> Any:
    """Convert to a list. Edge reads arrays element by element through Python, which takes twice as long."""
    return matrix.tolist()


def _stage(vector: StageVector) -> Any:
    if isinstance(vector, SparseVector):
        return edge.SparseVector(list(vector.indices), list(vector.values))
    return vector.tolist()
