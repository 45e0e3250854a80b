"""``JinaColbertRetriever``: retrieve nodes of a collection by MaxSim, with relevance and explanations."""

from __future__ import annotations

import copy
import difflib
import inspect
import os
from collections.abc import Iterable
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery, VectorStoreQueryMode
from typing_extensions import Unpack

from jcv2_plugin import ColbertCollection, SearchOptions
from jcv2_plugin.collection.asynchronous import in_thread
from jcv2_plugin.collection.opening import open_collection
from jcv2_plugin.documents import id_list
from llama_index_jcv2.nodes import node_of
from llama_index_jcv2.results import ScoredNode
from llama_index_jcv2.vector_stores import JinaColbertVectorStore

_SEARCH_OPTIONS = SearchOptions.__annotations__.keys() - {"filter"}  # filters are LlamaIndex's here


class JinaColbertRetriever(BaseRetriever):
    """Retrieve nodes by MaxSim, as :class:`~llama_index_jcv2.results.ScoredNode` results.

    Use :meth:`with_options` to change options for some queries, or set the attributes of these names for all later
    ones.

    Args:
        index: What to search: a :class:`~llama_index_jcv2.JinaColbertIndex` or another index over a
            :class:`~llama_index_jcv2.JinaColbertVectorStore`, such a store, an open collection, or the location of one
            (a folder or a server URL). Use :meth:`from_collection` to pass options for opening.
        similarity_top_k: Number of nodes to return.
        vector_store_query_mode: ``"default"``, or ``"mmr"`` for relevant and diverse nodes.
        filters: Search only nodes whose metadata matches.
        node_ids: Search only these nodes. None or an empty list searches all.
        doc_ids: Search only nodes of these source documents. None or an empty list searches all.
        mmr_threshold: For ``"mmr"``: from 0 (most diverse) to 1 (by score alone).
        vector_store_kwargs: Additional arguments of ``JinaColbertVectorStore.search``: ``qdrant_filters``, ...
        callback_manager: LlamaIndex's callback manager. Defaults to the index's.
        object_map: Objects that index nodes refer to, by ``index_id``. Defaults to the index's.
        objects: Index nodes whose objects are retrieved recursively.
        verbose: Print which objects are retrieved.
        **search_options: See :class:`jcv2_plugin.SearchOptions`: ``first_stage``, ``candidates``, ``exact``,
            ``with_explanation``, and ``score_threshold``, which is on MaxSim. They are kept as one dict.
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
        mmr_threshold: float | None = None,
        vector_store_kwargs: dict[str, Any] | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
        **search_options: Unpack[SearchOptions],
    ) -> None:
        if unknown := sorted(search_options.keys() - _SEARCH_OPTIONS):
            raise TypeError(f"There are no options {unknown}. Use some of {sorted(retriever_options())}.")
        self.similarity_top_k = similarity_top_k
        self.vector_store_query_mode = VectorStoreQueryMode(vector_store_query_mode)
        self.filters = filters
        self.node_ids = _ids(node_ids)
        self.doc_ids = _ids(doc_ids)
        self.mmr_threshold = mmr_threshold
        self.vector_store_kwargs = vector_store_kwargs
        self.search_options = search_options
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
        taken = retriever_options() & set(options)
        if not isinstance(options.get("first_stage"), (str, type(None))):
            taken -= {"first_stage"}  # an object is the collection's
        own = {name: options.pop(name) for name in taken}
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
        searching: Any = {name: options.pop(name) for name in _SEARCH_OPTIONS & options.keys()}
        other.search_options = {**self.search_options, **searching}
        convert: dict[str, Any] = {"vector_store_query_mode": VectorStoreQueryMode, "node_ids": _ids, "doc_ids": _ids}
        for name, value in options.items():
            setattr(other, name, convert[name](value) if name in convert else value)
        return other

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        options = {"mmr_threshold": self.mmr_threshold, **self.search_options}
        named = {name: value for name, value in options.items() if value is not None}
        hits = self._store.search(self._query(query_bundle), **{**(self.vector_store_kwargs or {}), **named})
        return [
            ScoredNode(node=node_of(hit), score=hit.relevance, maxsim=hit.score, explanation=hit.explanation)
            for hit in hits
        ]

    _aretrieve = in_thread(_retrieve)  # type: ignore[arg-type]

    def _query(self, query_bundle: QueryBundle) -> VectorStoreQuery:
        return VectorStoreQuery(
            query_str=query_bundle.query_str,
            similarity_top_k=self.similarity_top_k,
            mode=self.vector_store_query_mode,
            filters=self.filters,
            node_ids=self.node_ids,
            doc_ids=self.doc_ids,
        )


def _ids(ids: Iterable[str] | None) -> list[str] | None:
    """Return ids as a list: they are used by each search, and a generator would only have them once."""
    return None if ids is None else id_list(ids)


def retriever_options() -> set[str]:
    """Return the names of all :class:`JinaColbertRetriever` arguments except the index."""
    named = set(inspect.signature(JinaColbertRetriever).parameters) - {"index", "search_options"}
    return named | _SEARCH_OPTIONS


def _changeable() -> set[str]:
    return retriever_options() - {"callback_manager", "object_map", "objects", "verbose"}


def chosen_options(given: dict[str, Any]) -> dict[str, Any]:
    """Select the retriever's options from the arguments of ``as_retriever``.

    LlamaIndex's engines pass all their arguments to it, so unknown names are ignored. TypeError for a name that looks
    like a misspelled option, or for an embedding model.
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
