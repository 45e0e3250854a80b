"""Rank what a BM25 retriever finds by late interaction, in LlamaIndex, without an index of vectors. Runs offline."""

from __future__ import annotations

import bm25s
from llama_index.core import QueryBundle
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from llama_index_jcv2 import JinaColbertRerank

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

    def __init__(self, texts: list[str], similarity_top_k: int = 4) -> None:
        self.nodes = [TextNode(text=text) for text in texts]
        self.similarity_top_k = similarity_top_k
        self.index = bm25s.BM25()
        self.index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        words = bm25s.tokenize([query_bundle.query_str], show_progress=False)
        positions, scores = self.index.retrieve(words, k=self.similarity_top_k, show_progress=False)
        found = zip(positions[0], scores[0], strict=True)
        return [NodeWithScore(node=self.nodes[position], score=float(score)) for position, score in found]


def main() -> None:
    retriever = Bm25Retriever(TEXTS)
    rerank = JinaColbertRerank(top_n=2, model="mini", dim=64)
    print(f"Question: {QUESTION}\n\nBM25 alone:")
    for found in retriever.retrieve(QUESTION):
        print(f"  {found.score:5.2f}  {found.text}")

    # MockLLM repeats its prompt; a real model goes here, such as Ollama(model=...).
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM(), node_postprocessors=[rerank])
    print("\nRanked by MaxSim:")
    for found in engine.query(QUESTION).source_nodes:
        print(f"  {found.score:5.2f}  {found.text}")


if __name__ == "__main__":
    main()
