"""``JinaColbertIndex``: a LlamaIndex index over a collection."""

from __future__ import annotations

import asyncio
import os
from asyncio import AbstractEventLoop
from collections.abc import Mapping, Sequence
from typing import Any, cast

from llama_index.core import MockEmbedding, Settings, StorageContext, VectorStoreIndex
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS
from llama_index.core.data_structs.struct_type import IndexStructType
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.ingestion.pipeline import arun_transformations, run_transformations
from llama_index.core.schema import BaseNode, Document, TransformComponent
from llama_index.core.storage.docstore.types import RefDocInfo

from jcv2_plugin import ColbertCollection
from jcv2_plugin.collection.opening import create_filled, open_collection
from llama_index_jcv2.nodes import document_of, has_text, naming_sources, node_list, with_text
from llama_index_jcv2.opening import create_collection
from llama_index_jcv2.retrievers import JinaColbertRetriever, chosen_options
from llama_index_jcv2.vector_stores import JinaColbertVectorStore

# Not a member of LlamaIndex's enum: types are looked up by value, and values are str.
_STRUCT_TYPE = cast(IndexStructType, "jina_colbert")


class JinaColbertStruct(IndexDict):
    """Entry of an index in an index store. Lets ``load_index_from_storage`` create a ``JinaColbertIndex``."""

    @classmethod
    def get_type(cls) -> IndexStructType:
        """Return the struct's type."""
        return _STRUCT_TYPE


class JinaColbertIndex(VectorStoreIndex):
    """A ``VectorStoreIndex`` that retrieves nodes by MaxSim over their token vectors.

    Create it with :meth:`from_documents`, :meth:`from_collection` or ``from_vector_store``. Texts are encoded with the
    collection's model, so no embedding model is used or needed. All data is in the collection: to load an index, open
    its collection again. Close ``index.collection`` to release its folder or client.

    Args:
        nodes: Nodes to add.
        storage_context: A storage context whose vector store is a :class:`JinaColbertVectorStore`.
        embed_model: Must be None.
        **kwargs: See ``VectorStoreIndex``.

    Raises:
        TypeError: The vector store is of another class, or an embedding model is given.
    """

    index_struct_cls = JinaColbertStruct

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        *,
        storage_context: StorageContext | None = None,
        embed_model: None = None,
        **kwargs: Any,
    ) -> None:
        store = None if storage_context is None else storage_context.vector_store
        if not isinstance(store, JinaColbertVectorStore):
            raise TypeError(
                f"JinaColbertIndex keeps its nodes in a JinaColbertVectorStore, not in {type(store).__name__}. "
                "Create it with from_documents, from_collection or from_vector_store."
            )
        _refuse_embed_model(embed_model)
        # By default, the base class would load the embedding model of the global settings.
        super().__init__(nodes=nodes, storage_context=storage_context, embed_model=MockEmbedding(embed_dim=1), **kwargs)
        self._store = store

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        storage_context: StorageContext | None = None,
        show_progress: bool = False,
        callback_manager: CallbackManager | None = None,
        transformations: list[TransformComponent] | None = None,
        **options: Any,
    ) -> JinaColbertIndex:
        """Create a collection of documents and return an index over it.

        Args:
            documents: Documents to index.
            storage_context: A storage context whose vector store is a :class:`JinaColbertVectorStore`. The documents
                are added to its collection, and no collection is created.
            show_progress: Show LlamaIndex's progress bars.
            callback_manager: LlamaIndex's callback manager.
            transformations: How documents are split into nodes. Defaults to the transformations in LlamaIndex's
                ``Settings``.
            **options: Options of ``ColbertCollection.create``: ``encoder`` (the model, loaded or by name; default:
                ``"jinaai/jina-colbert-v2"``), ``dim``, ``location`` (a folder, ``":memory:"`` or a server URL;
                default: in memory), ``url``, ``client``, ``name``, ... and ``on_blank``: ``"skip"`` leaves out nodes
                without text and logs a warning, ``"error"`` refuses them.

        Raises:
            CollectionExistsError: The collection already exists. Open it with :meth:`from_collection`.
            InvalidDocumentError: A node's metadata cannot be stored as JSON, its text is too long for the collection,
                ... Nothing is created or replaced.
            TypeError: A storage context is given together with arguments that describe a new collection, or an
                embedding model is given.
        """
        _refuse_embed_model(options.pop("embed_model", None))
        documents = node_list(documents)
        rest: dict[str, Any] = {"show_progress": show_progress, "callback_manager": callback_manager}
        rest["transformations"] = transformations or Settings.transformations
        if storage_context is not None:
            if unused := sorted(options):
                raise TypeError(f"The storage context has its collection: {unused} cannot be chosen. Leave them out.")
            return super().from_documents(documents, storage_context, **rest)
        nodes = run_transformations(documents, rest["transformations"], show_progress=show_progress)
        with naming_sources(nodes):
            collection = create_filled([document_of(node) for node in nodes], create=create_collection, **options)
        try:
            index = cls(nodes=[], storage_context=_storage_context(collection), **rest)
        except BaseException:
            collection.close()
            raise
        index.docstore.set_document_hashes({document.id_: document.hash for document in documents})
        return index

    @classmethod
    def from_collection(
        cls, collection: ColbertCollection | str | os.PathLike[str] | None = None, **options: Any
    ) -> JinaColbertIndex:
        """Create an index over an existing collection.

        Args:
            collection: An open collection, or the location of one: a folder or a server URL.
            **options: Options of ``ColbertCollection.open`` (``encoder``, ``url``, ``client``, ``name``, ...).

        Raises:
            CollectionNotFoundError: The collection does not exist.
            TypeError: Options are given with an open collection, or an embedding model is given.
        """
        _refuse_embed_model(options.pop("embed_model", None))
        return cls(nodes=[], storage_context=_storage_context(open_collection(collection, **options)))

    @property
    def collection(self) -> ColbertCollection:
        """The collection that holds the nodes."""
        return self._store.collection

    @property
    def vector_store(self) -> JinaColbertVectorStore:
        """The vector store over the collection."""
        return self._store

    def as_retriever(self, **kwargs: Any) -> JinaColbertRetriever:
        """Return a retriever of nodes with MaxSim scores.

        Args:
            **kwargs: See :class:`~llama_index_jcv2.JinaColbertRetriever`: ``similarity_top_k``, ``filters``,
                ``doc_ids``, ``node_ids``, search options, ... Arguments for a query engine or a chat engine are
                ignored.

        Raises:
            TypeError: A name looks like a misspelled option, or an embedding model is given.
        """
        return JinaColbertRetriever(self, **chosen_options(kwargs))

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """All source documents in the collection, with the ids of their nodes and the metadata of one of them."""
        return self._store.ref_doc_info()

    async def aref_doc_info(self) -> dict[str, RefDocInfo]:
        """Return :attr:`ref_doc_info` without blocking the event loop."""
        return await asyncio.to_thread(self._store.ref_doc_info)

    def insert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Insert nodes, see :meth:`JinaColbertVectorStore.add`."""
        super().insert_nodes(node_list(nodes), **insert_kwargs)  # the base class would read a generator twice

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Run :meth:`insert_nodes` without blocking the event loop."""
        await super().ainsert_nodes(node_list(nodes), **insert_kwargs)

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Replace the nodes of a document.

        New nodes are stored before old ones are deleted, so a rejected document keeps the nodes it had. Concurrent
        calls for the same document run one after the other.

        Args:
            document: The updated document.
            **update_kwargs: ``insert_kwargs`` and ``delete_kwargs``, as in ``VectorStoreIndex``.

        Raises:
            InvalidDocumentError: The document is rejected.
        """
        with self._callback_manager.as_trace("update_ref_doc"):
            self._update(document, update_kwargs)

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Run :meth:`update_ref_doc` without blocking the event loop."""
        with self._callback_manager.as_trace("aupdate_ref_doc"):
            await asyncio.to_thread(self._update, document, update_kwargs, asyncio.get_running_loop())

    def refresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Insert new documents and update changed ones, compared with what the collection holds.

        Nothing is written twice, neither after reopening nor by concurrent calls in one process. The collection is
        queried once for all documents, and again for each document to write.

        Documents are written one by one. If one is rejected, those before it stay stored and those after it are not
        processed. Remove or fix it, and repeat the call.

        Args:
            documents: The current documents.
            **update_kwargs: ``insert_kwargs`` and ``update_kwargs``, as in ``VectorStoreIndex``.

        Returns:
            For each document, whether anything was written or deleted. False for a document without text if nothing of
            it was stored.

        Raises:
            InvalidDocumentError: A document is rejected.
        """
        with self._callback_manager.as_trace("refresh_ref_docs"):
            return self._refresh(documents, update_kwargs)

    async def arefresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Run :meth:`refresh_ref_docs` without blocking the event loop."""
        with self._callback_manager.as_trace("arefresh_ref_docs"):
            return await asyncio.to_thread(self._refresh, documents, update_kwargs, asyncio.get_running_loop())

    def _refresh(
        self, documents: Sequence[Document], given: Mapping[str, Any], loop: AbstractEventLoop | None = None
    ) -> list[bool]:
        documents = node_list(documents)
        stored = self._store.source_hashes([document.id_ for document in documents])
        refreshed = []
        for document in documents:
            written = stored.get(document.id_) != document.hash
            if written:
                options = given.get("update_kwargs", {})
                if document.id_ not in stored:
                    options = {"insert_kwargs": given.get("insert_kwargs", {})}
                written = self._update(document, options, loop, unless_same=True)
                stored[document.id_] = document.hash
            refreshed.append(written)
        return refreshed

    def _update(
        self,
        document: Document,
        options: Mapping[str, Any],
        loop: AbstractEventLoop | None = None,
        *,
        unless_same: bool = False,
    ) -> bool:
        """Store a document's new nodes and delete its old ones. Return whether anything changed.

        Transformations of asynchronous callers run in their event loop. The rest runs in a single thread, which holds
        the lock. Otherwise a concurrent call could read before this one has written.
        """
        insert: Mapping[str, Any] = options.get("insert_kwargs", {})
        kwargs = {"show_progress": self._show_progress, **insert}
        if loop is None:
            nodes = run_transformations([document], self._transformations, **kwargs)
        else:
            splitting = arun_transformations([document], self._transformations, **kwargs)
            nodes = asyncio.run_coroutine_threadsafe(splitting, loop).result()
        with self._store.write_lock:
            before = self._store.source_nodes(document.id_)
            if unless_same and set(before.values()) == {document.hash}:
                return False
            if not before and not with_text(nodes):
                return False
            self.insert_nodes(nodes, **insert)
            if stale := sorted(before.keys() - {node.node_id for node in nodes if has_text(node)}):
                self.delete_nodes(stale, delete_from_docstore=True, **options.get("delete_kwargs", {}))
            self.docstore.set_document_hash(document.id_, document.hash)
        return True

    def _get_node_with_embedding(self, nodes: Sequence[BaseNode], show_progress: bool = False) -> list[BaseNode]:
        """Return the nodes with text unchanged, for the store to encode. The base class must not keep the others."""
        return with_text(nodes)

    async def _aget_node_with_embedding(self, nodes: Sequence[BaseNode], show_progress: bool = False) -> list[BaseNode]:
        return self._get_node_with_embedding(nodes, show_progress)


def _refuse_embed_model(embed_model: Any) -> None:
    if embed_model is not None:
        raise TypeError(
            f"JinaColbertIndex encodes with the model of its collection, not with embed_model={embed_model!r}. "
            "Leave embed_model out, and give from_documents an encoder."
        )


def _storage_context(collection: ColbertCollection) -> StorageContext:
    return StorageContext.from_defaults(vector_store=JinaColbertVectorStore(collection))


INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[_STRUCT_TYPE] = JinaColbertStruct
INDEX_STRUCT_TYPE_TO_INDEX_CLASS[_STRUCT_TYPE] = JinaColbertIndex
