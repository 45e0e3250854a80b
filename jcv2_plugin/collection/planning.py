"""How large a collection will be: disk, memory, nodes and encoding time, from sizes measured on Qdrant Edge.

The sizes are in ``measured.json``, which ``benchmarks/plan_constants.py`` writes with the command, versions and
machine they come from. They are of Qdrant's engine, so that a server stores the same; what a cluster's replication,
snapshots and optimiser need beside it is in docs/scaling.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

from jcv2_plugin.collection.search import CANDIDATES
from jcv2_plugin.engines.first_stage import FIRST_STAGES, FirstStage, stage_sizes
from jcv2_plugin.engines.muvera import Muvera
from jcv2_plugin.engines.schema import MAX_FLOATS
from jcv2_plugin.engines.storage import STORAGES, Storage, storage_profile
from jcv2_plugin.errors import InvalidOptionError

_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_GIB = 2**30
_FILL = 0.7
"""How full a node may be: the optimiser writes segments anew beside the old ones, and traffic is never even."""


@cache
def measured() -> dict[str, Any]:
    """The measured sizes."""
    text = resources.files("jcv2_plugin").joinpath("measured.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def parse_number(text: str) -> int:
    """``"100M"`` as 100,000,000; the suffixes are k, M and B.

    Raises:
        InvalidOptionError: It is no number, or not positive.
    """
    factor = _SUFFIXES.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        number = int(float(digits.replace(",", "").replace("_", "")) * factor)
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise InvalidOptionError(f"{text!r} is not a positive number. Write it like 100M, 2.5k or 7000.")
    return number


@dataclass(frozen=True)
class Workload:
    """What a collection is to hold.

    Attributes:
        documents: How many.
        tokens: Token vectors a document before pooling.
        dim: The Matryoshka dimension.
        storage: The profile.
        first_stage: Of the collection.
        pool_factor: Token pooling.
        text_bytes: Bytes of text and metadata a document; None takes the measured bytes a token.
        replicas: Copies of each shard.
        node_memory: Bytes of memory a node.
        node_disk: Bytes of disk a node.
        tokens_per_second: What one encoder encodes; None where it is not known.
        workers: Encoders at work.

    Raises:
        InvalidOptionError: A number is out of range, or a name unknown.
    """

    documents: int
    tokens: float
    dim: int
    storage: Storage = "float16"
    first_stage: FirstStage = "hybrid"
    pool_factor: float = 1.0
    text_bytes: float | None = None
    replicas: int = 1
    node_memory: float = 64 * _GIB
    node_disk: float = 1000 * _GIB
    tokens_per_second: float | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        storage_profile(self.storage)
        if self.first_stage not in FIRST_STAGES:
            raise InvalidOptionError(f"first_stage must be one of {FIRST_STAGES}, got {self.first_stage!r}.")
        least = {"documents": 1, "tokens": 1, "dim": 1, "pool_factor": 1, "replicas": 1, "workers": 1}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise InvalidOptionError(f"{name} must be at least {low}, got {getattr(self, name)!r}.")
        for name in ("text_bytes", "node_memory", "node_disk", "tokens_per_second"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidOptionError(f"{name} must be positive, got {value!r}.")


@dataclass(frozen=True)
class Plan:
    """What a workload needs. Sizes are bytes of one copy of the collection, if nothing else is said.

    Attributes:
        vectors: Token vectors stored.
        disk: By what it is for.
        memory: What must be in memory for searches to be quick, by what it is for.
        cached_vectors: Token vectors on disk; with so much more memory they are all in the page cache.
        query_bytes: Token vectors read from disk, at most, by one two-stage search.
        shards: At least so many, for a copy to fit its nodes.
        nodes: Shards times replicas.
        limited_by: Why there are as many shards.
        encoding_hours: With all encoders; None where their speed is not known.
        warnings: What will not work.
    """

    vectors: int
    disk: dict[str, int]
    memory: dict[str, int]
    cached_vectors: int
    query_bytes: int
    shards: int
    nodes: int
    limited_by: str
    encoding_hours: float | None
    warnings: list[str]

    @property
    def total_disk(self) -> int:
        """Of one copy."""
        return sum(self.disk.values())

    @property
    def total_memory(self) -> int:
        """Of one copy."""
        return sum(self.memory.values())

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "total_disk": self.total_disk, "total_memory": self.total_memory}


def plan(workload: Workload, sizes: Mapping[str, Any] | None = None) -> Plan:
    """Add up what a workload needs.

    Args:
        workload: What is to be stored.
        sizes: Other measurements than those of the package.
    """
    sizes = sizes or measured()
    documents, stored_tokens = workload.documents, max(1.0, workload.tokens / workload.pool_factor)
    vector = vector_bytes(workload.storage, workload.dim, sizes)
    vectors = math.ceil(documents * stored_tokens)
    disk = {"token vectors": math.ceil(vectors * vector)}
    memory: dict[str, int] = {}
    if storage_profile(workload.storage).quantized:
        copy = math.ceil(vectors * _line(sizes["int8_copy_bytes"], workload.dim))
        disk["int8 copy"] = memory["int8 copy"] = copy
    for name, size in stage_sizes(workload.first_stage, _stage_options(workload), workload.dim).items():
        each = sizes["bm25_bytes_a_token"] * workload.tokens if size is None else _line(sizes["dense_bytes"], size)
        disk[name] = memory[name] = math.ceil(documents * each)
    text = workload.text_bytes or sizes["payload_bytes_a_token"] * workload.tokens
    disk["texts and metadata"] = math.ceil(documents * text)
    disk["ids"] = memory["ids"] = math.ceil(documents * sizes["id_bytes"])
    shards, limited_by = _shards(workload, sum(disk.values()), sum(memory.values()))
    hours = None
    if workload.tokens_per_second is not None:
        hours = documents * workload.tokens / workload.tokens_per_second / workload.workers / 3600
    return Plan(
        vectors=vectors,
        disk=disk,
        memory=memory,
        cached_vectors=disk["token vectors"],
        query_bytes=math.ceil(min(CANDIDATES, documents) * stored_tokens * vector),
        shards=shards,
        nodes=shards * workload.replicas,
        limited_by=limited_by,
        encoding_hours=hours,
        warnings=_warnings(workload, stored_tokens),
    )


def vector_bytes(storage: Storage, dim: int, sizes: Mapping[str, Any] | None = None) -> float:
    """Bytes on disk of one token vector, without a quantised copy."""
    if storage not in STORAGES:
        raise InvalidOptionError(f"storage must be one of {STORAGES}, got {storage!r}.")
    return _line((sizes or measured())["vector_bytes"][storage_profile(storage).datatype], dim)


def _stage_options(workload: Workload) -> dict[str, Any]:
    if workload.first_stage != "muvera":
        return {}
    settings = Muvera(dim=workload.dim, projected=min(16, workload.dim)).to_dict()
    return {name: value for name, value in settings.items() if name != "dim"}


def _line(constants: Mapping[str, float], dim: int) -> float:
    return constants["per_dim"] * dim + constants["fixed"]


def _shards(workload: Workload, disk: int, memory: int) -> tuple[int, str]:
    wanted = {
        "disk": math.ceil(disk / (workload.node_disk * _FILL)),
        "memory": math.ceil(memory / (workload.node_memory * _FILL)),
    }
    most = max(wanted.values())
    return max(1, most), "nothing: one node holds it" if most <= 1 else max(wanted, key=lambda name: wanted[name])


def _warnings(workload: Workload, stored_tokens: float) -> list[str]:
    warnings = []
    if stored_tokens * workload.dim >= MAX_FLOATS:
        warnings.append(
            f"A document of {stored_tokens:,.0f} vectors of {workload.dim} has {stored_tokens * workload.dim:,.0f} "
            f"floats; Qdrant takes fewer than {MAX_FLOATS:,}. Split documents, pool tokens, or use a smaller dim."
        )
    if workload.first_stage == "none" and workload.documents > 100_000:
        warnings.append("Without a first stage each search reads all token vectors. Use first_stage='hybrid'.")
    return warnings
