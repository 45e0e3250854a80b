"""What is checked of documents, queries and vectors before anything is written or searched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jcv2_plugin.documents import Document, is_unicode
from jcv2_plugin.engines.base import Matrix
from jcv2_plugin.errors import DocumentTooLongError, InvalidDocumentError, InvalidQueryError, InvalidVectorError
from jcv2_plugin.schema import MAX_FLOATS, CollectionSchema
from jcv2_plugin.tokens import scored_tokens

if TYPE_CHECKING:
    from jcv2_plugin.encoder import JinaColbertEncoder

_BATCH_CHARACTERS = 1_000_000
"""In a batch at most, unless one document has more: its token vectors are in memory at once, several times."""


def check_lengths(documents: Sequence[Document], schema: CollectionSchema, encoder: JinaColbertEncoder) -> None:
    """Refuse documents that would make more floats than Qdrant takes, or that the collection does not split.

    Raises:
        DocumentTooLongError: Naming the document, its size and the way out.
    """
    splitter = encoder._window_splitter(encoder.prompts.get("document"))
    counts = splitter.count([document.text for document in documents])
    overhead = encoder.document_length - splitter.capacity
    for document, tokens in zip(documents, counts, strict=True):
        if schema.long_documents == "error" and tokens > splitter.capacity:
            raise DocumentTooLongError(
                f"Document {document.id!r} ({document.text[:40]!r}...) has {tokens} tokens, {splitter.capacity} fit "
                f"document_length={encoder.document_length}, and this collection was created with "
                "long_documents='error'. Split it, or create the collection with long_documents='split' or 'truncate'."
            )
        # An upper bound first: counting the vectors exactly means tokenising with offsets.
        windows = 1 if schema.long_documents == "truncate" else -(-tokens // (splitter.capacity // 2 or 1)) + 1
        if (tokens + windows * overhead) * schema.dim < MAX_FLOATS:
            continue
        rows = len(scored_tokens(encoder, document.text, "document", schema.long_documents))
        if rows * schema.dim >= MAX_FLOATS:
            raise DocumentTooLongError(
                f"Document {document.id!r} ({document.text[:40]!r}...) makes {rows} vectors of dim={schema.dim}, "
                f"Qdrant takes fewer than {MAX_FLOATS:,} floats a document: at most "
                f"{(MAX_FLOATS - 1) // schema.dim} vectors. Split the document into several, or use a smaller dim."
            )


def check_vectors(matrix: Matrix, dim: int, what: str, *, stored: bool = True) -> None:
    """Refuse a multivector that Qdrant would store but never find, or not store at all.

    Args:
        matrix: The vectors of a document.
        dim: The dimension wanted.
        what: What to call it.
        stored: Whether it is to be stored, so that Qdrant's limits hold.

    Raises:
        InvalidVectorError: It has another dimension, or values that are not finite.
        InvalidDocumentError: It has no rows.
        DocumentTooLongError: It has too many.
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
    if stored and matrix.size >= MAX_FLOATS:
        raise DocumentTooLongError(f"{what}: {matrix.size:,} floats, Qdrant takes fewer than {MAX_FLOATS:,}.")


def check_query(query: str) -> None:
    """Refuse what cannot be searched for.

    Raises:
        InvalidQueryError: It is empty, no string, or not Unicode.
    """
    if not isinstance(query, str) or not query.strip() or not is_unicode(query):
        raise InvalidQueryError(f"A query must be a non-empty str, got {query!a:.60}.")


def check_query_vectors(vectors: list[Matrix]) -> list[Matrix]:
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
