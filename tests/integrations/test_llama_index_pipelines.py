"""``IngestionPipeline`` into a store that encodes by itself: everything is stored, whatever way it runs."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
from llama_index.core import Document, Settings
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore, VectorStoreQuery

from jcv2_plugin import ColbertCollection
from jcv2_plugin.errors import InvalidDocumentError
from llama_index_jcv2 import EncodedByStore, JinaColbertIndex, JinaColbertVectorStore

TEXTS = {
    "tea": "A kettle boils water for tea. Tea is poured into cups.",
    "bees": "Bees make honey from nectar. Honey is kept in combs.",
    "violin": "A violin has four strings. A bow is drawn over them.",
}


def documents(**changed):
    return [Document(text=text, id_=id, metadata={"kind": id.upper()}) for id, text in {**TEXTS, **changed}.items()]


def splitter():
    return SentenceSplitter(chunk_size=16, chunk_overlap=0, include_metadata=False)


def stored(store):
    return sorted((node.ref_doc_id, node.text) for node in store.get_nodes())


EVERYTHING = sorted(
    (id, sentence) for id, text in TEXTS.items() for sentence in (text[: text.index(".") + 1], text.split(". ")[1])
)


@pytest.fixture
def store(mini, location):
    with ColbertCollection.create(location, encoder=mini, dim=64) as collection:
        yield JinaColbertVectorStore(collection)


async def run(pipeline, how, **kwargs):
    return pipeline.run(**kwargs) if how == "run" else await pipeline.arun(**kwargs)


both_ways = pytest.mark.parametrize("how", ["run", "arun"])


@both_ways
async def test_a_plain_pipeline_stores_all_nodes(store, how):
    steps = [splitter()]
    pipeline = IngestionPipeline(transformations=steps, vector_store=store)
    nodes = await run(pipeline, how, documents=documents())
    assert stored(store) == EVERYTHING
    assert sorted(node.node_id for node in nodes) == sorted(node.node_id for node in store.get_nodes())
    assert len(steps) == 1
    await run(pipeline, how, documents=[Document(text="An owl hunts.", id_="owl")])
    assert [type(step) for step in pipeline.transformations] == [SentenceSplitter, EncodedByStore]
    assert len(stored(store)) == len(EVERYTHING) + 1
    assert Settings._embed_model is None


@both_ways
async def test_the_step_may_be_given(store, how):
    steps = [splitter(), EncodedByStore()]
    pipeline = IngestionPipeline(transformations=steps, vector_store=store)
    await run(pipeline, how, documents=documents())
    assert stored(store) == EVERYTHING
    assert pipeline.transformations == steps


async def test_a_step_before_a_splitter_does_not_count(store):
    IngestionPipeline(transformations=[EncodedByStore(), splitter()], vector_store=store).run(documents=documents())
    assert stored(store) == EVERYTHING


@both_ways
async def test_whole_documents_and_nodes(store, how):
    given = documents()
    before = copy.deepcopy(given)
    pipeline = IngestionPipeline(transformations=[], vector_store=store, documents=given[:1])
    await run(pipeline, how, documents=given[1:], nodes=[TextNode(text="An owl hunts.", id_="owl")])
    assert {node.node_id: node.text for node in store.get_nodes()} == {**TEXTS, "owl": "An owl hunts."}
    assert given == before
    assert [one.embedding for one in given] == [None] * 3


@both_ways
async def test_upserts(store, how):
    pipeline = IngestionPipeline(
        transformations=[splitter()],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
    )
    assert len(await run(pipeline, how, documents=documents())) == 6
    assert await run(pipeline, how, documents=documents()) == []
    assert stored(store) == EVERYTHING
    changed = await run(pipeline, how, documents=documents(tea="A kettle whistles."))
    assert [node.text for node in changed] == ["A kettle whistles."]
    assert stored(store) == sorted([*(one for one in EVERYTHING if one[0] != "tea"), ("tea", "A kettle whistles.")])


@both_ways
@pytest.mark.parametrize("whole", [False, True])
async def test_upserts_and_delete(store, how, whole):
    pipeline = IngestionPipeline(
        transformations=[] if whole else [splitter()],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    await run(pipeline, how, documents=documents())
    await run(pipeline, how, documents=documents(tea="A kettle whistles.")[:2])
    found = store.get_nodes()
    assert {node.node_id if whole else node.ref_doc_id for node in found} == {"tea", "bees"}
    assert "A kettle whistles." in {node.text for node in found}


@both_ways
async def test_duplicates_only(store, how):
    pipeline = IngestionPipeline(
        transformations=[splitter()],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.DUPLICATES_ONLY,
    )
    await run(pipeline, how, documents=documents())
    again = [Document(text=one.text, metadata=one.metadata) for one in documents()]
    assert await run(pipeline, how, documents=again) == []
    assert stored(store) == EVERYTHING


@both_ways
async def test_from_a_cache(store, how, tmp_path):
    pipeline = IngestionPipeline(transformations=[splitter()], vector_store=store)
    first = await run(pipeline, how, documents=documents())
    pipeline.persist(str(tmp_path))
    store.clear()
    loaded = IngestionPipeline(transformations=[splitter()], vector_store=store)
    loaded.load(str(tmp_path))
    again = await run(loaded, how, documents=documents())
    assert [node.node_id for node in again] == [node.node_id for node in first]
    assert stored(store) == EVERYTHING
    await run(loaded, how, documents=documents())
    assert stored(store) == EVERYTHING
    assert isinstance(loaded.cache, IngestionCache)


def test_the_step_can_be_sent_to_other_processes():
    # As a pipeline with num_workers does; it carries no store.
    step = pickle.loads(pickle.dumps(EncodedByStore()))
    assert [node.embedding for node in step([TextNode(text="tea"), TextNode(text="rice", embedding=[1.0])])] == [
        [],
        [1.0],
    ]


def test_nodes_without_text_are_kept_out_and_named(store, caplog):
    pipeline = IngestionPipeline(transformations=[], vector_store=store)
    with caplog.at_level(logging.WARNING):
        nodes = pipeline.run(nodes=[TextNode(text=" \n", id_="blank"), TextNode(text="tea", id_="tea")])
    assert [node.node_id for node in nodes] == ["blank", "tea"]
    assert [node.node_id for node in store.get_nodes()] == ["tea"]
    assert "Left out 1 nodes that have no text to encode: blank" in caplog.text


def test_what_is_refused_is_not_taken_for_done(store):
    pipeline = IngestionPipeline(transformations=[], vector_store=store, docstore=SimpleDocumentStore())
    wrong = Document(text="A moment.", id_="moment", metadata={"number": 2**70})
    with pytest.raises(InvalidDocumentError, match="does not fit 64 bits"):
        pipeline.run(documents=[*documents(), wrong])
    assert store.get_nodes() == []
    pipeline.run(documents=documents())
    assert {node.node_id: node.text for node in store.get_nodes()} == TEXTS


def test_other_stores_are_left_alone():
    pipeline = IngestionPipeline(transformations=[splitter()], vector_store=SimpleVectorStore())
    assert {node.embedding for node in pipeline.run(documents=documents())} == {None}
    alone = IngestionPipeline(transformations=[splitter()])
    assert {node.embedding for node in alone.run(documents=documents())} == {None}
    assert [type(one) for one in [*pipeline.transformations, *alone.transformations]] == [SentenceSplitter] * 2


def test_an_index_takes_what_a_pipeline_gives(store, mini):
    IngestionPipeline(transformations=[splitter()], vector_store=store).run(documents=documents())
    index = JinaColbertIndex.from_vector_store(store)
    assert sorted(index.ref_doc_info) == sorted(TEXTS)
    assert index.refresh_ref_docs(documents()) == [False] * 3
    other = JinaColbertIndex.from_documents([], encoder=mini, dim=64)
    other.insert_nodes(IngestionPipeline(transformations=[splitter()]).run(documents=documents()))
    question = VectorStoreQuery(query_str="what do bees make?", similarity_top_k=3)
    found = [[node.text for node in one.query(question).nodes] for one in (store, other.vector_store)]
    assert found[0] == found[1]
