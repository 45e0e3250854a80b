"""``JinaColbertVectorStore``: a LangChain vector store over a collection."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore
from typing_extensions import Self

import jcv2_plugin
from jcv2_plugin import ColbertCollection, Explanation, SearchHit
from jcv2_plugin.checks import check_number
from jcv2_plugin.collection.asynchronous import in_thread
from jcv2_plugin.collection.opening import create_filled, open_collection
from jcv2_plugin.documents import OnBlank, as_documents
from langchain_jcv2.documents import search_options, to_core, to_langchain
from langchain_jcv2.filters import MetadataFilter, as_qdrant_filter

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder

K = 4
"""Number of results, as in LangChain's own stores."""
_NO_VECTOR = (
    "JinaColbertVectorStore cannot search by an embedding: its queries have one vector for each token. Give the text "
    "to similarity_search or max_marginal_relevance_search."
)


class JinaColbertVectorStore(VectorStore):
    """LangChain vector store over a :class:`~jcv2_plugin.ColbertCollection`, ranked by MaxSim.

    Texts are encoded with the collection's model, so no ``Embeddings`` is used. Ids can be any strings. Searches take
    ``filter`` (a Qdrant filter on ``metadata.<key>``, or a dict such as ``{"room": "hall"}``) and the other arguments
    of ``ColbertCollection.search``: ``candidates``, ``exact``, ``first_stage``, ``score_threshold`` (on MaxSim).

    Close ``store.collection`` to release its folder or client.

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
                f"JinaColbertVectorStore needs a ColbertCollection, got {type(collection).__name__}. Create it with "
                "from_texts, from_documents or from_existing_collection."
            )
        self._collection = collection

    def __repr__(self) -> str:
        # LangChain logs and traces this, so leave out the client and the URL.
        schema = self._collection.schema
        return f"{type(self).__name__}(model={schema.model!r}, dim={schema.dim})"

    @property
    def collection(self) -> ColbertCollection:
        """The collection that holds the documents."""
        return self._collection

    @property
    def embeddings(self) -> None:
        """None: an ``Embeddings`` gives one vector per text, and this store compares one vector per token."""
        return None

    # Construction

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings | Encoder | str | os.PathLike[str] | None = None,
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **options: Any,
    ) -> Self:
        """Create a collection of texts and return a vector store over it.

        Args:
            texts: Texts to store.
            embedding: Same as ``encoder``, under LangChain's name. An ``Embeddings`` is rejected.
            metadatas: A metadata dict for each text.
            ids: An id for each text. None generates random ids.
            **options: Options of ``ColbertCollection.create``: ``encoder`` (the model, loaded or by name; default:
                ``"jinaai/jina-colbert-v2"``), ``dim``, ``location`` (a folder, ``":memory:"`` or a server URL;
                default: in memory), ``url``, ``client``, ``name``, ... and ``on_blank``, see :meth:`add_texts`.

        Raises:
            InvalidDocumentError: An id is repeated, or metadata cannot be stored as JSON. Nothing is created.
            CollectionExistsError: The collection already exists. Open it with :meth:`from_existing_collection`.
            TypeError: ``embedding`` is an ``Embeddings``, or both ``embedding`` and ``encoder`` are given.
        """
        return cls._create(as_documents(texts, ids, metadatas), embedding, **options)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        embedding: Embeddings | Encoder | str | os.PathLike[str] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **options: Any,
    ) -> Self:
        """Create a collection of LangChain documents and return a vector store over it, see :meth:`from_texts`.

        Where an id is None, the document's own is used, or else a random one.
        """
        return cls._create(to_core(documents, ids), embedding, **options)

    @classmethod
    async def afrom_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings | Encoder | str | os.PathLike[str] | None = None,
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        **options: Any,
    ) -> Self:
        """Run :meth:`from_texts` without blocking the event loop."""
        return await run_in_executor(None, cls.from_texts, texts, embedding, metadatas, **options)

    @classmethod
    async def afrom_documents(
        cls,
        documents: Iterable[Document],
        embedding: Embeddings | Encoder | str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """Run :meth:`from_documents` without blocking the event loop."""
        return await run_in_executor(None, cls.from_documents, documents, embedding, **options)

    @classmethod
    def from_existing_collection(
        cls, collection: ColbertCollection | str | os.PathLike[str] | None = None, **options: Any
    ) -> Self:
        """Return a vector store over an existing collection. Its model is loaded on first use.

        Args:
            collection: An open collection, or the location of one: a folder or a server URL.
            **options: Options of ``ColbertCollection.open`` (``encoder``, ``url``, ``client``, ``name``,
                ``client_options``, ...).

        Raises:
            CollectionNotFoundError: The collection does not exist.
            CollectionMismatchError: The collection uses another model or dimension.
            TypeError: Options are given with an open collection.
        """
        return cls(open_collection(collection, **options))

    @classmethod
    def _create(
        cls,
        documents: list[jcv2_plugin.Document],
        embedding: Embeddings | Encoder | str | os.PathLike[str] | None,
        **options: Any,
    ) -> Self:
        if isinstance(embedding, Embeddings):
            raise TypeError(
                f"An Embeddings makes one vector of a text, and this store needs one for each token: give encoder= a "
                f"multi-vector model, loaded or by name, instead of embedding={type(embedding).__name__}."
            )
        if embedding is not None and options.get("encoder") is not None:
            raise TypeError("embedding and encoder both name the model. Give one of them.")
        if embedding is not None:
            options["encoder"] = embedding
        return cls(create_filled(documents, **options))

    # Writing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        on_blank: OnBlank = "skip",
        **kwargs: Any,
    ) -> list[str]:
        """Encode and store texts. A text whose id already exists replaces the stored document.

        Args:
            texts: Texts to add.
            metadatas: A metadata dict for each text.
            ids: An id for each text. None generates random ids.
            batch_size: Accepted because LangChain's ``index`` passes it, and ignored: the collection batches by tokens
                and bytes.
            on_blank: ``"skip"`` leaves out blank texts, such as empty pages of a PDF, and logs a warning.
                ``"error"`` refuses the call.
            **kwargs: Rejected.

        Returns:
            The ids of the stored texts, in order.

        Raises:
            InvalidDocumentError: An id is repeated, metadata cannot be stored as JSON, ... Nothing is written.
            TypeError: An argument is unknown.
        """
        _refuse(kwargs)
        return self._collection.add(as_documents(texts, ids, metadatas), on_blank=on_blank)

    def add_documents(
        self,
        documents: Iterable[Document],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        on_blank: OnBlank = "skip",
        **kwargs: Any,
    ) -> list[str]:
        """Encode and store documents, see :meth:`add_texts`. Where an id is None, the document's own is used."""
        _refuse(kwargs)
        return self._collection.add(to_core(documents, ids), on_blank=on_blank)

    def delete(self, ids: Sequence[str] | None = None, *, filter: MetadataFilter | None = None, **kwargs: Any) -> bool:
        """Delete documents by id, or all that match a filter. Unknown ids are ignored.

        Calling it without either raises an error, although LangChain's base class would delete everything. To delete
        everything, call ``delete(filter=models.Filter())``.

        Returns:
            True.

        Raises:
            ValueError: Neither or both of ``ids`` and ``filter`` are given.
            TypeError: An argument is unknown.
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
        """Return the documents with these ids, in the given order. Unknown ids are skipped."""
        return [to_langchain(stored) for stored in self._collection.get(ids)]

    # Searching

    def similarity_search(
        self, query: str, k: int | None = K, *, filter: MetadataFilter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the ``k`` documents with the highest MaxSim score, best first.

        Args:
            query: The query.
            k: Number of documents to return. None means 4.
            filter: Search only matching documents.
            **kwargs: Other :class:`jcv2_plugin.SearchOptions`.

        Raises:
            InvalidQueryError: The query is empty, or ``k`` is not positive.
            UnsupportedFilterError: The filter is of another type or cannot be translated for Qdrant.
        """
        return [to_langchain(hit) for hit in self._search(query, k, filter, kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int | None = K, *, filter: MetadataFilter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Run :meth:`similarity_search` and return MaxSim scores too.

        Higher is better; the maximum is the number of query vectors.
        """
        return [(to_langchain(hit), hit.score) for hit in self._search(query, k, filter, kwargs)]

    def similarity_search_with_explanation(
        self, query: str, k: int | None = K, *, filter: MetadataFilter | None = None, **kwargs: Any
    ) -> list[tuple[Document, Explanation]]:
        """Run :meth:`similarity_search` and return the token matches too, as :class:`jcv2_plugin.Explanation`."""
        hits = self._search(query, k, filter, {**kwargs, "with_explanation": True})
        return [(to_langchain(hit), hit.explanation) for hit in hits if hit.explanation is not None]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int | None = K,
        fetch_k: int | None = 20,
        lambda_mult: float = 0.5,
        *,
        filter: MetadataFilter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return relevant and diverse documents, by maximal marginal relevance.

        Args:
            query: The query.
            k: Number of documents to return. None means 4.
            fetch_k: Number of documents with the highest MaxSim to choose from, at least ``k``.
            lambda_mult: Trade-off between relevance (1) and diversity (0).
            filter: Search only matching documents.
            **kwargs: Other :class:`jcv2_plugin.SearchOptions`.

        Raises:
            InvalidQueryError: As in :meth:`similarity_search`, or ``lambda_mult`` is not in 0..1.
        """
        hits = self._collection.search_mmr(
            query,
            K if k is None else k,
            fetch_k=fetch_k,
            lambda_mult=lambda_mult,
            filter=as_qdrant_filter(filter),
            **search_options(kwargs),
        )
        return [to_langchain(hit) for hit in hits]

    def similarity_search_by_vector(self, embedding: list[float], k: int = K, **kwargs: Any) -> NoReturn:
        """Not supported: a query has one vector per token, not a single embedding.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(_NO_VECTOR)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = K, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> NoReturn:
        """Not supported, as :meth:`similarity_search_by_vector`."""
        raise NotImplementedError(_NO_VECTOR)

    def similarity_search_with_relevance_scores(
        self, query: str, k: int | None = K, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Run :meth:`similarity_search` and return the relevance in 0..1 too. ``score_threshold`` is on the relevance.

        Raises:
            InvalidQueryError: As in :meth:`similarity_search`, or ``score_threshold`` is not a number.
        """
        return super().similarity_search_with_relevance_scores(query, K if k is None else k, **_threshold(kwargs))

    async def asimilarity_search_with_relevance_scores(
        self, query: str, k: int | None = K, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Run :meth:`similarity_search_with_relevance_scores` without blocking the event loop."""
        limit = K if k is None else k
        return await super().asimilarity_search_with_relevance_scores(query, limit, **_threshold(kwargs))

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int | None = K, *, filter: MetadataFilter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        # The base class has already removed score_threshold.
        return [(to_langchain(hit), hit.relevance) for hit in self._search(query, k, filter, kwargs)]

    def _search(
        self, query: str, k: int | None, filter: MetadataFilter | None, given: Mapping[str, Any]
    ) -> list[SearchHit]:
        options = search_options(given)
        return self._collection.search(query, K if k is None else k, filter=as_qdrant_filter(filter), **options)

    # The base class runs the other async methods in a thread. mypy infers its signatures for these.
    asimilarity_search_with_explanation = in_thread(similarity_search_with_explanation)
    _asimilarity_search_with_relevance_scores = in_thread(_similarity_search_with_relevance_scores)  # type: ignore[arg-type]


def _threshold(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with ``score_threshold`` checked, which LangChain compares as it is."""
    threshold = given.get("score_threshold")
    return (
        dict(given) if threshold is None else {**given, "score_threshold": check_number(threshold, "score_threshold")}
    )


def _refuse(unknown: Mapping[str, Any]) -> None:
    if unknown:
        raise TypeError(f"There are no options {sorted(unknown)}. Leave them out.")
