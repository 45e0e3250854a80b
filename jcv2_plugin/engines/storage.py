"""How a collection keeps its token vectors: at which precision, and with which quantised copy.

Two things shrink vectors. A *datatype* is how the vectors themselves are stored; a *quantisation* adds a smaller
copy that is searched first, and leaves the originals to rescore with. What each costs and keeps is measured in
``benchmarks/compression.py``; the table is in docs/compression.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from jcv2_plugin.errors import InvalidOptionError

Storage = Literal["float32", "float16", "int8", "turbo8", "turbo4"]
STORAGES: tuple[Storage, ...] = get_args(Storage)

Datatype = Literal["float32", "float16", "turbo8", "turbo4"]


@dataclass(frozen=True)
class StorageProfile:
    """What one value of ``storage=`` means to an engine.

    Attributes:
        datatype: Of the vectors as stored. The turbo types rotate a vector and keep 8 or 4 bits of each of its
            numbers; they need a Qdrant server of version 1.19 or newer, or Qdrant Edge.
        quantized: Whether a scalar int8 copy is kept in memory beside vectors that stay on disk.
        error: About the largest of 1 - cosine between a vector and what is read back of it.
        oversampling: How many times as many documents as asked for the quantised copy may propose. Sent with
            every search, as is ``rescore=True``: engines differ in what they do when it is left out.
    """

    datatype: Datatype
    error: float
    quantized: bool = False
    oversampling: float = 2.0


_PROFILES: dict[Storage, StorageProfile] = {
    "float32": StorageProfile("float32", error=1e-5),
    "float16": StorageProfile("float16", error=1e-4),
    "int8": StorageProfile("float16", error=1e-4, quantized=True),
    "turbo8": StorageProfile("turbo8", error=1e-3),
    "turbo4": StorageProfile("turbo4", error=5e-2),
}


def storage_profile(storage: str) -> StorageProfile:
    """The profile of a name.

    Raises:
        InvalidOptionError: There is none of this name.
    """
    if storage not in _PROFILES:
        raise InvalidOptionError(f"storage must be one of {STORAGES}, got {storage!r}.")
    return _PROFILES[storage]


def oversampling_of(storage: str) -> float | None:
    """How far the quantised copy of a profile is to be oversampled; None where there is no copy.

    An unknown name counts as having none: what may be wrong with a description is said by the schema.
    """
    profile = _PROFILES.get(storage)  # type: ignore[call-overload]
    return profile.oversampling if profile is not None and profile.quantized else None
