"""Our retrievers where LangChain's users put them: chains, batches, tracing, fusion, agents."""

from __future__ import annotations

import asyncio
import threading
from operator import attrgetter

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.example_selectors import MaxMarginalRelevanceExampleSelector, SemanticSimilarityExampleSelector
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_samples import IDS, TEXTS, documents, ids_of

from jcv2_plugin.errors import InvalidQueryError
from langchain_jcv2 import JinaColbertRetriever, JinaColbertVectorStore

QUESTIONS = ["what do bees make?", "what warns ships?", "how many strings?"]
EXPECTED = ["bees", "lighthouse", "violin"]


@pytest.fixture(scope="module")
def store(mini):
    made = JinaColbertVectorStore.from_documents(documents(), encoder=mini, dim=64)
    yield made
    made.collection.close()


@pytest.fixture(params=["own", "as_retriever"])
def retriever(request, store):
    if request.param == "own":
        return JinaColbertRetriever.from_vectorstore(store, k=2)
    return store.as_retriever(search_kwargs={"k": 2})


class Trace(BaseCallbackHandler):
    """What a tracer is told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, dict, list[str]]] = []
        self.ended: list[list[Document]] = []
        self.failed: list[BaseException] = []

    def on_retriever_start(self, serialized, query, *, tags=None, metadata=None, **kwargs):
        self.started.append((query, metadata, tags))

    def on_retriever_end(self, documents, **kwargs):
        self.ended.append(list(documents))

    def on_retriever_error(self, error, **kwargs):
        self.failed.append(error)


async def test_a_chain_answers_streams_and_runs_in_batches(retriever):
    prompt = ChatPromptTemplate.from_template("Answer from {context}\nQuestion: {question}")
    context = retriever | (lambda found: " ".join(one.page_content for one in found))
    # The stand-in for a model answers with the first passage that it is given.
    chain = (
        {"context": context, "question": RunnablePassthrough()}
        | prompt
        | RunnableLambda(lambda value: AIMessage(value.to_string().partition("Answer from ")[2].partition(".")[0]))
        | StrOutputParser()
    )
    answers = [TEXTS[IDS.index(id)].removesuffix(".") for id in EXPECTED]
    assert chain.invoke(QUESTIONS[0]) == answers[0]
    assert chain.batch(QUESTIONS, config={"max_concurrency": 2}) == answers
    assert await chain.abatch(QUESTIONS) == answers
    assert "".join(chain.stream(QUESTIONS[1])) == answers[1]
    assert "".join([part async for part in chain.astream(QUESTIONS[1])]) == answers[1]


def test_what_langchain_hands_on_is_no_option_of_the_search(retriever):
    assert retriever.invoke(QUESTIONS[0], verbose=True) == retriever.invoke(QUESTIONS[0])
    with pytest.raises(TypeError, match="verbos"):
        retriever.invoke(QUESTIONS[0], verbos=True)


async def test_tracing(retriever):
    trace, again = Trace(), Trace()
    traced = retriever.with_config(callbacks=[trace], tags=["mine"], metadata={"who": "me"}, run_name="rooms")
    found = traced.invoke(QUESTIONS[0])
    ((query, metadata, tags),) = trace.started
    assert query == QUESTIONS[0]
    assert metadata["who"] == "me"
    assert metadata["ls_retriever_name"]
    assert "mine" in tags
    assert trace.ended == [found]
    with pytest.raises(InvalidQueryError):
        traced.invoke("")
    assert [type(error) for error in trace.failed] == [InvalidQueryError]
    assert await retriever.ainvoke(QUESTIONS[0], config={"callbacks": [again]}) == found
    assert again.ended == [found]
    events = [event async for event in retriever.astream_events(QUESTIONS[0], version="v2")]
    assert [event["event"] for event in events] == ["on_retriever_start", "on_retriever_end"]
    assert events[1]["data"]["output"] == found


def test_tracing_names_the_model(store):
    trace = Trace()
    JinaColbertRetriever.from_vectorstore(store).invoke(QUESTIONS[0], config={"callbacks": [trace]})
    ((_, metadata, _),) = trace.started
    assert metadata["ls_embedding_model"] == "mini"
    assert metadata["ls_vector_store_provider"] == "Qdrant"


async def test_an_agents_tool(retriever):
    tool = create_retriever_tool(
        retriever,
        "house",
        "What is in the house and around it.",
        document_prompt=PromptTemplate.from_template("{page_content} ({room})"),
        response_format="content_and_artifact",
    )
    calls = [{"name": "house", "args": {"query": QUESTIONS[0]}, "id": "call-1", "type": "tool_call"}]
    model = FakeMessagesListChatModel(responses=[AIMessage("", tool_calls=calls), AIMessage("Honey.")])
    messages = [HumanMessage("What do bees make?")]
    while (answer := model.invoke(messages)).tool_calls:
        results = [await tool.ainvoke(call) for call in answer.tool_calls]
        messages += [answer, *results]
    assert answer.content == "Honey."
    (result,) = (message for message in messages if isinstance(message, ToolMessage))
    assert result.content.startswith("Bees make honey from nectar. (garden)")
    assert result.tool_call_id == "call-1"
    assert result.artifact == retriever.invoke(QUESTIONS[0])
    assert tool.invoke(calls[0]).content == result.content
    assert tool.args_schema.model_json_schema()["required"] == ["query"]


@pytest.mark.parametrize("selector", [SemanticSimilarityExampleSelector, MaxMarginalRelevanceExampleSelector])
def test_examples_for_a_prompt(mini, selector):
    examples = [{"input": text, "output": id} for id, text in zip(IDS, TEXTS, strict=True)]
    chosen = selector.from_examples(examples, mini, JinaColbertVectorStore, k=1, input_keys=["input"], dim=64)
    assert chosen.select_examples({"input": "how many strings?"}) == [examples[3]]
    chosen.add_example({"input": "A lamp is lit at dusk.", "output": "lamp"})
    assert chosen.select_examples({"input": "when is the lamp lit?"})[0]["output"] == "lamp"
    chosen.vectorstore.collection.close()


@pytest.mark.parametrize(
    "search",
    [
        "asimilarity_search",
        "asimilarity_search_with_score",
        "asimilarity_search_with_relevance_scores",
        "asimilarity_search_with_explanation",
    ],
)
async def test_searches_run_beside_each_other_and_the_event_loop(store, search, monkeypatch):
    at_once = threading.Barrier(5)
    core_search = store.collection.search

    def meeting(*args, **options):
        at_once.wait(timeout=20)  # breaks unless all five are in a search at the same time
        return core_search(*args, **options)

    monkeypatch.setattr(store.collection, "search", meeting)
    tasks = [asyncio.create_task(attrgetter(search)(store)(QUESTIONS[n % 3], k=1)) for n in range(4)]
    await asyncio.sleep(0)
    assert await asyncio.to_thread(store.similarity_search, QUESTIONS[0], k=1)
    found = [one[0] if isinstance(one, tuple) else one for (one,) in await asyncio.gather(*tasks)]
    assert ids_of(found) == [EXPECTED[n % 3] for n in range(4)]
