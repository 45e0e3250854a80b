"""Texts ranked by MaxSim without an index: to reorder what another search has found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from jcv2_plugin.checks import check_query, check_query_vectors, check_vectors, cut_by_length, in_batches
from jcv2_plugin.documents import as_documents, relevance_of, validate
from jcv2_plugin.encoder.windows import LongDocuments
from jcv2_plugin.scoring.explanation import Explanation, TokenVectors, compare

if TYPE_CHECKING:
    from jcv2_plugin.encoder.model import JinaColbertEncoder

_TEXTS_AT_A_TIME = 256
"""Whose vectors are in memory at once."""


@dataclass(frozen=True)
class RerankResult:
    """A text that was ranked.

    Attributes:
        index: Its position among the texts given.
        score: MaxSim, as of a :class:`~jcv2_plugin.SearchHit`.
        relevance: The score divided by the number of query vectors, within 0 and 1, likewise.
        explanation: Which token matched which, where it was asked for.
    """

    index: int
    score: float
    relevance: float
    explanation: Explanation | None = field(default=None, repr=False, compare=False)


def rerank(
    encoder: JinaColbertEncoder,
    query: str,
    texts: Sequence[str],
    *,
    dim: int | None = None,
    long_documents: LongDocuments = "split",
    with_explanation: bool = False,
) -> list[RerankResult]:
    """Rank texts by MaxSim with a query, best first; of equal scores the earlier one first.

    Scores are those of a collection with ``storage="float32"`` at the same dimension. A text that comes several times
    is encoded once.

    Args:
        encoder: The model.
        query: The question.
        texts: What to rank, all of it: cut the result for the best few.
        dim: The Matryoshka dimension; None takes the model's default.
        long_documents: What to do with texts over the encoder's ``document_length``: ``"split"`` them in windows, all
            of which count, ``"truncate"`` them, or refuse them (``"error"``).
        with_explanation: Give each result the token-by-token comparison with the query.

    Raises:
        InvalidQueryError: The query is empty or no string.
        InvalidDocumentError: A text is blank or no string; its position is named.
        DocumentTooLongError: See ``long_documents``.
        UnknownDimError: The model has no head for ``dim``.
    """
    check_query(query)
    given = [document.text for document in validate(as_documents(texts))]
    dim = encoder.resolve_dim(dim)
    if long_documents == "error":  # here, where positions are the caller's
        encoder._windows(given, encoder.prompts.get("document"), long_documents)
    if not given:
        return []
    (vectors,) = check_query_vectors(encoder.query_vectors([query], dim))
    asked = TokenVectors.of_query(encoder, query, vectors) if with_explanation else None
    scored: dict[str, tuple[float, Explanation | None]] = {}
    for batch in cut_by_length(in_batches(dict.fromkeys(given), _TEXTS_AT_A_TIME)):
        for text, matrix in zip(batch, encoder.document_vectors(batch, dim, long_documents), strict=True):
            check_vectors(matrix, dim, f"Document {given.index(text)}")
            explanation = None
            if asked is not None:
                explanation = compare(asked, TokenVectors.of_document(encoder, text, matrix, long_documents))
            scored[text] = (float((vectors @ matrix.T).max(axis=1).sum(dtype=np.float64)), explanation)
    results = [
        RerankResult(index, score, relevance_of(score, len(vectors)), explanation)
        for index, (score, explanation) in enumerate(scored[text] for text in given)
    ]
    return sorted(results, key=lambda result: -result.score)
