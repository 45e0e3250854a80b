"""Migrate a collection to another dimension, model, storage or first stage while it is in use.

The new collection is built beside the old one, which serves reads until the swap. Writes during the migration are
carried over. If only the storage or the first stage changes, vectors are copied. A new dimension encodes the texts
again, since projection heads are not weight-tied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from jcv2_plugin.checks import in_batches
from jcv2_plugin.collection.ingest import BATCH_DOCUMENTS, Ingestion
from jcv2_plugin.collection.journal import IngestJournal
from jcv2_plugin.collection.state import CollectionState, OpenCollection, load_for
from jcv2_plugin.collection.workers import as_devices
from jcv2_plugin.documents import HASH_KEY, TEXT_KEY, StoredDocument
from jcv2_plugin.encoder.named import load_encoder
from jcv2_plugin.encoder.windows import LongDocuments
from jcv2_plugin.engines.answers import check_documents
from jcv2_plugin.engines.base import Engine, Point, Record
from jcv2_plugin.engines.first_stage import ChosenStages, FirstStage, FirstStageLike, StageVector, check_tokens
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.engines.storage import Storage, storage_profile
from jcv2_plugin.errors import CollectionError, InvalidOptionError

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder

T = TypeVar("T")

_MOST_PASSES = 10
_COPIED_AT_A_TIME = 64


@dataclass
class MigrationReport:
    """Result of :meth:`ColbertCollection.migrate`.

    Attributes:
        documents: Documents in the new collection.
        encoded: Documents that were encoded again.
        copied: Documents whose vectors were copied.
        old: Name of the old collection on the server, if it was kept.
        needed: False if the collection was like that already, and nothing was done.
    """

    documents: int = 0
    encoded: int = 0
    copied: int = 0
    old: str | None = None
    needed: bool = True


@dataclass(frozen=True)
class Target:
    """Target settings of a migration. None keeps the current value."""

    encoder: Encoder | str | None = None
    dim: int | None = None
    storage: Storage | None = None
    first_stage: FirstStageLike | None = None
    pool_factor: float | None = None
    long_documents: LongDocuments | None = None

    def resolve(self, current: OpenCollection) -> tuple[CollectionSchema, Encoder | None, Mapping[str, FirstStage]]:
        """Return the new schema, which may be that of the collection, its encoder and the user's own first stages."""
        old = current.schema
        stage, options, own = old.first_stage, old.stage_options, current.own
        if self.first_stage is not None and self.first_stage != old.first_stage:
            chosen = ChosenStages.of(self.first_stage)
            stage, options, own = chosen.name, chosen.options, dict(chosen.own)
        encoder = self._encoder(current)
        check_tokens(stage, encoder)
        # A new model uses its own default dim unless it has a projection head for the old one.
        kept = old.dim if self.encoder is None or old.dim in encoder.dims else encoder.resolve_dim(None)
        dim = _or(self.dim, kept)
        new = CollectionSchema.describe(
            encoder,
            encoder.resolve_dim(dim),
            _or(self.long_documents, old.long_documents),
            _or(self.storage, old.storage),
            first_stage=stage,
            stage_options=options,
            pool_factor=_or(self.pool_factor, old.pool_factor),
        )
        if self == Target():
            raise InvalidOptionError(f"Say what is to change in {current.engine.title}: dim, storage, ...")
        return new, encoder, own

    def _encoder(self, current: OpenCollection) -> Encoder:
        old = current.schema
        if self.encoder is None:
            if self.dim is None or self.dim in current.encoder.dims:
                return current.encoder
            return load_for(replace(old, dim=self.dim), old.model, current.device, named_by_user=False)
        if isinstance(self.encoder, str):
            return load_encoder(self.encoder, dims=self.dim, device=current.device)
        return self.encoder


def migrate(state: CollectionState, target: Target, **options: Any) -> MigrationReport:
    """See :meth:`ColbertCollection.migrate`."""
    if not state.migrating.acquire(blocking=False):
        raise CollectionError(f"{state.current.engine.title} is already being migrated. Wait until that has finished.")
    try:
        return _migrate(state, target, **options)
    finally:
        state.migrating.release()


def _migrate(
    state: CollectionState,
    target: Target,
    *,
    keep_old: bool,
    progress: Callable[[int], None] | None,
    workers: int | Sequence[str],
) -> MigrationReport:
    state.run(lambda current: current.engine.size())  # follow the name if the collection was replaced
    current = state.current
    schema, encoder, own = target.resolve(current)
    as_devices(workers)  # validate before anything is created
    if {**schema.to_dict(), "format": 0} == {**current.schema.to_dict(), "format": 0}:
        # As when a migration was stopped after it replaced the collection, and is repeated.
        if not keep_old:
            current.engine.drop_replaced()
        return MigrationReport(documents=current.engine.count(None), needed=False)
    # Checked before the successor is created.
    OpenCollection(current.engine, schema, None, None, own).check_own(_to_encode(current.schema, schema))
    engine = current.engine.successor(schema, keep_old=keep_old)
    successor = OpenCollection(engine, schema, encoder, current.device, own)
    report = MigrationReport()
    try:
        _fill(current, successor, report, progress, workers)
        with state.writing:  # the rest is fast; block writers in this process
            _catch_up(current, successor, report, workers)
            successor.engine.optimize()
            report.documents = successor.engine.count(None)
            # Switch this object first, so that its readers never see the old collection closed.
            state.current = successor
            try:
                report.old = current.engine.adopt(successor.engine, keep_old=keep_old)
            except BaseException as error:
                state.current = current
                if not isinstance(error, Exception):
                    # By Ctrl-C: it may have been replaced. What is written to it from now on would be lost.
                    current.engine.close()
                raise
    except BaseException:
        successor.engine.close()  # kept, so that a repeated migration can resume
        raise
    return report


def _or(value: T | None, kept: T) -> T:
    return kept if value is None else value


def _catch_up(
    current: OpenCollection, successor: OpenCollection, report: MigrationReport, workers: int | Sequence[str]
) -> None:
    for _ in range(_MOST_PASSES):
        changes = _remove_deleted(current.engine, successor.engine)
        changes += _fill(current, successor, report, None, workers)
        if not changes:
            return
    raise CollectionError(
        f"{current.engine.title} is written to faster than its documents are encoded. Pause the writers and migrate "
        "again: what is encoded is kept."
    )


def _fill(
    current: OpenCollection,
    successor: OpenCollection,
    report: MigrationReport,
    progress: Callable[[int], None] | None,
    workers: int | Sequence[str],
) -> int:
    """Write missing and changed documents to the successor and return their number."""
    if _can_copy(current.schema, successor.schema):
        copied = _copy(current, successor, progress)
        report.copied += copied
        return copied
    run = Ingestion(successor, journal=IngestJournal(), workers=workers, progress=progress)
    done = run.run(_documents(current.engine), BATCH_DOCUMENTS)
    report.encoded += done.written
    return done.written


def _documents(engine: Engine) -> Iterator[Any]:
    for record in engine.scroll(None, with_payload=True):
        check_documents([record], engine.title)
        yield StoredDocument.from_payload(record.payload).as_document()


def _can_copy(old: CollectionSchema, new: CollectionSchema) -> bool:
    """Return whether the stored vectors equal freshly encoded ones, within the precision of the new storage."""
    names = ("fingerprint", "dim", "document_length", "skiplist", "long_documents", "pool_factor")
    if any(getattr(old, name) != getattr(new, name) for name in names):
        return False
    return storage_profile(old.storage).error <= storage_profile(new.storage).error


def _copy(current: OpenCollection, successor: OpenCollection, progress: Callable[[int], None] | None) -> int:
    copied = 0
    for batch in in_batches(current.engine.scroll(None, with_payload=[HASH_KEY]), BATCH_DOCUMENTS):
        there = successor.engine.retrieve([one.id for one in batch], with_payload=[HASH_KEY], with_vectors=False)
        stored = {record.id: record.payload.get(HASH_KEY) for record in there}
        missing = [one.id for one in batch if stored.get(one.id, "") != one.payload.get(HASH_KEY)]
        for ids in in_batches(missing, _COPIED_AT_A_TIME):
            records = current.engine.retrieve(ids, with_payload=True, with_vectors=True)
            points = _points(current.schema, successor, records)
            successor.engine.upsert(points)
            copied += len(points)
        if progress is not None:
            progress(len(batch))
    return copied


def _to_encode(old: CollectionSchema, new: CollectionSchema) -> set[str]:
    """Return the user's own first stages that have to encode the texts. The vectors of others are copied."""
    kept = {name for name, params in new.stage_options.items() if old.stage_options.get(name) == params}
    return set(new.stage_options) - (kept if _can_copy(old, new) else set())


def _points(old: CollectionSchema, successor: OpenCollection, records: Sequence[Record]) -> list[Point]:
    found = [(one, one.vectors) for one in records if one.vectors is not None]
    texts = [str(record.payload.get(TEXT_KEY, "")) for record, _ in found]
    kept = [record.stages for record, _ in found]
    new = _to_encode(old, successor.schema)
    new.update(name for name in successor.schema.stage_options if any(name not in stages for stages in kept))
    own: list[dict[str, StageVector]] = [
        {name: encoded[name] if name in new else stages[name] for name in successor.schema.stage_options}
        for stages, encoded in zip(kept, successor.own_vectors(texts, new), strict=True)
    ]
    stages = successor.stage_vectors(texts, [matrix for _, matrix in found], own=own)
    return [
        Point(record.id, matrix, record.payload, more) for (record, matrix), more in zip(found, stages, strict=True)
    ]


def _remove_deleted(old: Engine, new: Engine) -> int:
    gone: list[str] = []
    for batch in in_batches(new.scroll(None, with_payload=False), BATCH_DOCUMENTS):
        ids = [record.id for record in batch]
        kept = {record.id for record in old.retrieve(ids, with_payload=False, with_vectors=False)}
        gone += [one for one in ids if one not in kept]
    for ids in in_batches(gone, BATCH_DOCUMENTS):
        new.delete(ids)
    return len(gone)
