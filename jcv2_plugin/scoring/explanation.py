"""Token-level explanations of MaxSim scores.

MaxSim sums the best match of each query token, so those matches are an exact explanation of the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.documents import is_unicode
from jcv2_plugin.encoder.scored_tokens import ScoredToken
from jcv2_plugin.encoder.windows import LongDocuments
from jcv2_plugin.errors import InvalidQueryError

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder


@dataclass(frozen=True)
class TokenMatch:
    """A query token, its best-matching document token, and their dot product."""

    query: ScoredToken
    document: ScoredToken
    similarity: float


@dataclass(frozen=True)
class Explanation:
    """Token-by-token comparison of a query and a document.

    Attributes:
        query: Query text.
        text: Document text.
        query_tokens: Query tokens, one per row of ``similarities``.
        document_tokens: Document tokens, one per column of ``similarities``.
        similarities: Dot products of shape ``(query tokens, document tokens)``.
    """

    query: str
    text: str
    query_tokens: list[ScoredToken]
    document_tokens: list[ScoredToken]
    similarities: NDArray[np.float32]

    @property
    def score(self) -> float:
        """MaxSim score: the sum of the best similarity per query token."""
        return float(self.similarities.max(axis=1).sum())

    @cached_property
    def matches(self) -> list[TokenMatch]:
        """Best match of each query token, in query order."""
        best = self.similarities.argmax(axis=1)
        return [
            TokenMatch(token, self.document_tokens[column], float(self.similarities[row, column]))
            for row, (token, column) in enumerate(zip(self.query_tokens, best.tolist(), strict=True))
        ]

    def contributions(self, *, words_only: bool = True) -> NDArray[np.float32]:
        """Return the contribution of each document token to the score, of shape ``(document tokens,)``.

        Args:
            words_only: Ignore the marker, [MASK] and other special query tokens.
        """
        total = np.zeros(len(self.document_tokens), dtype=np.float32)
        rows = [row for row, token in enumerate(self.query_tokens) if not (words_only and token.is_special)]
        np.add.at(total, self.similarities[rows].argmax(axis=1), self.similarities[rows].max(axis=1))
        return total

    def matched_spans(self, least: float = 0.5) -> list[tuple[int, int]]:
        """Return merged character spans of the document that query words match with similarity ``least`` or more."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted(
            (match.document.start, match.document.end)
            for match in self.matches
            if not match.query.is_special and not match.document.is_special and match.similarity >= least
        ):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    def to_html(self) -> str:
        """Render a self-contained HTML heat map of the document. Hovering over a query token shows its matches."""
        from jcv2_plugin.scoring.heatmap import render

        return render(self)


@dataclass(frozen=True)
class TokenVectors:
    """A text with its tokens and their vectors, of shape ``(tokens, dim)``."""

    text: str
    tokens: list[ScoredToken]
    vectors: NDArray[np.float32]

    @classmethod
    def of_query(cls, encoder: Encoder, query: str, vectors: NDArray[np.float32]) -> TokenVectors:
        """Match a query's vectors to its tokens. Raises ValueError if they do not belong together."""
        return cls._matched(encoder.scored_tokens(query, "query"), query, vectors)

    @classmethod
    def of_document(
        cls, encoder: Encoder, text: str, vectors: NDArray[np.float32], long_documents: LongDocuments
    ) -> TokenVectors:
        """Match a document's vectors to its tokens. Raises ValueError if they do not belong together."""
        return cls._matched(encoder.scored_tokens(text, "document", long_documents), text, vectors)

    @classmethod
    def _matched(cls, tokens: list[ScoredToken], text: str, vectors: NDArray[np.float32]) -> TokenVectors:
        if len(tokens) != len(vectors):
            raise ValueError(
                f"The text has {len(tokens)} tokens for this model, but {len(vectors)} vectors were given. They were "
                f"made from another text, or with another model or other settings: {text!r:.60}."
            )
        return cls(text, tokens, vectors)


def compare(query: TokenVectors, document: TokenVectors) -> Explanation:
    """Compare every query token with every document token."""
    similarities = query.vectors @ document.vectors.T
    return Explanation(query.text, document.text, query.tokens, document.tokens, similarities)


def explain(
    encoder: Encoder,
    query: str,
    text: str,
    *,
    dim: int | None = None,
    long_documents: LongDocuments = "truncate",
    document_vectors: NDArray[np.float32] | None = None,
    query_vectors: NDArray[np.float32] | None = None,
) -> Explanation:
    """Compare a query and a document token by token.

    Args:
        encoder: The encoder.
        query: Query text.
        text: Document text.
        dim: Matryoshka dimension. Defaults to the model's own default.
        long_documents: How a document longer than the model's window was encoded.
        document_vectors: Vectors of the document, if known, of shape ``(tokens, dim)``.
        query_vectors: Vectors of the query, if known, of shape ``(tokens, dim)``.

    Raises:
        InvalidQueryError: The query or the text is not Unicode.
        ValueError: The given vectors do not belong to this text and model.
    """
    if not all(map(is_unicode, (query, text))):
        raise InvalidQueryError("The query or the text has lone surrogates, so it is not Unicode. Decode it again.")
    dim = encoder.resolve_dim(dim)
    if query_vectors is None:
        query_vectors = encoder.query_vectors([query], dim)[0]
    if document_vectors is None:
        document_vectors = encoder.document_vectors([text], dim, long_documents)[0]
    document = TokenVectors.of_document(encoder, text, document_vectors, long_documents)
    return compare(TokenVectors.of_query(encoder, query, query_vectors), document)
