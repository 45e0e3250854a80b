"""Results that are relevant and not all the same: maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

A document is chosen for its relevance, less its likeness to those chosen before it. In late interaction both are of
one kind: the relevance is the mean best cosine of a query vector, the likeness of two documents the mean best cosine
of a vector of one with those of the other, from both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

MOST_VECTORS = 256
"""Of a document that are compared; one with more is compared by the means of runs of its vectors."""
_COMPARED_AT_A_TIME = 64


class Similarities(Protocol):
    """A square matrix, or what gives its rows as they are asked for."""

    def __getitem__(self, position: int, /) -> NDArray[np.floating]:
        """How like one item is to each, of shape ``(items,)``."""


def maximal_marginal_relevance(
    relevance: Sequence[float] | NDArray[np.floating],
    similarity: Similarities,
    k: int,
    lambda_mult: float,
) -> list[int]:
    """Choose items by maximal marginal relevance.

    The most relevant one comes first; then, one by one, that with the largest ``lambda_mult * relevance - (1 -
    lambda_mult) * likeness``, the likeness being that to the item most like it among those chosen. Of equal ones the
    first is taken.

    Args:
        relevance: Of each item, of shape ``(items,)``.
        similarity: Rows of the similarities of the items, of shape ``(items, items)``: a matrix, or anything that
            gives its row ``i`` as ``similarity[i]``. Only rows of chosen items are asked for.
        k: How many.
        lambda_mult: From 0 (as unlike each other as can be) to 1 (by relevance alone).

    Returns:
        Positions in the order of choice; fewer than ``k`` where there are fewer items.

    Raises:
        ValueError: ``k`` is negative, or ``lambda_mult`` not between 0 and 1.
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
    """At most so many vectors: where there are more, the normalised means of consecutive runs, of equal lengths.

    Comparing documents takes time in proportion to the product of their lengths, so that two of 8,000 tokens would
    take a second, and hundreds of them gigabytes.

    Args:
        vectors: Of shape ``(tokens, dim)``, normalised.
        most: How many there may be.

    Returns:
        Of shape ``(at most most, dim)``, normalised.
    """
    if len(vectors) <= most:
        return vectors
    starts = np.arange(most) * len(vectors) // most
    sums = np.add.reduceat(vectors, starts, axis=0, dtype=np.float32)
    return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12), dtype=np.float32)


class DocumentSimilarities:
    """How like documents are to each other: the symmetric mean MaxSim of their token vectors, row by row.

    The likeness of ``a`` and ``b`` is the mean of two numbers: the mean, over the vectors of ``a``, of the largest dot
    product with one of ``b``; and the same the other way round. It is 1 for a document and itself, and does not grow
    with length. Documents over 256 vectors are compared by fewer, see :func:`shortened`.

    Args:
        documents: The token vectors of each, of shape ``(tokens, dim)``; held shortened.
    """

    def __init__(self, documents: Iterable[Vectors]) -> None:
        self._documents = [shortened(one) for one in documents]

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, position: int, /) -> NDArray[np.float64]:
        """How like one document is to each, of shape ``(documents,)``."""
        one = self._documents[position]
        rows = [
            self._compared(one, self._documents[start : start + _COMPARED_AT_A_TIME])
            for start in range(0, len(self._documents), _COMPARED_AT_A_TIME)
        ]
        return np.concatenate(rows)

    @staticmethod
    def _compared(one: Vectors, others: Sequence[Vectors]) -> NDArray[np.float64]:
        lengths = np.asarray([len(other) for other in others])
        starts = np.concatenate([[0], lengths.cumsum()[:-1]])
        products = one @ np.concatenate(others).T
        theirs = np.maximum.reduceat(products, starts, axis=1).mean(axis=0, dtype=np.float64)
        ours = np.add.reduceat(products.max(axis=0), starts, dtype=np.float64) / lengths
        return np.asarray((theirs + ours) / 2, dtype=np.float64)
