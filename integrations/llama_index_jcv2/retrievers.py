"""``JinaColbertRetriever``: retrieve nodes of a collection by MaxSim, with relevance and explanations."""

from __future__ import annotations

import copy
import difflib
import inspect
import os
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery, VectorStoreQueryMode

from jcv2_plugin import ColbertCollection, SearchHit
from jcv2_plugin.collection.opening import open_collection
from jcv2_plugin.engines.first_stage import FirstStage
from llama_index_jcv2.nodes import node_of
from llama_index_jcv2.results import ScoredNode
from llama_index_jcv2.vector_stores import JinaColbertVectorStore

_SEARCH_OPTIONS = ("first_stage", "candidates", "exact", "score_threshold", "mmr_threshold")


class JinaColbertRetriever(BaseRetriever):
    """Retrieve nodes by MaxSim, as :class:`~llama_index_jcv2.results.ScoredNode` results.

    Every argument from ``similarity_top_k`` to ``vector_store_kwargs`` is also an attribute. Set it for all later
    queries, or use :meth:`with_options` for some of them.

    Args:
        index: What to search: a :class:`~llama_index_jcv2.JinaColbertIndex` or another index over a
            :class:`~llama_index_jcv2.JinaColbertVectorStore`, such a store, an open collection, or the location of one
            (a folder or a server URL). Use :meth:`from_collection` to pass options for opening.
        similarity_top_k: Number of nodes to return.
        vector_store_query_mode: ``"default"``, or ``"mmr"`` for relevant and diverse nodes.
        filters: Search only nodes whose metadata matches.
        node_ids: Search only these nodes. None or an empty list searches all.
        doc_ids: Search only nodes of these source documents. None or an empty list searches all.
        first_stage: First stage that finds the candidates, out of those the collection stores: ``"hybrid"``,
            ``"pooled"``, ``"bm25"``, or ``"none"`` to rank all nodes. Defaults to the collection's.
        candidates: Number of candidates ranked by MaxSim.
        exact: True ranks all nodes. False uses the first stage, even for a small collection.
        score_threshold: Leave out nodes with a lower score.
        mmr_threshold: For ``"mmr"``: from 0 (most diverse) to 1 (by score alone).
        with_explanation: Add an ``explanation`` to each result.
        vector_store_kwargs: Additional arguments of ``JinaColbertVectorStore.search``: ``qdrant_filters``, ...
        callback_manager: LlamaIndex's callback manager. Defaults to the index's.
        object_map: Objects that index nodes refer to, by ``index_id``. Defaults to the index's.
        objects: Index nodes whose objects are retrieved recursively.
        verbose: Print which objects are retrieved.
    """

    def __init__(
        self,
        index: BaseIndex[Any] | JinaColbertVectorStore | ColbertCollection | str | os.PathLike[str],
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        vector_store_query_mode: VectorStoreQueryMode | str = VectorStoreQueryMode.DEFAULT,
        filters: MetadataFilters | None = None,
        *,
        node_ids: list[str] | None = None,
        doc_ids: list[str] | None = None,
        first_stage: FirstStage | None = None,
        candidates: int | None = None,
        exact: bool | None = None,
        score_threshold: float | None = None,
        mmr_threshold: float | None = None,
        with_explanation: bool = False,
        vector_store_kwargs: dict[str, Any] | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
    ) -> None:
        self.similarity_top_k = similarity_top_k
        self.vector_store_query_mode = VectorStoreQueryMode(vector_store_query_mode)
        self.filters = filters
        self.node_ids = node_ids
        self.doc_ids = doc_ids
        self.first_stage = first_stage
        self.candidates = candidates
        self.exact = exact
        self.score_threshold = score_threshold
        self.mmr_threshold = mmr_threshold
        self.with_explanation = with_explanation
        self.vector_store_kwargs = vector_store_kwargs
        if isinstance(index, BaseIndex):
            callback_manager = callback_manager or index._callback_manager
            object_map = object_map or index._object_map
        self._store = _store_of(index)
        super().__init__(callback_manager=callback_manager, object_map=object_map, objects=objects, verbose=verbose)

    @classmethod
    def from_collection(
        cls, collection: ColbertCollection | str | os.PathLike[str] | None = None, **options: Any
    ) -> JinaColbertRetriever:
        """Create a retriever over an existing collection.

        Args:
            collection: An open collection, or the location of one: a folder or a server URL.
            **options: Options of this class, and of ``ColbertCollection.open`` (``encoder``, ``url``, ``name``, ...).

        Raises:
            CollectionNotFoundError: The collection does not exist.
            TypeError: Options for opening are given with an open collection.
        """
        own = {name: options.pop(name) for name in retriever_options() & set(options)}
        opened = open_collection(collection, **options)
        try:
            return cls(opened, **own)
        except BaseException:
            if opened is not collection:
                opened.close()
            raise

    @property
    def collection(self) -> ColbertCollection:
        """The collection to search."""
        return self._store.collection

    def with_options(self, **options: Any) -> JinaColbertRetriever:
        """Return a copy with other options, as in ``retriever.with_options(similarity_top_k=20).retrieve(q)``.

        Raises:
            TypeError: An option is unknown.
        """
        if unknown := sorted(set(options) - _changeable()):
            raise TypeError(f"There are no options {unknown}. Use some of {sorted(_changeable())}.")
        other = copy.copy(self)
        for name, value in options.items():
            setattr(other, name, VectorStoreQueryMode(value) if name == "vector_store_query_mode" else value)
        return other

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return _scored(self._store.search(self._query(query_bundle), **self._arguments()))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return _scored(await self._store.asearch(self._query(query_bundle), **self._arguments()))

    def _query(self, query_bundle: QueryBundle) -> VectorStoreQuery:
        return VectorStoreQuery(
            query_str=query_bundle.query_str,
            similarity_top_k=self.similarity_top_k,
            mode=self.vector_store_query_mode,
            filters=self.filters,
            node_ids=self.node_ids,
            doc_ids=self.doc_ids,
        )

    def _arguments(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in _SEARCH_OPTIONS}
        named = {name: value for name, value in given.items() if value is not None}
        return {"with_explanation": self.with_explanation, **(self.vector_store_kwargs or {}), **named}


def retriever_options() -> set[str]:
    """Return the names of all :class:`JinaColbertRetriever` arguments except the index."""
    return set(inspect.signature(JinaColbertRetriever).parameters) - {"index"}


def _changeable() -> set[str]:
    return retriever_options() - {"callback_manager", "object_map", "objects", "verbose"}


def chosen_options(given: dict[str, Any]) -> dict[str, Any]:
    """Select the retriever's options from the arguments of ``as_retriever``.

    LlamaIndex's engines pass all their arguments to ``as_retriever``, so unknown names are ignored. Names that look
    like misspelled options are rejected.

    Raises:
        TypeError: A name looks like a misspelled option, or an embedding model is given.
    """
    if given.get("embed_model") is not None:
        raise TypeError("The collection encodes queries with its own model. Leave embed_model out.")
    known = retriever_options()
    for name in sorted(set(given) - known):
        if meant := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            raise TypeError(f"There is no option {name!r}. Did you mean {meant[0]!r}?")
    return {name: value for name, value in given.items() if name in known}


def _store_of(
    index: BaseIndex[Any] | JinaColbertVectorStore | ColbertCollection | str | os.PathLike[str],
) -> JinaColbertVectorStore:
    store = getattr(index, "vector_store", None) if isinstance(index, BaseIndex) else index
    if isinstance(store, (str, os.PathLike, ColbertCollection)):
        store = JinaColbertVectorStore(open_collection(store))
    if not isinstance(store, JinaColbertVectorStore):
        raise TypeError(
            f"JinaColbertRetriever searches a JinaColbertIndex or a JinaColbertVectorStore, a collection or the "
            f"location of one, not {type(index).__name__}({type(store).__name__})."
        )
    return store


def _scored(hits: list[SearchHit]) -> list[NodeWithScore]:
    return [
        ScoredNode(node=node_of(hit), score=hit.score, relevance=hit.relevance, explanation=hit.explanation)
        for hit in hits
    ]
