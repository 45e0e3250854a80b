"""The first stage of a search: what proposes candidates, which MaxSim then ranks.

A stage stores one more vector beside each document's multivector, made from the same token states or from the text,
and finds candidates by it in a fraction of the time. Which stage finds what, and when it pays, is measured in
``benchmarks/first_stages.py``; the table is in docs/two-stage.md.
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
"""The vectors that each first stage searches, by name."""

BM25_K1 = 1.2
BM25_B = 0.75
BM25_LENGTH = 150.0
"""Okapi's constants; the last is the length in tokens at which a document is neither preferred nor held back."""


@dataclass(frozen=True)
class SparseVector:
    """Values at a few of many dimensions."""

    indices: list[int]
    values: list[float]


StageVector = NDArray[np.float32] | SparseVector
"""A dense vector of shape ``(size,)``, or a sparse one."""


class Stage(Protocol):
    """One stored vector that finds candidates."""

    @property
    def name(self) -> str:
        """Of the stored vector."""

    @property
    def size(self) -> int | None:
        """Of a dense vector; None for a sparse one."""

    def document(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """What is stored for a document: of its text or its token vectors, ``(tokens, dim)``."""

    def query(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """What is searched with, for a query."""


@dataclass(frozen=True)
class PooledStage:
    """The normalised mean of the token vectors."""

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
    """A fixed dimensional encoding, see :mod:`jcv2_plugin.engines.muvera`."""

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
    """BM25 over the pieces of the model's own tokenizer, as a sparse vector; Qdrant multiplies by the idf.

    Pieces need no language, no stemmer and no list of stop words, so that one collection may hold many languages,
    those written without spaces among them. All of a document counts, also what the model's window cuts off.
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
    """The complete options of a first stage, defaults filled in.

    Raises:
        InvalidOptionError: There is no such stage, or it does not have such an option.
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
    """The stored vectors of a first stage by name, with their sizes; None for a sparse one. Needs no model."""
    sizes: dict[str, int | None] = {}
    for name in STAGE_NAMES[first_stage]:
        sizes[name] = dim if name == "pooled" else Muvera(dim=dim, **options).size if name == "muvera" else None
    return sizes


def build_stages(
    first_stage: FirstStage, options: Mapping[str, Any], dim: int, encoder: JinaColbertEncoder
) -> list[Stage]:
    """The stages of a collection, with its model's tokenizer where they need one."""
    stages: list[Stage] = []
    for name in stage_sizes(first_stage, options, dim):
        if name == "pooled":
            stages.append(PooledStage(dim))
        elif name == "muvera":
            stages.append(MuveraStage(Muvera(dim=dim, **options)))
        else:
            stages.append(Bm25Stage(encoder.plain_tokenizer))
    return stages
