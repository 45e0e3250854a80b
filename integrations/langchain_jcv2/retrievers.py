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
from jcv2_plugin.documents import as_documents, validate

SCORE_KEY = "relevance_score"
"""The metadata key that ``add_score=True`` adds."""

_PLACES = ("path", "url", "client")


class JinaColbertRetriever(BaseRetriever):
    """Documents of a :class:`~jcv2_plugin.ColbertCollection` by MaxSim, best first.

    A document comes back as it was added: its ``id``, ``page_content`` and ``metadata``. ``k``, ``filter`` and
    whatever else ``ColbertCollection.search`` takes can be given for one call, as in ``invoke(question, k=3)``;
    a filter given so takes the place of the retriever's own, and None keeps that.

    Close ``retriever.collection`` to release a folder or client.

    Example:
        >>> retriever = JinaColbertRetriever.from_texts(["Tokens meet tokens.", "Cooking rice."], dim=64, k=1)
        >>> retriever.invoke("late interaction of tokens")[0].page_content
        'Tokens meet tokens.'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", validate_assignment=True)

    # Out of repr and dumps: those end up in logs and traces, and a collection holds a client.
    collection: ColbertCollection = Field(exclude=True, repr=False)
    """The collection that is searched."""

    k: int = Field(default=4, ge=1)
    """How many documents to return."""

    filter: models.Filter | None = None
    """Search only what it selects; metadata is addressed as ``metadata.<key>``."""

    search_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of ``ColbertCollection.search``, such as ``score_threshold``."""

    add_score: bool = False
    """Put the MaxSim score into the documents' metadata, as ``relevance_score``."""

    @field_validator("search_kwargs")
    @classmethod
    def _only_further_arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted({"k", "filter", "query"} & value.keys())
        if taken:
            raise ValueError(f"search_kwargs holds {taken}: give k and filter as fields of the retriever")
        return value

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        *,
        ids: Sequence[str | None] | None = None,
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        encoder: JinaColbertEncoder | str | os.PathLike[str] = "mini",
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
        encoder: JinaColbertEncoder | str | os.PathLike[str] = "mini",
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
        core = [jcv2_plugin.Document(one.page_content, one.id, one.metadata) for one in documents]
        return cls._from_core(core, encoder=encoder, dim=dim, location=location, k=k, **options)

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
        fields = cls._take_fields(options)
        if isinstance(collection, ColbertCollection):
            if options:
                raise TypeError(f"The collection is open: {sorted(options)} can no longer be chosen. Leave them out.")
            return cls(collection=collection, k=k, **fields)
        opened = ColbertCollection.open(collection, **options)
        try:
            return cls(collection=opened, k=k, **fields)
        except BaseException:
            opened.close()
            raise

    @classmethod
    def _from_core(
        cls, documents: list[jcv2_plugin.Document], *, location: str | os.PathLike[str] | None, k: int, **options: Any
    ) -> Self:
        documents = validate(documents)
        fields = cls._take_fields(options)
        if location is None and all(options.get(place) is None for place in _PLACES):
            location = ":memory:"
        collection = ColbertCollection.create(location, **options)
        try:
            retriever = cls(collection=collection, k=k, **fields)
            collection.add(documents)
        except BaseException:
            collection.close()
            raise
        return retriever

    @classmethod
    def _take_fields(cls, options: dict[str, Any]) -> dict[str, Any]:
        own = set(cls.model_fields) - {"name", "collection", "k"}
        return {name: options.pop(name) for name in sorted(own & options.keys())}

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: models.Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        return self._search(query, k, filter, kwargs)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: models.Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        return await run_in_executor(None, self._search, query, k, filter, kwargs)

    def _search(
        self, query: str, k: int | None, filter: models.Filter | None, given: Mapping[str, Any]
    ) -> list[Document]:
        arguments = {**self.search_kwargs, **given}
        arguments.pop("verbose", None)  # LangChain's own; invoke() hands it on
        hits = self.collection.search(
            query, self.k if k is None else k, filter=self.filter if filter is None else filter, **arguments
        )
        return [self._document(hit) for hit in hits]

    def _document(self, hit: SearchHit) -> Document:
        metadata = {**hit.metadata, SCORE_KEY: hit.score} if self.add_score else hit.metadata
        return Document(id=hit.id, page_content=hit.text, metadata=metadata)

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = "Qdrant"
        params["ls_embedding_provider"] = "jcv2_plugin"
        params["ls_embedding_model"] = self.collection.schema.model
        return params
