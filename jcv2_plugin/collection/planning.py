"""Capacity planning: disk, memory, nodes and encoding time of a collection, from sizes measured on Qdrant Edge.

``benchmarks/plan_constants.py`` writes the measured sizes to ``measured.json``, with the command, versions and machine.
Edge is Qdrant's engine, so a server stores the same amount. docs/scaling.md covers the additional needs of a cluster's
replication, snapshots and optimiser.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

from jcv2_plugin.checks import check_integer, check_number, check_pool_factor
from jcv2_plugin.collection.search import CANDIDATES
from jcv2_plugin.engines.first_stage import FIRST_STAGES, DenseParams, FirstStageName, stage_params
from jcv2_plugin.engines.schema import MAX_FLOATS
from jcv2_plugin.engines.storage import STORAGES, Storage, storage_profile
from jcv2_plugin.errors import InvalidOptionError

_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_GIB = 2**30
_LEAST, _MOST = 1e-3, 1e18
_FILL = 0.7
"""Maximum fill level of a node. The optimiser writes new segments before it deletes old ones, and load is uneven."""


@cache
def measured() -> dict[str, Any]:
    """Return the measured sizes."""
    text = resources.files("jcv2_plugin").joinpath("measured.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def parse_number(text: str) -> int:
    """Parse a number such as ``"100M"`` (100,000,000). The suffixes are k, M, G and B, in either case."""
    factor = _SUFFIXES.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        number = int(float(digits.replace(",", "").replace("_", "")) * factor)
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise InvalidOptionError(f"{text!r:.60} is not a positive number. Write it like 100M, 2.5k or 7000.")
    return number


@dataclass(frozen=True)
class Workload:
    """The planned contents and hardware of a collection.

    Attributes:
        documents: Number of documents.
        tokens: Token vectors per document, before pooling.
        dim: Matryoshka dimension.
        storage: Storage profile.
        first_stage: First stage of the collection.
        pool_factor: Token pooling factor.
        text_bytes: Bytes of text and metadata per document. None uses the measured bytes per token.
        replicas: Copies of each shard.
        node_memory: Memory per node in bytes.
        node_disk: Disk space per node in bytes.
        tokens_per_second: Throughput of one encoder, or None if unknown.
        workers: Number of encoders.

    Raises:
        InvalidOptionError: A number is out of range or a name is unknown.
    """

    documents: int
    tokens: float
    dim: int
    storage: Storage = "float16"
    first_stage: FirstStageName = "hybrid"
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
        found: dict[str, Any] = {"pool_factor": check_pool_factor(self.pool_factor)}
        for name in ("documents", "dim", "replicas", "workers"):
            found[name] = check_integer(getattr(self, name), name)
        for name in ("tokens", "text_bytes", "node_memory", "node_disk", "tokens_per_second"):
            value = getattr(self, name)
            if value is not None or name not in ("text_bytes", "tokens_per_second"):
                found[name] = check_number(value, name, InvalidOptionError)
        for name, value in found.items():
            least = _LEAST if name in ("text_bytes", "node_memory", "node_disk", "tokens_per_second") else 1
            if not least <= value <= _MOST:
                raise InvalidOptionError(f"{name} must be a number from {least:g} to {_MOST:g}, got {value!r:.60}.")
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Plan:
    """Resources that a workload needs. Unless stated otherwise, sizes are bytes for one copy of the collection.

    Attributes:
        vectors: Number of stored token vectors.
        disk: Disk space by purpose.
        memory: Memory needed for fast searches, by purpose.
        cached_vectors: Size of the token vectors on disk: the additional memory that keeps all in the page cache.
        query_bytes: Maximum size of the token vectors that a two-stage search reads from disk.
        shards: Minimum number of shards for a copy to fit on its nodes.
        nodes: Shards times replicas.
        limited_by: Resource that determines the number of shards.
        encoding_hours: Encoding time with all encoders, or None if their throughput is unknown.
        warnings: Problems with the workload.
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
        """Total disk space of one copy, in bytes."""
        return sum(self.disk.values())

    @property
    def total_memory(self) -> int:
        """Total memory of one copy, in bytes."""
        return sum(self.memory.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the plan and its totals as a dict."""
        return {**asdict(self), "total_disk": self.total_disk, "total_memory": self.total_memory}


def plan(workload: Workload, sizes: Mapping[str, Any] | None = None) -> Plan:
    """Estimate the resources that a workload needs, by default from the measured sizes shipped with the package."""
    sizes = sizes or measured()
    documents, stored_tokens = workload.documents, max(1.0, workload.tokens / workload.pool_factor)
    vector = vector_bytes(workload.storage, workload.dim, sizes)
    vectors = math.ceil(documents * stored_tokens)
    disk = {"token vectors": math.ceil(vectors * vector)}
    memory: dict[str, int] = {}
    if storage_profile(workload.storage).quantized:
        copy = math.ceil(vectors * _line(sizes["int8_copy_bytes"], workload.dim))
        disk["int8 copy"] = memory["int8 copy"] = copy
    for name, params in stage_params(workload.first_stage, workload.dim).items():
        each = sizes["bm25_bytes_a_token"] * workload.tokens
        if isinstance(params, DenseParams):
            each = _line(sizes["dense_bytes"], params.size)
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
    """Return the size of a token vector on disk in bytes, without a quantised copy."""
    if storage not in STORAGES:
        raise InvalidOptionError(f"storage must be one of {STORAGES}, got {storage!r}.")
    return _line((sizes or measured())["vector_bytes"][storage_profile(storage).datatype], dim)


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
