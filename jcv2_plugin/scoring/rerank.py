"""Rerank texts by MaxSim without an index, such as the results of another search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from jcv2_plugin.checks import check_query, check_query_vectors, check_vectors, cut_by_length, in_batches
from jcv2_plugin.documents import as_documents, check_text, has_text, relevance_of
from jcv2_plugin.encoder.windows import LongDocuments
from jcv2_plugin.scoring.explanation import Explanation, TokenVectors, compare

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder

_TEXTS_AT_A_TIME = 256
"""Number of texts whose vectors are held in memory at once."""


@dataclass(frozen=True)
class RerankResult:
    """A reranked text.

    Attributes:
        index: Position in the input list.
        score: MaxSim score, as in :class:`~jcv2_plugin.SearchHit`.
        relevance: Score divided by the number of query vectors, clipped to [0, 1], as in
            :class:`~jcv2_plugin.SearchHit`.
        explanation: Token-by-token comparison with the query, if requested. None for a blank text.
    """

    index: int
    score: float
    relevance: float
    explanation: Explanation | None = field(default=None, repr=False, compare=False)


def rerank(
    encoder: Encoder,
    query: str,
    texts: Sequence[str],
    *,
    dim: int | None = None,
    long_documents: LongDocuments = "split",
    with_explanation: bool = False,
) -> list[RerankResult]:
    """Rank texts by MaxSim with a query, best first. Ties keep the input order.

    Blank texts come last, with scores of 0.

    Scores equal those of a collection with ``storage="float32"`` and the same dimension. Duplicate texts are encoded
    once.

    Args:
        encoder: The encoder.
        query: Query text.
        texts: Texts to rank. All of them are returned; slice the result to get the top few.
        dim: Matryoshka dimension. Defaults to the model's own default.
        long_documents: How to handle texts longer than the encoder's ``document_length``: ``"split"`` scores all
            windows of the text, ``"truncate"`` only the first, ``"error"`` raises.
        with_explanation: Add the token-by-token comparison with the query to each result.

    Raises:
        InvalidQueryError: The query is empty or not a string.
        InvalidDocumentError: A text is not a string, or not valid Unicode. The message contains its position.
        DocumentTooLongError: A text is too long and ``long_documents`` is ``"error"``.
        UnknownDimError: The model has no projection head for ``dim``.
    """
    check_query(query)
    given = [document.text for document in as_documents(texts)]
    for position, text in enumerate(given):
        check_text(text, f"Document {position}")
    dim = encoder.resolve_dim(dim)
    if long_documents == "error":  # check here so that errors report the caller's positions
        encoder.check_lengths(given)
        long_documents = "truncate"
    worded = [text for text in given if has_text(text)]
    if not worded:
        return [RerankResult(index, 0.0, 0.0) for index in range(len(given))]
    (vectors,) = check_query_vectors(encoder.query_vectors([query], dim))
    asked = TokenVectors.of_query(encoder, query, vectors) if with_explanation else None
    scored: dict[str, tuple[float, Explanation | None]] = {}
    for batch in cut_by_length(in_batches(list(dict.fromkeys(worded)), _TEXTS_AT_A_TIME)):
        for text, matrix in zip(batch, encoder.document_vectors(batch, dim, long_documents), strict=True):
            check_vectors(matrix, dim, f"Document {given.index(text)}")
            explanation = None
            if asked is not None:
                explanation = compare(asked, TokenVectors.of_document(encoder, text, matrix, long_documents))
            scored[text] = (float((vectors @ matrix.T).max(axis=1).sum(dtype=np.float64)), explanation)
    results = [
        RerankResult(index, score, relevance_of(score, len(vectors)), explanation)
        for index, (score, explanation) in enumerate(scored.get(text, (0.0, None)) for text in given)
    ]
    return sorted(results, key=lambda result: (given[result.index] not in scored, -result.score))
