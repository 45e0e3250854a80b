"""What is checked of texts, queries and vectors before anything is written, searched or ranked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.documents import Document, is_unicode
from jcv2_plugin.errors import InvalidDocumentError, InvalidQueryError, InvalidVectorError

_BATCH_CHARACTERS = 1_000_000
"""In a batch at most, unless one document has more: its token vectors are in memory at once, several times."""


def check_vectors(matrix: NDArray[np.float32], dim: int, what: str) -> None:
    """Refuse a multivector that cannot be scored.

    Args:
        matrix: The vectors of a document.
        dim: The dimension wanted.
        what: What to call it.

    Raises:
        InvalidVectorError: It has another dimension, or values that are not finite.
        InvalidDocumentError: It has no rows.
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
    """Refuse what cannot be searched for.

    Raises:
        InvalidQueryError: It is empty, no string, or not Unicode.
    """
    if not isinstance(query, str) or not query.strip() or not is_unicode(query):
        raise InvalidQueryError(f"A query must be a non-empty str, got {query!a:.60}.")


def check_query_vectors(vectors: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """The same vectors, of queries.

    Raises:
        InvalidVectorError: Some are not finite.
    """
    if not all(np.isfinite(matrix).all() for matrix in vectors):
        raise InvalidVectorError("The model gave query vectors that are not finite; check its weights.")
    return vectors


def in_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` items and a last, shorter one, taking no more from the iterable than it yields.

    Raises:
        ValueError: If the size is not positive.
        InvalidDocumentError: If a single document is given for an iterable of them.
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
    """Batches of texts or documents again, those with too many characters in parts."""
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
