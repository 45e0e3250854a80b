"""``JinaColbertIndex`` and its store, used as LlamaIndex's users do."""

from __future__ import annotations

import copy

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from llama_index.core import Document, MockEmbedding, Settings, StorageContext
from llama_index.core.schema import IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from jcv2_plugin import ColbertCollection
from jcv2_plugin.errors import InvalidQueryError, ModelNotFoundError
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
def index(mini):
    made = JinaColbertIndex.from_documents(documents(), encoder=mini)
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
    assert (hit.id, hit.score, hit.metadata) == (node.node_id, found[0].maxsim, {"room": "BEES"})


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


def test_insert_and_delete(index):
    index.insert(Document(text="A bakery sells bread.", id_="bakery"))
    assert best(index, "who sells bread?").node.ref_doc_id == "bakery"
    index.insert_nodes([TextNode(text="An owl hunts at night.", id_="owl")])
    assert best(index, "what hunts at night?").node.node_id == "owl"
    index.delete_nodes(["owl", "never there"])
    index.delete_ref_doc("bakery")
    index.delete_ref_doc("never there")
    assert sources(index) == sorted(TEXTS)


def test_a_storage_context_brings_its_collection(store):
    context = StorageContext.from_defaults(vector_store=store)
    index = JinaColbertIndex.from_documents(documents(), context)
    assert index.collection is store.collection
    assert store.collection.count() == 4
    with pytest.raises(TypeError, match=r"\['dim', 'name'\]"):
        JinaColbertIndex.from_documents(documents(), context, dim=64, name="rooms")
    assert isinstance(JinaColbertIndex.from_vector_store(store), JinaColbertIndex)


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


def test_wrong_queries_and_nodes_are_refused(store):
    with pytest.raises(InvalidQueryError, match="query_str"):
        store.query(VectorStoreQuery(query_embedding=[0.0]))
    with pytest.raises(InvalidQueryError, match="sparse"):
        store.query(VectorStoreQuery(query_str="tea", mode=VectorStoreQueryMode.SPARSE))
    for index in (StorageContext.from_defaults(), None):
        with pytest.raises(TypeError, match=r"not in (SimpleVectorStore|NoneType)"):
            JinaColbertIndex(nodes=[], storage_context=index)
    assert store.collection.count() == 0


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
