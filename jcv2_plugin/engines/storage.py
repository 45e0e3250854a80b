"""Storage profiles: datatype and quantisation of the token vectors.

A *datatype* determines how the vectors themselves are stored. *Quantisation* adds a smaller copy that is searched
first; the originals are used for rescoring. ``benchmarks/compression.py`` measures size and quality; the results are
in docs/compression.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from jcv2_plugin.errors import InvalidOptionError

Storage = Literal["float32", "float16", "int8", "turbo8", "turbo4"]
STORAGES: tuple[Storage, ...] = get_args(Storage)

Datatype = Literal["float32", "float16", "turbo8", "turbo4"]


@dataclass(frozen=True)
class StorageProfile:
    """Engine settings for a value of ``storage=``.

    Attributes:
        datatype: Datatype of the stored vectors. The turbo types rotate a vector and keep 8 or 4 bits per value.
        error: Approximate maximum of 1 - cosine between a vector and its stored version.
        quantized: Whether a scalar int8 copy is kept in memory while the vectors stay on disk.
        oversampling: Factor by which the search over that copy exceeds the number of results. Engines' defaults differ.
        server: Oldest version of a Qdrant server that has the datatype.
    """

    datatype: Datatype
    error: float
    quantized: bool = False
    oversampling: float = 2.0
    server: tuple[int, int] = (0, 0)


_PROFILES: dict[Storage, StorageProfile] = {
    "float32": StorageProfile("float32", error=1e-5),
    "float16": StorageProfile("float16", error=1e-4),
    "int8": StorageProfile("float16", error=1e-4, quantized=True),
    "turbo8": StorageProfile("turbo8", error=1e-3, server=(1, 20)),
    "turbo4": StorageProfile("turbo4", error=5e-2, server=(1, 19)),
}


def storage_profile(storage: str) -> StorageProfile:
    """Return a storage profile by name."""
    if storage not in _PROFILES:
        raise InvalidOptionError(f"storage must be one of {STORAGES}, got {storage!r}.")
    return _PROFILES[storage]


def oversampling_of(storage: str) -> float | None:
    """Return the oversampling factor of a storage profile, or None without a quantised copy, or for an unknown name."""
    profile = _PROFILES.get(storage)  # type: ignore[call-overload]
    return profile.oversampling if profile is not None and profile.quantized else None


def version_of(version: str) -> tuple[int, int] | None:
    """Return the major and minor version of a server, or None if the text is not a version."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})", version)
    return (int(found[1]), int(found[2])) if found else None


def check_server(storage: str, version: str, where: str) -> None:
    """Raise InvalidOptionError if a server is known to be too old for the datatype of a storage profile."""
    needed, there = storage_profile(storage).server, version_of(version)
    if there is not None and there < needed:
        known = [name for name, profile in _PROFILES.items() if profile.server <= there]
        raise InvalidOptionError(
            f"storage={storage!r} needs Qdrant {needed[0]}.{needed[1]} or later, but the server at {where} is "
            f"{version}. Upgrade the server, or choose another storage: {', '.join(map(repr, known))}."
        )
