"""Validate texts, queries and vectors before they are written, searched or ranked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.documents import Document, is_unicode
from jcv2_plugin.errors import InvalidDocumentError, InvalidQueryError, InvalidVectorError

_BATCH_CHARACTERS = 1_000_000
"""Maximum characters per batch, unless a single document has more. Several copies of a batch's token vectors are in
memory at the same time."""


def check_vectors(matrix: NDArray[np.float32], dim: int, what: str) -> None:
    """Reject a multivector that cannot be scored.

    Args:
        matrix: Token vectors of a document.
        dim: Expected dimension.
        what: Name of the document for error messages.

    Raises:
        InvalidVectorError: If it has another dimension, or values that are not finite.
        InvalidDocumentError: If it has no rows.
    """
    if matrix.ndim != 2 or matrix.shape[1] != dim:
        raise InvalidVectorError(f"{what}: expected vectors of shape (tokens, {dim}), got {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise InvalidVectorError(
            f"{what}: the model gave vectors that are not finite. Load it in another dtype (float32 or bfloat16 "
            "for float16), or check its weights. Nothing of this batch was written."
        )
    if matrix.shape[0] == 0:
        raise InvalidDocumentError(
            f"{what}: no token is left to score: the text holds only what the skip list leaves out."
        )


def check_query(query: str) -> None:
    """Reject an invalid query.

    Raises:
        InvalidQueryError: If the query is empty, not a string, or not valid Unicode.
    """
    if not isinstance(query, str) or not query.strip():
        raise InvalidQueryError(f"A query must be a non-empty str, got {query!r:.60}.")
    if not is_unicode(query):
        raise InvalidQueryError(f"The query has lone surrogates, so it is not Unicode: {query!a:.60}. Decode it again.")


def check_query_vectors(vectors: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return the query vectors unchanged if they are all finite.

    Raises:
        InvalidVectorError: If some are not finite.
    """
    if not all(np.isfinite(matrix).all() for matrix in vectors):
        raise InvalidVectorError("The model gave query vectors that are not finite; check its weights.")
    return vectors


def in_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of ``size`` items; the last one may be shorter. The iterable is consumed one batch at a time.

    Raises:
        ValueError: If the size is not positive.
        InvalidDocumentError: If a single document is given instead of an iterable.
    """
    if size < 1:
        raise ValueError(f"batch_documents must be positive, got {size!r}.")
    if isinstance(items, (str, Document)):
        raise InvalidDocumentError(f"Give an iterable of documents, not a single {type(items).__name__}.")
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def cut_by_length(batches: Iterable[list[Any]]) -> Iterator[list[Any]]:
    """Split batches of texts or documents that have too many characters."""
    for batch in batches:
        part: list[Any] = []
        characters = 0
        for item in batch:
            text = item.text if isinstance(item, Document) else item
            length = len(text) if isinstance(text, str) else 0
            if part and characters + length > _BATCH_CHARACTERS:
                yield part
                part, characters = [], 0
            part.append(item)
            characters += length
        yield part
