"""Query engines and chat engines over an index, offline: a mock answers with its prompt."""

from __future__ import annotations

import pytest
from llama_index.core import Document, Settings
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import MetadataReplacementPostProcessor, SimilarityPostprocessor
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from llama_index_jcv2 import JinaColbertIndex, JinaColbertRerank, ScoredNode

TEXTS = {
    "tea": "A kettle boils water for tea.",
    "lighthouse": "The lighthouse warns ships of the rocks.",
    "bees": "Bees make honey from nectar.",
    "violin": "A violin has four strings.",
}


@pytest.fixture(scope="module")
def index(mini):
    documents = [Document(text=text, id_=id, metadata={"room": id}) for id, text in TEXTS.items()]
    made = JinaColbertIndex.from_documents(documents, encoder=mini, dim=64)
    yield made
    made.collection.close()


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield
    assert Settings._embed_model is None
    assert Settings._llm is None


def sources(response):
    return [one.node.ref_doc_id for one in response.source_nodes]


WITHOUT_LLM = {ResponseMode.NO_TEXT, ResponseMode.CONTEXT_ONLY}
"""LlamaIndex makes these with the model of its settings, whatever it is given."""


@pytest.mark.parametrize("mode", [ResponseMode.COMPACT, ResponseMode.TREE_SUMMARIZE])
async def test_query_engines(index, mode):
    engine = index.as_query_engine(llm=MockLLM(), response_mode=mode, similarity_top_k=2)
    for response in (engine.query("what do bees make?"), await engine.aquery("what do bees make?")):
        assert sources(response)[0] == "bees"
        assert len(response.source_nodes) == 2
        assert [type(one) for one in response.source_nodes] == [ScoredNode] * 2


def test_the_prompt_holds_the_text_and_nothing_of_scores(index):
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=1, with_explanation=True)
    response = engine.query("what do bees make?")
    assert TEXTS["bees"] in str(response)
    for word in ("maxsim", "explanation", "_doc_hash", "score"):
        assert word not in str(response)
    assert response.source_nodes[0].explanation.text.endswith(TEXTS["bees"])
    assert response.metadata == {response.source_nodes[0].node_id: {"room": "bees"}}


def test_engines_take_filters_and_postprocessors(index, mini):
    only = MetadataFilters(filters=[MetadataFilter(key="room", value="tea")])
    assert sources(index.as_query_engine(llm=MockLLM(), filters=only).query("honey")) == ["tea"]
    steps = [JinaColbertRerank(2, mini), MetadataReplacementPostProcessor(target_metadata_key="room")]
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=4, node_postprocessors=steps)
    response = engine.query("what do bees make?")
    assert response.source_nodes[0].text == "bees"
    cut = index.as_query_engine(
        llm=MockLLM(), similarity_top_k=4, node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=1000.0)]
    )
    assert sources(cut.query("honey")) == []


def test_streaming(index):
    engine = index.as_query_engine(llm=MockLLM(), streaming=True, similarity_top_k=1)
    response = engine.query("what do bees make?")
    assert TEXTS["bees"] in "".join(response.response_gen)


async def test_context_chat(index):
    engine = index.as_chat_engine(chat_mode=ChatMode.CONTEXT, llm=MockLLM(), similarity_top_k=1)
    reply = engine.chat("what do bees make?")
    assert sources(reply) == ["bees"]
    assert TEXTS["bees"] in str(reply.sources[0].content)
    again = await engine.achat("how many strings has a violin?")
    assert sources(again) == ["violin"]
    assert len(engine.chat_history) == 4
