"""``JinaColbertVectorStore``: a LlamaIndex vector store over a collection, which encodes texts itself."""

from __future__ import annotations

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
from typing_extensions import Unpack

from jcv2_plugin import ColbertCollection, SearchHit, SearchOptions
from jcv2_plugin.checks import check_number, check_positive, in_batches
from jcv2_plugin.collection.asynchronous import in_thread
from jcv2_plugin.documents import ID_KEY, METADATA_KEY, OnBlank
from jcv2_plugin.errors import InvalidQueryError
from llama_index_jcv2.filters import both, node_filter, query_filter, source_filter, to_qdrant_filter
from llama_index_jcv2.nodes import (
    NO_SOURCE,
    SOURCE_HASH_KEY,
    SOURCE_KEY,
    TYPE_KEY,
    document_of,
    naming_sources,
    node_list,
    node_of,
)

_EVERYTHING = models.Filter(must_not=[models.IsEmptyCondition(is_empty=models.PayloadField(key=ID_KEY))])
_SOURCES_PER_LOOKUP = 1000

# One lock per open collection, since several indexes and stores may share a collection.
_locks: weakref.WeakKeyDictionary[ColbertCollection, threading.RLock] = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


class JinaColbertVectorStore(BasePydanticVectorStore):
    """Store nodes in a :class:`~jcv2_plugin.ColbertCollection` and search them by MaxSim.

    A node has many vectors, and LlamaIndex supports only one. The store therefore encodes nodes and queries itself,
    with the collection's model. ``node.embedding`` and embedding models are ignored. An ``IngestionPipeline`` needs
    :class:`~llama_index_jcv2.EncodedByStore` as its last step, or it stores nothing.

    Args:
        collection: An open collection. The caller closes it.

    Raises:
        TypeError: ``collection`` is something else, such as a location.
    """

    stores_text: bool = True
    is_embedding_query: bool = False

    # Private, to keep the collection and its client out of dumps.
    _collection: ColbertCollection = PrivateAttr()

    def __init__(self, collection: ColbertCollection) -> None:
        if not isinstance(collection, ColbertCollection):
            raise TypeError(
                f"JinaColbertVectorStore needs a ColbertCollection, got {type(collection).__name__}. Open or create "
                "one with ColbertCollection.open or ColbertCollection.create, or use JinaColbertIndex.from_collection."
            )
        super().__init__(stores_text=True, is_embedding_query=False)
        self._collection = collection

    @classmethod
    def class_name(cls) -> str:
        """Return the class name used in LlamaIndex's dumps."""
        return "JinaColbertVectorStore"

    @property
    def collection(self) -> ColbertCollection:
        """The collection."""
        return self._collection

    @property
    def client(self) -> ColbertCollection:
        """The collection, under LlamaIndex's name for it."""
        return self._collection

    @property
    def write_lock(self) -> threading.RLock:
        """Lock held while nodes are written or deleted. Hold it to read and write atomically.

        It is shared by all stores over the same open collection.

        Raises:
            ForkedProcessError: The collection was opened in the parent of this process, which may hold the lock.
        """
        _ = self._collection.current
        with _locks_lock:
            return _locks.setdefault(self._collection, threading.RLock())

    def __getstate__(self) -> NoReturn:
        # LlamaIndex would drop the collection, and the unpickled store would fail on first use.
        raise TypeError(
            f"A JinaColbertVectorStore cannot be pickled: it holds the open collection {self._collection!r}. Open the "
            "collection again where it is needed, with JinaColbertIndex.from_collection."
        )

    def add(self, nodes: Sequence[BaseNode], on_blank: OnBlank = "skip", **kwargs: Any) -> list[str]:
        """Encode and store nodes. A node whose id already exists replaces the stored one.

        Args:
            nodes: Nodes to store.
            on_blank: ``"skip"`` leaves out nodes without text and logs a warning, ``"error"`` refuses the call.
            **kwargs: Ignored.

        Returns:
            The ids of the stored nodes, in order.

        Raises:
            InvalidDocumentError: A node occurs twice, or has metadata that cannot be stored as JSON. Nothing is
                written.
        """
        listed = node_list(nodes)
        documents = [document_of(node) for node in listed]
        with self.write_lock, naming_sources(listed):
            return self._collection.add(documents, on_blank=on_blank)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete all nodes of a source document. An unknown document is ignored."""
        with self.write_lock:
            self._collection.delete(filter=source_filter([ref_doc_id]))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes by id, by metadata, or by both, in which case both must match.

        Raises:
            ValueError: Neither is given. Use :meth:`clear` to delete everything.
        """
        chosen = both(node_filter(node_ids), to_qdrant_filter(filters))
        if chosen is None:
            raise ValueError("Give node_ids or filters to delete by; clear() removes all nodes.")
        with self.write_lock:
            self._collection.delete(filter=chosen)

    def clear(self) -> None:
        """Delete all nodes, but keep the collection."""
        with self.write_lock:
            self._collection.delete(filter=_EVERYTHING)

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return nodes by id (in the given order), by metadata, by both, or all nodes if neither is given."""
        if node_ids is not None and filters is None:
            return [node_of(stored) for stored in self._collection.get(node_ids)]
        chosen = both(node_filter(node_ids), to_qdrant_filter(filters))
        return [node_of(stored) for stored in self._collection.scroll(chosen)]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes found by :meth:`search`, with their relevance (0..1) as similarities."""
        hits = self.search(query, **kwargs)
        return VectorStoreQueryResult(
            nodes=[node_of(hit) for hit in hits],
            similarities=[hit.relevance for hit in hits],
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
        **options: Unpack[SearchOptions],
    ) -> list[SearchHit]:
        """Return the documents with the highest MaxSim score for ``query.query_str``.

        The query's filters, ``doc_ids`` and ``node_ids`` are applied. An empty list restricts nothing, as in
        LlamaIndex's Qdrant store.

        Args:
            query: LlamaIndex's query, in the default mode or in ``mmr`` mode, which returns relevant and diverse
                results.
            qdrant_filters: A Qdrant filter to apply in addition.
            mmr_threshold: For ``mmr``: from 0 (most diverse) to 1 (by score alone). Defaults to the query's own, or
                else 0.5.
            mmr_prefetch_factor: For ``mmr``: choose from this many times the number of results.
            mmr_prefetch_k: For ``mmr``: choose from this many of the best, instead. If neither is given, 4 times the
                number of results, and at least 20.
            **options: See :class:`jcv2_plugin.SearchOptions`. ``score_threshold`` is on MaxSim.

        Raises:
            InvalidQueryError: The query has no text, or its mode is not supported.
            UnsupportedFilterError: Qdrant has no equivalent for a filter.
        """
        if query.query_str is None:
            raise InvalidQueryError("The query has no query_str. This store encodes the text and needs no embedding.")
        options["filter"] = query_filter(query, both(qdrant_filters, options.get("filter")))
        limit = check_positive(query.similarity_top_k, "similarity_top_k")
        if mmr_threshold is None:
            mmr_threshold = query.mmr_threshold
        if query.mode == VectorStoreQueryMode.MMR:
            if mmr_prefetch_k is None and mmr_prefetch_factor is not None:
                factor = check_number(mmr_prefetch_factor, "mmr_prefetch_factor")
                if not 0 < factor < 2**31:
                    raise InvalidQueryError(f"mmr_prefetch_factor must be positive, got {mmr_prefetch_factor!r}.")
                mmr_prefetch_k = max(limit, int(limit * factor))
            balance = 0.5 if mmr_threshold is None else mmr_threshold
            return self._collection.search_mmr(
                query.query_str, limit, fetch_k=mmr_prefetch_k, lambda_mult=balance, **options
            )
        if query.mode != VectorStoreQueryMode.DEFAULT:
            raise InvalidQueryError(
                f"The query mode {query.mode.value!r} is not supported. Use 'default' or 'mmr'. Choose by first_stage "
                "whether candidates are found by words too."
            )
        if not (mmr_threshold is mmr_prefetch_factor is mmr_prefetch_k is None):
            raise InvalidQueryError("mmr_threshold and mmr_prefetch_* belong to the query mode 'mmr'. Set that too.")
        return self._collection.search(query.query_str, limit, **options)

    # Lookups of source documents, for the index

    def source_hashes(self, ref_doc_ids: Sequence[str]) -> dict[str, str | None]:
        """Return the hashes that source documents had when their nodes were created.

        Returns:
            An entry for each document that has nodes. The hash is None if it is unknown or the nodes disagree, as after
            an interrupted update.
        """
        hashes: dict[str, str | None] = {}
        for batch in in_batches(list(ref_doc_ids), _SOURCES_PER_LOOKUP):
            for source, payload in self._sources(source_filter(batch)):
                found = payload.get(SOURCE_HASH_KEY)
                hashes[source] = found if hashes.get(source, found) == found else None
        return hashes

    def source_nodes(self, ref_doc_id: str) -> dict[str, str | None]:
        """Return the ids of a source document's nodes, each with the document's hash when the node was created."""
        found = self._sources(source_filter([ref_doc_id]))
        return {str(payload[ID_KEY]): payload.get(SOURCE_HASH_KEY) for _, payload in found}

    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """Return all source documents, with the ids of their nodes and the metadata of one of them.

        A ``Document`` stored without splitting counts as its own node. Other nodes without a source are left out.
        """
        documents: dict[str, RefDocInfo] = {}
        for source, payload in self._sources(None, METADATA_KEY, TYPE_KEY):
            if payload.get(SOURCE_KEY) == source or payload.get(TYPE_KEY) == LlamaDocument.class_name():
                info = documents.setdefault(source, RefDocInfo())
                info.node_ids.append(payload[ID_KEY])
                info.metadata = info.metadata or payload.get(METADATA_KEY) or {}
        return documents

    def _sources(self, chosen: models.Filter | None, *keys: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the source and part of the payload of each matching node. A node without a source is its own."""
        for payload in self._collection.payloads([ID_KEY, SOURCE_KEY, SOURCE_HASH_KEY, *keys], chosen):
            source = payload.get(SOURCE_KEY)
            yield str(payload[ID_KEY] if source in (None, NO_SOURCE) else source), payload

    # Encoding and searching are slow, so they run in a thread. mypy infers the base class's signatures for these.
    async_add = in_thread(add)  # type: ignore[arg-type]
    adelete = in_thread(delete)  # type: ignore[arg-type]
    adelete_nodes = in_thread(delete_nodes)  # type: ignore[arg-type]
    aclear = in_thread(clear)  # type: ignore[arg-type]
    aget_nodes = in_thread(get_nodes)  # type: ignore[arg-type]
    aquery = in_thread(query)  # type: ignore[arg-type]
    asearch = in_thread(search)
