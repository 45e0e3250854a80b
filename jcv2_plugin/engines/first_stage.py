"""First stages: find the candidates that MaxSim reranks.

A first stage stores an additional vector per document, computed from the same token vectors or from the text, and uses
it to find candidates in a fraction of the time. ``benchmarks/first_stages.py`` measures the stages; the results are in
docs/two-stage.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.errors import InvalidOptionError

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder
    from jcv2_plugin.encoder.windows import TokenizedTexts

FirstStage = Literal["none", "pooled", "bm25", "hybrid"]
FIRST_STAGES: tuple[FirstStage, ...] = get_args(FirstStage)

STAGE_NAMES: dict[FirstStage, tuple[str, ...]] = {
    "none": (),
    "pooled": ("pooled",),
    "bm25": ("bm25",),
    "hybrid": ("pooled", "bm25"),
}
"""Names of the vectors that each first stage searches."""

BM25_K1 = 1.2
BM25_B = 0.75
BM25_LENGTH = 150.0
"""Okapi BM25 constants. The last is a fixed stand-in for the average document length, in tokens."""


@dataclass(frozen=True)
class SparseVector:
    """A sparse vector: the non-zero values and their dimensions."""

    indices: list[int]
    values: list[float]


StageVector = NDArray[np.float32] | SparseVector
"""A dense vector of shape ``(size,)``, or a sparse vector."""


class Stage(Protocol):
    """A stored vector that finds candidates."""

    @property
    def name(self) -> str:
        """Name of the stored vector."""

    def document(self, text: str, vectors: NDArray[np.float32], ids: Sequence[int] | None = None) -> StageVector:
        """Return the vector to store for a document.

        Args:
            text: The document's text.
            vectors: Its token vectors, of shape ``(tokens, dim)``.
            ids: Its token ids, if known (:meth:`~jcv2_plugin.JinaColbertEncoder.tokenized`).
        """

    def query(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """Return the vector to search with, from a query's text or its token vectors of shape ``(tokens, dim)``."""


class PooledStage:
    """Normalised mean of the token vectors."""

    name = "pooled"

    def document(self, text: str, vectors: NDArray[np.float32], ids: Sequence[int] | None = None) -> StageVector:
        """See :class:`Stage`."""
        return self.query(text, vectors)

    def query(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """See :class:`Stage`."""
        mean = vectors.mean(axis=0)
        norm = float(np.linalg.norm(mean))
        return np.asarray(mean / norm if norm > 0 else mean, dtype=np.float32)


@dataclass(frozen=True)
class Bm25Stage:
    """BM25 over the model's subword tokens, as a sparse vector. Qdrant applies the IDF.

    Subword tokens need no language setting, stemmer or stop word list, so a collection can mix languages, including
    those written without spaces. The whole document counts, even where it exceeds the model's window.
    """

    tokenized: Callable[[Sequence[str]], TokenizedTexts]
    name: str = "bm25"

    def document(self, text: str, vectors: NDArray[np.float32], ids: Sequence[int] | None = None) -> StageVector:
        """See :class:`Stage`."""
        pieces, counts = np.unique(self._ids(text) if ids is None else np.asarray(ids, np.int64), return_counts=True)
        norm = BM25_K1 * (1 - BM25_B + BM25_B * counts.sum() / BM25_LENGTH)
        return SparseVector(pieces.tolist(), (counts * (BM25_K1 + 1) / (counts + norm)).tolist())

    def query(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """See :class:`Stage`."""
        pieces = np.unique(self._ids(text)).tolist()
        return SparseVector(pieces, [1.0] * len(pieces))

    def _ids(self, text: str) -> NDArray[np.int64]:
        return np.asarray(self.tokenized([text]).ids[0], dtype=np.int64)


def check_first_stage(first_stage: str) -> None:
    """Check the name of a first stage.

    Raises:
        InvalidOptionError: It is unknown.
    """
    if first_stage not in FIRST_STAGES:
        raise InvalidOptionError(f"first_stage must be one of {FIRST_STAGES}, got {first_stage!r}.")


def stage_sizes(first_stage: FirstStage, dim: int) -> dict[str, int | None]:
    """Return the dimension of each stored vector by name, or None for a sparse one. Needs no model."""
    return {name: dim if name == "pooled" else None for name in STAGE_NAMES[first_stage]}


def build_stages(first_stage: FirstStage, encoder: Encoder) -> list[Stage]:
    """Build a collection's stages, with the encoder's tokens where they need some."""
    return [PooledStage() if name == "pooled" else Bm25Stage(encoder.tokenized) for name in STAGE_NAMES[first_stage]]


def choose_first_stage(first_stage: FirstStage | None, encoder: Encoder) -> FirstStage:
    """Return the first stage of a new collection. None is hybrid, or pooled for an encoder that tells no tokens.

    Raises:
        InvalidOptionError: The encoder cannot serve it.
    """
    if first_stage is None:
        return "hybrid" if encoder.gives_tokens else "pooled"
    check_first_stage(first_stage)
    if "bm25" in STAGE_NAMES[first_stage] and not encoder.gives_tokens:
        raise InvalidOptionError(
            f"first_stage={first_stage!r} counts the tokens of texts, and {encoder.reference} does not tell them. Use "
            "first_stage='pooled' or 'none', or a server that tells tokens, such as jcv2 serve."
        )
    return first_stage
