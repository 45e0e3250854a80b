"""``JinaColbertRerank``: any retriever's results by MaxSim, with nothing that came in changed."""

from __future__ import annotations

import copy
import pickle

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from jcv2_plugin import rerank
from jcv2_plugin.errors import InvalidOptionError, InvalidQueryError, UnknownDimError
from llama_index_jcv2 import JinaColbertRerank, ScoredNode

TEXTS = {
    "tea": "A kettle boils water for tea.",
    "lighthouse": "The lighthouse warns ships of the rocks.",
    "bees": "Bees make honey from nectar.",
    "violin": "A violin has four strings.",
}
QUESTION = "what do bees make?"


def given():
    nodes = [TextNode(text=text, id_=id, metadata={"room": id.upper()}) for id, text in TEXTS.items()]
    return [NodeWithScore(node=node, score=0.25 * position) for position, node in enumerate(nodes)]


def ids(found):
    return [one.node_id for one in found]


def test_nodes_are_ranked_by_maxsim(mini):
    nodes = given()
    texts = [one.node.get_content(MetadataMode.EMBED) for one in nodes]
    for dim in (None, 32):
        expected = rerank(mini, QUESTION, texts, dim=dim)
        found = JinaColbertRerank(top_n=4, model=mini, dim=dim).postprocess_nodes(nodes, query_str=QUESTION)
        assert ids(found) == [nodes[one.index].node_id for one in expected]
        assert [(one.maxsim, one.score) for one in found] == [(one.score, one.relevance) for one in expected]
    assert ids(found)[0] == "bees"
    best = JinaColbertRerank(2, mini, dim=32).postprocess_nodes(nodes, query_bundle=QueryBundle(QUESTION))
    assert ids(best) == ids(found)[:2]


@pytest.mark.parametrize("top_n", [0, -1, "3", 2.0, True, None])
def test_a_wrong_number_of_results_is_refused(mini, top_n):
    with pytest.raises(InvalidOptionError, match=f"top_n must be a positive integer, got {top_n!r}"):
        JinaColbertRerank(model=mini, top_n=top_n)


def test_nothing_that_comes_in_is_changed(mini):
    nodes = given()
    before = copy.deepcopy(nodes)
    listed = list(nodes)
    JinaColbertRerank(2, mini, keep_retrieval_score=True).postprocess_nodes(nodes, query_str=QUESTION)
    assert nodes == before
    assert all(one is two for one, two in zip(nodes, listed, strict=True))


def test_the_retrieval_score_is_kept_out_of_prompts(mini):
    nodes = given()
    (found,) = JinaColbertRerank(1, mini, keep_retrieval_score=True).postprocess_nodes(nodes, query_str=QUESTION)
    assert found.node.metadata == {"room": "BEES", "retrieval_score": 0.5}
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert found.node.get_content(mode) == nodes[2].node.get_content(mode)
    (plain,) = JinaColbertRerank(1, mini).postprocess_nodes(nodes, query_str=QUESTION)
    assert plain.node.metadata == {"room": "BEES"}


def test_explanations(mini):
    found = JinaColbertRerank(2, mini, with_explanation=True).postprocess_nodes(given(), query_str=QUESTION)
    assert [type(one) for one in found] == [ScoredNode] * 2
    assert [one.explanation.score for one in found] == pytest.approx([one.maxsim for one in found], abs=1e-4)
    assert found[0].explanation.text == "room: BEES\n\n" + TEXTS["bees"]


def test_nodes_without_text_come_last(mini):
    nodes = [NodeWithScore(node=TextNode(text=" ", id_="blank"), score=9.0), *given()]
    found = JinaColbertRerank(5, mini).postprocess_nodes(nodes, query_str=QUESTION)
    assert len(found) == 5
    assert (found[-1].node_id, found[-1].score) == ("blank", 0.0)
    blank = JinaColbertRerank(5, mini).postprocess_nodes(nodes[:1], query_str=QUESTION)
    assert ids(blank) == ["blank"]
    assert JinaColbertRerank(5, mini).postprocess_nodes([], query_str=QUESTION) == []


class _Events(BaseEventHandler):
    seen: list

    @classmethod
    def class_name(cls):
        return "_Events"

    def handle(self, event, **kwargs):
        if isinstance(event, (ReRankStartEvent, ReRankEndEvent)):
            self.seen.append(event)


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_the_usual_events_are_told(mini, how):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    ranker = JinaColbertRerank(2, mini, callback_manager=CallbackManager([debug]))
    root, handler, nodes = get_dispatcher(), _Events(seen=[]), given()
    root.add_event_handler(handler)
    try:
        if how == "sync":
            found = ranker.postprocess_nodes(nodes, query_str=QUESTION)
        else:
            found = await ranker.apostprocess_nodes(nodes, query_str=QUESTION)
    finally:
        root.event_handlers.remove(handler)
    start, end = handler.seen
    assert (start.model_name, start.top_n, start.query.query_str) == ("mini", 2, QUESTION)
    assert ids(start.nodes) == ids(nodes)
    assert ids(end.nodes) == ids(found) == ["bees", ids(found)[1]]
    ((before, after),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert before.payload[EventPayload.TOP_K] == 2
    assert after.payload[EventPayload.NODES] == found


def test_dumps_hold_no_model(mini):
    ranker = JinaColbertRerank(2, mini, dim=64)
    assert ranker.to_dict() == {
        "top_n": 2,
        "model": "mini",
        "dim": 64,
        "long_documents": "split",
        "keep_retrieval_score": False,
        "with_explanation": False,
        "class_name": "JinaColbertRerank",
    }
    assert "Transformer" not in repr(ranker)
    with pytest.raises(TypeError, match="holds the loaded model 'mini'"):
        pickle.dumps(ranker)
    for query in ({}, {"query_str": " "}):
        with pytest.raises(InvalidQueryError):
            ranker.postprocess_nodes(given(), **query)
    with pytest.raises(UnknownDimError):
        JinaColbertRerank(2, mini, dim=77)
    assert copy.deepcopy(ranker).encoder is mini
