"""Query engines and chat engines over an index, offline: a mock answers with its prompt."""

from __future__ import annotations

import pytest
from llama_index.core import Document, Settings, get_response_synthesizer
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import MetadataReplacementPostProcessor, SimilarityPostprocessor
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RetrieverQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
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


class Answering(MockLLM):
    """Completes every prompt with one text."""

    _text: str = PrivateAttr()

    def __init__(self, text):
        super().__init__()
        self._text = text

    def complete(self, prompt, formatted=False, **kwargs):
        reply = super().complete(prompt, formatted, **kwargs)
        reply.text = self._text
        return reply


def sources(response):
    return [one.node.ref_doc_id for one in response.source_nodes]


WITHOUT_LLM = {ResponseMode.NO_TEXT, ResponseMode.CONTEXT_ONLY}
"""LlamaIndex makes these with the model of its settings, whatever it is given."""


@pytest.mark.parametrize("mode", sorted(set(ResponseMode) - WITHOUT_LLM - {ResponseMode.GENERATION}))
async def test_query_engines(index, mode):
    engine = index.as_query_engine(llm=MockLLM(), response_mode=mode, similarity_top_k=2)
    for response in (engine.query("what do bees make?"), await engine.aquery("what do bees make?")):
        assert sources(response)[0] == "bees"
        assert len(response.source_nodes) == 2
        assert [type(one) for one in response.source_nodes] == [ScoredNode] * 2


def test_query_engines_that_write_nothing(index):
    Settings.llm = MockLLM()
    try:
        for mode in WITHOUT_LLM:
            engine = index.as_query_engine(llm=MockLLM(), response_mode=mode, similarity_top_k=1)
            assert sources(engine.query("what do bees make?")) == ["bees"]
    finally:
        Settings._llm = None


def test_the_prompt_holds_the_text_and_nothing_of_scores(index):
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=1, with_explanation=True)
    response = engine.query("what do bees make?")
    assert TEXTS["bees"] in str(response)
    for word in ("relevance", "explanation", "_doc_hash", "score"):
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


@pytest.mark.parametrize("mode", [ChatMode.CONDENSE_PLUS_CONTEXT, ChatMode.BEST, ChatMode.CONDENSE_QUESTION])
async def test_condensing_chats_search_for_the_condensed_question(index, mode):
    llm = Answering("how many strings has a violin?")
    history = [ChatMessage(role="user", content="Do you know violins?"), ChatMessage(role="assistant", content="Yes.")]
    engine = index.as_chat_engine(
        chat_mode=mode, llm=llm, similarity_top_k=1, memory=ChatMemoryBuffer.from_defaults(chat_history=history)
    )
    assert sources(engine.chat("And how many strings has it?")) == ["violin"]
    assert sources(await engine.achat("And how many was that?")) == ["violin"]


def test_a_simple_chat_searches_nothing(index):
    engine = index.as_chat_engine(chat_mode=ChatMode.SIMPLE, llm=MockLLM())
    assert engine.chat("hello").source_nodes == []


def test_routing_between_engines(index, mini):
    other = JinaColbertIndex.from_documents([Document(text="Owls hunt at night.", id_="owl")], encoder=mini, dim=64)
    llm = Answering('[{"choice": 2, "reason": "birds"}]')
    tools = [
        QueryEngineTool.from_defaults(one.as_query_engine(llm=MockLLM()), description=about)
        for one, about in ((index, "the house"), (other, "birds"))
    ]
    router = RouterQueryEngine.from_defaults(tools, llm=llm, selector=LLMSingleSelector.from_defaults(llm=llm))
    assert sources(router.query("what hunts?")) == ["owl"]


async def test_questions_in_parts(index):
    class Parts(BaseQuestionGenerator):
        def _get_prompts(self):
            return {}

        def _update_prompts(self, prompts):
            pass

        def generate(self, tools, query):
            return [SubQuestion(sub_question=q, tool_name="house") for q in ("what do bees make?", "what has strings?")]

        async def agenerate(self, tools, query):
            return self.generate(tools, query)

    tool = QueryEngineTool.from_defaults(
        index.as_query_engine(llm=MockLLM(), similarity_top_k=1), name="house", description="the house"
    )
    engine = SubQuestionQueryEngine.from_defaults(
        [tool],
        question_gen=Parts(),
        response_synthesizer=get_response_synthesizer(llm=MockLLM(), use_async=True),
        llm=MockLLM(),
        use_async=False,
    )
    assert {"bees", "violin"} <= set(sources(engine.query("bees and strings?")))


def test_citations_and_transformed_queries(index):
    cited = CitationQueryEngine.from_args(index, llm=MockLLM(), similarity_top_k=1)
    assert "Source 1" in cited.query("what do bees make?").source_nodes[0].text
    plain = RetrieverQueryEngine.from_args(index.as_retriever(similarity_top_k=1), llm=MockLLM())
    hyde = TransformQueryEngine(plain, HyDEQueryTransform(llm=MockLLM()))
    assert sources(hyde.query("what do bees make?")) == ["bees"]
