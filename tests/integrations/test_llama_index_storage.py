"""What an index keeps: source documents, updates that lose nothing, reopening, and what cannot be copied."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from llama_index.core import Document, Settings, StorageContext, load_index_from_storage
from llama_index.core.callbacks import CallbackManager
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore.types import RefDocInfo
from llama_index.core.vector_stores import VectorStoreQuery

from jcv2_plugin import ColbertCollection
from jcv2_plugin.errors import DocumentTooLongError, InvalidDocumentError
from llama_index_jcv2 import JinaColbertIndex, JinaColbertVectorStore

TEXTS = {
    "tea": "A kettle boils water for tea. Tea is poured into cups.",
    "bees": "Bees make honey from nectar. Honey is kept in combs.",
    "violin": "A violin has four strings. A bow is drawn over them.",
}


def documents(**changed):
    return [Document(text=text, id_=id, metadata={"kind": id.upper()}) for id, text in {**TEXTS, **changed}.items()]


def splitter():
    return SentenceSplitter(chunk_size=16, chunk_overlap=0)


def make(mini, location, **options):
    return JinaColbertIndex.from_documents(
        documents(), encoder=mini, dim=64, location=location, transformations=[splitter()], **options
    )


@pytest.fixture
def index(mini):
    made = make(mini, ":memory:")
    yield made
    made.collection.close()


@pytest.fixture
def writes(monkeypatch):
    """The ids of what is stored, call by call."""
    seen = []
    original = JinaColbertVectorStore.add
    monkeypatch.setattr(
        JinaColbertVectorStore,
        "add",
        lambda self, nodes: seen.append([n.ref_doc_id for n in nodes]) or original(self, nodes),
    )
    return seen


def texts(index):
    return sorted(node.text for node in index.vector_store.get_nodes())


async def test_ref_doc_info(index):
    info = index.ref_doc_info
    assert sorted(info) == sorted(TEXTS)
    for id, one in info.items():
        nodes = index.vector_store.get_nodes(one.node_ids)
        assert len(nodes) == 2
        assert {node.ref_doc_id for node in nodes} == {id}
        assert one.metadata == {"kind": id.upper()}
    assert await index.aref_doc_info() == info
    index.insert_nodes([TextNode(text="An owl hunts.", id_="owl")])  # it has no source
    index.collection.add(["Of no interest to LlamaIndex."], ids=["plain"])
    index.delete_ref_doc("tea")
    assert sorted(index.ref_doc_info) == ["bees", "violin"]


def test_refresh_by_what_is_stored(mini, tmp_path, writes):
    folder = str(tmp_path / "collection")
    make(mini, folder).collection.close()
    writes.clear()
    index = JinaColbertIndex.from_collection(folder, encoder=mini)
    index._transformations = [splitter()]
    assert index.refresh_ref_docs(documents()) == [False] * 3
    assert writes == []
    now = [*documents(tea="A kettle whistles."), Document(text="An owl hunts.", id_="owl")]
    assert index.refresh_ref_docs([*now, now[-1]]) == [True, False, False, True, False]
    assert [set(one) for one in writes] == [{"tea"}, {"owl"}]
    assert texts(index).count("A kettle whistles.") == 1
    assert index.collection.count() == 6
    assert index.refresh_ref_docs(now) == [False] * 4
    index.collection.close()


def test_refresh_asks_once_for_all(index, monkeypatch):
    asked = []
    original = index.collection.payloads
    monkeypatch.setattr(
        index.collection, "payloads", lambda keys, filter=None: asked.append(keys) or original(keys, filter)
    )
    many = [Document(text=f"Number {number}.", id_=f"n{number}") for number in range(40)]
    assert index.refresh_ref_docs(documents()) == [False] * 3
    assert len(asked) == 1
    assert "_node_content" not in asked[0]
    asked.clear()
    assert index.vector_store.source_hashes([one.id_ for one in [*many, *documents()]]) == {
        one.id_: one.hash for one in documents()
    }
    assert len(asked) == 1


def test_an_update_that_was_stopped_halfway_is_repeated(index, monkeypatch):
    changed = documents(tea="A kettle whistles.")

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(index.collection, "delete", stop)
    with pytest.raises(KeyboardInterrupt):
        index.refresh_ref_docs(changed)
    monkeypatch.undo()
    assert index.collection.count() == 7  # the old nodes are there beside the new one
    assert index.refresh_ref_docs(changed) == [True, False, False]
    assert index.collection.count() == 5
    assert index.refresh_ref_docs(changed) == [False] * 3


def test_whole_documents_are_their_own_source(mini):
    index = JinaColbertIndex.from_documents([], encoder=mini, dim=64)
    index.insert_nodes(documents())
    assert index.ref_doc_info == {
        id: RefDocInfo(node_ids=[id], metadata={"kind": id.upper()}) for id in index.ref_doc_info
    }
    assert sorted(index.ref_doc_info) == sorted(TEXTS)
    found = index.as_retriever(doc_ids=["bees"]).retrieve("tea")
    assert [one.node_id for one in found] == ["bees"]
    assert index.refresh_ref_docs(documents(tea="A kettle whistles.")) == [True, False, False]
    assert texts(index) == sorted([TEXTS["bees"], TEXTS["violin"], "A kettle whistles."])
    index.delete_ref_doc("bees")
    assert sorted(index.ref_doc_info) == ["tea", "violin"]
    index.collection.close()


def test_what_is_refused_creates_and_replaces_nothing(mini, tmp_path):
    folder = tmp_path / "collection"
    wrong = [*documents(), Document(text="A number.", metadata={"number": 2**70})]
    with pytest.raises(InvalidDocumentError, match="does not fit 64 bits"):
        JinaColbertIndex.from_documents(wrong, encoder=mini, location=folder)
    assert not folder.exists()
    make(mini, folder).collection.close()
    with pytest.raises(InvalidDocumentError, match="does not fit 64 bits"):
        JinaColbertIndex.from_documents(wrong, encoder=mini, location=folder, overwrite=True)
    long = [Document(text="A kettle whistles. " * 500, id_="long")]
    with pytest.raises(DocumentTooLongError, match=r"^Source document 'long': "):
        JinaColbertIndex.from_documents(
            long,
            encoder=mini,
            location=folder,
            overwrite=True,
            long_documents="error",
            transformations=[SentenceSplitter(chunk_size=4000)],
        )
    index = JinaColbertIndex.from_collection(folder, encoder=mini)
    assert sorted(index.ref_doc_info) == sorted(TEXTS)
    index.collection.close()


def test_documents_before_a_refused_one_stay_stored(index):
    changed = documents(tea="A kettle whistles.", violin="A violin sings.")
    changed.insert(1, Document(text="A number.", id_="bad", metadata={"number": 2**70}))
    with pytest.raises(InvalidDocumentError, match=r"^Source document 'bad': "):
        index.refresh_ref_docs(changed)
    assert "A kettle whistles." in texts(index)
    assert "A violin sings." not in texts(index)
    del changed[1]
    assert index.refresh_ref_docs(changed) == [False, False, True]


def slow_look_ups(monkeypatch):
    """All calls look before any writes, unless something keeps them from it."""
    original = JinaColbertVectorStore.source_nodes

    def source_nodes(self, ref_doc_id):
        found = original(self, ref_doc_id)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(JinaColbertVectorStore, "source_nodes", source_nodes)


async def test_asynchronous_calls_at_the_same_time_store_a_document_once(index, monkeypatch):
    slow_look_ups(monkeypatch)
    another = JinaColbertIndex.from_collection(index.collection)  # it shares the collection
    owl = [Document(text="An owl hunts at night.", id_="owl")]
    done = await asyncio.gather(*(one.arefresh_ref_docs(owl) for one in (index, another) * 3))
    assert sorted(done) == [[False]] * 5 + [[True]]
    changed = documents(tea="A kettle whistles.")
    await asyncio.gather(*(one.aupdate_ref_doc(changed[0]) for one in (index, another) * 2))
    assert texts(index).count("An owl hunts at night.") == texts(index).count("A kettle whistles.") == 1
    assert index.collection.count() == 6
    assert index.refresh_ref_docs([*changed, *owl]) == [False] * 4


def test_threads_store_a_document_once(index, monkeypatch):
    slow_look_ups(monkeypatch)
    versions = [documents(tea=f"A kettle whistles {word}.")[0] for word in ("high", "low")]
    with ThreadPoolExecutor(6) as threads:
        done = list(threads.map(lambda one: index.refresh_ref_docs([one]), versions * 3))
    assert [True] in done
    assert len(index.ref_doc_info["tea"].node_ids) == 1
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(index.update_ref_doc, versions * 2))
    assert len(index.ref_doc_info["tea"].node_ids) == 1
    assert index.collection.count() == 5


def test_a_persisted_storage_context_is_loaded(mini, tmp_path):
    folder = tmp_path / "collection"
    index = make(mini, folder)
    index.set_index_id("house")
    index.storage_context.persist(str(tmp_path / "storage"))
    index.collection.close()
    with ColbertCollection.open(folder, encoder=mini) as collection:
        store = JinaColbertVectorStore(collection)
        context = StorageContext.from_defaults(persist_dir=str(tmp_path / "storage"), vector_store=store)
        loaded = load_index_from_storage(context, index_id="house")
        assert type(loaded) is JinaColbertIndex
        assert loaded.index_id == "house"
        assert loaded.collection is collection
        assert loaded.as_retriever(similarity_top_k=1).retrieve("what do bees make?")[0].node.ref_doc_id == "bees"
        assert loaded.refresh_ref_docs(documents()) == [False] * 3
    assert Settings._embed_model is None


def test_a_document_store_may_be_kept_too(mini):
    with ColbertCollection.create(":memory:", encoder=mini, dim=64) as collection:
        context = StorageContext.from_defaults(vector_store=JinaColbertVectorStore(collection))
        index = JinaColbertIndex.from_documents(
            documents(), context, transformations=[splitter()], callback_manager=CallbackManager()
        )
        index = JinaColbertIndex(
            nodes=index.vector_store.get_nodes(),
            storage_context=context,
            store_nodes_override=True,
            transformations=[splitter()],
        )
        assert len(index.docstore.docs) == 6
        index.update_ref_doc(documents(tea="A kettle whistles.")[0])
        assert len(index.docstore.docs) == collection.count() == 5
        assert sorted(index.index_struct.nodes_dict) == sorted(collection.ids())


def test_on_a_server_the_payload_is_indexed_by_source(mini, loopback):
    index = JinaColbertIndex.from_documents(
        documents(),
        encoder=mini,
        dim=64,
        client=loopback.client,
        name="indexed",
        payload_indexes={"metadata.kind": "keyword"},
    )
    schema = loopback.client.get_collection("indexed").payload_schema
    assert {"doc_id", "metadata.kind"} <= set(schema)
    index.insert_nodes([Document(text="An owl hunts.", id_="owl")])
    index.delete_ref_doc("tea")
    index.delete_ref_doc("owl")
    assert index.refresh_ref_docs(documents()) == [True, False, False]
    assert sorted(index.ref_doc_info) == sorted(TEXTS)
    index.collection.close()


async def test_the_event_loop_runs_all_the_while(index):
    """Each asynchronous twin, with a ticker beside it. The store in memory is plain Python, so nothing excuses it."""
    ticks, done = [], asyncio.Event()

    async def ticker():
        while not done.is_set():
            ticks.append(None)
            await asyncio.sleep(0)

    store, ticking = index.vector_store, asyncio.create_task(ticker())
    await asyncio.sleep(0)
    owl = TextNode(text="An owl hunts at night.", id_="owl")
    owl.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="birds")
    many = [
        Document(text=f"{text} {number}", id_=f"{id}{number}") for number in range(10) for id, text in TEXTS.items()
    ]
    for call in (
        lambda: store.async_add([owl]),
        lambda: store.aget_nodes(["owl"]),
        lambda: store.aquery(VectorStoreQuery(query_str="what hunts?")),
        lambda: store.adelete("birds"),
        lambda: store.adelete_nodes(["owl"]),
        lambda: index.arefresh_ref_docs(many),
        lambda: index.aref_doc_info(),
        lambda: index.ainsert(Document(text="An owl hunts at night.", id_="owls")),
        lambda: index.aupdate_ref_doc(Document(text="An owl sleeps by day.", id_="owls")),
        lambda: index.adelete_ref_doc("owls"),
        lambda: index.as_retriever(with_explanation=True).aretrieve("what do bees make?"),
        lambda: store.aclear(),
    ):
        before = len(ticks)
        await call()
        assert len(ticks) > before
    done.set()
    await ticking
    assert index.collection.count() == 0


@pytest.mark.parametrize("how", ["update_ref_doc", "aupdate_ref_doc", "refresh_ref_docs", "arefresh_ref_docs"])
async def test_updates_replace_all_nodes_or_none(index, how):
    async def write(document):
        done = getattr(index, how)([document] if "refresh" in how else document)
        return await done if how.startswith("a") else done

    before = texts(index)
    with pytest.raises(InvalidDocumentError, match="does not fit 64 bits"):
        await write(Document(text="A kettle whistles.", id_="tea", metadata={"number": 2**70}))
    assert texts(index) == before
    await write(documents(tea="A kettle whistles.")[0])
    assert len(index.ref_doc_info["tea"].node_ids) == 1
    await write(documents()[0])
    assert texts(index) == before
    blank = Document(text=" ", id_="tea")
    assert await write(blank) in (None, [True])
    assert sorted(index.ref_doc_info) == ["bees", "violin"]
    assert await write(blank) in (None, [False])
