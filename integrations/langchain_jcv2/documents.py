"""Convert documents and search results between LangChain and jcv2_plugin."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document

import jcv2_plugin
from jcv2_plugin import Explanation, SearchHit, StoredDocument
from jcv2_plugin.documents import as_list, list_of
from jcv2_plugin.errors import InvalidDocumentError

RELEVANCE_KEY = "relevance_score"
"""Metadata key of the relevance in 0..1: MaxSim divided by the number of query vectors."""
MAXSIM_KEY = "maxsim"
"""Metadata key of the MaxSim score."""
MATCHES_KEY = "token_matches"
"""Metadata key of the result of :func:`token_matches`."""


def to_core(documents: Iterable[Document], ids: Sequence[str | None] | None = None) -> list[jcv2_plugin.Document]:
    """Convert LangChain documents to documents of a collection. Ids in ``ids`` override the documents' own."""
    way_out = "Add texts with add_texts or from_texts."
    listed = list_of(Document, documents, "Document", "LangChain Document", way_out)
    chosen = [None] * len(listed) if ids is None else as_list(ids, "ids")
    if len(chosen) != len(listed):
        raise InvalidDocumentError(f"There are {len(listed)} documents but {len(chosen)} ids.")
    return [
        jcv2_plugin.Document(one.page_content, one.id if id is None else id, one.metadata)
        for one, id in zip(listed, chosen, strict=True)
    ]


def to_langchain(stored: StoredDocument, added: Mapping[str, Any] | None = None) -> Document:
    """Convert a stored document to a LangChain document, with additional metadata."""
    return Document(id=stored.id, page_content=stored.text, metadata={**stored.metadata, **(added or {})})


def scores_of(found: SearchHit | jcv2_plugin.RerankResult) -> dict[str, float]:
    """Return the scores of a result as metadata."""
    return {RELEVANCE_KEY: found.relevance, MAXSIM_KEY: found.score}


def token_matches(explanation: Explanation) -> list[dict[str, Any]]:
    """Return the best match of each query token as JSON-serializable dicts.

    Markers and [MASK] tokens of the query are left out, since they correspond to no characters of it. ``start`` and
    ``end`` are the document token's offsets in the text, equal for a special token.
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
    """Return a copy of a document with additional metadata. It shares no mutable data with the original."""
    return document.model_copy(update={"metadata": {**copy.deepcopy(document.metadata), **added}})


def search_options(given: Mapping[str, Any]) -> Any:
    """Return keyword arguments without ``verbose``, which LangChain's ``invoke`` adds: they are the core's options."""
    return {name: value for name, value in given.items() if name != "verbose"}
