"""A user's program, for mypy: it uses every public name of ``langchain_jcv2``, and is not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection, Explanation, JinaColbertEncoder
from langchain_jcv2 import JinaColbertReranker, JinaColbertRetriever, JinaColbertVectorStore, import_qdrant

FILTER = models.Filter(must=[models.FieldCondition(key="metadata.room", match=models.MatchValue(value="hall"))])


def stores(encoder: JinaColbertEncoder, documents: list[Document]) -> JinaColbertVectorStore:
    JinaColbertVectorStore.from_texts(["a"], "mini", [{"n": 1}], ids=["a"], location=":memory:", dim=64)
    JinaColbertVectorStore.from_texts(["a"], encoder=Path("model"), metadatas=[{"n": 1}], path="folder")
    JinaColbertVectorStore.from_existing_collection("folder", encoder=encoder)
    store = JinaColbertVectorStore.from_documents(documents, encoder, storage="int8")
    as_base: VectorStore = JinaColbertVectorStore(store.collection)
    added: list[str] = as_base.add_documents(documents, ids=["a"])
    added = store.add_documents(documents, ids=["a", None]) + store.add_texts(["a"], [{"n": 1}], ids=[None])
    done: bool = store.delete(added) and store.delete(filter={"room": "hall"}) and store.delete(filter=FILTER)
    assert done
    read: list[Document] = store.get_by_ids(added)
    assert not read
    return store


def searches(store: JinaColbertVectorStore, question: str) -> list[Document]:
    found: list[Document] = store.similarity_search(question, k=3, filter={"room": "hall"}, candidates=100)
    scored: list[tuple[Document, float]] = store.similarity_search_with_score(question, 3, filter=FILTER)
    scored += store.similarity_search_with_relevance_scores(question, k=3, score_threshold=0.5)
    explained: list[tuple[Document, Explanation]] = store.similarity_search_with_explanation(question, k=3)
    found += store.max_marginal_relevance_search(question, 3, fetch_k=10, lambda_mult=0.3, filter=FILTER)
    retriever: VectorStoreRetriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 3})
    return found + retriever.invoke(question) + [one for one, _ in scored] + [one for one, _ in explained]


async def without_blocking(store: JinaColbertVectorStore, question: str) -> list[Document]:
    made = await JinaColbertVectorStore.afrom_texts(["a"], encoder="mini")
    also = await JinaColbertVectorStore.afrom_documents([Document(page_content="a")], encoder="mini")
    await made.aadd_texts(["b"], [{"n": 1}], ids=["b"])
    await also.adelete(filter=FILTER)
    explained: list[tuple[Document, Explanation]] = await store.asimilarity_search_with_explanation(question)
    return await store.asimilarity_search(question, k=3, filter=FILTER) + [one for one, _ in explained]


def retrievers(store: JinaColbertVectorStore, collection: ColbertCollection) -> list[BaseRetriever]:
    own = JinaColbertRetriever(
        collection=collection,
        k=3,
        filter={"room": "hall"},
        candidates=100,
        first_stage="bm25",
        with_explanation=True,
        add_score=True,
        search_kwargs={"score_threshold": 1.0},
    )
    own.filter = FILTER
    return [
        own,
        JinaColbertRetriever.from_texts(["a"], ids=["a"], metadatas=[None], encoder="mini", dim=64, location="folder"),
        JinaColbertRetriever.from_documents([Document(page_content="a")], filter=FILTER),
        JinaColbertRetriever.from_collection("folder", k=2, add_score=True),
        JinaColbertRetriever.from_vectorstore(store, k=2, candidates=50),
    ]


def reranked(encoder: JinaColbertEncoder, documents: list[Document], question: str) -> list[Document]:
    reranker = JinaColbertReranker(encoder=encoder, dim=64, top_n=3, long_documents="truncate", with_explanation=True)
    as_base: BaseDocumentCompressor = JinaColbertReranker(encoder="mini")
    found: list[Document] = reranker.compress_documents(documents, question)
    return [*found, *as_base.compress_documents(documents, question)]


def imported(client: QdrantClient, collection: ColbertCollection, more: dict[str, Any]) -> JinaColbertVectorStore:
    import_qdrant(client, "dense", target=collection, filter=FILTER, progress=print)
    return import_qdrant(client, "dense", location="folder", encoder="mini", dim=64, content_payload_key="text", **more)
