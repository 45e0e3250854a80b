"""What the index and its store refuse, so that the user finds what was wrong; and what they store in another form."""

from __future__ import annotations

import pytest
from llama_index.core import Document, MockEmbedding
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

import jcv2_plugin
from jcv2_plugin import ColbertCollection
from jcv2_plugin.errors import DocumentTooLongError, InvalidDocumentError
from llama_index_jcv2 import JinaColbertIndex, JinaColbertRetriever, JinaColbertVectorStore


@pytest.fixture
def store(mini):
    with ColbertCollection.create(":memory:", encoder=mini, dim=64) as collection:
        yield JinaColbertVectorStore(collection)


@pytest.mark.parametrize("make", [JinaColbertIndex.from_documents, JinaColbertIndex.from_collection])
def test_an_embedding_model_is_refused_everywhere(make, tmp_path):
    with pytest.raises(TypeError, match="encodes with the model of its collection, not with embed_model="):
        make([] if make == JinaColbertIndex.from_documents else tmp_path, embed_model=MockEmbedding(embed_dim=3))


def test_a_store_needs_an_open_collection(tmp_path):
    with pytest.raises(TypeError, match=r"needs a ColbertCollection, got str\. .*ColbertCollection\.open"):
        JinaColbertVectorStore(str(tmp_path))


def test_a_refusal_names_the_source_document(mini):
    with ColbertCollection.create(":memory:", encoder=mini, long_documents="error") as collection:
        index = JinaColbertIndex.from_vector_store(JinaColbertVectorStore(collection), transformations=[])
        good, bad = (TextNode(text="tea", id_=id) for id in ("first", "second"))
        good.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="good")
        bad.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="bad")
        for change, error in (
            ({"metadata": {"number": 2**70}}, InvalidDocumentError),
            ({"metadata": {"what": object()}}, InvalidDocumentError),
            ({"text": "tea " * 5000}, DocumentTooLongError),
        ):
            wrong = bad.model_copy(update=change)
            with pytest.raises(error, match=r"^Source document 'bad': .*'second'") as caught:
                index.insert_nodes([good, wrong])
            assert type(caught.value) is error
        assert collection.count() == 0
    # Here nodes get random ids.
    for wrong, error in (
        (Document(text="tea", id_="bad", metadata={"number": 2**70}), InvalidDocumentError),
        (Document(text="tea " * 5000, id_="bad"), DocumentTooLongError),
    ):
        with pytest.raises(error, match=r"^Source document 'bad': "):
            JinaColbertIndex.from_documents([Document(text="tea"), wrong], encoder=mini, long_documents="error")


@pytest.mark.parametrize("id", [None, 5, "\ud800"])
def test_ids_are_checked_wherever_they_are_given(store, id):
    for call in (store.delete, lambda one: store.delete_nodes([one]), lambda one: store.get_nodes([one])):
        with pytest.raises(InvalidDocumentError, match=r"Ids are str, got|lone surrogates"):
            call(id)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("[" * 200_000, "TextNode"),
        ("{", "TextNode"),
        ("[1]", "Document"),
        (5, "IndexNode"),
        ('{"relationships": {"9": {}}}', "x"),
    ],
)
def test_a_stored_node_that_cannot_be_read_is_named(store, content, kind):
    """Such as that of a stranger's collection."""
    payload = {"_node_content": content, "_node_type": kind}
    store.client.add([jcv2_plugin.Document("A cup of tea.", "odd", {}, payload)])
    with pytest.raises(InvalidDocumentError, match=r"Document 'odd': its payload is not that of a LlamaIndex node"):
        JinaColbertRetriever(store.client).retrieve("tea")
    with pytest.raises(InvalidDocumentError, match="Document 'odd'"):
        store.get_nodes(["odd"])
