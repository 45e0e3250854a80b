"""Filters by metadata in LlamaIndex: equality, ranges, lists, and nested conditions. Runs offline."""

from __future__ import annotations

from llama_index.core import Document
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from llama_index_jcv2 import JinaColbertIndex

LETTERS = [
    ("frost", 1893, ["weather"], "The harbour froze over and no ship could leave for six weeks."),
    ("storm", 1911, ["weather", "loss"], "A storm tore two ships from their moorings in the harbour."),
    ("wages", 1911, ["work"], "The dockers ask for a wage of five shillings and shorter days."),
    ("crane", 1932, ["work"], "The new crane in the harbour lifts thirty tons, and needs two men."),
]
QUESTION = "What happened to the ships in the harbour?"


def main() -> None:
    index = JinaColbertIndex.from_documents(
        [
            Document(id_=name, text=text, metadata={"year": year, "topics": topics})
            for name, year, topics, text in LETTERS
        ],
        encoder="mini",
        dim=64,
        payload_indexes={"metadata.year": "integer"},  # servers search faster with an index, and some demand one
    )

    def show(title: str, *filters: MetadataFilter | MetadataFilters, condition: str = "and") -> None:
        chosen = MetadataFilters(filters=list(filters), condition=FilterCondition(condition))
        found = index.as_retriever(similarity_top_k=4, filters=chosen).retrieve(QUESTION)
        print(f"{title}: " + ", ".join(f"{one.node.ref_doc_id} ({one.node.metadata['year']})" for one in found))

    of_1911 = MetadataFilter(key="year", value=1911)
    early = MetadataFilter(key="year", operator=FilterOperator.LT, value=1900)
    losses = MetadataFilter(key="topics", operator=FilterOperator.CONTAINS, value="loss")
    work = MetadataFilter(key="topics", operator=FilterOperator.ANY, value=["work", "play"])
    show("All letters")
    show("Of 1911", of_1911)
    show("Early or about a loss", early, losses, condition="or")
    show("About work", work)
    show("Not about work", work, condition="not")
    show(
        "Of 1911, and early or about work",
        of_1911,
        MetadataFilters(filters=[early, work], condition=FilterCondition.OR),
    )


if __name__ == "__main__":
    main()
