"""LangChain's documents as the core's and back, and the collections that hold them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document

import jcv2_plugin
from jcv2_plugin import Explanation, SearchHit, StoredDocument
from jcv2_plugin.errors import InvalidDocumentError

RELEVANCE_KEY = "relevance_score"
"""The metadata key of a score in 0..1: MaxSim by the number of query vectors."""
MAXSIM_KEY = "maxsim"
"""The metadata key of MaxSim itself."""
MATCHES_KEY = "token_matches"
"""The metadata key of what :func:`token_matches` gives."""


def to_core(documents: Iterable[Document], ids: Sequence[str | None] | None = None) -> list[jcv2_plugin.Document]:
    """LangChain documents for a collection to add; an id in ``ids`` comes before a document's own.

    Raises:
        InvalidDocumentError: There are more or fewer ids than documents.
    """
    listed = list(documents)
    if isinstance(ids, str):
        raise InvalidDocumentError(f"ids must be a list with an entry for each document, got {ids!r:.60}.")
    chosen = [None] * len(listed) if ids is None else list(ids)
    if len(chosen) != len(listed):
        raise InvalidDocumentError(f"There are {len(listed)} documents but {len(chosen)} ids.")
    return [
        jcv2_plugin.Document(one.page_content, one.id if id is None else id, one.metadata)
        for one, id in zip(listed, chosen, strict=True)
    ]


def to_langchain(stored: StoredDocument, added: Mapping[str, Any] | None = None) -> Document:
    """A stored document as LangChain's, with further metadata."""
    return Document(id=stored.id, page_content=stored.text, metadata={**stored.metadata, **(added or {})})


def scores_of(found: SearchHit | jcv2_plugin.RerankResult) -> dict[str, float]:
    """The scores of a result as metadata."""
    return {RELEVANCE_KEY: found.relevance, MAXSIM_KEY: found.score}


def token_matches(explanation: Explanation) -> list[dict[str, Any]]:
    """The best match of each query token in a form that JSON takes.

    Markers and [MASK] tokens of the query are left out: no character of it stands behind them. ``start`` and ``end``
    are the document token's offsets in the text, equal for a special token.
    """
    return [
        {
            "query_token": match.query.token,
            "document_token": match.document.token,
            "start": match.document.start,
            "end": match.document.end,
            "similarity": match.similarity,
        }
        for match in explanation.matches
        if not match.query.is_special
    ]


def with_metadata(document: Document, added: Mapping[str, Any]) -> Document:
    """A copy of a document with further metadata, which shares nothing that could be changed with it."""
    return document.model_copy(update={"metadata": {**copy.deepcopy(document.metadata), **added}})


def search_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a search, without the one that LangChain's ``invoke`` hands on for itself."""
    return {name: value for name, value in given.items() if name != "verbose"}
