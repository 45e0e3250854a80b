"""``JinaColbertReranker``: what it ranks, what it leaves alone, and where it fits in."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading

import numpy as np
import pytest
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.load import dumps
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_samples import documents, ids_of
from pydantic import ValidationError

import jcv2_plugin
from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.errors import InvalidQueryError, ModelNotFoundError, UnknownDimError
from langchain_jcv2 import JinaColbertReranker

QUESTION = "what do bees make?"


@pytest.fixture(scope="module")
def reranker(mini):
    return JinaColbertReranker(encoder=mini, dim=64)


@pytest.fixture
def dense():
    """Finds all documents, in an order that has nothing to do with the question."""
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents(documents())
    return store.as_retriever(search_kwargs={"k": 4})


def test_what_is_given_stays_as_it_is(reranker):
    given = documents()
    ranked = reranker.compress_documents(given, QUESTION)
    assert given == documents()
    ranked[0].metadata["room"] = "changed"
    next(one for one in ranked if one.id == "tea").metadata["tags"].append("mine")
    assert given == documents()
    assert {one.id: one.page_content for one in ranked} == {one.id: one.page_content for one in given}


@pytest.mark.parametrize("top_n, expected", [(1, 1), (3, 3), (4, 4), (9, 4), (None, 4)])
def test_top_n(mini, top_n, expected):
    own = JinaColbertReranker(encoder=mini, dim=64, top_n=top_n)
    ranked = own.compress_documents(documents(), QUESTION)
    assert len(ranked) == expected
    assert ranked[0].id == "bees"


def test_documents_without_text_come_last_in_their_order(reranker, mini):
    given = [Document(page_content="", id="a"), *documents(), Document(page_content=" \n", id="b")]
    ranked = reranker.compress_documents(given, QUESTION)
    assert ids_of(ranked)[0] == "bees"
    assert ids_of(ranked)[-2:] == ["a", "b"]
    assert [one.metadata["relevance_score"] for one in ranked[-2:]] == [0.0, 0.0]
    own = JinaColbertReranker(encoder=mini, dim=64, top_n=5, with_explanation=True)
    assert own.compress_documents(given, QUESTION)[-1].metadata == {
        "relevance_score": 0.0,
        "maxsim": 0.0,
        "token_matches": [],
    }
    assert reranker.compress_documents(given[:1], QUESTION)[0].id == "a"
    assert reranker.compress_documents([], QUESTION) == []


def test_long_documents_are_read_to_their_end(mini):
    filler = "The harbour master reports nothing of note today. " * 80
    given = [
        Document(page_content=filler, id="short of it"),
        Document(page_content=f"{filler} Bees make honey.", id="end"),
    ]
    whole = JinaColbertReranker(encoder=mini, dim=64).compress_documents(given, QUESTION)
    assert ids_of(whole) == ["end", "short of it"]
    assert whole[0].metadata["maxsim"] > whole[1].metadata["maxsim"] + 0.5
    cut = JinaColbertReranker(encoder=mini, dim=64, long_documents="truncate").compress_documents(given, QUESTION)
    assert cut[0].metadata["maxsim"] == pytest.approx(cut[1].metadata["maxsim"], abs=1e-5)


def test_explanations(mini):
    own = JinaColbertReranker(encoder=mini, dim=64, with_explanation=True, top_n=1)
    (found,) = own.compress_documents(documents(), QUESTION)
    matches = found.metadata["token_matches"]
    assert json.loads(json.dumps(matches)) == matches
    assert ("bees", "bees") in [(match["query_token"], match["document_token"]) for match in matches]


async def test_async_ranks_the_same_and_leaves_the_loop_free(reranker, monkeypatch):
    loop_ran = threading.Event()
    rerank = jcv2_plugin.rerank

    def waiting(*args, **options):
        assert loop_ran.wait(timeout=20), "ranking kept the event loop from running"
        return rerank(*args, **options)

    monkeypatch.setattr(jcv2_plugin, "rerank", waiting)
    task = asyncio.create_task(reranker.acompress_documents(documents(), QUESTION))
    await asyncio.sleep(0.01)
    loop_ran.set()
    assert await task == reranker.compress_documents(documents(), QUESTION)


class _Compression(BaseRetriever):
    """As langchain-classic's ContextualCompressionRetriever is made, of which langchain-core has none."""

    base_compressor: BaseDocumentCompressor
    base_retriever: BaseRetriever

    def _get_relevant_documents(self, query, *, run_manager):
        found = self.base_retriever.invoke(query, config={"callbacks": run_manager.get_child()})
        return list(self.base_compressor.compress_documents(found, query, callbacks=run_manager.get_child()))

    async def _aget_relevant_documents(self, query, *, run_manager):
        found = await self.base_retriever.ainvoke(query, config={"callbacks": run_manager.get_child()})
        return list(await self.base_compressor.acompress_documents(found, query, callbacks=run_manager.get_child()))


async def test_in_a_compression_retriever(reranker, dense):
    retriever = _Compression(base_compressor=reranker, base_retriever=dense)
    assert ids_of(retriever.invoke(QUESTION))[0] == "bees"
    assert await retriever.ainvoke(QUESTION) == retriever.invoke(QUESTION)


def test_a_model_by_name_is_loaded_once_when_needed(monkeypatch):
    loaded = []
    load = JinaColbertEncoder.from_pretrained
    monkeypatch.setattr(
        JinaColbertEncoder,
        "from_pretrained",
        lambda name, **options: loaded.append((name, options)) or load(name, **options),
    )
    own = JinaColbertReranker(encoder="mini", dim=32, top_n=1)
    assert loaded == []
    barrier = threading.Barrier(2)
    found = []

    def rank():
        barrier.wait()
        found.append(own.compress_documents(documents(), QUESTION)[0].id)

    threads = [threading.Thread(target=rank) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["bees", "bees"]
    assert loaded == [("mini", {"dims": 32})]
    own.dim = 64
    own.compress_documents(documents(), QUESTION)
    assert loaded[1:] == [("mini", {"dims": 64})]
    for twin in (pickle.loads(pickle.dumps(own)), copy.deepcopy(own)):
        assert twin.compress_documents(documents(), QUESTION) == own.compress_documents(documents(), QUESTION)
    assert len(loaded) == 4


def test_numpy_numbers(reranker, mini):
    own = JinaColbertReranker(encoder=mini, dim=np.int64(64), top_n=np.int32(2))
    assert own.compress_documents(documents(), QUESTION) == reranker.compress_documents(documents(), QUESTION)[:2]
    assert '"top_n":2' in own.model_dump_json()


@pytest.mark.parametrize(
    "wrong", [{"top_n": 0}, {"top_n": np.float32(1.5)}, {"top_k": 3}, {"encoder": 3}, {"long_documents": "cut"}]
)
def test_wrong_fields_are_refused(mini, wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        JinaColbertReranker(**{"encoder": mini, **wrong})


def test_what_is_wrong_is_named(reranker, mini):
    with pytest.raises(InvalidQueryError, match="non-empty"):
        reranker.compress_documents(documents(), " ")
    with pytest.raises(InvalidQueryError, match="non-empty"):
        reranker.compress_documents([], "")
    with pytest.raises(UnknownDimError, match="99"):
        JinaColbertReranker(encoder=mini, dim=99).compress_documents(documents(), QUESTION)
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        JinaColbertReranker(encoder="./no-such-model").compress_documents(documents(), QUESTION)


def test_what_is_shown_is_short_and_names_the_model(reranker):
    assert repr(reranker) == "JinaColbertReranker(dim=64, top_n=None, long_documents='split', with_explanation=False)"
    assert json.loads(reranker.model_dump_json())["encoder"] == "mini"
    assert "BertModel" not in dumps(reranker) + repr(reranker.model_dump())
