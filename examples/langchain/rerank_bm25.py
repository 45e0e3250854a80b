"""Rank what a BM25 retriever finds by late interaction, in LangChain, without an index of vectors. Runs offline."""

from __future__ import annotations

from typing import Any

import bm25s
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableParallel, RunnablePassthrough

from langchain_jcv2 import JinaColbertReranker

TEXTS = [
    "How do I pay? Pay attention to the colour of the lamp on the machine.",
    "How to pay by card: hold it to the reader until it beeps.",
    "Refunds are credited to the card within a week.",
    "If money was taken twice, write to us and the second amount is returned.",
    "The machine in the hall sells coffee and soup.",
]
QUESTION = "How do I get my money back when I was made to pay double?"


class Bm25Retriever(BaseRetriever):
    """Stands for any retriever that you have."""

    documents: list[Document]
    index: Any
    k: int = 4

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        words = bm25s.tokenize([query], show_progress=False)
        positions, _ = self.index.retrieve(words, k=self.k, show_progress=False)
        return [self.documents[position] for position in positions[0]]


def main() -> None:
    index = bm25s.BM25()
    index.index(bm25s.tokenize(TEXTS, show_progress=False), show_progress=False)
    retriever = Bm25Retriever(index=index, documents=[Document(page_content=text) for text in TEXTS])
    reranker = JinaColbertReranker(encoder="mini", dim=64, top_n=2)

    def rerank(given: dict[str, Any]) -> list[Document]:
        return list(reranker.compress_documents(given["documents"], given["question"]))

    chain = RunnableParallel(documents=retriever, question=RunnablePassthrough()) | rerank
    # LangChain's ContextualCompressionRetriever(base_compressor=reranker, base_retriever=retriever) does the same.

    print(f"Question: {QUESTION}\n\nBM25 alone:")
    for document in retriever.invoke(QUESTION):
        print(f"  {document.page_content}")
    print("\nRanked by MaxSim:")
    for document in chain.invoke(QUESTION):
        print(f"  {document.metadata['relevance_score']:.2f}  {document.page_content}")


if __name__ == "__main__":
    main()
