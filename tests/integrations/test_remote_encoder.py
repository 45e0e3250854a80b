"""An encoder behind HTTP, given by its address wherever a model's name is: commands and both frameworks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from encoder_server import EncoderServer
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import Document as LlamaIndexDocument
from llama_index.core.schema import NodeWithScore, TextNode

from jcv2_plugin import ColbertCollection, JinaColbertEncoder, RemoteEncoder
from jcv2_plugin.errors import CollectionMismatchError, InvalidOptionError
from langchain_jcv2 import JinaColbertReranker, JinaColbertVectorStore
from llama_index_jcv2 import JinaColbertIndex, JinaColbertRerank

sys.path.append(str(Path(__file__).parents[1] / "cli"))
from cli_helpers import FOOD, SHIPS, run, run_json

TEXTS = ("Rice is cooked in twice its volume of water.", "The ferry sails at noon.")
QUERY = "when does the ferry sail?"


@pytest.fixture(scope="module")
def url(mini: JinaColbertEncoder) -> Iterator[str]:
    with EncoderServer(mini) as site:
        yield site.url


@pytest.fixture(params=["address", "object"])
def encoder(url: str, request: pytest.FixtureRequest) -> Any:
    return url if request.param == "address" else RemoteEncoder(url)


async def test_langchain(encoder: Any, url: str) -> None:
    store = JinaColbertVectorStore.from_texts(list(TEXTS), embedding=encoder, dim=32)
    assert store.similarity_search(QUERY, 1)[0].page_content == TEXTS[1]
    assert (await store.asimilarity_search(QUERY, 1))[0].page_content == TEXTS[1]
    reranker = JinaColbertReranker(encoder=encoder, dim=32, top_n=1, with_explanation=True)
    (best,) = reranker.compress_documents([LangChainDocument(text) for text in TEXTS], QUERY)
    assert best.page_content == TEXTS[1]
    assert url in reranker.model_dump_json()


def test_llama_index(encoder: Any) -> None:
    nodes = [TextNode(text=text) for text in TEXTS]
    index = JinaColbertIndex.from_documents([LlamaIndexDocument(text=text) for text in TEXTS], encoder=encoder, dim=32)
    assert index.as_retriever(similarity_top_k=1).retrieve(QUERY)[0].text == TEXTS[1]
    reranker = JinaColbertRerank(top_n=1, model=encoder, dim=32)
    assert reranker.postprocess_nodes([NodeWithScore(node=node) for node in nodes], query_str=QUERY)[0].text == TEXTS[1]
    with pytest.raises(InvalidOptionError, match="decides about device"):
        JinaColbertRerank(model="https://encoder.example", device="cuda")


def test_commands(url: str, tmp_path: Path, mini: JinaColbertEncoder) -> None:
    docs, store = tmp_path / "docs", str(tmp_path / "store")
    docs.mkdir()
    (docs / "ships.md").write_text(SHIPS)
    (docs / "food.md").write_text(FOOD)
    index = ("index", str(docs), "-c", store)
    run(*index, "--model", url, "--dim", "32")
    run(*index, "--model", url)  # it has that model
    run(*index, "--model", f"{url}#mini")
    with pytest.raises(CollectionMismatchError, match="--model"):
        run(*index, "--model", f"{url}#maxi")
    assert "ferry" in str(run_json("search", QUERY, "-c", store, "-k", "1"))
    assert "ferry" in run("explain", QUERY, "-c", store)
    assert "ferry" in run("explain", QUERY, "--text", TEXTS[1], "--model", url, "--dim", "32")
    with ColbertCollection.open(store, encoder=mini) as collection:
        assert collection.schema.model == f"{url}#mini"
    with ColbertCollection.open(store) as collection:
        collection.migrate(dim=64)  # loaded by its address
        assert (collection.dim, collection.schema.model) == (64, f"{url}#mini")
