"""Verify a collection: counts, ids, payloads, dimensions, non-finite values, and whether vectors match their texts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from jcv2_plugin.checks import check_integer
from jcv2_plugin.collection.sameness import cosines
from jcv2_plugin.collection.state import OpenCollection
from jcv2_plugin.documents import (
    HASH_KEY,
    ID_KEY,
    StoredDocument,
    payload_of,
)
from jcv2_plugin.engines.answers import payload_problem
from jcv2_plugin.engines.base import Record
from jcv2_plugin.engines.first_stage import SparseVector, StageVector
from jcv2_plugin.engines.schema import MAX_FLOATS, CollectionSchema
from jcv2_plugin.engines.storage import storage_profile
from jcv2_plugin.lazy import models

_MOST_NAMED = 20
_STAGE_ERROR = 1e-2
"""Maximum of 1 - cosine between vectors of the user's own first stage: models differ by batch and device."""


@dataclass
class VerificationReport:
    """Result of :meth:`ColbertCollection.verify`.

    Attributes:
        documents: Documents counted by the engine.
        read: Documents read. Equals ``documents`` if nothing was written meanwhile.
        vectors: Token vectors read.
        encoded: Documents that were encoded again and compared.
        worst: Largest 1 - cosine between a stored and a newly encoded token vector.
        problems: Descriptions of the first 20 problems.
    """

    documents: int = 0
    read: int = 0
    vectors: int = 0
    encoded: int = 0
    worst: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no problems were found."""
        return not self.problems

    def note(self, problem: str) -> None:
        """Add a problem to the report."""
        if len(self.problems) < _MOST_NAMED:
            self.problems.append(problem)


def verify(
    current: OpenCollection, *, sample: int, seed: int, progress: Callable[[int], None] | None
) -> VerificationReport:
    """See :meth:`ColbertCollection.verify`."""
    sample = check_integer(sample, "sample", least=0)
    seed = check_integer(seed, "seed", least=0)
    report = VerificationReport(documents=current.engine.count(None))
    chosen: list[Record] = []
    chance = random.Random(seed)
    for record in current.engine.scroll(None, with_payload=True, with_vectors=True):
        report.read += 1
        if (problem := problem_of(current.schema, record) or _changed(record)) is not None:
            report.note(problem)
        elif len(chosen) < sample:
            chosen.append(record)
        elif sample and (index := chance.randrange(report.read)) < sample:
            chosen[index] = record
        report.vectors += 0 if record.vectors is None else len(record.vectors)
        if progress is not None:
            progress(1)
    if report.read != report.documents:
        report.note(
            f"{report.documents} documents are counted, {report.read} can be read. If nobody was writing, restore "
            "a snapshot or add them again."
        )
    for name in current.schema.stages:
        without = models.Filter(must_not=[models.HasVectorCondition(has_vector=name)])
        if missing := current.engine.count(without):
            report.note(f"{missing} documents have no {name!r} vector, so the first stage cannot find them.")
    if chosen:
        _compare(current, chosen, report)
        _compare_own(current, chosen, report)
    return report


def problem_of(schema: CollectionSchema, record: Record) -> str | None:
    """Return why a point cannot be one of a collection with this schema, or None."""
    if problem := payload_problem(record):
        return problem
    name = f"Document {record.payload[ID_KEY]!r} (point {record.id})"
    if record.vectors is None or record.vectors.size == 0:
        return f"{name} has no token vectors."
    if record.vectors.ndim != 2 or record.vectors.shape[1] != schema.dim:
        return f"{name} has vectors of shape {record.vectors.shape}, not of dim={schema.dim}."
    if not np.isfinite(record.vectors).all():
        return f"{name} has vectors that are not finite (NaN or infinite values)."
    if record.vectors.size >= MAX_FLOATS:
        return f"{name} has {record.vectors.size:,} floats, a Qdrant server takes fewer than {MAX_FLOATS:,}."
    return None


def _changed(record: Record) -> str | None:
    stored = StoredDocument.from_payload(record.payload)
    if record.payload.get(HASH_KEY) == payload_of(stored.as_document())[HASH_KEY]:
        return None
    return (
        f"Document {stored.id!r} (point {record.id}): its payload was changed by other software, so its vectors may be "
        "of another text. Delete it and add it again."
    )


def _compare(current: OpenCollection, records: list[Record], report: VerificationReport) -> None:
    schema = current.schema
    texts = [StoredDocument.from_payload(record.payload).text for record in records]
    fresh = current.encoder.document_vectors(texts, schema.dim, schema.long_documents, schema.pool_factor)
    most = storage_profile(schema.storage).error
    for record, vectors in zip(records, fresh, strict=True):
        name = f"Document {StoredDocument.from_payload(record.payload).id!r}"
        report.encoded += 1
        stored = record.vectors
        assert stored is not None  # records with a problem are not sampled
        if stored.shape != vectors.shape:
            report.note(f"{name} has {len(stored)} vectors; encoded anew it has {len(vectors)}.")
            continue
        error = float(1 - cosines(stored, vectors).min())
        report.worst = max(report.worst, error)
        if error > most:
            report.note(f"{name}: its vectors are not those of its text (1 - cosine is up to {error:.2g}).")


def _compare_own(current: OpenCollection, records: list[Record], report: VerificationReport) -> None:
    """Compare the vectors of the user's own first stages, where their objects are at hand."""
    names = current.schema.stage_options.keys() & current.own.keys()
    texts = [StoredDocument.from_payload(record.payload).text for record in records]
    for record, fresh in zip(records, current.own_vectors(texts, names), strict=True):
        for name in sorted(fresh.keys() & record.stages.keys()):
            if (error := 1 - _cosine(record.stages[name], fresh[name])) > _STAGE_ERROR:
                document = StoredDocument.from_payload(record.payload).id
                report.note(
                    f"Document {document!r}: its {name!r} vector is not what the first stage makes of its text (1 - "
                    f"cosine is {error:.2g}). The object may be of another model."
                )


def _cosine(stored: StageVector, fresh: StageVector) -> float:
    left, right = _numbers(stored), _numbers(fresh)
    norms = math.hypot(*left.values()) * math.hypot(*right.values())
    if not norms:
        return float(left == right)
    return sum(value * right.get(place, 0.0) for place, value in left.items()) / norms


def _numbers(vector: StageVector) -> dict[int, float]:
    if isinstance(vector, SparseVector):
        return dict(zip(vector.indices, vector.values, strict=True))
    return dict(enumerate(vector.tolist()))
