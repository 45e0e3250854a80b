"""``JinaColbertIndex`` and its store, used as LlamaIndex's users do."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from llama_index.core import Document, MockEmbedding, Settings, StorageContext
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from jcv2_plugin import ColbertCollection
from jcv2_plugin.errors import CollectionExistsError, InvalidDocumentError, InvalidQueryError, ModelNotFoundError
from llama_index_jcv2 import JinaColbertIndex, JinaColbertVectorStore

TEXTS = {
    "tea": "A kettle boils water for tea.",
    "lighthouse": "The lighthouse warns ships of the rocks.",
    "bees": "Bees make honey from nectar.",
    "violin": "A violin has four strings.",
}


def documents():
    return [Document(text=text, id_=id, metadata={"room": id.upper()}) for id, text in TEXTS.items()]


def best(index, question, **kwargs):
    return index.as_retriever(similarity_top_k=1, **kwargs).retrieve(question)[0]


def sources(index):
    return sorted(node.ref_doc_id for node in index.vector_store.get_nodes())


@pytest.fixture
def index(mini, location):
    made = JinaColbertIndex.from_documents(documents(), encoder=mini, location=location)
    yield made
    made.collection.close()


@pytest.fixture
def store(mini):
    with ColbertCollection.create(":memory:", encoder=mini) as collection:
        yield JinaColbertVectorStore(collection)


def test_a_retriever_gives_nodes_with_scores(index):
    before = documents()
    found = index.as_retriever(similarity_top_k=3).retrieve("what do bees make?")
    assert len(found) == 3
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    node = found[0].node
    assert (node.text, node.metadata, node.ref_doc_id) == (TEXTS["bees"], {"room": "BEES"}, "bees")
    assert node.source_node.hash == before[2].hash
    assert isinstance(node, TextNode)
    assert index.vector_store.get_nodes([node.node_id]) == [node]
    hit = index.collection.search("what do bees make?", k=1)[0]
    assert (hit.id, hit.score, hit.metadata) == (node.node_id, found[0].score, {"room": "BEES"})


def test_the_default_model_is_the_published_one(mocker):
    out_of_reach = LocalEntryNotFoundError("no network")
    mocker.patch("jcv2_plugin.encoder.hub.snapshot_download", side_effect=out_of_reach)
    with pytest.raises(ModelNotFoundError, match=r"jinaai/jina-colbert-v2.*mini-multilingual.*mini"):
        JinaColbertIndex.from_documents(documents()[:2])


def test_no_embedding_model_is_asked_for(index):
    assert Settings._embed_model is None
    assert isinstance(index._embed_model, MockEmbedding)
    with pytest.raises(TypeError, match="embed_model"):
        JinaColbertIndex(nodes=[], storage_context=index.storage_context, embed_model=MockEmbedding(embed_dim=3))


def test_another_vector_store_is_refused():
    with pytest.raises(TypeError, match="SimpleVectorStore"):
        JinaColbertIndex(nodes=[], storage_context=StorageContext.from_defaults())


def test_query_engine_without_a_network(index):
    response = index.as_query_engine(llm=MockLLM(), similarity_top_k=2).query("how many strings has a violin?")
    assert response.source_nodes[0].text == TEXTS["violin"]
    assert len(response.source_nodes) == 2
    assert TEXTS["violin"] in str(response)  # the mock answers with its prompt


def test_insert_and_delete(index):
    index.insert(Document(text="A bakery sells bread.", id_="bakery"))
    assert best(index, "who sells bread?").node.ref_doc_id == "bakery"
    index.insert_nodes([TextNode(text="An owl hunts at night.", id_="owl")])
    assert best(index, "what hunts at night?").node.node_id == "owl"
    index.delete_nodes(["owl", "never there"])
    index.delete_ref_doc("bakery")
    index.delete_ref_doc("never there")
    assert sources(index) == sorted(TEXTS)


def test_update_and_refresh(index):
    changed = Document(text="A kettle whistles.", id_="tea", metadata={"room": "TEA"})
    index.update_ref_doc(changed)
    assert sources(index) == sorted(TEXTS)
    new = Document(text="A bakery sells bread.", id_="bakery")
    unchanged = documents()[1:]
    assert index.refresh_ref_docs([changed, new, *unchanged]) == [False, True, False, False, False]
    assert sources(index) == sorted([*TEXTS, "bakery"])
    index.delete_ref_doc("tea")
    assert index.refresh_ref_docs([changed]) == [True]
    assert best(index, "what does a kettle do?").text == "A kettle whistles."


def test_reopening_a_folder(mini, tmp_path):
    folder = tmp_path / "collection"
    JinaColbertIndex.from_documents(documents(), encoder=mini, location=folder).collection.close()
    with pytest.raises(CollectionExistsError):
        JinaColbertIndex.from_documents(documents(), encoder=mini, location=folder)
    index = JinaColbertIndex.from_collection(folder, encoder=mini)
    assert best(index, "what do bees make?").node.ref_doc_id == "bees"
    changed = Document(text="A kettle whistles.", id_="tea", metadata={"room": "TEA"})
    assert index.refresh_ref_docs([changed, *documents()[1:]]) == [True, False, False, False]
    assert sources(index) == sorted(TEXTS)
    index.delete_ref_doc("bees")
    assert index.collection.count() == 3
    with pytest.raises(TypeError, match="encoder"):
        JinaColbertIndex.from_collection(index.collection, encoder=mini)
    shared = JinaColbertIndex.from_collection(index.collection)
    assert shared.collection is index.collection
    index.collection.close()


def test_a_storage_context_brings_its_collection(store):
    context = StorageContext.from_defaults(vector_store=store)
    index = JinaColbertIndex.from_documents(documents(), context)
    assert index.collection is store.collection
    assert store.collection.count() == 4
    with pytest.raises(TypeError, match=r"\['dim', 'name'\]"):
        JinaColbertIndex.from_documents(documents(), context, dim=64, name="rooms")
    assert isinstance(JinaColbertIndex.from_vector_store(store), JinaColbertIndex)


def test_the_folder_is_free_after_a_failure(mini, tmp_path):
    folder = tmp_path / "collection"
    with pytest.raises(InvalidDocumentError, match="cannot be stored as JSON"):
        JinaColbertIndex.from_documents(
            [Document(text="tea", metadata={"what": object()})], encoder=mini, location=folder
        )
    JinaColbertIndex.from_documents(documents(), encoder=mini, location=folder, overwrite=True).collection.close()


def test_transformations_split_documents(mini):
    text = " ".join(f"Room number {number} is on floor {number % 7}." for number in range(60))
    index = JinaColbertIndex.from_documents(
        [Document(text=text, id_="hotel")],
        encoder=mini,
        transformations=[SentenceSplitter(chunk_size=60, chunk_overlap=0)],
    )
    assert index.collection.count() > 5
    node = best(index, "room number 41").node
    assert "number 41 " in node.text
    assert node.ref_doc_id == "hotel"
    assert node.prev_node.node_id != node.next_node.node_id
    index.insert(Document(text=text, id_="annexe"))
    assert index.collection.count() > 10


def test_metadata_is_encoded_unless_excluded(store):
    shown = TextNode(text="Open daily.", id_="shown", metadata={"subject": "bakery with fresh bread"})
    hidden = TextNode(
        text="Open daily.",
        id_="hidden",
        metadata={"subject": "bakery with fresh bread"},
        excluded_embed_metadata_keys=["subject"],
    )
    before = copy.deepcopy([shown, hidden])
    assert store.add([shown, hidden]) == ["shown", "hidden"]
    assert [shown, hidden] == before
    stored = store.collection.get(["shown", "hidden"])
    assert [one.text for one in stored] == ["subject: bakery with fresh bread\n\nOpen daily.", "Open daily."]
    assert [one.metadata for one in stored] == [shown.metadata, hidden.metadata]
    found = store.query(VectorStoreQuery(query_str="fresh bread", similarity_top_k=2))
    assert found.ids == ["shown", "hidden"]
    assert found.similarities[0] > found.similarities[1]
    assert list(found.nodes) == [shown, hidden]


def test_the_payload_is_that_of_the_qdrant_store(store):
    node = TextNode(text="Tea.", id_="n", metadata={"room": "kitchen", "tags": ["a", "b"]})
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="book")
    store.add([node])
    payload = store.collection.get(["n"])[0].payload
    assert payload["room"] == "kitchen"
    assert payload["tags"] == ["a", "b"]
    assert payload["doc_id"] == payload["document_id"] == payload["ref_doc_id"] == "book"
    assert payload["_node_type"] == "TextNode"
    assert TextNode.from_json(payload["_node_content"]) == node


def test_every_kind_of_node_comes_back_as_itself(store):
    nodes = [
        Document(text="A whole book.", id_="document", metadata={"n": 1}),
        IndexNode(text="A pointer.", id_="pointer", index_id="elsewhere"),
        TextNode(text="A passage.", id_="passage", metadata={"deep": {"list": [1, None, 0.5]}}, start_char_idx=3),
    ]
    store.add(nodes)
    assert store.get_nodes(["pointer", "gone", "document", "passage"]) == [nodes[1], nodes[0], nodes[2]]
    assert [type(one) for one in store.get_nodes(["document", "pointer"])] == [Document, IndexNode]


def test_documents_of_other_parts_of_the_package_are_nodes_too(store):
    store.collection.add(["Bees make honey."], ids=["b"], metadata=[{"room": "garden"}])
    (node,) = store.query(VectorStoreQuery(query_str="honey", similarity_top_k=1)).nodes
    assert (node.node_id, node.text, node.metadata) == ("b", "Bees make honey.", {"room": "garden"})


def test_index_nodes_do_not_hide_text_nodes(store):
    index = JinaColbertIndex.from_vector_store(store)
    index.insert_nodes(
        [
            IndexNode(text="About bees.", id_="pointer", index_id="x"),
            TextNode(text="An owl hunts.", id_="owl"),
        ]
    )
    assert best(index, "what does an owl do?").node.node_id == "owl"


def test_doc_ids_and_node_ids_restrict_a_search(index):
    assert best(index, "honey", doc_ids=["tea", "violin"]).node.ref_doc_id in {"tea", "violin"}
    assert best(index, "honey", doc_ids=[], node_ids=[]).node.ref_doc_id == "bees"  # as in LlamaIndex's Qdrant store
    node_id = best(index, "ships").node.node_id
    found = index.as_retriever(node_ids=[node_id], similarity_top_k=4).retrieve("honey")
    assert [one.node.node_id for one in found] == [node_id]


def test_deleting_and_clearing_the_store(store):
    store.add([TextNode(text=text, id_=id) for id, text in TEXTS.items()])
    with pytest.raises(ValueError, match="clear"):
        store.delete_nodes()
    store.delete_nodes([])
    assert store.collection.count() == 4
    store.delete_nodes(["tea"])
    assert {node.node_id for node in store.get_nodes()} == set(TEXTS) - {"tea"}
    store.clear()
    assert store.get_nodes() == []


def test_wrong_queries_and_nodes_are_refused(store):
    with pytest.raises(InvalidQueryError, match="query_str"):
        store.query(VectorStoreQuery(query_embedding=[0.0]))
    with pytest.raises(InvalidQueryError, match="sparse"):
        store.query(VectorStoreQuery(query_str="tea", mode=VectorStoreQueryMode.SPARSE))
    with pytest.raises(InvalidDocumentError, match="the text is empty"):
        store.add([TextNode(text="tea"), TextNode(text=" ")])
    with pytest.raises(InvalidDocumentError, match="cannot be stored as JSON"):
        store.add([TextNode(text="tea", metadata={"what": object()})])
    assert store.collection.count() == 0


def test_nodes_without_text_are_left_out_of_an_index(store, caplog):
    index = JinaColbertIndex.from_vector_store(store)
    with caplog.at_level(logging.WARNING):
        index.insert_nodes([TextNode(text=" \n"), TextNode(text="tea")])
    assert store.collection.count() == 1
    assert "Left out 1 nodes" in caplog.text


async def test_async(store):
    index = JinaColbertIndex.from_vector_store(store)
    for document in documents():
        await index.ainsert(document)
    retriever = index.as_retriever(similarity_top_k=2)
    assert await retriever.aretrieve("what do bees make?") == retriever.retrieve("what do bees make?")
    await index.ainsert_nodes([TextNode(text="An owl hunts at night.", id_="owl")])
    assert (await store.aget_nodes(["owl"]))[0].text == "An owl hunts at night."
    await index.adelete_nodes(["owl"])
    await index.adelete_ref_doc("violin")
    changed = Document(text="A kettle whistles.", id_="tea", metadata={"room": "TEA"})
    assert await index.arefresh_ref_docs([changed, *documents()[1:]]) == [True, False, False, True]
    assert sources(index) == sorted(TEXTS)
    answer = await index.as_query_engine(llm=MockLLM(), similarity_top_k=1).aquery("kettle")
    assert answer.source_nodes[0].text == "A kettle whistles."
    await store.adelete("tea")
    assert store.collection.count() == 3
    await store.aclear()
    assert store.collection.count() == 0


@pytest.mark.parametrize("name, call", [("search", "aquery"), ("add", "async_add")])
async def test_the_event_loop_runs_while_the_store_works(store, monkeypatch, name, call):
    store.add([TextNode(text="tea", id_="tea")])
    loop_ran = threading.Event()
    original = getattr(store.collection, name)

    def waiting(*args, **kwargs):
        assert loop_ran.wait(timeout=20), "the store kept the event loop from running"
        return original(*args, **kwargs)

    monkeypatch.setattr(store.collection, name, waiting)
    argument = VectorStoreQuery(query_str="tea") if call == "aquery" else [TextNode(text="rice", id_="rice")]
    task = asyncio.create_task(getattr(store, call)(argument))
    await asyncio.sleep(0.01)
    loop_ran.set()
    result = await task
    assert (result.ids if call == "aquery" else result) == [argument[0].node_id if call == "async_add" else "tea"]


def test_dumps_hold_no_collection(store):
    for text in (repr(store), store.to_json(), repr(store.to_dict())):
        assert "ColbertCollection" not in text
        assert "Client" not in text


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_nodes_are_read_and_deleted_by_id_by_filter_and_by_both(store, how):
    async def call(name, *args, **kwargs):
        if how == "sync":
            return getattr(store, name)(*args, **kwargs)
        return await getattr(store, f"a{name}")(*args, **kwargs)

    def where(**metadata):
        return MetadataFilters(filters=[MetadataFilter(key=key, value=value) for key, value in metadata.items()])

    async def there(*args, **kwargs):
        return sorted(node.node_id for node in await call("get_nodes", *args, **kwargs))

    nodes = [
        TextNode(text=text, id_=id, metadata={"letters": len(id), "odd": len(id) % 2}) for id, text in TEXTS.items()
    ]
    store.add(nodes)
    assert await there() == sorted(TEXTS)
    assert await call("get_nodes", ["violin", "never there", "tea"]) == [nodes[3], nodes[0]]
    assert await there(filters=where(odd=0)) == ["bees", "lighthouse", "violin"]
    assert await there(["tea", "bees"], where(odd=0)) == ["bees"]
    assert await there([]) == []
    assert await there([], where(odd=0)) == []
    await call("delete_nodes", ["tea", "bees"], where(odd=0))
    assert await there() == ["lighthouse", "tea", "violin"]
    await call("delete_nodes", filters=where(letters=6))
    assert await there() == ["lighthouse", "tea"]
    await call("delete_nodes", ["tea"])
    with pytest.raises(ValueError, match="clear"):
        await call("delete_nodes")
    assert await there() == ["lighthouse"]
    await call("clear")
    assert await there() == []
    store.add(nodes[:1])  # a store that was cleared can be filled again
    assert await there() == ["tea"]
