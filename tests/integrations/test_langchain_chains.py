"""Our retrievers where LangChain's users put them: chains, batches, tracing, fusion, agents."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections import defaultdict
from operator import attrgetter

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.example_selectors import MaxMarginalRelevanceExampleSelector, SemanticSimilarityExampleSelector
from langchain_core.language_models import FakeListChatModel, FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_samples import IDS, TEXTS, documents, ids_of

from jcv2_plugin.errors import InvalidQueryError
from langchain_jcv2 import JinaColbertRetriever, JinaColbertVectorStore

QUESTIONS = ["what do bees make?", "what warns ships?", "how many strings?"]
EXPECTED = ["bees", "lighthouse", "violin"]


@pytest.fixture(scope="module", params=["memory", "folder"])
def store(mini, request, tmp_path_factory):
    location = ":memory:" if request.param == "memory" else tmp_path_factory.mktemp("chains") / "collection"
    made = JinaColbertVectorStore.from_documents(documents(), encoder=mini, dim=64, location=location)
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


class AsyncTrace(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.ended: list[list[Document]] = []

    async def on_retriever_end(self, documents, **kwargs):
        self.ended.append(list(documents))


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


async def test_batches_with_config_and_fallbacks(retriever):
    assert [found[0].id for found in retriever.batch(QUESTIONS)] == EXPECTED
    assert [found[0].id for found in await retriever.abatch(QUESTIONS, config={"max_concurrency": 2})] == EXPECTED
    assert [found[0].id for _, found in sorted(retriever.batch_as_completed(QUESTIONS))] == EXPECTED
    assert [len(found) for found in retriever.bind(k=1).batch(QUESTIONS)] == [1, 1, 1]
    errors = retriever.batch(["", QUESTIONS[0]], return_exceptions=True)
    assert isinstance(errors[0], InvalidQueryError)
    assert errors[1][0].id == "bees"
    safe = retriever.with_fallbacks([RunnableLambda(lambda query: [])], exceptions_to_handle=(InvalidQueryError,))
    assert safe.invoke(" ") == []


def test_what_langchain_hands_on_is_no_option_of_the_search(retriever):
    assert retriever.invoke(QUESTIONS[0], verbose=True) == retriever.invoke(QUESTIONS[0])
    with pytest.raises(TypeError, match="verbos"):
        retriever.invoke(QUESTIONS[0], verbos=True)


def test_a_copy_shares_the_collection(store):
    own = JinaColbertRetriever.from_vectorstore(store, k=2)
    for twin in (own.model_copy(update={"k": 1}), copy.copy(own)):
        assert twin.collection is own.collection
        assert twin.invoke(QUESTIONS[0])[0].id == "bees"
    assert own.k == 2


async def test_tracing(retriever):
    trace, async_trace = Trace(), AsyncTrace()
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
    assert await retriever.ainvoke(QUESTIONS[0], config={"callbacks": [async_trace]}) == found
    assert async_trace.ended == [found]
    events = [event async for event in retriever.astream_events(QUESTIONS[0], version="v2")]
    assert [event["event"] for event in events] == ["on_retriever_start", "on_retriever_end"]
    assert events[1]["data"]["output"] == found


def test_tracing_names_the_model(store):
    trace = Trace()
    JinaColbertRetriever.from_vectorstore(store).invoke(QUESTIONS[0], config={"callbacks": [trace]})
    ((_, metadata, _),) = trace.started
    assert metadata["ls_embedding_model"] == "mini"
    assert metadata["ls_vector_store_provider"] == "Qdrant"


def reciprocal_rank_fusion(rankings: dict[str, list[Document]], constant: int = 60) -> list[Document]:
    """As EnsembleRetriever fuses."""
    scores: defaultdict[str, float] = defaultdict(float)
    found = {}
    for ranking in rankings.values():
        for rank, document in enumerate(ranking, start=1):
            scores[document.id] += 1 / (constant + rank)
            found.setdefault(document.id, document)
    return [found[id] for id in sorted(scores, key=scores.__getitem__, reverse=True)]


async def test_fusion_with_another_retriever(retriever):
    dense = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    dense.add_documents(documents())
    ensemble = RunnableParallel(
        late_interaction=retriever, dense=dense.as_retriever(search_kwargs={"k": 2})
    ) | RunnableLambda(reciprocal_rank_fusion)
    for question in QUESTIONS:
        fused = ensemble.invoke(question)
        assert fused == await ensemble.ainvoke(question)
        ours = retriever.invoke(question)
        assert set(ids_of(ours)) <= set(ids_of(fused))
        assert len(ids_of(fused)) == len(set(ids_of(fused)))
        assert all(document in documents() for document in fused)  # equal, so that they fuse


def test_several_queries_for_one_question(retriever):
    model = FakeListChatModel(responses=["what do bees make?\nwhat warns ships?\nhow many strings?"])
    prompt = ChatPromptTemplate.from_template("Write three questions that ask: {question}")
    queries = prompt | model | StrOutputParser() | str.splitlines
    union = RunnableLambda(
        lambda rankings: list({document.id: document for found in rankings for document in found}.values())
    )
    chain = queries | retriever.map() | union
    found = ids_of(chain.invoke({"question": "everything?"}))
    assert set(EXPECTED) <= set(found)
    assert len(found) == len(set(found))


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


async def test_writes_and_searches_beside_each_other(mini, location):
    store = JinaColbertVectorStore.from_documents(documents(), encoder=mini, dim=32, location=location)

    async def write(number: int) -> list[str]:
        return await store.aadd_texts([f"Note {number} of the keeper."], [{"n": number}], ids=[f"note-{number}"])

    async def read(number: int) -> str:
        return (await store.asimilarity_search(QUESTIONS[number % 3], k=1, filter={"room": "hall"}))[0].id

    done = await asyncio.gather(*(task(n) for n in range(12) for task in (write, read)))
    assert done[1::2] == ["violin"] * 12
    assert sorted(store.collection.ids()) == sorted([*IDS, *(f"note-{n}" for n in range(12))])
    assert await store.aget_by_ids(["note-7"]) == [
        Document(id="note-7", page_content="Note 7 of the keeper.", metadata={"n": 7})
    ]
    store.collection.close()
