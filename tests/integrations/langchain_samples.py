"""Documents that the LangChain tests share."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from langchain_core.documents import Document

TEXTS = [
    "A kettle boils water for tea.",
    "The lighthouse warns ships of the rocks.",
    "Bees make honey from nectar.",
    "A violin has four strings.",
]
IDS = ["tea", "lighthouse", "bees", "violin"]
METADATA: list[dict[str, Any]] = [
    {"room": "kitchen", "year": 1999, "tags": ["hot", "drink"], "price": 12.5, "used": True, "maker": {"town": "Ulm"}},
    {"room": "coast", "year": 1850, "tags": [], "used": False, "a.b": "dotted"},
    {"room": "garden", "year": 2020},
    {"room": "hall", "year": 1850, "maker": {"town": "Cremona", "name": "A. Stradivari"}},
]


def documents() -> list[Document]:
    """New ones each time."""
    return [
        Document(id=id, page_content=text, metadata=copy.deepcopy(metadata))
        for id, text, metadata in zip(IDS, TEXTS, METADATA, strict=True)
    ]


def ids_of(found: Iterable[Document]) -> list[str | None]:
    """Their ids, in order."""
    return [one.id for one in found]
