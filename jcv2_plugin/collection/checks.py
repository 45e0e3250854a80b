"""Check documents against Qdrant's limits before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jcv2_plugin.checks import check_vectors
from jcv2_plugin.documents import Document
from jcv2_plugin.engines.base import Matrix
from jcv2_plugin.engines.schema import MAX_FLOATS, CollectionSchema
from jcv2_plugin.errors import DocumentTooLongError

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder
    from jcv2_plugin.encoder.windows import TokenizedTexts

_CHARACTERS_PER_VECTOR = 32
"""A text with more is first judged by a part of it, since tokenising 60 MB takes minutes and gigabytes."""


def check_lengths(documents: Sequence[Document], schema: CollectionSchema, encoder: Encoder) -> TokenizedTexts | None:
    """Refuse documents that exceed Qdrant's limit on floats, or the window if the collection does not split them.

    Returns:
        The texts with their tokens, for encoding them without tokenising them again. None if the encoder returns
        no tokens.

    Raises:
        DocumentTooLongError: A document is too long. The message contains its id, its size and a remedy.
    """
    texts = [document.text for document in documents]
    if not encoder.gives_tokens:  # what it makes of them is checked before it is stored
        if schema.long_documents == "error":
            encoder.check_lengths(texts)
        return None
    for document in documents if schema.long_documents == "split" else ():
        _check_beginning(document, schema.dim, encoder)
    capacity = encoder.content_length
    tokenized = encoder.tokenized(texts)
    overhead = encoder.document_length - capacity
    for document, tokens in zip(documents, tokenized.counts, strict=True):
        if schema.long_documents == "error" and tokens > capacity:
            raise DocumentTooLongError(
                f"Document {document.id!r} ({document.text[:40]!r}...) has {tokens} tokens, {capacity} fit "
                f"document_length={encoder.document_length}, and this collection was created with "
                "long_documents='error'. Split it, or create the collection with long_documents='split' or 'truncate'."
            )
        # Check an upper bound first: the exact number of vectors requires tokenising with offsets.
        windows = 1 if schema.long_documents == "truncate" else -(-tokens // (capacity // 2 or 1)) + 1
        if (tokens + windows * overhead) * schema.dim < MAX_FLOATS:
            continue
        rows = len(encoder.scored_tokens(document.text, "document", schema.long_documents))
        if rows * schema.dim >= MAX_FLOATS:
            raise _too_long(document, str(rows), schema.dim)
    return tokenized


def _check_beginning(document: Document, dim: int, encoder: Encoder) -> None:
    """Refuse a text whose beginning alone makes more than twice as many vectors as Qdrant takes."""
    length = _CHARACTERS_PER_VECTOR * MAX_FLOATS // dim
    skipped = getattr(encoder, "skiplist_ids", None) if len(document.text) > length else None
    if skipped is None:  # short, or not known of an encoder elsewhere
        return
    (ids,) = encoder.tokenized([document.text[:length]]).ids
    rows = sum(one not in skipped for one in ids) // 2  # windows may be tokenised a little differently
    if rows * dim >= MAX_FLOATS:
        raise _too_long(document, f"more than {rows}", dim)


def _too_long(document: Document, vectors: str, dim: int) -> DocumentTooLongError:
    return DocumentTooLongError(
        f"Document {document.id!r} ({document.text[:40]!r}...) makes {vectors} vectors of dim={dim}, Qdrant takes "
        f"fewer than {MAX_FLOATS:,} floats a document: at most {(MAX_FLOATS - 1) // dim} vectors. Split the document "
        "into several, or use a smaller dim."
    )


def check_stored(matrix: Matrix, dim: int, what: str) -> None:
    """Refuse a multivector that Qdrant would not store, or would store but never find.

    Raises:
        InvalidVectorError: The multivector has the wrong dimension or non-finite values.
        InvalidDocumentError: The multivector has no rows.
        DocumentTooLongError: The multivector has too many floats.
    """
    check_vectors(matrix, dim, what)
    if matrix.size >= MAX_FLOATS:
        raise DocumentTooLongError(f"{what}: {matrix.size:,} floats, Qdrant takes fewer than {MAX_FLOATS:,}.")
