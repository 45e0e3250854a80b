"""The same documents and queries through LangChain, LlamaIndex and the core: the same ids and scores."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from importlib import import_module
from inspect import getdoc
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from jcv2_plugin import ColbertCollection
from langchain_jcv2 import JinaColbertReranker, JinaColbertRetriever, JinaColbertVectorStore
from llama_index_jcv2 import JinaColbertIndex, JinaColbertRerank

DOCUMENTS, QUERIES = (300, 50) if os.environ.get("JCV2_TEST_ALL") else (100, 20)
K = 10
CHARACTERS = 150  # of each text, so that encoding them five times takes no minutes
Found = list[list[tuple[str, float]]]
MODULES = ("argparse", "collections", "datetime", "decimal", "json", "logging", "pathlib", "random", "socket", "string",
           "subprocess", "tarfile", "threading", "typing", "unittest", "zipfile")  # fmt: skip


def docstrings() -> tuple[dict[str, str], list[str]]:
    """Documentation of the standard library; the first words of every sixth text ask for it."""
    texts: set[str] = set()
    for name in MODULES:
        for thing in vars(import_module(name)).values():
            members = vars(thing).values() if isinstance(thing, type) else ()
            texts |= {
                text for one in (thing, *members) if callable(one) and len((text := getdoc(one) or "").split()) > 8
            }
    chosen = sorted(texts, key=lambda text: zlib.crc32(text.encode()))[:DOCUMENTS]
    queries = [" ".join(text.split()[1:9]) for text in chosen[:: DOCUMENTS // QUERIES]]
    return {f"doc-{index}": text[:CHARACTERS] for index, text in enumerate(chosen)}, queries


@pytest.fixture(scope="module", params=["docstrings", *(["mlqa-en"] if os.environ.get("JCV2_TEST_ALL") else [])])
def task(request: pytest.FixtureRequest) -> tuple[dict[str, str], list[str]]:
    if request.param == "docstrings":
        return docstrings()
    folder: Path = request.getfixturevalue("data_dir") / request.param
    with (folder / "corpus.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, DOCUMENTS)]
    with (folder / "queries.jsonl").open(encoding="utf-8") as file:
        queries = [json.loads(line)["text"] for line in islice(file, QUERIES)]
    return {row["_id"]: row["text"][:CHARACTERS] for row in rows}, queries


def in_core(location: Any, encoder: Any, documents: dict[str, str], queries: list[str]) -> Found:
    with ColbertCollection.create(location, encoder=encoder, dim=64) as collection:
        collection.add(documents.values(), ids=list(documents))
        return [[(hit.id, hit.score) for hit in hits] for hits in collection.search_many(queries, k=K)]


def in_langchain(location: Any, encoder: Any, documents: dict[str, str], queries: list[str]) -> Found:
    """By the store and, which must be the same, by a retriever over it."""
    listed = [Document(id=key, page_content=text) for key, text in documents.items()]
    store = JinaColbertVectorStore.from_documents(listed, encoder, dim=64, location=location)
    try:
        found = [store.similarity_search_with_score(query, k=K) for query in queries]
        retrieved = JinaColbertRetriever.from_vectorstore(store, k=K, add_score=True).batch(queries)
    finally:
        store.collection.close()
    results = [[(str(one.id), score) for one, score in ranked] for ranked in found]
    assert results == [[(str(one.id), one.metadata["maxsim"]) for one in ranked] for ranked in retrieved]
    return results


def in_llama_index(location: Any, encoder: Any, documents: dict[str, str], queries: list[str]) -> Found:
    index = JinaColbertIndex.from_documents([], encoder=encoder, dim=64, location=location)
    try:
        index.insert_nodes([TextNode(id_=key, text=text) for key, text in documents.items()])
        retriever = index.as_retriever(similarity_top_k=K)
        found = [retriever.retrieve(query) for query in queries]
    finally:
        index.collection.close()
    return [[(one.node.node_id, float(one.maxsim)) for one in results] for results in found]


@pytest.fixture(scope="module")
def expected(mini: Any, task: tuple[dict[str, str], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Found:
    return in_core(tmp_path_factory.mktemp("core") / "collection", mini, *task)


@pytest.mark.parametrize("way, memory", [(in_langchain, True), (in_llama_index, False)])
def test_ids_and_scores_are_those_of_the_core(
    way: Callable[..., Found],
    memory: bool,
    mini: Any,
    task: tuple[dict[str, str], list[str]],
    expected: Found,
    tmp_path: Path,
) -> None:
    found = way(":memory:" if memory else tmp_path / "collection", mini, *task)
    assert [len(results) for results in found] == [K] * QUERIES
    for ours, theirs in zip(expected, found, strict=True):
        assert [key for key, _ in ours] == [key for key, _ in theirs] or _ties(ours, theirs)
        assert [score for _, score in theirs] == pytest.approx([score for _, score in ours], abs=2e-3)


def test_both_rerankers_rank_alike(mini: Any, task: tuple[dict[str, str], list[str]], expected: Found) -> None:
    documents, queries = task
    langchain = JinaColbertReranker(encoder=mini, dim=64)
    llama_index = JinaColbertRerank(model=mini, dim=64, top_n=K)
    for query, ranked in list(zip(queries, expected, strict=True))[:10]:
        keys = sorted(key for key, _ in ranked)
        ours = langchain.compress_documents([Document(id=key, page_content=documents[key]) for key in keys], query)
        nodes = [NodeWithScore(node=TextNode(id_=key, text=documents[key]), score=0.0) for key in keys]
        theirs = llama_index.postprocess_nodes(nodes, query_str=query)
        assert [one.id for one in ours] == [one.node.node_id for one in theirs]
        scores = [one.metadata["maxsim"] for one in ours]
        assert scores == pytest.approx([getattr(one, "maxsim", None) for one in theirs], abs=1e-6)
        assert scores == pytest.approx([score for _, score in ranked], abs=2e-3)  # stored in half precision


def _ties(ours: list[tuple[str, float]], theirs: list[tuple[str, float]]) -> bool:
    """Whether the order differs only among scores that half precision cannot tell apart."""
    scores = dict(ours)
    return all(abs(scores.get(key, ours[-1][1]) - score) < 2e-3 for key, score in theirs)
