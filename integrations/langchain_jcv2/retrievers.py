"""``JinaColbertRetriever``: a collection as a LangChain retriever."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict, Field, field_validator
from qdrant_client import models
from typing_extensions import Self

import jcv2_plugin
from jcv2_plugin import ColbertCollection, JinaColbertEncoder, SearchHit
from jcv2_plugin.collection.opening import DEFAULT_ENCODER, create_filled, open_collection
from jcv2_plugin.documents import as_documents
from jcv2_plugin.engines.first_stage import FirstStage
from langchain_jcv2.documents import (
    MATCHES_KEY,
    scores_of,
    search_options,
    to_core,
    to_langchain,
    token_matches,
)
from langchain_jcv2.filters import MetadataFilter, as_qdrant_filter
from langchain_jcv2.vectorstores import JinaColbertVectorStore

_OPTIONS = ("candidates", "first_stage", "with_explanation")
"""Fields that are arguments of ``ColbertCollection.search`` under the same names."""


class JinaColbertRetriever(BaseRetriever):
    """Documents of a :class:`~jcv2_plugin.ColbertCollection` by MaxSim, best first.

    A document comes back as it was added: its ``id``, ``page_content`` and ``metadata``. ``k``, ``filter``,
    ``candidates``, ``first_stage``, ``with_explanation`` and whatever else ``ColbertCollection.search`` takes can be
    given for one call, as in ``invoke(question, k=3)``; a filter given so replaces the retriever's own, and
    None keeps that.

    Close ``retriever.collection`` to release a folder or client.

    Example:
        >>> retriever = JinaColbertRetriever.from_texts(["Tokens meet tokens.", "Cooking rice."], dim=64, k=1)
        >>> retriever.invoke("late interaction of tokens")[0].page_content
        'Tokens meet tokens.'
    """

    # What is wrong may be a URL with a password in it.
    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", validate_assignment=True, hide_input_in_errors=True
    )

    # Out of repr and dumps: those end up in logs and traces, and a collection holds a client.
    collection: ColbertCollection = Field(exclude=True, repr=False)
    """The collection that is searched."""

    k: int = Field(default=4, ge=1)
    """How many documents to return."""

    filter: MetadataFilter | None = None
    """Search only what it selects: Qdrant's own filter, on ``metadata.<key>``, or a dict such as
    ``{"room": "hall"}``."""

    candidates: int | None = Field(default=None, ge=1)
    """How many the first stage is to find; None takes 300, and at least ``4 * k``."""

    first_stage: FirstStage | None = None
    """Another first stage than the collection's, of what it stores; ``"none"`` ranks all documents."""

    with_explanation: bool = False
    """Put each query token's best match into the documents' metadata, as ``token_matches``."""

    search_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of ``ColbertCollection.search``, such as ``score_threshold``."""

    add_score: bool = False
    """Put scores into the documents' metadata: MaxSim as ``maxsim``, and by the number of query vectors, so in 0..1,
    as ``relevance_score``."""

    @field_validator("filter", mode="before")
    @classmethod
    def _of_qdrant(cls, value: MetadataFilter | None) -> models.Filter | None:
        return as_qdrant_filter(value)

    @field_validator("search_kwargs")
    @classmethod
    def _only_further_arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted({"query", "k", "filter", *_OPTIONS} & value.keys())
        if taken:
            raise ValueError(f"search_kwargs holds {taken}: give them as fields of the retriever")
        return value

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        *,
        ids: Sequence[str | None] | None = None,
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        encoder: JinaColbertEncoder | str | os.PathLike[str] = DEFAULT_ENCODER,
        dim: int | None = None,
        location: str | os.PathLike[str] | None = None,
        k: int = 4,
        **options: Any,
    ) -> Self:
        """Create a collection of texts, and a retriever over it.

        Args:
            texts: What to search.
            ids: An id for each text; None draws random ones.
            metadatas: A dict for each text.
            encoder: The model, loaded or by name.
            dim: One of the model's Matryoshka dimensions; None takes its default.
            location: A folder, ``":memory:"`` or a server's URL. None is memory, unless ``path``, ``url`` or
                ``client`` is among the options.
            k: How many documents a search returns.
            **options: The retriever's other fields, and options of ``ColbertCollection.create`` (``name``
                means the collection's).

        Raises:
            InvalidDocumentError: Empty text, an id twice, metadata that is no JSON. Nothing was created.
            CollectionExistsError: There is a collection already; :meth:`from_collection` opens it.
        """
        documents = as_documents(texts, ids, metadatas)
        return cls._from_core(documents, encoder=encoder, dim=dim, location=location, k=k, **options)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        *,
        encoder: JinaColbertEncoder | str | os.PathLike[str] = DEFAULT_ENCODER,
        dim: int | None = None,
        location: str | os.PathLike[str] | None = None,
        k: int = 4,
        **options: Any,
    ) -> Self:
        """Create a collection of LangChain documents, and a retriever over it.

        Args:
            documents: What to search. Those without an ``id`` get a random one.
            encoder: As for :meth:`from_texts`.
            dim: As for :meth:`from_texts`.
            location: As for :meth:`from_texts`.
            k: As for :meth:`from_texts`.
            **options: As for :meth:`from_texts`.

        Raises:
            InvalidDocumentError: As for :meth:`from_texts`.
            CollectionExistsError: As for :meth:`from_texts`.
        """
        return cls._from_core(to_core(documents), encoder=encoder, dim=dim, location=location, k=k, **options)

    @classmethod
    def from_vectorstore(cls, vectorstore: JinaColbertVectorStore, *, k: int = 4, **fields: Any) -> Self:
        """A retriever over the collection of a vector store.

        ``vectorstore.as_retriever()`` makes LangChain's own, which has MMR and thresholds on relevance instead.

        Args:
            vectorstore: A :class:`JinaColbertVectorStore`.
            k: How many documents a search returns.
            **fields: The retriever's other fields.

        Raises:
            TypeError: The store is another. Its ``as_retriever`` makes a retriever.
        """
        if not isinstance(vectorstore, JinaColbertVectorStore):
            raise TypeError(
                f"JinaColbertRetriever searches a JinaColbertVectorStore, not a {type(vectorstore).__name__}: that has "
                "as_retriever(), whose documents JinaColbertReranker can rank."
            )
        return cls(collection=vectorstore.collection, k=k, **fields)

    @classmethod
    def from_collection(
        cls,
        collection: ColbertCollection | str | os.PathLike[str] | None = None,
        *,
        k: int = 4,
        **options: Any,
    ) -> Self:
        """A retriever over a collection that exists.

        Args:
            collection: An open collection, or the location of one: a folder or a server's URL.
            k: How many documents a search returns.
            **options: The retriever's other fields, and options of ``ColbertCollection.open`` (``encoder``,
                ``url``, ``client``, ``name``, ``client_options``, ...).

        Raises:
            CollectionNotFoundError: There is none.
            TypeError: Options for opening are given with an open collection.
        """
        fields = cls._take_fields(options, k)
        return cls(collection=open_collection(collection, **options), **fields)

    @classmethod
    def _from_core(
        cls, documents: list[jcv2_plugin.Document], *, location: str | os.PathLike[str] | None, k: int, **options: Any
    ) -> Self:
        fields = cls._take_fields(options, k)
        return cls(collection=create_filled(documents, location=location, **options), **fields)

    @classmethod
    def _take_fields(cls, options: dict[str, Any], k: int) -> dict[str, Any]:
        """The retriever's own of the options, checked before a collection is created or opened."""
        own = set(cls.model_fields) - {"name", "collection", "k"}
        fields = {"k": k, **{name: options.pop(name) for name in sorted(own & options.keys())}}
        blank = cls.model_construct()
        for name, value in fields.items():
            cls.__pydantic_validator__.validate_assignment(blank, name, value)
        return fields

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: MetadataFilter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        return self._search(query, k, filter, kwargs)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: MetadataFilter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        return await run_in_executor(None, self._search, query, k, filter, kwargs)

    def _search(
        self, query: str, k: int | None, filter: MetadataFilter | None, given: Mapping[str, Any]
    ) -> list[Document]:
        chosen = as_qdrant_filter(self.filter if filter is None else filter)
        hits = self.collection.search(query, self.k if k is None else k, filter=chosen, **self._options(given))
        return [self._document(hit) for hit in hits]

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _OPTIONS}
        if given.get("exact") or given.get("first_stage") == "none":  # then there are no candidates to be found
            own.update(candidates=None, first_stage=None)
        return {**own, **self.search_kwargs, **search_options(given)}

    def _document(self, hit: SearchHit) -> Document:
        added: dict[str, Any] = scores_of(hit) if self.add_score else {}
        if hit.explanation is not None:
            added[MATCHES_KEY] = token_matches(hit.explanation)
        return to_langchain(hit, added)

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = "Qdrant"
        params["ls_embedding_provider"] = "jcv2_plugin"
        params["ls_embedding_model"] = self.collection.schema.model
        return params
