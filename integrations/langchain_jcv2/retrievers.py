"""``JinaColbertRetriever``: a LangChain retriever over a collection."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import BaseRunManager
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from qdrant_client import models
from typing_extensions import Self

from jcv2_plugin import ColbertCollection, SearchHit
from jcv2_plugin.checks import Flag, Positive
from jcv2_plugin.collection.asynchronous import in_thread
from jcv2_plugin.collection.opening import open_collection
from jcv2_plugin.engines.first_stage import FIRST_STAGES
from langchain_jcv2.documents import MATCHES_KEY, scores_of, search_options, to_langchain, token_matches
from langchain_jcv2.filters import MetadataFilter, as_qdrant_filter
from langchain_jcv2.vectorstores import JinaColbertVectorStore, K

_OPTIONS = ("candidates", "first_stage", "with_explanation")
"""Fields passed to ``ColbertCollection.search`` under the same names."""


class JinaColbertRetriever(BaseRetriever):
    """Retrieve documents of a :class:`~jcv2_plugin.ColbertCollection` by MaxSim, best first.

    Documents are returned as they were added, with ``id``, ``page_content`` and ``metadata``. ``k``, ``filter``,
    ``candidates`` and the other :class:`jcv2_plugin.SearchOptions` can be given per call, as in
    ``invoke(question, k=3)``. A ``filter`` given this way replaces the retriever's own; None keeps it.

    Close ``retriever.collection`` to release its folder or client.

    Example:
        >>> retriever = JinaColbertRetriever.from_texts(["Tokens meet tokens.", "Cooking rice."], dim=64, k=1)
        >>> retriever.invoke("late interaction of tokens")[0].page_content
        'Tokens meet tokens.'
    """

    # An invalid value may be a URL that contains a password.
    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", validate_assignment=True, hide_input_in_errors=True
    )

    # Kept out of repr and dumps, which end up in logs and traces: a collection holds a client.
    collection: ColbertCollection = Field(exclude=True, repr=False)
    """The collection to search."""

    k: Positive = K
    """Number of documents to return."""

    filter: MetadataFilter | None = None
    """Search only matching documents: a Qdrant filter on ``metadata.<key>``, or a dict such as
    ``{"room": "hall"}``.
    """

    candidates: Positive | None = None
    """Number of first-stage candidates. Defaults to 300, but at least ``4 * k``."""

    first_stage: str | None = None
    """First stage to use instead of the collection's, out of those it stores. ``"none"`` ranks all documents."""

    with_explanation: Flag = False
    """Add each query token's best match to the documents' metadata, as ``token_matches``."""

    search_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Other :class:`jcv2_plugin.SearchOptions`, such as ``score_threshold``."""

    add_score: Flag = False
    """Add scores to the documents' metadata: ``maxsim``, and ``relevance_score``, which is MaxSim divided by the number
    of query vectors, in 0..1.
    """

    @field_validator("filter", mode="before")
    @classmethod
    def _of_qdrant(cls, value: MetadataFilter | None) -> models.Filter | None:
        return as_qdrant_filter(value)

    @field_validator("first_stage")
    @classmethod
    def _of_the_collection(cls, value: str | None, info: ValidationInfo) -> str | None:
        known: list[str] = list(FIRST_STAGES)
        if isinstance(collection := info.data.get("collection"), ColbertCollection):
            known = list(dict.fromkeys([*known, *collection.schema.stages, collection.schema.first_stage]))
        if value is not None and value not in known:
            raise ValueError(f"a search can use one of {known}, got {value!r:.60}")
        return value

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
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        ids: Sequence[str | None] | None = None,
        **options: Any,
    ) -> Self:
        """Create a collection of texts and return a retriever over it.

        Args:
            texts: Texts to index.
            metadatas: A metadata dict for each text.
            ids: An id for each text. None generates random ids.
            **options: The retriever's other fields, and options of :meth:`JinaColbertVectorStore.from_texts`:
                ``encoder``, ``dim``, ``location``, ... ``name`` is the collection's name.
        """
        fields = cls._take_fields(options)
        return cls.from_vectorstore(
            JinaColbertVectorStore.from_texts(texts, None, metadatas, ids=ids, **options), **fields
        )

    @classmethod
    def from_documents(cls, documents: Iterable[Document], **options: Any) -> Self:
        """Create a collection of LangChain documents and return a retriever over it, see :meth:`from_texts`."""
        fields = cls._take_fields(options)
        return cls.from_vectorstore(JinaColbertVectorStore.from_documents(documents, **options), **fields)

    @classmethod
    def from_vectorstore(cls, vectorstore: JinaColbertVectorStore, **fields: Any) -> Self:
        """Create a retriever over the collection of a vector store.

        ``vectorstore.as_retriever()`` returns LangChain's own retriever instead, which supports MMR and relevance
        thresholds.

        Args:
            vectorstore: The vector store.
            **fields: The retriever's other fields.

        Raises:
            TypeError: The vector store is not a :class:`JinaColbertVectorStore`. Use its ``as_retriever`` instead.
        """
        if not isinstance(vectorstore, JinaColbertVectorStore):
            raise TypeError(
                f"JinaColbertRetriever searches a JinaColbertVectorStore, not a {type(vectorstore).__name__}. Use its "
                "as_retriever(), and rank the documents with JinaColbertReranker."
            )
        return cls(collection=vectorstore.collection, **fields)

    @classmethod
    def from_collection(
        cls, collection: ColbertCollection | str | os.PathLike[str] | None = None, **options: Any
    ) -> Self:
        """Create a retriever over an existing collection.

        Args:
            collection: An open collection, or the location of one: a folder or a server URL.
            **options: The retriever's other fields, and options of ``ColbertCollection.open`` (``encoder``, ``url``,
                ``client``, ``name``, ``client_options``, ...).

        Raises:
            CollectionNotFoundError: The collection does not exist.
            TypeError: Options for opening are given with an open collection.
        """
        fields = cls._take_fields(options, collection)
        return cls(collection=open_collection(collection, **options), **fields)

    @classmethod
    def _take_fields(cls, options: dict[str, Any], collection: Any = None) -> dict[str, Any]:
        """Pop the retriever's fields from the options and validate them, before a collection is created or opened."""
        own = set(cls.model_fields) - {"name", "collection"}
        if not isinstance(options.get("first_stage"), (str, type(None))):
            own -= {"first_stage"}  # an object is the collection's
        fields = {name: options.pop(name) for name in sorted(own & options.keys())}
        opened: dict[str, Any] = {"collection": collection} if isinstance(collection, ColbertCollection) else {}
        blank = cls.model_construct(**opened)
        for name, value in fields.items():
            cls.__pydantic_validator__.validate_assignment(blank, name, value)
        return fields

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: BaseRunManager,
        k: int | None = None,
        filter: MetadataFilter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        own = {name: getattr(self, name) for name in _OPTIONS}
        if kwargs.get("exact") or kwargs.get("first_stage") == "none":  # there are no candidates then
            own.update(candidates=None, first_stage=None)
        hits = self.collection.search(
            query,
            self.k if k is None else k,
            filter=as_qdrant_filter(self.filter if filter is None else filter),
            **{**own, **self.search_kwargs, **search_options(kwargs)},
        )
        return [self._document(hit) for hit in hits]

    _aget_relevant_documents = in_thread(_get_relevant_documents)  # type: ignore[arg-type]

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
