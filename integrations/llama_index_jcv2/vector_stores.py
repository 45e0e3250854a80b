"""``JinaColbertVectorStore``: a collection as a LlamaIndex vector store that encodes texts itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from qdrant_client import models

from jcv2_plugin import ColbertCollection
from jcv2_plugin.documents import ID_KEY
from jcv2_plugin.errors import InvalidQueryError
from llama_index_jcv2.filters import both, node_filter, query_filter, source_filter, to_qdrant_filter
from llama_index_jcv2.nodes import document_of, node_of

_EVERYTHING = models.Filter(must_not=[models.IsEmptyCondition(is_empty=models.PayloadField(key=ID_KEY))])


class JinaColbertVectorStore(BasePydanticVectorStore):
    """Nodes as documents of a :class:`~jcv2_plugin.ColbertCollection`, found by MaxSim.

    A node has many vectors, and LlamaIndex keeps one: so the store encodes nodes and queries itself, with the
    collection's model. ``node.embedding`` and an embedding model are neither needed nor looked at.

    Args:
        collection: An open collection. It stays the caller's to close.
    """

    stores_text: bool = True
    is_embedding_query: bool = False

    # Private: a public field would put the collection, and so a client, into dumps.
    _collection: ColbertCollection = PrivateAttr()

    def __init__(self, collection: ColbertCollection) -> None:
        super().__init__(stores_text=True, is_embedding_query=False)
        self._collection = collection

    @classmethod
    def class_name(cls) -> str:
        """The class's name in LlamaIndex's dumps."""
        return "JinaColbertVectorStore"

    @property
    def collection(self) -> ColbertCollection:
        """The collection."""
        return self._collection

    @property
    def client(self) -> ColbertCollection:
        """The collection, under the name that LlamaIndex has for it."""
        return self._collection

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Encode and store nodes; one whose id is there already replaces it.

        Returns:
            The nodes' ids, in order.

        Raises:
            InvalidDocumentError: A node has no text, comes twice, or has metadata that is no JSON. Nothing of
                the call was written.
        """
        return self._collection.add([document_of(node) for node in nodes])

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove all nodes of a source document; one that is not there is no error."""
        self._collection.delete(filter=source_filter([ref_doc_id]))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Remove nodes by id, by metadata, or those that satisfy both.

        Raises:
            ValueError: Neither is given. :meth:`clear` removes everything.
        """
        chosen = both(node_filter(node_ids), to_qdrant_filter(filters))
        if chosen is None:
            raise ValueError("Give node_ids or filters to delete by; clear() removes all nodes.")
        self._collection.delete(filter=chosen)

    def clear(self) -> None:
        """Remove all nodes; the collection stays."""
        self._collection.delete(filter=_EVERYTHING)

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Nodes by id, in the order asked; by metadata; those that satisfy both; or, with neither, all."""
        if node_ids is not None and filters is None:
            return [node_of(stored) for stored in self._collection.get(node_ids)]
        chosen = both(node_filter(node_ids), to_qdrant_filter(filters))
        return [node_of(stored) for stored in self._collection.scroll(chosen)]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nodes of the largest MaxSim with ``query.query_str``.

        Filters, ``doc_ids`` and ``node_ids`` of the query are honoured.

        Args:
            query: LlamaIndex's query.
            **kwargs: ``qdrant_filters``, a filter of Qdrant's to be satisfied too, and further arguments of
                ``ColbertCollection.search``; a retriever hands on its ``vector_store_kwargs``.

        Raises:
            InvalidQueryError: There is no text, or the mode is another than the default.
            UnsupportedFilterError: A filter has no counterpart in Qdrant.
        """
        if query.mode != VectorStoreQueryMode.DEFAULT:
            raise InvalidQueryError(f"The query mode {query.mode.value!r} is not supported. Use 'default'.")
        if query.query_str is None:
            raise InvalidQueryError("The query has no query_str. This store encodes the text: an embedding is no use.")
        chosen = query_filter(query, kwargs.pop("qdrant_filters", None))
        hits = self._collection.search(query.query_str, query.similarity_top_k, filter=chosen, **kwargs)
        return VectorStoreQueryResult(
            nodes=[node_of(hit) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    def source_hash(self, ref_doc_id: str) -> str | None:
        """The hash that a source document had when its nodes were made; None if there are none."""
        for stored in self._collection.scroll(source_filter([ref_doc_id])):
            source = node_of(stored).source_node
            if source is not None and source.hash is not None:
                return source.hash
        return None

    # Encoding and searching take long: in a thread they leave the event loop free.

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """:meth:`add`, without blocking the event loop."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """:meth:`delete`, without blocking the event loop."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """:meth:`delete_nodes`, without blocking the event loop."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        """:meth:`clear`, without blocking the event loop."""
        await asyncio.to_thread(self.clear)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """:meth:`get_nodes`, without blocking the event loop."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """:meth:`query`, without blocking the event loop."""
        return await asyncio.to_thread(self.query, query, **kwargs)
