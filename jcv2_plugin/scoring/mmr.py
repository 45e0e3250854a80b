"""Maximal marginal relevance (MMR, Carbonell and Goldstein, SIGIR 1998) for multivectors.

MMR selects documents by relevance minus their similarity to the documents already selected. Both are mean best
cosines here: relevance from query vectors to document vectors, similarity between the vectors of two documents,
averaged over both directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

MOST_VECTORS = 256
"""Maximum number of vectors compared per document. Longer documents are shortened by :func:`shortened`."""
_COMPARED_AT_A_TIME = 64


def maximal_marginal_relevance(
    relevance: Sequence[float] | NDArray[np.floating],
    similarity: NDArray[np.floating] | DocumentSimilarities,
    k: int,
    lambda_mult: float,
) -> list[int]:
    """Select ``k`` items by maximal marginal relevance, and return their positions in order of selection.

    Selects the most relevant item first, then repeatedly the item with the largest ``lambda_mult * relevance - (1 -
    lambda_mult) * similarity``, where ``similarity`` is the highest similarity to an item already selected. Ties go to
    the item that comes first. Only rows of selected items are requested. ``relevance`` has the shape ``(items,)``, and
    ``similarity`` ``(items, items)``, or returns row ``i`` as ``similarity[i]``.
    """
    if k < 0 or not 0 <= lambda_mult <= 1:
        raise ValueError(f"k must not be negative and lambda_mult between 0 and 1, got {k!r} and {lambda_mult!r}.")
    own = np.asarray(relevance, dtype=np.float64)
    chosen: list[int] = []
    likeness = np.full(len(own), -np.inf)
    while len(chosen) < min(k, len(own)):
        if chosen:
            np.maximum(likeness, similarity[chosen[-1]], out=likeness)
            marginal = lambda_mult * own - (1 - lambda_mult) * likeness
        else:
            marginal = own.copy()
        marginal[chosen] = -np.inf
        chosen.append(int(marginal.argmax()))
    return chosen


def shortened(vectors: Vectors, most: int = MOST_VECTORS) -> Vectors:
    """Reduce a document, of shape ``(tokens, dim)``, to the normalised means of at most ``most`` runs of equal length.

    Two documents of 8,000 tokens would take a second to compare, and hundreds of them gigabytes of memory.
    """
    if len(vectors) <= most:
        return vectors
    starts = np.arange(most) * len(vectors) // most
    sums = np.add.reduceat(vectors, starts, axis=0, dtype=np.float32)
    return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12), dtype=np.float32)


class DocumentSimilarities:
    """Pairwise document similarities, computed row by row as the symmetric mean MaxSim of their token vectors.

    For each vector of ``a``, take the largest dot product with a vector of ``b``, and average these. The similarity is
    the mean of this value and its counterpart from ``b`` to ``a``. A document has similarity 1 to itself, and the
    similarity does not grow with length. Documents, of shape ``(tokens, dim)``, are kept shortened, see
    :func:`shortened`.
    """

    def __init__(self, documents: Iterable[Vectors]) -> None:
        self._documents = [shortened(one) for one in documents]

    def __getitem__(self, position: int, /) -> NDArray[np.float64]:
        """Return the similarity of one document to every document, of shape ``(documents,)``."""
        one, rows = self._documents[position], []
        for start in range(0, len(self._documents), _COMPARED_AT_A_TIME):
            others = self._documents[start : start + _COMPARED_AT_A_TIME]
            lengths = np.asarray([len(other) for other in others])
            starts = np.concatenate([[0], lengths.cumsum()[:-1]])
            products = one @ np.concatenate(others).T
            theirs = np.maximum.reduceat(products, starts, axis=1).mean(axis=0, dtype=np.float64)
            ours = np.add.reduceat(products.max(axis=0), starts, dtype=np.float64) / lengths
            rows.append((theirs + ours) / 2)
        return np.concatenate(rows)
