"""``JinaColbertReranker``: MaxSim over what any retriever finds, without an index."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict, Field, PrivateAttr, field_serializer

import jcv2_plugin
from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.windows import LongDocuments
from langchain_jcv2.documents import MATCHES_KEY, MAXSIM_KEY, RELEVANCE_KEY, scores_of, token_matches, with_metadata


class JinaColbertReranker(BaseDocumentCompressor):
    """Ranks documents by MaxSim with the query, whatever found them.

    The documents given stay as they are; copies of them come back, best first, with ``relevance_score`` (MaxSim by the
    number of query vectors, in 0..1) and ``maxsim`` in their metadata. Documents without text come last, with 0.

    Example:
        >>> reranker = JinaColbertReranker(encoder="mini", dim=64, top_n=1)
        >>> found = [Document(page_content="Cooking rice."), Document(page_content="Tokens meet tokens.")]
        >>> reranker.compress_documents(found, "late interaction of tokens")[0].page_content
        'Tokens meet tokens.'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", validate_assignment=True)

    encoder: JinaColbertEncoder | str | os.PathLike[str] = Field(default="mini", repr=False)
    """The model, loaded or by name; by name it is loaded when it is first needed."""

    dim: int | None = None
    """One of the model's Matryoshka dimensions; None takes its default."""

    top_n: int | None = Field(default=None, ge=1)
    """How many to return; None returns all."""

    long_documents: LongDocuments = "split"
    """What is done with documents over the model's window, as for ``ColbertCollection.create``."""

    with_explanation: bool = False
    """Put each query token's best match into the metadata, as ``token_matches``."""

    _model: _Model = PrivateAttr(default_factory=lambda: _Model())

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Rank documents.

        Args:
            documents: What a retriever found.
            query: The question.
            callbacks: Not used.

        Returns:
            Copies of the best ``top_n``, best first; those that score the same stay in their order.

        Raises:
            InvalidQueryError: The query is empty or no string.
            ModelNotFoundError: There is no such model.
            UnknownDimError: The model has no head for ``dim``.
        """
        documents = list(documents)
        worded = [position for position, one in enumerate(documents) if one.page_content.strip()]
        ranked = jcv2_plugin.rerank(
            self._loaded(),
            query,
            [documents[position].page_content for position in worded],
            dim=self.dim,
            long_documents=self.long_documents,
            with_explanation=self.with_explanation,
        )
        found = []
        for one in ranked[: self.top_n]:
            added: dict[str, Any] = scores_of(one)
            if one.explanation is not None:
                added[MATCHES_KEY] = token_matches(one.explanation)
            found.append(with_metadata(documents[worded[one.index]], added))
        empty: dict[str, Any] = {RELEVANCE_KEY: 0.0, MAXSIM_KEY: 0.0}  # no query token finds a match
        if self.with_explanation:
            empty[MATCHES_KEY] = []
        wordless = [one for position, one in enumerate(documents) if position not in set(worded)]
        return [*found, *(with_metadata(one, empty) for one in wordless)][: self.top_n]

    def _loaded(self) -> JinaColbertEncoder:
        if isinstance(self.encoder, JinaColbertEncoder):
            return self.encoder
        return self._model.load(os.fspath(self.encoder), self.dim)

    @field_serializer("encoder")
    def _encoder_by_name(self, encoder: JinaColbertEncoder | str | os.PathLike[str]) -> str:
        return encoder.reference if isinstance(encoder, JinaColbertEncoder) else os.fspath(encoder)


class _Model:
    """A model loaded by name, once. A copy has none: it loads its own when that is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[str, int | None] | None = None
        self._encoder: JinaColbertEncoder | None = None

    def load(self, name: str, dim: int | None) -> JinaColbertEncoder:
        with self._lock:
            if self._encoder is None or self._key != (name, dim):
                self._encoder = JinaColbertEncoder.from_pretrained(name, dims=dim)
                self._key = (name, dim)
            return self._encoder

    def __reduce__(self) -> tuple[type[_Model], tuple[()]]:
        return _Model, ()
