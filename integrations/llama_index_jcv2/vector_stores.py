"""``JinaColbertVectorStore``: a collection as a LlamaIndex vector store that encodes texts itself."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.storage.docstore.types import RefDocInfo
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from qdrant_client import models

from jcv2_plugin import ColbertCollection, SearchHit
from jcv2_plugin.checks import in_batches
from jcv2_plugin.documents import ID_KEY, METADATA_KEY
from jcv2_plugin.errors import InvalidQueryError
from llama_index_jcv2.filters import both, node_filter, query_filter, source_filter, to_qdrant_filter
from llama_index_jcv2.nodes import (
    NO_SOURCE,
    SOURCE_HASH_KEY,
    SOURCE_KEY,
    TYPE_KEY,
    document_of,
    naming_sources,
    node_of,
)
from llama_index_jcv2.pipelines import let_pipelines_store

_EVERYTHING = models.Filter(must_not=[models.IsEmptyCondition(is_empty=models.PayloadField(key=ID_KEY))])
_SOURCES_PER_LOOKUP = 1000

# One for each open collection, since several indexes and stores may share one.
_locks: weakref.WeakKeyDictionary[ColbertCollection, threading.RLock] = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


class JinaColbertVectorStore(BasePydanticVectorStore):
    """Nodes as documents of a :class:`~jcv2_plugin.ColbertCollection`, found by MaxSim.

    A node has many vectors, and LlamaIndex keeps one: so the store encodes nodes and queries itself, with the
    collection's model. ``node.embedding`` and an embedding model are neither needed nor looked at, in an
    ``IngestionPipeline`` neither.

    Args:
        collection: An open collection. It stays the caller's to close.

    Raises:
        TypeError: It is something else, such as the location of one.
    """

    stores_text: bool = True
    is_embedding_query: bool = False

    # Private: a public field would put the collection, and so a client, into dumps.
    _collection: ColbertCollection = PrivateAttr()
    _lock: Any = PrivateAttr()

    def __init__(self, collection: ColbertCollection) -> None:
        if not isinstance(collection, ColbertCollection):
            raise TypeError(
                f"JinaColbertVectorStore stands on a ColbertCollection, got {type(collection).__name__}. Open or make "
                "one with ColbertCollection.open or ColbertCollection.create, or use JinaColbertIndex.from_collection."
            )
        super().__init__(stores_text=True, is_embedding_query=False)
        self._collection = collection
        with _locks_lock:
            self._lock = _locks.setdefault(collection, threading.RLock())

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

    @property
    def write_lock(self) -> threading.RLock:
        """Held while nodes are written or removed; hold it to look at what is stored and write by that.

        All stores over one open collection share it.
        """
        lock: threading.RLock = self._lock
        return lock

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> JinaColbertVectorStore:
        return type(self)(self._collection)

    def __getstate__(self) -> NoReturn:
        # LlamaIndex would leave the collection out, and what is loaded would fail at its first use.
        raise TypeError(
            f"A JinaColbertVectorStore cannot be pickled: it holds the open collection {self._collection!r}. "
            "Everything is kept in that, so open it again where it is needed, with JinaColbertIndex.from_collection."
        )

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Encode and store nodes; one whose id is there already replaces it.

        Returns:
            The nodes' ids, in order.

        Raises:
            InvalidDocumentError: A node has no text, comes twice, or has metadata that is no JSON. Nothing of
                the call was written.
        """
        documents = [document_of(node) for node in nodes]
        with self.write_lock, naming_sources(nodes):
            return self._collection.add(documents)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove all nodes of a source document; one that is not there is no error."""
        with self.write_lock:
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
        with self.write_lock:
            self._collection.delete(filter=chosen)

    def clear(self) -> None:
        """Remove all nodes; the collection stays."""
        with self.write_lock:
            self._collection.delete(filter=_EVERYTHING)

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Nodes by id, in the order asked; by metadata; those that satisfy both; or, with neither, all."""
        if node_ids is not None and filters is None:
            return [node_of(stored) for stored in self._collection.get(node_ids)]
        chosen = both(node_filter(node_ids), to_qdrant_filter(filters))
        return [node_of(stored) for stored in self._collection.scroll(chosen)]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nodes that :meth:`search` finds, with their MaxSim scores as similarities."""
        hits = self.search(query, **kwargs)
        return VectorStoreQueryResult(
            nodes=[node_of(hit) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    def search(
        self,
        query: VectorStoreQuery,
        *,
        qdrant_filters: models.Filter | None = None,
        mmr_threshold: float | None = None,
        mmr_prefetch_factor: float | None = None,
        mmr_prefetch_k: int | None = None,
        **kwargs: Any,
    ) -> list[SearchHit]:
        """The documents of the largest MaxSim with ``query.query_str``.

        Filters, ``doc_ids`` and ``node_ids`` of the query are honoured. An empty list restricts nothing, as in
        LlamaIndex's Qdrant store.

        Args:
            query: LlamaIndex's query. Its mode is the default one, or ``mmr``, which gives results that are relevant
                and not all the same.
            qdrant_filters: A filter of Qdrant's, to be satisfied too.
            mmr_threshold: For ``mmr``: from 0 (as unlike each other as can be) to 1 (by score alone). None takes the
                query's own, or else 0.5.
            mmr_prefetch_factor: For ``mmr``: of so many times the results asked for they are chosen.
            mmr_prefetch_k: Or of so many of the best. None of the two takes 4 times, and at least 20.
            **kwargs: Further arguments of ``ColbertCollection.search``: ``first_stage``, ``candidates``, ``exact``,
                ``score_threshold``, ``with_explanation``.

        Raises:
            InvalidQueryError: There is no text, or the mode is another one.
            UnsupportedFilterError: A filter has no counterpart in Qdrant.
        """
        if query.query_str is None:
            raise InvalidQueryError("The query has no query_str. This store encodes the text: an embedding is no use.")
        kwargs["filter"] = query_filter(query, qdrant_filters)
        limit = query.similarity_top_k
        if mmr_threshold is None:
            mmr_threshold = query.mmr_threshold
        if query.mode == VectorStoreQueryMode.MMR:
            if mmr_prefetch_k is None and mmr_prefetch_factor is not None:
                mmr_prefetch_k = int(limit * mmr_prefetch_factor)
            threshold = 0.5 if mmr_threshold is None else mmr_threshold
            return self._collection.search_mmr(
                query.query_str, limit, fetch_k=mmr_prefetch_k, lambda_mult=threshold, **kwargs
            )
        if query.mode != VectorStoreQueryMode.DEFAULT:
            raise InvalidQueryError(
                f"The query mode {query.mode.value!r} is not supported. Use 'default' or 'mmr'. Whether words take "
                "part in finding candidates is said by first_stage."
            )
        if not (mmr_threshold is mmr_prefetch_factor is mmr_prefetch_k is None):
            raise InvalidQueryError("mmr_threshold and mmr_prefetch_* belong to the query mode 'mmr'. Set that too.")
        return self._collection.search(query.query_str, limit, **kwargs)

    # What an index asks of its source documents.

    def source_hashes(self, ref_doc_ids: Sequence[str]) -> dict[str, str | None]:
        """The hashes that source documents had when their nodes were made.

        Returns:
            An entry for each document that has nodes. None where its nodes disagree, as after an update that was
            stopped halfway, or where it is not known.
        """
        hashes: dict[str, str | None] = {}
        for batch in in_batches(list(ref_doc_ids), _SOURCES_PER_LOOKUP):
            for source, payload in self._sources(source_filter(batch)):
                found = payload.get(SOURCE_HASH_KEY)
                hashes[source] = found if hashes.get(source, found) == found else None
        return hashes

    def source_nodes(self, ref_doc_id: str) -> dict[str, str | None]:
        """The ids of the nodes of a source document, each with the hash that the document had when it was made."""
        found = self._sources(source_filter([ref_doc_id]))
        return {str(payload[ID_KEY]): payload.get(SOURCE_HASH_KEY) for _, payload in found}

    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """All source documents: the ids of their nodes, and the metadata of one of these.

        A ``Document`` that was stored as it is counts as its own node; other nodes without a source are left out.
        """
        documents: dict[str, RefDocInfo] = {}
        for source, payload in self._sources(None, METADATA_KEY, TYPE_KEY):
            if payload.get(SOURCE_KEY) == source or payload.get(TYPE_KEY) == LlamaDocument.class_name():
                info = documents.setdefault(source, RefDocInfo())
                info.node_ids.append(payload[ID_KEY])
                info.metadata = info.metadata or payload.get(METADATA_KEY) or {}
        return documents

    def _sources(self, chosen: models.Filter | None, *keys: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The source of each node that a filter selects, with some of its payload. One without is its own."""
        for payload in self._collection.payloads([ID_KEY, SOURCE_KEY, SOURCE_HASH_KEY, *keys], chosen):
            source = payload.get(SOURCE_KEY)
            yield str(payload[ID_KEY] if source in (None, NO_SOURCE) else source), payload

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

    async def asearch(self, query: VectorStoreQuery, **kwargs: Any) -> list[SearchHit]:
        """:meth:`search`, without blocking the event loop."""
        return await asyncio.to_thread(self.search, query, **kwargs)


let_pipelines_store(JinaColbertVectorStore)
