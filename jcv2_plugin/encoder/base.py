"""What collections, rerankers and commands need of an encoder, wherever it runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeIs

from jcv2_plugin.encoder.scored_tokens import ScoredToken
from jcv2_plugin.encoder.windows import LongDocuments, TokenizedTexts

UNKNOWN_WEIGHTS = "server:"
"""Start of the fingerprint of a model whose weights its server does not identify. The server and the model follow."""


class Encoder(Protocol):
    """An encoder: :class:`~jcv2_plugin.JinaColbertEncoder` here, or :class:`~jcv2_plugin.RemoteEncoder` elsewhere."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def reference(self) -> str:
        """Name with which :func:`~jcv2_plugin.encoder.named.load_encoder` loads it anywhere. Contains no key."""

    @property
    def revision(self) -> str | None:
        """Revision of the model, if known."""

    @property
    def dims(self) -> tuple[int, ...]:
        """Matryoshka dimensions; the first is the default."""

    @property
    def document_length(self) -> int:
        """Window for documents in tokens, markers included."""

    @property
    def content_length(self) -> int:
        """Text tokens that fit in the window."""

    @property
    def query_length(self) -> int | None:
        """Number of vectors of each query, or None if it varies or is not known."""

    @property
    def skiplist(self) -> str | None:
        """Name of the skip list, or None if there is none or it is not known."""

    @property
    def gives_tokens(self) -> bool:
        """Whether it can return the tokens of texts. BM25 and explanations need them."""

    def resolve_dim(self, dim: int | None) -> int:
        """Return ``dim``, or the default dimension for None. Raises UnknownDimError for one that it does not have."""

    def head_fingerprint(self, dim: int) -> str:
        """Return what identifies the weights for ``dim``. Starts with :data:`UNKNOWN_WEIGHTS` if they are not known."""

    def query_vectors(self, texts: Sequence[str], dim: int) -> list[NDArray[np.float32]]:
        """Encode queries into arrays of shape ``(query tokens, dim)``."""

    def document_vectors(
        self,
        texts: Sequence[str] | TokenizedTexts,
        dim: int,
        long_documents: LongDocuments = "truncate",
        pool_factor: float = 1.0,
    ) -> list[NDArray[np.float32]]:
        """Encode documents into arrays of shape ``(document tokens, dim)``; pooling leaves fewer rows."""

    def tokenized(self, texts: Iterable[str]) -> TokenizedTexts:
        """Return texts with the ids of all their tokens. Raises TokensUnknownError without :attr:`gives_tokens`."""

    def check_lengths(self, texts: Sequence[str]) -> None:
        """Raise DocumentTooLongError for the first text that does not fit the window."""

    def scored_tokens(
        self, text: str, task: Literal["query", "document"], long_documents: LongDocuments = "truncate"
    ) -> list[ScoredToken]:
        """Return the tokens of a text, one for each row. Raises TokensUnknownError without :attr:`gives_tokens`."""

    def token_counter(self) -> Callable[[str], int]:
        """Return a function that counts a text's tokens many times a second, to split texts by. It may estimate."""


def is_encoder(value: object) -> TypeIs[Encoder]:
    """Return whether a value is an encoder, without asking a server for anything."""
    return all(hasattr(type(value), name) for name in ("query_vectors", "document_vectors", "head_fingerprint"))
