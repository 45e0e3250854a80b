"""``import_qdrant``: langchain-qdrant's collections become ours."""

from __future__ import annotations

import uuid

import pytest
from langchain_core.documents import Document
from langchain_samples import IDS, TEXTS, documents, ids_of
from loopback_qdrant import LoopbackQdrant
from qdrant_client import QdrantClient, models

import jcv2_plugin
from jcv2_plugin import ColbertCollection
from jcv2_plugin.collection.qdrant_import import load_layout
from jcv2_plugin.errors import (
    CollectionCorruptError,
    CollectionMismatchError,
    CollectionNotFoundError,
    InvalidDocumentError,
    InvalidOptionError,
)
from langchain_jcv2 import JinaColbertVectorStore, import_qdrant
from langchain_jcv2.qdrant_import import document_of

POINTS = [str(uuid.UUID(int=n + 1)) for n in range(4)]
QUESTION = "what do bees make?"


def dense_collection(client: QdrantClient, *, content: str = "page_content", metadata: str = "metadata") -> None:
    """What langchain-qdrant 1.1 writes: a dense vector without a name, and two payload keys."""
    client.create_collection("dense", models.VectorParams(size=3, distance=models.Distance.COSINE))
    points = [
        models.PointStruct(id=id, vector=[0.1, n, 0.3], payload={content: one.page_content, metadata: one.metadata})
        for n, (id, one) in enumerate(zip(POINTS, documents(), strict=True))
    ]
    client.upsert("dense", points)


@pytest.fixture
def client():
    with_documents = QdrantClient(":memory:")
    dense_collection(with_documents)
    return with_documents


@pytest.mark.parametrize(
    "payload, expected",
    [
        ({"page_content": "Tea.", "metadata": {"a": 1}}, jcv2_plugin.Document("Tea.", "7", {"a": 1})),
        ({"page_content": "Tea.", "metadata": None}, jcv2_plugin.Document("Tea.", "7")),
        ({"page_content": "Tea."}, jcv2_plugin.Document("Tea.", "7")),
        (
            {"page_content": "Tea.", "metadata": {}, "group": "x"},
            jcv2_plugin.Document("Tea.", "7", {}, {"group": "x"}),
        ),
        ({"page_content": " \n"}, jcv2_plugin.Document(" \n", "7")),
        ({"page_content": None}, None),
        ({"metadata": {"a": 1}}, None),
        ({}, None),
    ],
)
def test_the_document_of_a_payload(payload, expected):
    assert document_of("7", payload) == expected


def test_other_payload_keys():
    given = {"text": "Tea.", "about": {"a": 1}, "page_content": "no"}
    found = document_of("7", given, content_key="text", metadata_key="about")
    assert found == jcv2_plugin.Document("Tea.", "7", {"a": 1}, {"page_content": "no"})
    assert load_layout("langchain", {"content_key": "text", "metadata_key": "about"})("7", given) == found


@pytest.mark.parametrize("payload", [{"page_content": 3}, {"page_content": "Tea.", "metadata": "kitchen"}])
def test_another_layout_is_named(payload):
    with pytest.raises(InvalidDocumentError, match=r"Point 7: .* not langchain-qdrant's layout"):
        document_of("7", payload)


def test_everything_is_imported_and_the_source_stays(client, mini, location):
    before = client.scroll("dense", limit=10, with_payload=True, with_vectors=True)
    stored = []
    store = import_qdrant(client, "dense", location=location, encoder=mini, dim=64, progress=stored.append)
    assert store.get_by_ids(POINTS) == [
        Document(id=id, page_content=one.page_content, metadata=one.metadata)
        for id, one in zip(POINTS, documents(), strict=True)
    ]
    assert ids_of(store.similarity_search(QUESTION, k=1)) == [POINTS[2]]
    assert ids_of(store.similarity_search(QUESTION, filter={"room": "hall"})) == [POINTS[3]]
    assert store.collection.dim == 64
    assert sum(stored) == 4
    assert client.scroll("dense", limit=10, with_payload=True, with_vectors=True) == before
    assert {one.name for one in client.get_collections().collections} == {"dense"}
    store.collection.close()


def test_a_repeated_call_takes_over_what_is_new(client, mini, tmp_path):
    folder = tmp_path / "ours"
    import_qdrant(client, "dense", location=folder, encoder=mini, dim=64).collection.close()
    client.upsert("dense", [models.PointStruct(id=9, vector=[1, 1, 1], payload={"page_content": "A lamp."})])
    store = import_qdrant(client, "dense", location=folder)  # its model and dim are known
    assert store.get_by_ids(["9"]) == [Document(id="9", page_content="A lamp.")]
    assert store.collection.count() == 5
    store.collection.close()
    with pytest.raises(CollectionMismatchError, match="dim=64, not 128"):
        import_qdrant(client, "dense", location=folder, encoder=mini, dim=128)


def test_into_the_same_client_or_an_open_collection(client, mini):
    store = import_qdrant(client, "dense", filter=_room("hall"), target=_collection(client, mini, "ours"))
    assert isinstance(store, JinaColbertVectorStore)
    assert client.count("ours").count == 1
    with pytest.raises(TypeError, match=r"\['dim', 'location'\]"):
        import_qdrant(client, "dense", target=store.collection, dim=64, location=":memory:")
    with pytest.raises(CollectionNotFoundError, match="other"):
        import_qdrant(client, "other", target=store.collection)
    assert store.collection.count() == 1  # and it is open still


def test_onto_a_server_but_never_into_a_foreign_collection(client, mini):
    with LoopbackQdrant() as server:
        for _ in range(2):  # the second finds what the first has made
            store = import_qdrant(client, "dense", location=server.url, name="ours", encoder=mini, dim=64)
            assert store.collection.count() == 4
            store.collection.close()
        other = QdrantClient(server.url, check_compatibility=False)
        dense_collection(other)
        with pytest.raises(CollectionCorruptError, match="not made by jcv2-plugin"):
            import_qdrant(client, "dense", location=server.url, name="dense", encoder=mini)
        assert other.count("dense").count == 4
        other.close()


def test_a_wrong_payload_key_is_named(mini, tmp_path):
    source = QdrantClient(":memory:")
    dense_collection(source, content="text", metadata="about")
    with pytest.raises(InvalidOptionError, match="None of the 4 points of 'dense' has text under 'page_content'"):
        import_qdrant(source, "dense", location=tmp_path / "ours", encoder=mini)
    store = import_qdrant(
        source,
        "dense",
        location=tmp_path / "ours",
        encoder=mini,
        content_payload_key="text",
        metadata_payload_key="about",
    )
    assert sorted(one.page_content for one in store.get_by_ids(POINTS)) == sorted(TEXTS)
    assert store.get_by_ids(POINTS[:1])[0].metadata == documents()[0].metadata
    store.collection.close()


def test_points_without_text_are_left_out_and_said(client, mini, caplog):
    client.upsert("dense", [models.PointStruct(id=9, vector=[1, 1, 1], payload={"page_content": " "})])
    with caplog.at_level("WARNING"):
        store = import_qdrant(client, "dense", encoder=mini, dim=32)
    assert store.collection.count() == len(IDS)
    assert "Of dense 1 of 5 points were left out" in caplog.text


def _room(name: str) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="metadata.room", match=models.MatchValue(value=name))])


def _collection(client, mini, name):
    return ColbertCollection.create(client=client, name=name, encoder=mini, dim=64)
