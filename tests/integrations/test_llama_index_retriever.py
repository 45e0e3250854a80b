"""``JinaColbertRetriever``: its options, its scores and explanations, alone and in other retrievers."""

from __future__ import annotations

import pickle

import pytest
from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters, VectorStoreQuery
from qdrant_client import models

from jcv2_plugin import ColbertCollection
from jcv2_plugin.errors import CollectionNotFoundError, InvalidQueryError
from llama_index_jcv2 import JinaColbertIndex, JinaColbertRetriever, JinaColbertVectorStore, ScoredNode

TEXTS = {
    "tea": "A kettle boils water for tea.",
    "tea again": "A kettle boils water for tea!",
    "lighthouse": "The lighthouse warns ships of the rocks.",
    "bees": "Bees make honey from nectar.",
    "violin": "A violin has four strings.",
}
QUESTION = "what boils water for tea?"


def documents():
    return [Document(text=text, id_=id, metadata={"letters": len(text)}) for id, text in TEXTS.items()]


def sources(found):
    return [one.node.ref_doc_id for one in found]


@pytest.fixture(scope="module")
def index(mini):
    made = JinaColbertIndex.from_documents(documents(), encoder=mini, dim=64)
    yield made
    made.collection.close()


def test_it_searches_an_index_a_store_a_collection_and_a_location(index, mini, tmp_path):
    expected = index.collection.search(QUESTION, k=3)
    for searched in (index, index.vector_store, index.collection):
        found = JinaColbertRetriever(searched, similarity_top_k=3).retrieve(QUESTION)
        assert [(one.node_id, one.relevance, one.maxsim) for one in found] == [
            (hit.id, hit.relevance, hit.score) for hit in expected
        ]
    folder = tmp_path / "collection"
    with ColbertCollection.create(folder, encoder=mini, dim=64) as collection:
        collection.add(["Bees make honey."], ids=["b"])
    opened = JinaColbertRetriever(str(folder))
    assert [one.node_id for one in opened.retrieve("honey")] == ["b"]
    opened.collection.close()
    chosen = JinaColbertRetriever.from_collection(folder, encoder=mini, similarity_top_k=1)
    assert [one.node_id for one in chosen.retrieve("honey")] == ["b"]
    chosen.collection.close()


def test_what_cannot_be_searched_is_refused(index, tmp_path, mini):
    with pytest.raises(TypeError, match=r"not StorageContext"):
        JinaColbertRetriever(StorageContext.from_defaults())
    with pytest.raises(CollectionNotFoundError):
        JinaColbertRetriever(tmp_path / "nowhere")
    with pytest.raises(TypeError, match=r"\['encoder'\] can no longer be chosen"):
        JinaColbertRetriever.from_collection(index.collection, encoder=mini)
    with pytest.raises(TypeError, match="similarity_topk"):
        JinaColbertRetriever(index, similarity_topk=3)
    folder = tmp_path / "free"
    ColbertCollection.create(folder, encoder=mini, dim=64).close()
    with pytest.raises(ValueError, match="nothing like it"):
        JinaColbertRetriever.from_collection(folder, vector_store_query_mode="nothing like it")
    ColbertCollection.open(folder).close()  # a retriever that was not made holds nothing open


def test_results_carry_relevance_and_are_nodes_with_scores(index):
    found = index.as_retriever(similarity_top_k=5).retrieve(QUESTION)
    assert [type(one) for one in found] == [ScoredNode] * 5
    assert all(0 <= one.score == one.relevance <= 1 for one in found)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    one = found[0]
    assert one.explanation is None
    plain = NodeWithScore(node=one.node, score=one.score)
    assert one == plain
    assert plain == one
    assert one.to_dict() == plain.to_dict()
    assert "maxsim" not in one.to_json()
    assert one != NodeWithScore(node=one.node, score=one.score + 1)


def test_explanations_lie_beside_the_node(index):
    plain = index.as_retriever(similarity_top_k=3).retrieve(QUESTION)
    explained = index.as_retriever(similarity_top_k=3, with_explanation=True).retrieve(QUESTION)
    assert explained == plain
    for one in explained:
        assert one.explanation.score == pytest.approx(one.maxsim, abs=0.02)
        assert one.explanation.text == index.collection.get([one.node_id])[0].text
        assert one.node.metadata.keys() == {"letters"}
        assert "explanation" not in one.to_json()
        assert "similarities" not in repr(one)
    best = explained[0].explanation
    matched = {
        best.query[match.query.start : match.query.end]: best.text[match.document.start : match.document.end]
        for match in best.matches
    }
    assert matched["tea"] == "tea"
    loaded = pickle.loads(pickle.dumps(explained))
    assert loaded == explained
    assert loaded[0].explanation.score == explained[0].explanation.score


def test_options_may_be_set_and_changed_for_some_queries(index):
    retriever = index.as_retriever(similarity_top_k=1)
    assert len(retriever.retrieve(QUESTION)) == 1
    retriever.similarity_top_k = 3
    assert len(retriever.retrieve(QUESTION)) == 3
    only = MetadataFilters(filters=[MetadataFilter(key="letters", value=len(TEXTS["bees"]))])
    other = retriever.with_options(filters=only, with_explanation=True)
    assert sources(other.retrieve(QUESTION)) == ["bees"]
    assert other.retrieve(QUESTION)[0].explanation is not None
    assert retriever.filters is None
    assert len(retriever.retrieve(QUESTION)) == 3
    assert sources(retriever.with_options(doc_ids=["violin"]).retrieve(QUESTION)) == ["violin"]
    assert len(retriever.with_options(doc_ids=[], node_ids=[]).retrieve(QUESTION)) == 3  # as in their Qdrant store
    node_id = retriever.retrieve("ships")[0].node_id
    assert [one.node_id for one in retriever.with_options(node_ids=[node_id]).retrieve(QUESTION)] == [node_id]
    with pytest.raises(TypeError, match=r"\['top_k'\]"):
        retriever.with_options(top_k=1)
    with pytest.raises(InvalidQueryError, match="k must be a positive integer, got 0"):
        retriever.with_options(similarity_top_k=0).retrieve(QUESTION)
    with pytest.raises(InvalidQueryError, match="non-empty"):
        retriever.retrieve(" ")


def test_thresholds_and_first_stages(index):
    hits = index.collection.search(QUESTION, k=5)
    between = (hits[1].score + hits[2].score) / 2
    assert len(index.as_retriever(similarity_top_k=5, score_threshold=between).retrieve(QUESTION)) == 2
    for first_stage in ("none", "bm25", "pooled", "hybrid"):
        found = index.as_retriever(similarity_top_k=1, first_stage=first_stage).retrieve(QUESTION)
        assert found[0].maxsim == pytest.approx(hits[0].score)
    # Its words are in no document, so BM25 has no candidates; MaxSim over all has.
    strange = "bumblebee jar"
    assert index.as_retriever(first_stage="bm25").retrieve(strange) == []
    assert len(index.as_retriever(exact=True).retrieve(strange)) == 2
    assert len(index.as_retriever(candidates=1, similarity_top_k=5).retrieve(QUESTION)) == 5
    with pytest.raises(InvalidQueryError, match="splade"):
        index.as_retriever(first_stage="splade").retrieve(QUESTION)


def test_maximal_marginal_relevance(index):
    plain = index.as_retriever(similarity_top_k=2).retrieve(QUESTION)
    assert sorted(sources(plain)) == ["tea", "tea again"]
    diverse = index.as_retriever(similarity_top_k=2, vector_store_query_mode="mmr", mmr_threshold=0.1)
    found = diverse.retrieve(QUESTION)
    assert found[0] == plain[0]
    assert len({"tea", "tea again"} & set(sources(found))) == 1
    by_score = diverse.with_options(mmr_threshold=1.0).retrieve(QUESTION)
    assert by_score == plain
    kwargs = {"mmr_threshold": 0.1, "mmr_prefetch_factor": 1}
    near = index.as_retriever(similarity_top_k=2, vector_store_query_mode="mmr", vector_store_kwargs=kwargs)
    assert sorted(sources(near.retrieve(QUESTION))) == ["tea", "tea again"]  # there is nothing else to choose from
    few = {"mmr_threshold": 0.1, "mmr_prefetch_k": 5}
    far = index.as_retriever(similarity_top_k=2, vector_store_query_mode="mmr", vector_store_kwargs=few)
    assert sources(far.retrieve(QUESTION)) == sources(found)
    store, query = index.vector_store, VectorStoreQuery(query_str=QUESTION, similarity_top_k=2, mmr_threshold=0.1)
    with pytest.raises(InvalidQueryError, match="belong to the query mode 'mmr'"):
        store.query(query)
    query.mode = "mmr"
    assert store.query(query).ids == [one.node_id for one in found]
    with pytest.raises(InvalidQueryError, match="lambda_mult"):
        diverse.with_options(mmr_threshold=2.0).retrieve(QUESTION)


def test_as_retriever_catches_slips_and_passes_over_the_rest(index):
    assert len(index.as_retriever(similarity_top_k=2, response_mode="compact", streaming=False).retrieve("tea")) == 2
    for wrong, meant in [("similarity_topk", "similarity_top_k"), ("filter", "filters"), ("docs_ids", "doc_ids")]:
        with pytest.raises(TypeError, match=f"no option '{wrong}'. Did you mean '{meant}'"):
            index.as_retriever(**{wrong: 1})
    with pytest.raises(TypeError, match="Leave embed_model out"):
        index.as_retriever(embed_model="local")
    assert index.as_retriever(embed_model=None).collection is index.collection


async def test_async_finds_the_same(index):
    filters = MetadataFilters(
        filters=[MetadataFilter(key="letters", operator=FilterOperator.GT, value=len(TEXTS["bees"]))]
    )
    for options in ({}, {"with_explanation": True}, {"filters": filters}, {"vector_store_query_mode": "mmr"}):
        retriever = index.as_retriever(similarity_top_k=3, **options)
        found = await retriever.aretrieve(QUESTION)
        assert found == retriever.retrieve(QUESTION)
        assert found
    explained = await index.as_retriever(with_explanation=True).aretrieve(QueryBundle(QUESTION))
    assert explained[0].explanation.query == QUESTION


async def test_fusion_with_another_retriever(index, mini):
    other = JinaColbertIndex.from_documents([Document(text="Owls hunt at night.", id_="owl")], encoder=mini, dim=64)
    for mode in ("reciprocal_rerank", "relative_score"):
        fusion = QueryFusionRetriever(
            [index.as_retriever(similarity_top_k=2), other.as_retriever(similarity_top_k=1)],
            llm=MockLLM(),
            num_queries=1,
            mode=mode,
            similarity_top_k=3,
            use_async=False,
        )
        found = fusion.retrieve("what boils water for tea?")
        assert {"tea", "tea again", "owl"} == set(sources(found))
        assert set(sources(await fusion.aretrieve("what boils water for tea?"))) == {"tea", "tea again", "owl"}


def test_other_ways_to_search(index, mini):
    wanted = models.FieldCondition(key="metadata.letters", match=models.MatchValue(value=len(TEXTS["violin"])))
    retriever = index.as_retriever(vector_store_kwargs={"qdrant_filters": models.Filter(must=[wanted])})
    assert sources(retriever.retrieve(QUESTION)) == ["violin"]
    plain = VectorStoreIndex.from_vector_store(index.vector_store, embed_model=index._embed_model)
    assert sources(JinaColbertRetriever(plain, similarity_top_k=1).retrieve("strings")) == ["violin"]
    top = JinaColbertIndex.from_documents([], encoder=mini, dim=64)
    top.insert_nodes([IndexNode(text="All about kettles.", index_id="x", obj=index.as_retriever(similarity_top_k=1))])
    assert sources(top.as_retriever(similarity_top_k=1).retrieve("kettles boil water")) == ["tea"]
    index.collection.add(["Owls hunt mice."], ids=["owl"], metadata=[{"room": "barn"}])
    found = JinaColbertVectorStore(index.collection).query(VectorStoreQuery(query_str="owl", similarity_top_k=1))
    assert [(node.node_id, node.text, node.metadata) for node in found.nodes] == [
        ("owl", "Owls hunt mice.", {"room": "barn"})
    ]
    index.collection.delete(["owl"])
    assert (Settings._embed_model, Settings._llm) == (None, None)
