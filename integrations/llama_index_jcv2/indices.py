"""``JinaColbertIndex``: a collection as a LlamaIndex index."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any

from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.schema import BaseNode, Document, TransformComponent

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from llama_index_jcv2.nodes import embedded_text
from llama_index_jcv2.vector_stores import JinaColbertVectorStore

logger = logging.getLogger(__name__)

_DEFAULT_ENCODER = "mini"
_PLACES = ("path", "url", "client")


class JinaColbertIndex(VectorStoreIndex):
    """A ``VectorStoreIndex`` that finds nodes by MaxSim over the vectors of their tokens.

    Made by :meth:`from_documents`, :meth:`from_collection` or ``from_vector_store``. It encodes with the
    collection's model: no embedding model is set or asked for. Everything is kept in the collection, so opening
    that again is all there is to loading an index. Close ``index.collection`` to release a folder or client.

    Args:
        nodes: Nodes to add.
        storage_context: One whose vector store is a :class:`JinaColbertVectorStore`.
        embed_model: None, always.
        **kwargs: As for ``VectorStoreIndex``.

    Raises:
        TypeError: The vector store is another, or an embedding model is given.
    """

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
                "Make it with from_documents, from_collection or from_vector_store."
            )
        if embed_model is not None:
            raise TypeError(
                f"JinaColbertIndex encodes with the model of its collection, not with embed_model={embed_model!r}. "
                "Leave embed_model out, and give from_documents an encoder."
            )
        # Left to itself, the base class would load the embedding model of the global settings.
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
        *,
        encoder: JinaColbertEncoder | str | os.PathLike[str] = _DEFAULT_ENCODER,
        dim: int | None = None,
        location: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> JinaColbertIndex:
        """Create a collection, and an index of documents in it.

        Args:
            documents: What to index.
            storage_context: One whose vector store is a :class:`JinaColbertVectorStore`: add the documents to
                its collection, instead of creating one.
            show_progress: Show LlamaIndex's progress bars.
            callback_manager: LlamaIndex's callbacks.
            transformations: How documents become nodes; None takes those of LlamaIndex's settings.
            encoder: The model, loaded or by name.
            dim: One of the model's Matryoshka dimensions; None takes its default.
            location: A folder, ``":memory:"`` or a server's URL. None is memory, unless ``path``, ``url`` or
                ``client`` is among the options.
            **options: Options of ``ColbertCollection.create``.

        Raises:
            CollectionExistsError: There is a collection already; :meth:`from_collection` opens it.
            InvalidDocumentError: A node's metadata is no JSON, ...
            TypeError: A storage context is given with what describes a new collection.
        """
        rest: dict[str, Any] = {
            "show_progress": show_progress,
            "callback_manager": callback_manager,
            "transformations": transformations,
        }
        if storage_context is not None:
            given = {"encoder": encoder != _DEFAULT_ENCODER, "dim": dim is not None, "location": location is not None}
            if unused := sorted([*(name for name, used in given.items() if used), *options]):
                raise TypeError(
                    f"The storage context brings its collection: {unused} cannot be chosen. Leave them out."
                )
            return super().from_documents(documents, storage_context, **rest)
        if location is None and all(options.get(place) is None for place in _PLACES):
            location = ":memory:"
        collection = ColbertCollection.create(location, encoder=encoder, dim=dim, **options)
        try:
            return super().from_documents(documents, _storage_context(collection), **rest)
        except BaseException:
            collection.close()
            raise

    @classmethod
    def from_collection(
        cls, collection: ColbertCollection | str | os.PathLike[str] | None = None, **options: Any
    ) -> JinaColbertIndex:
        """An index over a collection that exists.

        Args:
            collection: An open collection, or the location of one: a folder or a server's URL.
            **options: Options of ``ColbertCollection.open`` (``encoder``, ``url``, ``client``, ``name``, ...).

        Raises:
            CollectionNotFoundError: There is none.
            TypeError: Options are given with an open collection.
        """
        if not isinstance(collection, ColbertCollection):
            collection = ColbertCollection.open(collection, **options)
        elif options:
            raise TypeError(f"The collection is open: {sorted(options)} can no longer be chosen. Leave them out.")
        return cls(nodes=[], storage_context=_storage_context(collection))

    @property
    def vector_store(self) -> JinaColbertVectorStore:
        """The store that holds the nodes."""
        return self._store

    @property
    def collection(self) -> ColbertCollection:
        """The collection that holds the nodes."""
        return self._store.collection

    def as_retriever(self, **kwargs: Any) -> BaseRetriever:
        """A retriever of nodes, with their MaxSim scores.

        Args:
            **kwargs: As for LlamaIndex's ``VectorIndexRetriever``: ``similarity_top_k``, ``filters``,
                ``doc_ids``, ``node_ids``, and ``vector_store_kwargs`` (see ``JinaColbertVectorStore.query``).
        """
        from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever

        # The base class restricts the search to the index nodes there are, which would leave out the text nodes.
        return VectorIndexRetriever(
            self, callback_manager=self._callback_manager, object_map=self._object_map, **kwargs
        )

    def refresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Insert the documents that are new and update those that have changed, by what the collection holds.

        Args:
            documents: The documents as they should be.
            **update_kwargs: ``insert_kwargs`` and ``update_kwargs``, as for ``VectorStoreIndex``.

        Returns:
            For each document whether it was written.
        """
        refreshed = []
        for document in documents:
            stored = self._store.source_hash(document.id_)
            refreshed.append(stored != document.hash)
            if stored is None:
                self.insert(document, **update_kwargs.get("insert_kwargs", {}))
            elif stored != document.hash:
                self.update_ref_doc(document, **update_kwargs.get("update_kwargs", {}))
        return refreshed

    async def arefresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """:meth:`refresh_ref_docs`, without blocking the event loop."""
        refreshed = []
        for document in documents:
            stored = await asyncio.to_thread(self._store.source_hash, document.id_)
            refreshed.append(stored != document.hash)
            if stored is None:
                await self.ainsert(document, **update_kwargs.get("insert_kwargs", {}))
            elif stored != document.hash:
                await self.aupdate_ref_doc(document, **update_kwargs.get("update_kwargs", {}))
        return refreshed

    def _get_node_with_embedding(self, nodes: Sequence[BaseNode], show_progress: bool = False) -> list[BaseNode]:
        """The nodes as they are, for the store to encode; those without text are left out."""
        kept = [node for node in nodes if embedded_text(node).strip()]
        if len(kept) < len(nodes):
            logger.warning("Left out %d nodes that have no text to encode.", len(nodes) - len(kept))
        return kept

    async def _aget_node_with_embedding(self, nodes: Sequence[BaseNode], show_progress: bool = False) -> list[BaseNode]:
        return self._get_node_with_embedding(nodes, show_progress)


def _storage_context(collection: ColbertCollection) -> StorageContext:
    return StorageContext.from_defaults(vector_store=JinaColbertVectorStore(collection))
