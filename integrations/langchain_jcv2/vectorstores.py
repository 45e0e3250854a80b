"""``JinaColbertVectorStore``: a collection as a LangChain vector store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore
from typing_extensions import Self

import jcv2_plugin
from jcv2_plugin import ColbertCollection, Explanation, JinaColbertEncoder, SearchHit
from jcv2_plugin.collection.opening import DEFAULT_ENCODER, create_filled, open_collection
from jcv2_plugin.documents import as_documents
from langchain_jcv2.documents import search_options, to_core, to_langchain
from langchain_jcv2.filters import MetadataFilter, as_qdrant_filter

_NO_VECTOR = (
    "JinaColbertVectorStore cannot search by an embedding: its queries have one vector for each token. Give the text "
    "to similarity_search or max_marginal_relevance_search."
)


class JinaColbertVectorStore(VectorStore):
    """A :class:`~jcv2_plugin.ColbertCollection` as a LangChain ``VectorStore``, ranked by MaxSim.

    It encodes with the model of its collection, so it has no ``Embeddings``. Ids are any strings. Searches take
    ``filter`` (Qdrant's own, on ``metadata.<key>``, or a dict such as ``{"room": "hall"}``) and whatever else
    ``ColbertCollection.search`` takes: ``candidates``, ``exact``, ``first_stage``, ``score_threshold`` (on MaxSim).

    Close ``store.collection`` to release a folder or client.

    Args:
        collection: An open collection.

    Example:
        >>> store = JinaColbertVectorStore.from_texts(["Tokens meet tokens.", "Cooking rice."], dim=64)
        >>> store.similarity_search("late interaction of tokens", k=1)[0].page_content
        'Tokens meet tokens.'
    """

    def __init__(self, collection: ColbertCollection) -> None:
        if not isinstance(collection, ColbertCollection):
            raise TypeError(
                f"JinaColbertVectorStore stands on a ColbertCollection, got {type(collection).__name__}. Make it with "
                "from_texts, from_documents or from_existing_collection."
            )
        self._collection = collection

    def __repr__(self) -> str:
        # LangChain logs and traces this: no client, no URL.
        schema = self._collection.schema
        return f"{type(self).__name__}(model={schema.model!r}, dim={schema.dim})"

    @property
    def collection(self) -> ColbertCollection:
        """The collection that holds the documents."""
        return self._collection

    @property
    def embeddings(self) -> None:
        """None: an ``Embeddings`` makes one vector of a text, and this store compares one for each token."""
        return None

    # Making one

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings | JinaColbertEncoder | str | os.PathLike[str] | None = None,
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        encoder: JinaColbertEncoder | str | os.PathLike[str] | None = None,
        dim: int | None = None,
        location: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """Create a collection of texts, and a store over it.

        Args:
            texts: What to store.
            embedding: The same as ``encoder``, under LangChain's name. An ``Embeddings`` is refused.
            metadatas: A dict for each text.
            ids: An id for each text; None draws random ones.
            encoder: The model, loaded or by name; None takes ``"mini"``.
            dim: One of the model's Matryoshka dimensions; None takes its default.
            location: A folder, ``":memory:"`` or a server's URL. None is memory, unless ``path``, ``url`` or
                ``client`` is among the options.
            **options: Options of ``ColbertCollection.create``.

        Raises:
            InvalidDocumentError: Empty text, an id twice, metadata that is no JSON. Nothing was created.
            CollectionExistsError: There is a collection already; :meth:`from_existing_collection` opens it.
            TypeError: ``embedding`` is an ``Embeddings``, or a model is given twice.
        """
        documents = as_documents(texts, ids, metadatas)
        return cls._create(documents, embedding, encoder, dim=dim, location=location, **options)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        embedding: Embeddings | JinaColbertEncoder | str | os.PathLike[str] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        encoder: JinaColbertEncoder | str | os.PathLike[str] | None = None,
        dim: int | None = None,
        location: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """Create a collection of LangChain documents, and a store over it.

        Args:
            documents: What to store.
            embedding: As for :meth:`from_texts`, as are all that follow but one.
            ids: An id for each document; where it is None, the document's own, or else a random one.
            encoder: See :meth:`from_texts`.
            dim: See :meth:`from_texts`.
            location: See :meth:`from_texts`.
            **options: See :meth:`from_texts`.

        Raises:
            InvalidDocumentError: As :meth:`from_texts`.
            CollectionExistsError: As :meth:`from_texts`.
            TypeError: As :meth:`from_texts`.
        """
        return cls._create(to_core(documents, ids), embedding, encoder, dim=dim, location=location, **options)

    @classmethod
    async def afrom_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings | JinaColbertEncoder | str | os.PathLike[str] | None = None,
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **options: Any,
    ) -> Self:
        """:meth:`from_texts`, without blocking the event loop."""
        return await run_in_executor(None, cls.from_texts, texts, embedding, metadatas, ids=ids, **options)

    @classmethod
    async def afrom_documents(
        cls,
        documents: Iterable[Document],
        embedding: Embeddings | JinaColbertEncoder | str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """:meth:`from_documents`, without blocking the event loop."""
        return await run_in_executor(None, cls.from_documents, documents, embedding, **options)

    @classmethod
    def from_existing_collection(
        cls, collection: ColbertCollection | str | os.PathLike[str] | None = None, **options: Any
    ) -> Self:
        """A store over a collection that exists; its model is loaded when it is first needed.

        Args:
            collection: An open collection, or the location of one: a folder or a server's URL.
            **options: Options of ``ColbertCollection.open`` (``encoder``, ``url``, ``client``, ``name``,
                ``client_options``, ...).

        Raises:
            CollectionNotFoundError: There is none.
            CollectionMismatchError: It was made with another model or dimension.
            TypeError: Options are given with an open collection.
        """
        return cls(open_collection(collection, **options))

    @classmethod
    def _create(
        cls,
        documents: list[jcv2_plugin.Document],
        embedding: Embeddings | JinaColbertEncoder | str | os.PathLike[str] | None,
        encoder: JinaColbertEncoder | str | os.PathLike[str] | None,
        *,
        location: str | os.PathLike[str] | None,
        **options: Any,
    ) -> Self:
        if isinstance(embedding, Embeddings):
            raise TypeError(
                f"An Embeddings makes one vector of a text, and this store needs one for each token: give encoder= a "
                f"multi-vector model, loaded or by name, instead of embedding={type(embedding).__name__}."
            )
        if embedding is not None and encoder is not None:
            raise TypeError("embedding and encoder both name the model. Give one of them.")
        model = embedding if encoder is None else encoder
        model = DEFAULT_ENCODER if model is None else model
        return cls(create_filled(documents, location=location, encoder=model, **options))

    # Writing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Encode and store texts; one whose id is there already replaces what is stored under it.

        Args:
            texts: What to add.
            metadatas: A dict for each text.
            ids: An id for each text; None draws random ones.
            batch_size: Taken because LangChain's ``index`` gives it. The collection makes batches of its own, by
                tokens and bytes.
            **kwargs: None is known.

        Returns:
            The ids, in order.

        Raises:
            InvalidDocumentError: Empty text, an id twice, metadata that is no JSON, ... Nothing was written.
            TypeError: An unknown argument.
        """
        _refuse(kwargs)
        return self._collection.add(as_documents(texts, ids, metadatas))

    def add_documents(
        self,
        documents: Iterable[Document],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Encode and store documents; one whose id is there already replaces what is stored under it.

        Args:
            documents: What to add.
            ids: An id for each document; where it is None, the document's own, or else a random one.
            batch_size: As for :meth:`add_texts`.
            **kwargs: None is known.

        Returns:
            The ids, in order.

        Raises:
            InvalidDocumentError: As :meth:`add_texts`.
            TypeError: As :meth:`add_texts`.
        """
        _refuse(kwargs)
        return self._collection.add(to_core(documents, ids))

    def delete(self, ids: Sequence[str] | None = None, *, filter: MetadataFilter | None = None, **kwargs: Any) -> bool:
        """Remove documents by id, or all that a filter selects. Ids that are not there are no error.

        Without either nothing is removed, though LangChain's base class would remove all: that is
        ``delete(filter=models.Filter())``.

        Returns:
            True.

        Raises:
            ValueError: Neither or both are given.
            TypeError: An unknown argument.
        """
        _refuse(kwargs)
        chosen = as_qdrant_filter(filter)
        if (ids is None) == (chosen is None):
            raise ValueError(
                "Give delete either ids or a filter that asks for something. To remove all documents, write "
                "delete(filter=models.Filter())."
            )
        self._collection.delete(ids, filter=chosen)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of these ids that exist, in the order asked."""
        return [to_langchain(stored) for stored in self._collection.get(ids)]

    # Searching

    def similarity_search(
        self, query: str, k: int = 4, *, filter: MetadataFilter | None = None, **kwargs: Any
    ) -> list[Document]:
        """The ``k`` documents of the largest MaxSim with the query, best first.

        Args:
            query: The question.
            k: How many.
            filter: Search only what it selects.
            **kwargs: Further arguments of ``ColbertCollection.search``.

        Raises:
            InvalidQueryError: The query is empty, or ``k`` is not positive.
            UnsupportedFilterError: The filter is none, or asks for what there is no counterpart for.
        """
        return [to_langchain(hit) for hit in self._search(query, k, filter, kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: MetadataFilter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """:meth:`similarity_search` with MaxSim: larger is better, at most the number of the query's vectors."""
        return [(to_langchain(hit), hit.score) for hit in self._search(query, k, filter, kwargs)]

    def similarity_search_with_explanation(
        self, query: str, k: int = 4, *, filter: MetadataFilter | None = None, **kwargs: Any
    ) -> list[tuple[Document, Explanation]]:
        """:meth:`similarity_search` with which token matched which: see :class:`jcv2_plugin.Explanation`."""
        hits = self._search(query, k, filter, {**kwargs, "with_explanation": True})
        return [(to_langchain(hit), _explanation(hit)) for hit in hits]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: MetadataFilter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Documents that are relevant and differ from each other, by maximal marginal relevance.

        Args:
            query: The question.
            k: How many.
            fetch_k: Out of how many of the largest MaxSim they are chosen; at least ``k`` are.
            lambda_mult: 1 is relevance alone, 0 is diversity alone.
            filter: Search only what it selects.
            **kwargs: Further arguments of ``ColbertCollection.search_mmr``.

        Raises:
            InvalidQueryError: As :meth:`similarity_search`, or ``lambda_mult`` is not in 0..1.
        """
        hits = self._collection.search_mmr(
            query,
            k,
            fetch_k=fetch_k if fetch_k < 1 else max(fetch_k, k),  # the collection refuses what is not positive
            lambda_mult=lambda_mult,
            filter=as_qdrant_filter(filter),
            **search_options(kwargs),
        )
        return [to_langchain(hit) for hit in hits]

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> NoReturn:
        """Not possible: a query has one vector for each token, not one embedding.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(_NO_VECTOR)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> NoReturn:
        """Not possible: a query has one vector for each token, not one embedding.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(_NO_VECTOR)

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, *, filter: MetadataFilter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        # By the number of the query's vectors, so in 0..1. The base class has taken score_threshold away.
        return [(to_langchain(hit), hit.relevance) for hit in self._search(query, k, filter, kwargs)]

    def _search(self, query: str, k: int, filter: MetadataFilter | None, given: Mapping[str, Any]) -> list[SearchHit]:
        return self._collection.search(query, k, filter=as_qdrant_filter(filter), **search_options(given))

    # The base class runs the other async methods' twins in a thread, which leaves the event loop free.

    async def asimilarity_search_with_explanation(
        self, query: str, k: int = 4, *, filter: MetadataFilter | None = None, **kwargs: Any
    ) -> list[tuple[Document, Explanation]]:
        """:meth:`similarity_search_with_explanation`, without blocking the event loop."""
        return await run_in_executor(None, self.similarity_search_with_explanation, query, k, filter=filter, **kwargs)

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return await run_in_executor(None, self._similarity_search_with_relevance_scores, query, k, **kwargs)


def _explanation(hit: SearchHit) -> Explanation:
    assert hit.explanation is not None  # it was asked for
    return hit.explanation


def _refuse(unknown: Mapping[str, Any]) -> None:
    if unknown:
        raise TypeError(f"JinaColbertVectorStore knows no {sorted(unknown)}. Leave them out.")
