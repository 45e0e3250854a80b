"""Filters by metadata in LangChain: for a retriever, for one question, and in Qdrant's own words. Runs offline."""

from __future__ import annotations

from langchain_core.documents import Document
from qdrant_client import models

from langchain_jcv2 import JinaColbertRetriever

LETTERS = [
    ("frost", 1893, "weather", "The harbour froze over and no ship could leave for six weeks."),
    ("storm", 1911, "weather", "A storm tore two ships from their moorings in the harbour."),
    ("wages", 1911, "work", "The dockers ask for a wage of five shillings and shorter days."),
    ("crane", 1932, "work", "The new crane in the harbour lifts thirty tons, and needs two men."),
]
QUESTION = "What happened to the ships in the harbour?"


def show(title: str, found: list[Document]) -> None:
    print(f"{title}: " + ", ".join(f"{one.id} ({one.metadata['year']})" for one in found))


def main() -> None:
    retriever = JinaColbertRetriever.from_documents(
        [
            Document(id=name, page_content=text, metadata={"year": year, "topic": topic})
            for name, year, topic, text in LETTERS
        ],
        encoder="mini",
        dim=64,
        k=4,
        payload_indexes={"metadata.year": "integer"},  # servers search faster with an index, and some demand one
    )
    show("All letters", retriever.invoke(QUESTION))

    # A dict asks for equality. A filter given with a question counts for that question alone.
    show("About work", retriever.invoke(QUESTION, filter={"topic": "work"}))
    show("Weather of 1911", retriever.invoke(QUESTION, filter={"topic": "weather", "year": 1911}))

    # Ranges, alternatives and negations are written in Qdrant's classes, on "metadata.<key>".
    before = models.Filter(must=[models.FieldCondition(key="metadata.year", range=models.Range(lt=1912))])
    retriever.filter = before  # from now on, for every question
    show("Before 1912", retriever.invoke(QUESTION))
    not_work = models.FieldCondition(key="metadata.topic", match=models.MatchExcept(**{"except": ["work"]}))
    show("Of no work", retriever.invoke(QUESTION, filter=models.Filter(must=[not_work])))


if __name__ == "__main__":
    main()
