"""From collections of LlamaIndex's own Qdrant store, and back into its hands."""

from __future__ import annotations

import json
import uuid

import pytest
from llama_index.core import Document
from llama_index.core.schema import IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection
from jcv2_plugin.collection import qdrant_import as core
from jcv2_plugin.collection.qdrant_import import load_layout
from jcv2_plugin.errors import (
    CollectionNotFoundError,
    InvalidDocumentError,
    InvalidOptionError,
)
from llama_index_jcv2 import JinaColbertIndex, JinaColbertVectorStore, import_qdrant
from llama_index_jcv2.qdrant_import import document_of


def key(number):
    return str(uuid.UUID(int=number + 1))


def nodes():
    made = []
    for number in range(6):
        node = TextNode(
            text=f"Room {number} is {'red' if number % 2 else 'blue'}.",
            id_=key(number),
            metadata={"number": number, "tags": ["a", "b"], "deep": {"floor": 1}},
            excluded_embed_metadata_keys=["number", "tags", "deep"],
            start_char_idx=number,
        )
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"house {number // 3}", hash="a hash")
        if number:
            node.relationships[NodeRelationship.PREVIOUS] = RelatedNodeInfo(node_id=key(number - 1))
        made.append(node)
    return made


def fill(client, payloads, name="dense"):
    """A collection as the store makes it: one dense vector, and these payloads."""
    client.create_collection(name, vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE))
    points = [models.PointStruct(id=key(n), vector=[1.0, 0.5], payload=one) for n, one in enumerate(payloads)]
    client.upsert(name, points)


@pytest.fixture
def client():
    made = QdrantClient(":memory:")
    fill(made, [node_to_metadata_dict(node, remove_text=False) for node in nodes()])
    yield made
    made.close()


def by_id(index):
    return sorted(index.vector_store.get_nodes(), key=lambda node: node.node_id)


def test_all_of_the_nodes_arrive(client, mini, location):
    before = client.scroll("dense", with_vectors=True)[0]
    progress = []
    index = import_qdrant(client, "dense", location=location, encoder=mini, dim=64, progress=progress.append)
    assert by_id(index) == nodes()
    assert index.collection.dim == 64
    assert sum(progress) == 6
    assert sorted(index.ref_doc_info["house 1"].node_ids) == [key(number) for number in (3, 4, 5)]
    assert index.as_retriever(similarity_top_k=1).retrieve("room 3")[0].node == nodes()[3]
    floor = MetadataFilters(filters=[MetadataFilter(key="deep.floor", value=1), MetadataFilter(key="number", value=2)])
    assert [node.node_id for node in index.vector_store.get_nodes(filters=floor)] == [key(2)]
    index.delete_ref_doc("house 0")
    assert index.collection.count() == 3
    assert client.scroll("dense", with_vectors=True)[0] == before
    index.collection.close()


def test_a_call_is_repeated_to_go_on(client, mini, tmp_path):
    folder = tmp_path / "collection"
    only = models.Filter(must=[models.FieldCondition(key="number", range=models.Range(lt=2))])
    import_qdrant(client, "dense", location=folder, encoder=mini, dim=64, filter=only).collection.close()
    index = import_qdrant(client, "dense", location=folder)
    assert index.collection.count() == 6
    index.collection.close()


def test_into_an_open_collection_of_the_same_client(client, mini):
    with ColbertCollection.create(client=client, name="ours", encoder=mini, dim=64) as target:
        index = import_qdrant(client, "dense", target=target)
        assert index.collection is target
        assert target.count() == 6
        with pytest.raises(TypeError, match=r"\['dim', 'encoder'\] can no longer be chosen"):
            import_qdrant(client, "dense", target=target, encoder=mini, dim=64)
        with pytest.raises(InvalidOptionError, match="both source and target"):
            import_qdrant(client, "ours", target=target)
        assert target.count() == 6


def test_wrong_sources_are_refused(client, mini, tmp_path):
    with pytest.raises(CollectionNotFoundError, match="nowhere"):
        import_qdrant(client, "nowhere", encoder=mini, location=tmp_path / "a")
    fill(client, [{"title": "no text"}], name="other")
    with pytest.raises(InvalidOptionError, match="text_key"):
        import_qdrant(client, "other", encoder=mini)
    fill(client, [{"_node_content": "{", "_node_type": "TextNode"}], name="broken")
    with pytest.raises(InvalidDocumentError, match=f"Point {key(0)}: its payload is not that of a LlamaIndex node"):
        import_qdrant(client, "broken", encoder=mini)


def test_nodes_without_text_are_left_out_and_told(client, mini, caplog):
    blank = node_to_metadata_dict(TextNode(text=" ", id_=key(9)))
    fill(client, [blank, node_to_metadata_dict(nodes()[0])], name="some")
    index = import_qdrant(client, "some", encoder=mini, dim=64)
    assert [node.node_id for node in by_id(index)] == [key(0)]
    assert "Of some 1 of 2 points were left out: no text" in caplog.text
    with ColbertCollection.create(":memory:", encoder=mini, dim=64) as target:
        report = core.import_qdrant(client, "some", target, document_of)
    assert [one.reason for one in report.first_skipped] == ["its text is blank"]


def test_kinds_of_nodes_and_further_payload():
    for node in (Document(text="A book.", id_="d"), IndexNode(text="See there.", id_="i", index_id="x"), nodes()[2]):
        document = document_of(key(0), {**node_to_metadata_dict(node), "added_later": True})
        assert document.id == node.node_id
        assert document.payload["added_later"] is True
        assert json.loads(document.payload["_node_content"])["id_"] == node.node_id
        assert document.payload["_node_type"] == type(node).__name__
    assert document.text == "Room 2 is blue."
    assert document.payload["doc_id"] == "house 0"
    assert document.payload["_doc_hash"] == "a hash"


def test_the_layout_of_the_first_releases():
    payload = {
        "text": "Bees make honey.",
        "doc_id": "bees",
        "ref_doc_id": "bees",
        "relationships": json.dumps({"1": "bees"}),
        "node_info": json.dumps({"start": 5, "end": 21}),
        "author": "Ann",
    }
    document = document_of(key(0), payload)
    node = TextNode.from_json(document.payload["_node_content"])
    assert (node.node_id, node.text, node.ref_doc_id) == (key(0), "Bees make honey.", "bees")
    assert (node.start_char_idx, node.end_char_idx) == (5, 21)
    assert node.metadata["author"] == "Ann"
    assert document.text.endswith("Bees make honey.")
    assert document_of(key(0), {"body": "Tea."}) is None
    assert document_of(key(0), {"body": "Tea."}, text_key="body").text == "Tea."
    # A release between the two kept the text beside the node.
    emptied = node_to_metadata_dict(TextNode(text="", id_="n"))
    assert document_of(key(0), {**emptied, "text": "Tea."}).text == "Tea."


def test_the_layout_is_found_by_name():
    layout = load_layout("llama-index", {"text_key": "body"})
    assert layout(key(0), {"body": "Tea."}).text == "Tea."


def test_our_payload_is_of_the_stores_layout(mini, location):
    with ColbertCollection.create(location, encoder=mini, dim=64) as collection:
        JinaColbertVectorStore(collection).add(nodes())
        for node in nodes():
            payload = collection.get([node.node_id])[0].payload
            expected = node_to_metadata_dict(node, remove_text=False)
            assert {name: payload[name] for name in expected} == expected


def test_llama_index_reads_our_collections_and_we_its(mini):
    """With the real store, where it is installed."""
    qdrant = pytest.importorskip("llama_index.vector_stores.qdrant", reason="needs llama-index-vector-stores-qdrant")
    client = QdrantClient(":memory:")
    index = JinaColbertIndex.from_documents([], encoder=mini, dim=64, client=client, name="ours")
    index.insert_nodes(nodes())
    theirs = qdrant.QdrantVectorStore("ours", client=client)
    found = sorted(theirs.get_nodes(), key=lambda node: node.node_id)
    for node in found:
        node.embedding = None
    assert found == nodes()
    red = MetadataFilters(filters=[MetadataFilter(key="number", value=3)])
    assert [node.text for node in theirs.get_nodes(filters=red)] == ["Room 3 is red."]
    theirs.delete("house 0")
    assert sorted(index.ref_doc_info) == ["house 1"]
    given = nodes()
    for node in given:
        node.embedding = [0.5, 1.0]
    qdrant.QdrantVectorStore("dense", client=client).add(given)
    assert by_id(import_qdrant(client, "dense", encoder=mini, dim=64)) == nodes()
