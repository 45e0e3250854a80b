"""Qdrant's limits on a document, checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jcv2_plugin.checks import check_vectors
from jcv2_plugin.documents import Document
from jcv2_plugin.encoder.tokens import scored_tokens
from jcv2_plugin.engines.base import Matrix
from jcv2_plugin.engines.schema import MAX_FLOATS, CollectionSchema
from jcv2_plugin.errors import DocumentTooLongError

if TYPE_CHECKING:
    from jcv2_plugin.encoder.model import JinaColbertEncoder


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


def check_stored(matrix: Matrix, dim: int, what: str) -> None:
    """Refuse a multivector that Qdrant would store but never find, or not store at all.

    Raises:
        InvalidVectorError: It has another dimension, or values that are not finite.
        InvalidDocumentError: It has no rows.
        DocumentTooLongError: It has too many.
    """
    check_vectors(matrix, dim, what)
    if matrix.size >= MAX_FLOATS:
        raise DocumentTooLongError(f"{what}: {matrix.size:,} floats, Qdrant takes fewer than {MAX_FLOATS:,}.")
