"""Convert collection schemas, points and search requests to qdrant-client's models."""

from __future__ import annotations

from typing import Any

import numpy as np
from qdrant_client import models

from jcv2_plugin.engines.base import Matrix, Point, SearchRequest
from jcv2_plugin.engines.first_stage import DenseParams, SparseParams, SparseVector, StageVector
from jcv2_plugin.engines.schema import VECTOR_NAME, CollectionSchema
from jcv2_plugin.engines.storage import storage_profile

_DECIMALS = 6


def vectors_config(schema: CollectionSchema) -> dict[str, models.VectorParams]:
    """Return the configuration of a collection's multivector and its first stage's dense vector, if any."""
    profile = storage_profile(schema.storage)
    quantization = None
    if profile.quantized:
        int8 = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        quantization = models.ScalarQuantization(scalar=int8)
    vectors = {
        VECTOR_NAME: models.VectorParams(
            size=schema.dim,
            distance=models.Distance.DOT,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            datatype=models.Datatype(profile.datatype),
            # An HNSW graph over MaxSim takes minutes to build and finds the wrong documents: m=0 disables it.
            hnsw_config=models.HnswConfigDiff(m=0),
            quantization_config=quantization,
            # Newer servers prefer `memory`, which older ones do not support.
            on_disk=True if profile.quantized else None,
        )
    }
    for name, params in schema.stages.items():
        if isinstance(params, DenseParams):
            distance = models.Distance[params.distance.upper()]
            vectors[name] = models.VectorParams(size=params.size, distance=distance)
    return vectors


def sparse_vectors_config(schema: CollectionSchema) -> dict[str, models.SparseVectorParams] | None:
    """Return the configuration of the first stage's sparse vector, if any."""
    found = {name: params for name, params in schema.stages.items() if isinstance(params, SparseParams)}
    idf = models.Modifier.IDF
    return {name: models.SparseVectorParams(modifier=idf if one.idf else None) for name, one in found.items()} or None


def point_struct(point: Point, storage: str, *, local: bool) -> models.PointStruct:
    """Convert a point for an upsert request.

    Except for the storage float32, values are rounded to 6 decimals, which halves the request size and is more precise
    than the stored values. Local mode ignores datatypes, so for float16 the values are rounded here to match a server.
    """
    vectors: dict[str, Any] = {VECTOR_NAME: _matrix(point.vectors, storage, local=local)}
    for name, vector in point.stages.items():
        if local or storage == "float32" or isinstance(vector, SparseVector) or not _is_normalized(vector):
            vectors[name] = _stage(vector)
        else:
            vectors[name] = _rounded(vector)
    return models.PointStruct(id=point.id, vector=vectors, payload=point.payload)


def _matrix(vectors: Matrix, storage: str, *, local: bool) -> list[list[float]]:
    if local and storage == "float16":
        vectors = vectors.astype(np.float16).astype(np.float32)
    rows: list[list[float]] = vectors.tolist() if local or storage == "float32" else _rounded(vectors)
    return rows


def _is_normalized(vector: Matrix) -> bool:
    return abs(float(np.linalg.norm(vector)) - 1) < 1e-3


def _rounded(vectors: Matrix) -> list[Any]:
    rounded: list[Any] = np.round(vectors.astype(np.float64), _DECIMALS).tolist()
    return rounded


def _stage(vector: StageVector) -> Any:
    if isinstance(vector, SparseVector):
        return models.SparseVector(indices=list(vector.indices), values=list(vector.values))
    return vector.tolist()


def query_request(
    request: SearchRequest,
    limit: int,
    filter: models.Filter | None,
    score_threshold: float | None,
    *,
    oversampling: float | None,
    shard_key: str | int | None,
) -> models.QueryRequest:
    """Build a MaxSim query over all points, or over the first stage's candidates. The filter applies to both stages."""
    params = None
    if oversampling is not None:
        quantization = models.QuantizationSearchParams(ignore=False, rescore=True, oversampling=oversampling)
        params = models.SearchParams(quantization=quantization)
    return models.QueryRequest(
        query=request.vectors.tolist(),
        using=VECTOR_NAME,
        prefetch=_prefetch(request, limit, filter),
        limit=limit,
        filter=filter,
        score_threshold=score_threshold,
        params=params,
        with_payload=True,
        with_vector=False,
        shard_key=shard_key,
    )


def _prefetch(request: SearchRequest, limit: int, filter: models.Filter | None) -> list[models.Prefetch] | None:
    if request.candidates is None:
        return None
    most = max(request.candidates.limit, limit)
    stages = [
        models.Prefetch(
            query=_stage(vector),
            using=name,
            limit=most,
            filter=filter,
            # hnsw_ef must be at least the number of candidates.
            params=None if isinstance(vector, SparseVector) else models.SearchParams(hnsw_ef=most),
        )
        for name, vector in request.candidates.stages.items()
    ]
    if len(stages) == 1:
        return stages
    fused: Any = models.FusionQuery(fusion=models.Fusion.RRF)
    if (fusion := request.candidates.fusion) is not None:
        fused = models.RrfQuery(rrf=models.Rrf(k=fusion.k, weights=fusion.of(request.candidates.stages)))
    return [models.Prefetch(prefetch=list(stages), query=fused, limit=most, filter=filter)]
