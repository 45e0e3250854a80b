"""``JinaColbertReranker``: rerank the documents of any retriever by MaxSim, without an index."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict, Field, PrivateAttr, field_serializer, field_validator

import jcv2_plugin
from jcv2_plugin.checks import Flag, Positive
from jcv2_plugin.documents import as_list
from jcv2_plugin.encoder import DEFAULT_MODEL
from jcv2_plugin.encoder.base import Encoder, is_encoder
from jcv2_plugin.encoder.named import load_encoder
from jcv2_plugin.encoder.windows import LongDocuments
from langchain_jcv2.documents import (
    MATCHES_KEY,
    scores_of,
    to_core,
    token_matches,
    with_metadata,
)

if TYPE_CHECKING:
    _Model = Encoder | str | os.PathLike[str]
else:
    _Model = Any  # checked by a validator, which asks a server for nothing


class JinaColbertReranker(BaseDocumentCompressor):
    """Rerank documents by MaxSim with the query.

    The documents may come from any retriever and are not modified. Copies are returned, best first, with
    ``relevance_score`` (MaxSim divided by the number of query vectors, in 0..1) and ``maxsim`` in their metadata.
    Documents without text come last, with scores of 0.

    Example:
        >>> reranker = JinaColbertReranker(encoder="mini", dim=64, top_n=1)
        >>> found = [Document(page_content="Cooking rice."), Document(page_content="Tokens meet tokens.")]
        >>> reranker.compress_documents(found, "late interaction of tokens")[0].page_content
        'Tokens meet tokens.'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", validate_assignment=True)

    encoder: _Model = Field(default=DEFAULT_MODEL, repr=False)
    """The model, loaded or by name. A name is loaded on first use."""

    dim: Positive | None = None
    """One of the model's Matryoshka dimensions. Defaults to the model's default."""

    top_n: Positive | None = None
    """Number of documents to return. None returns all."""

    long_documents: LongDocuments = "split"
    """How to handle documents longer than the model's window, as in ``ColbertCollection.create``."""

    with_explanation: Flag = False
    """Add each query token's best match to the metadata, as ``token_matches``."""

    _loader: _Loader = PrivateAttr(default_factory=lambda: _Loader())

    @field_validator("encoder")
    @classmethod
    def _a_model(cls, value: Any) -> Any:
        if not isinstance(value, (str, os.PathLike)) and not is_encoder(value):
            raise ValueError(f"a model is an encoder or the name of one, not {type(value).__name__}")
        return value

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Rerank documents.

        Args:
            documents: Documents from a retriever.
            query: The query.
            callbacks: Unused.

        Returns:
            Copies of the best ``top_n`` documents, best first. Ties keep their order.

        Raises:
            InvalidQueryError: The query is empty or not a string.
            ModelNotFoundError: The model does not exist.
            UnknownDimError: The model has no projection head for ``dim``.
        """
        documents = as_list(documents, "documents")
        ranked = jcv2_plugin.rerank(
            self._loaded(),
            query,
            [one.text for one in to_core(documents)],
            dim=self.dim,
            long_documents=self.long_documents,
            with_explanation=self.with_explanation,
        )
        found = []
        for one in ranked[: self.top_n]:
            added: dict[str, Any] = scores_of(one)
            if self.with_explanation:  # no token matches a text that is blank
                added[MATCHES_KEY] = [] if one.explanation is None else token_matches(one.explanation)
            found.append(with_metadata(documents[one.index], added))
        return found

    def _loaded(self) -> Encoder:
        if isinstance(self.encoder, (str, os.PathLike)):
            return self._loader.load(os.fspath(self.encoder), self.dim)
        return self.encoder

    @field_serializer("encoder")
    def _encoder_by_name(self, encoder: _Model) -> str:
        return os.fspath(encoder) if isinstance(encoder, (str, os.PathLike)) else encoder.reference


class _Loader:
    """A model loaded once, by name. A copy does not share it: it loads its own when needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[str, int | None] | None = None
        self._encoder: Encoder | None = None

    def load(self, name: str, dim: int | None) -> Encoder:
        with self._lock:
            if self._encoder is None or self._key != (name, dim):
                self._encoder = load_encoder(name, dims=dim)
                self._key = (name, dim)
            return self._encoder

    def __reduce__(self) -> tuple[type[_Loader], tuple[()]]:
        return _Loader, ()
