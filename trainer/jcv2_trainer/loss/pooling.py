"""Token pooling in training: a document's token vectors merged as a collection with ``pool_factor`` stores them.

The clusters are those of sentence-transformers' ``HierarchicalTokenPooling``, which the encoder pools with. They are
found without gradients; gradients pass through the clusters' means. Which clusters merge next does not depend on the
factor, so each document is clustered once for all factors, and the means of a whole batch are taken at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.nn import functional as F

_PROTECTED = 1
"""Tokens at the start of a document that are never merged, as in ``HierarchicalTokenPooling``."""


def pooled(vectors: Tensor, lengths: Sequence[int], factors: Sequence[float]) -> list[tuple[Tensor, list[int]]]:
    """Return the pooled token vectors of documents for each factor.

    Args:
        vectors: L2-normalised token vectors ``(tokens, dim)`` of the documents, one behind the other.
        lengths: Number of tokens of each document.
        factors: Token pooling factors. 1 returns the vectors as they are.

    Returns:
        For each factor, vectors of length 1, ``(fewer tokens, dim)``, and their number for each document.
    """
    merging = [factor for factor in factors if factor > 1]
    documents = vectors.detach().float().cpu() if merging else vectors
    labels = [_labels(one, merging) for one in torch.split(documents, list(lengths))] if merging else []
    return [
        (vectors, list(lengths)) if factor == 1 else _means(vectors, [own[merging.index(factor)] for own in labels])
        for factor in factors
    ]


def _means(vectors: Tensor, labels: Sequence[NDArray[np.int64]]) -> tuple[Tensor, list[int]]:
    """Return the normalised means of the clusters of all documents, and the number of clusters of each."""
    counts = [int(own.max(initial=-1)) + 1 for own in labels]
    starts = np.cumsum([0, *counts])
    groups = torch.from_numpy(np.concatenate([own + start for own, start in zip(labels, starts, strict=False)]))
    groups = groups.to(vectors.device)
    sums = vectors.new_zeros(int(starts[-1]), vectors.shape[1]).index_add(0, groups, vectors)
    sizes = groups.bincount(minlength=len(sums))
    return F.normalize(sums / sizes[:, None], dim=-1), counts


def _labels(vectors: Tensor, factors: Sequence[float]) -> list[NDArray[np.int64]]:
    """Return the cluster of each token of a document, for each factor, numbered from 0 without gaps."""
    tokens = len(vectors)
    rest = vectors[_PROTECTED:]
    wanted = [max(int(len(rest) // factor), 1) for factor in factors]
    alone = np.arange(tokens)
    if not wanted or min(wanted) >= len(rest):
        return [alone] * len(factors)
    distances = (1 - rest @ rest.T).clamp(0, 2).numpy()
    if not np.isfinite(distances).all():  # the loss will be NaN, which the trainer explains
        return [alone] * len(factors)
    tree = linkage(squareform(distances, checks=False), method="ward")
    found = []
    for count in wanted:
        own = alone
        if count < len(rest):
            _, numbers = np.unique(fcluster(tree, t=count, criterion="maxclust"), return_inverse=True)
            own = np.concatenate([alone[:_PROTECTED], numbers + _PROTECTED])
        found.append(own)
    return found
