"""Why a document scored as it did: which of its tokens each query token matched.

MaxSim is a sum over query tokens of their best match, so it explains itself: the matches *are* the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.encoder.tokens import ScoredToken, scored_tokens
from jcv2_plugin.encoder.windows import LongDocuments

if TYPE_CHECKING:
    from jcv2_plugin.encoder.model import JinaColbertEncoder


@dataclass(frozen=True)
class TokenMatch:
    """A query token, the document token it matched best, and their dot product."""

    query: ScoredToken
    document: ScoredToken
    similarity: float


@dataclass(frozen=True)
class Explanation:
    """The token-by-token comparison of a query and a document.

    Attributes:
        query: The query.
        text: The document.
        query_tokens: A token for each row of ``similarities``.
        document_tokens: A token for each column.
        similarities: Dot products, of shape ``(query tokens, document tokens)``.
    """

    query: str
    text: str
    query_tokens: list[ScoredToken]
    document_tokens: list[ScoredToken]
    similarities: NDArray[np.float32]

    @property
    def score(self) -> float:
        """MaxSim: the sum of the matches' similarities."""
        return float(self.similarities.max(axis=1).sum())

    @cached_property
    def matches(self) -> list[TokenMatch]:
        """The best match of each query token, in the order of the query."""
        best = self.similarities.argmax(axis=1)
        return [
            TokenMatch(token, self.document_tokens[column], float(self.similarities[row, column]))
            for row, (token, column) in enumerate(zip(self.query_tokens, best.tolist(), strict=True))
        ]

    def contributions(self, *, words_only: bool = True) -> NDArray[np.float32]:
        """How much of the score each document token carries, of shape ``(document tokens,)``.

        Args:
            words_only: Leave out what marker, [MASK] and other special query tokens add.
        """
        total = np.zeros(len(self.document_tokens), dtype=np.float32)
        best = self.similarities.argmax(axis=1)
        for row, token in enumerate(self.query_tokens):
            if not (words_only and token.is_special):
                total[best[row]] += self.similarities[row, best[row]]
        return total

    def matched_spans(self, least: float = 0.5) -> list[tuple[int, int]]:
        """Character spans of the document that query words matched with at least that similarity, merged."""
        spans = sorted(
            {
                (match.document.start, match.document.end)
                for match in self.matches
                if not match.query.is_special and not match.document.is_special and match.similarity >= least
            }
        )
        merged: list[tuple[int, int]] = []
        for start, end in spans:
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    def to_html(self) -> str:
        """A self-contained page: the document as a heat map; pointing at a query token shows its matches."""
        from jcv2_plugin.scoring.heatmap import render

        return render(self)


@dataclass(frozen=True)
class TokenVectors:
    """A text's vectors and the tokens that they stand for.

    Attributes:
        text: The query or document.
        tokens: One for each row of ``vectors``.
        vectors: Of shape ``(tokens, dim)``.
    """

    text: str
    tokens: list[ScoredToken]
    vectors: NDArray[np.float32]

    @classmethod
    def of_query(cls, encoder: JinaColbertEncoder, query: str, vectors: NDArray[np.float32]) -> TokenVectors:
        """A query, whose vectors are known.

        Raises:
            ValueError: The vectors do not belong to this text and model.
        """
        tokens = scored_tokens(encoder, query, "query")
        if len(tokens) != len(vectors):
            raise ValueError(
                f"This model scores {len(vectors)} query vectors for {len(tokens)} tokens, so they cannot be "
                "told apart: its scoring mask leaves out query tokens in a way that is not known here."
            )
        return cls(query, tokens, vectors)

    @classmethod
    def of_document(
        cls, encoder: JinaColbertEncoder, text: str, vectors: NDArray[np.float32], long_documents: LongDocuments
    ) -> TokenVectors:
        """A document, whose vectors are known.

        Raises:
            ValueError: The vectors do not belong to this text and model.
        """
        tokens = scored_tokens(encoder, text, "document", long_documents)
        if len(tokens) != len(vectors):
            raise ValueError(
                f"The text has {len(tokens)} tokens for this model, but {len(vectors)} vectors were "
                "given: they were made from another text or with other settings."
            )
        return cls(text, tokens, vectors)


def compare(query: TokenVectors, document: TokenVectors) -> Explanation:
    """The comparison of each token of a query with each of a document."""
    return Explanation(
        query=query.text,
        text=document.text,
        query_tokens=query.tokens,
        document_tokens=document.tokens,
        similarities=query.vectors @ document.vectors.T,
    )


def explain(
    encoder: JinaColbertEncoder,
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
        encoder: The model.
        query: The query.
        text: The document.
        dim: The Matryoshka dimension; None takes the model's default.
        long_documents: How the document was encoded, if it is over the model's window.
        document_vectors: The document's vectors where they are known, of shape ``(tokens, dim)``.
        query_vectors: The query's, likewise.

    Raises:
        ValueError: If the vectors given do not belong to this text and model.
    """
    dim = encoder.resolve_dim(dim)
    if query_vectors is None:
        query_vectors = encoder.query_vectors([query], dim)[0]
    if document_vectors is None:
        document_vectors = encoder.document_vectors([text], dim, long_documents)[0]
    document = TokenVectors.of_document(encoder, text, document_vectors, long_documents)
    return compare(TokenVectors.of_query(encoder, query, query_vectors), document)
