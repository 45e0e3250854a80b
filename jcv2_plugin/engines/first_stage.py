"""First stages: find the candidates that MaxSim reranks.

A first stage stores an additional vector per document, computed from the same token states or from the text, and uses
it to find candidates in a fraction of the time. ``benchmarks/first_stages.py`` measures the stages; the results are in
docs/two-stage.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.engines.muvera import Muvera
from jcv2_plugin.errors import InvalidOptionError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from jcv2_plugin.encoder.model import JinaColbertEncoder

FirstStage = Literal["none", "pooled", "muvera", "bm25", "hybrid"]
FIRST_STAGES: tuple[FirstStage, ...] = get_args(FirstStage)

STAGE_NAMES: dict[FirstStage, tuple[str, ...]] = {
    "none": (),
    "pooled": ("pooled",),
    "muvera": ("muvera",),
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

    @property
    def size(self) -> int | None:
        """Dimension of a dense vector, or None for a sparse one."""

    def document(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """Return the vector to store for a document, from its text or its token vectors of shape ``(tokens, dim)``."""

    def query(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """Return the vector to search with, from a query's text or its token vectors of shape ``(tokens, dim)``."""


@dataclass(frozen=True)
class PooledStage:
    """Normalised mean of the token vectors."""

    dim: int
    name: str = "pooled"

    @property
    def size(self) -> int:
        """See :class:`Stage`."""
        return self.dim

    def document(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """See :class:`Stage`."""
        return _normalized(vectors.mean(axis=0))

    def query(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """See :class:`Stage`."""
        return _normalized(vectors.mean(axis=0))


@dataclass(frozen=True)
class MuveraStage:
    """Fixed dimensional encoding, see :mod:`jcv2_plugin.engines.muvera`."""

    encoding: Muvera
    name: str = "muvera"

    @property
    def size(self) -> int:
        """See :class:`Stage`."""
        return self.encoding.size

    def document(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """See :class:`Stage`."""
        return self.encoding.document(vectors)

    def query(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """See :class:`Stage`."""
        return self.encoding.query(vectors)


@dataclass(frozen=True)
class Bm25Stage:
    """BM25 over the model's subword tokens, as a sparse vector. Qdrant applies the IDF.

    Subword tokens need no language setting, stemmer or stop word list, so a collection can mix languages, including
    those written without spaces. The whole document counts, even where it exceeds the model's window.
    """

    tokenizer: Tokenizer
    name: str = "bm25"
    size: None = None

    def document(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """See :class:`Stage`."""
        pieces, counts = self._pieces(text)
        norm = BM25_K1 * (1 - BM25_B + BM25_B * counts.sum() / BM25_LENGTH)
        return SparseVector(pieces.tolist(), (counts * (BM25_K1 + 1) / (counts + norm)).tolist())

    def query(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """See :class:`Stage`."""
        pieces, _ = self._pieces(text)
        return SparseVector(pieces.tolist(), [1.0] * len(pieces))

    def _pieces(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return np.unique(np.asarray(ids, dtype=np.int64), return_counts=True)


def _normalized(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    norm = float(np.linalg.norm(vector))
    return np.asarray(vector / norm if norm > 0 else vector, dtype=np.float32)


def check_first_stage(first_stage: str, options: Mapping[str, Any], dim: int) -> dict[str, Any]:
    """Validate the options of a first stage and fill in defaults.

    Raises:
        InvalidOptionError: The stage or one of its options is unknown or invalid.
    """
    if first_stage not in FIRST_STAGES:
        raise InvalidOptionError(f"first_stage must be one of {FIRST_STAGES}, got {first_stage!r}.")
    if first_stage != "muvera":
        if options:
            raise InvalidOptionError(f"first_stage={first_stage!r} has no options, got {dict(options)!r}.")
        return {}
    try:
        settings = Muvera(dim=dim, **{"projected": min(16, dim), **options}).to_dict()
    except TypeError as error:
        raise InvalidOptionError(
            f"first_stage='muvera' takes planes, projected, repetitions, seed: {error}."
        ) from error
    settings.pop("dim")
    return settings


def stage_sizes(first_stage: FirstStage, options: Mapping[str, Any], dim: int) -> dict[str, int | None]:
    """Return the dimension of each stored vector by name, or None for a sparse one. Needs no model."""
    sizes: dict[str, int | None] = {}
    for name in STAGE_NAMES[first_stage]:
        sizes[name] = dim if name == "pooled" else Muvera(dim=dim, **options).size if name == "muvera" else None
    return sizes


def build_stages(
    first_stage: FirstStage, options: Mapping[str, Any], dim: int, encoder: JinaColbertEncoder
) -> list[Stage]:
    """Build a collection's stages, with the encoder's tokenizer where they need one."""
    stages: list[Stage] = []
    for name in stage_sizes(first_stage, options, dim):
        if name == "pooled":
            stages.append(PooledStage(dim))
        elif name == "muvera":
            stages.append(MuveraStage(Muvera(dim=dim, **options)))
        else:
            stages.append(Bm25Stage(encoder.plain_tokenizer))
    return stages
