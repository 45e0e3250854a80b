"""``IngestionPipeline`` into a store that encodes by itself, with ``EncodedByStore`` as its last step."""

from __future__ import annotations

import copy
import pickle

import pytest
from llama_index.core import Document, Settings
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore

from jcv2_plugin import ColbertCollection
from jcv2_plugin.errors import InvalidDocumentError
from llama_index_jcv2 import EncodedByStore, JinaColbertIndex, JinaColbertVectorStore

TEXTS = {
    "tea": "A kettle boils water for tea. Tea is poured into cups.",
    "bees": "Bees make honey from nectar. Honey is kept in combs.",
    "violin": "A violin has four strings. A bow is drawn over them.",
}
EVERYTHING = sorted(
    (id, sentence) for id, text in TEXTS.items() for sentence in (text[: text.index(".") + 1], text.split(". ")[1])
)


def documents(**changed):
    return [Document(text=text, id_=id, metadata={"kind": id.upper()}) for id, text in {**TEXTS, **changed}.items()]


def steps():
    return [SentenceSplitter(chunk_size=16, chunk_overlap=0, include_metadata=False), EncodedByStore()]


def stored(store):
    return sorted((node.ref_doc_id, node.text) for node in store.get_nodes())


@pytest.fixture
def store(mini):
    with ColbertCollection.create(":memory:", encoder=mini, dim=64) as collection:
        yield JinaColbertVectorStore(collection)


async def run(pipeline, how, **kwargs):
    return pipeline.run(**kwargs) if how == "run" else await pipeline.arun(**kwargs)


both_ways = pytest.mark.parametrize("how", ["run", "arun"])


@both_ways
async def test_all_nodes_are_stored_also_from_a_cache(store, how, tmp_path):
    pipeline = IngestionPipeline(transformations=steps(), vector_store=store)
    nodes = await run(pipeline, how, documents=documents())
    assert stored(store) == EVERYTHING
    pipeline.persist(str(tmp_path))
    store.clear()
    loaded = IngestionPipeline(transformations=steps(), vector_store=store)
    loaded.load(str(tmp_path))
    again = await run(loaded, how, documents=documents())
    assert [node.node_id for node in again] == [node.node_id for node in nodes]
    assert stored(store) == EVERYTHING
    assert Settings._embed_model is None


@both_ways
async def test_the_users_pipeline_stays_as_it_is(store, how):
    plain = IngestionPipeline(transformations=steps()[:1], vector_store=store)
    nodes = await run(plain, how, documents=documents())
    assert [type(step) for step in plain.transformations] == [SentenceSplitter]
    assert {node.embedding for node in nodes} == {None}
    assert store.get_nodes() == []  # LlamaIndex drops what has no embedding before it comes to the store


@both_ways
async def test_whole_documents_and_nodes(store, how):
    given = documents()
    before = copy.deepcopy(given)
    pipeline = IngestionPipeline(transformations=[EncodedByStore()], vector_store=store, documents=given[:1])
    nodes = [TextNode(text="An owl hunts.", id_="owl"), TextNode(text=" ", id_="blank")]
    await run(pipeline, how, documents=given[1:], nodes=nodes)
    assert {node.node_id: node.text for node in store.get_nodes()} == {**TEXTS, "owl": "An owl hunts."}
    assert given == before


@both_ways
@pytest.mark.parametrize("strategy", DocstoreStrategy)
async def test_strategies(store, how, strategy):
    pipeline = IngestionPipeline(
        transformations=steps(), vector_store=store, docstore=SimpleDocumentStore(), docstore_strategy=strategy
    )
    assert len(await run(pipeline, how, documents=documents())) == 6
    assert stored(store) == EVERYTHING
    assert await run(pipeline, how, documents=documents()) == []
    await run(pipeline, how, documents=documents(tea="A kettle whistles.")[:2])
    kept = {"tea", "bees"} if strategy == DocstoreStrategy.UPSERTS_AND_DELETE else set(TEXTS)
    assert {source for source, _ in stored(store)} == kept
    old = strategy == DocstoreStrategy.DUPLICATES_ONLY
    assert [text for source, text in stored(store) if source == "tea"] == [
        *(["A kettle boils water for tea."] if old else []),
        "A kettle whistles.",
        *(["Tea is poured into cups."] if old else []),
    ]


def test_the_step_can_be_sent_to_other_processes():
    # As a pipeline with num_workers does; it carries no store.
    step = pickle.loads(pickle.dumps(EncodedByStore()))
    nodes = step([TextNode(text="tea"), TextNode(text="rice", embedding=[1.0])])
    assert [node.embedding for node in nodes] == [[], [1.0]]


def test_what_is_refused_is_not_taken_for_done(store):
    pipeline = IngestionPipeline(transformations=[EncodedByStore()], vector_store=store, docstore=SimpleDocumentStore())
    wrong = Document(text="A moment.", id_="moment", metadata={"number": 2**70})
    with pytest.raises(InvalidDocumentError, match="does not fit 64 bits"):
        pipeline.run(documents=[*documents(), wrong])
    assert store.get_nodes() == []
    pipeline.run(documents=documents())
    assert {node.node_id: node.text for node in store.get_nodes()} == TEXTS


def test_an_index_takes_what_a_pipeline_gives(store, mini):
    IngestionPipeline(transformations=steps(), vector_store=store).run(documents=documents())
    index = JinaColbertIndex.from_vector_store(store)
    assert sorted(index.ref_doc_info) == sorted(TEXTS)
    assert index.refresh_ref_docs(documents()) == [False] * 3
    other = JinaColbertIndex.from_documents([], encoder=mini, dim=64)
    other.insert_nodes(IngestionPipeline(transformations=steps()[:1]).run(documents=documents()))
    assert stored(other.vector_store) == EVERYTHING
