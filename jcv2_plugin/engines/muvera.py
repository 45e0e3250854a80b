"""MUVERA: fixed dimensional encodings (FDEs), single vectors whose dot product approximates MaxSim.

Based on Dhulipala et al., "MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings" (arXiv 2405.19504). Random
hyperplanes partition the space. In each partition, queries sum their token vectors and documents average theirs, so
that tokens in the same partition are compared. Partitions without a document token use the nearest one (section 2.2).
Several repetitions are projected to fewer dimensions and concatenated.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.errors import InvalidOptionError

_MOST_PLANES = 12
_MOST_DIMENSIONS = 65_536
"""Maximum dimension of a vector in Qdrant."""


@dataclass(frozen=True)
class Muvera:
    """A fixed dimensional encoding. Equal settings give equal encodings on every machine.

    Attributes:
        dim: Dimension of the token vectors.
        planes: Random hyperplanes per repetition (the paper's k_sim), which give ``2 ** planes`` partitions.
        projected: Dimension that each partition's vector is projected to, at most ``dim``.
        repetitions: Number of repetitions.
        seed: Seed for the random hyperplanes and projections.

    Raises:
        InvalidOptionError: A setting is out of range.
    """

    dim: int
    planes: int = 3
    projected: int = 16
    repetitions: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "planes": (1, _MOST_PLANES),
            "projected": (1, self.dim),
            "repetitions": (1, 1000),
            "seed": (0, 2**32 - 1),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise InvalidOptionError(f"muvera: {name} must be between {low} and {high}, got {value!r}.")
        if self.size > _MOST_DIMENSIONS:
            raise InvalidOptionError(
                f"muvera: repetitions * 2**planes * projected makes {self.size:,} dimensions, Qdrant takes at most "
                f"{_MOST_DIMENSIONS:,}. Choose fewer."
            )

    @property
    def size(self) -> int:
        """Dimension of the encoding."""
        return int(self.repetitions * 2**self.planes * self.projected)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as stored with a collection."""
        return asdict(self)

    def document(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode a document's token vectors, of shape ``(tokens, dim)``, to shape ``(size,)``."""
        parts, projected = self._parts(vectors)
        sums, counts = self._sums(parts, projected)
        means = sums / np.maximum(counts, 1)[..., None]
        for repetition, part in np.argwhere(counts == 0):
            nearest = self._distances[part, parts[:, repetition]].argmin()
            means[repetition, part] = projected[nearest, repetition]
        return means.reshape(-1).astype(np.float32)

    def query(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode a query's token vectors, of shape ``(tokens, dim)``, to shape ``(size,)``."""
        sums, _ = self._sums(*self._parts(vectors))
        return sums.reshape(-1).astype(np.float32)

    @cached_property
    def _random(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Hyperplanes of shape ``(dim, repetitions, planes)`` and projections ``(dim, repetitions, projected)``."""
        # Use NumPy's legacy generator: stored encodings need a stable stream, which newer generators do not guarantee.
        generator = np.random.RandomState(self.seed)
        planes = generator.standard_normal((self.dim, self.repetitions, self.planes))
        signs = 2 * generator.randint(0, 2, (self.dim, self.repetitions, self.projected)) - 1
        return planes.astype(np.float32), (signs / np.sqrt(self.projected)).astype(np.float32)

    @cached_property
    def _distances(self) -> NDArray[np.int64]:
        """Number of hyperplanes between each pair of partitions."""
        part = np.arange(2**self.planes)
        bits = (part[:, None] >> np.arange(self.planes)) & 1
        distances: NDArray[np.int64] = (bits[:, None] != bits[None]).sum(axis=2)
        return distances

    def _parts(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return each token's partition, of shape ``(tokens, repetitions)``, and its projections."""
        planes, projections = self._random
        sides = np.tensordot(vectors, planes, axes=1) > 0
        parts = (sides * (1 << np.arange(self.planes))).sum(axis=2)
        return parts, np.tensordot(vectors, projections, axes=1)

    def _sums(
        self, parts: NDArray[np.int64], projected: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        shape = (self.repetitions, 2**self.planes)
        sums = np.zeros((*shape, self.projected))
        counts = np.zeros(shape, dtype=np.int64)
        repetition = np.broadcast_to(np.arange(self.repetitions), parts.shape)
        np.add.at(sums, (repetition, parts), projected)
        np.add.at(counts, (repetition, parts), 1)
        return sums, counts
