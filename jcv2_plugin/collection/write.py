"""Writing documents of a collection: add, ingest and delete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from jcv2_plugin.checks import in_batches
from jcv2_plugin.collection.checks import check_lengths
from jcv2_plugin.collection.ingest import BATCH_DOCUMENTS, Ingestion, IngestReport, changed, points_of
from jcv2_plugin.collection.journal import IngestJournal
from jcv2_plugin.collection.state import CollectionState, OpenCollection
from jcv2_plugin.documents import Document, OnBlank


def add(current: OpenCollection, documents: Sequence[Document]) -> None:
    """Encode and store documents that are new or have changed. All are checked before any is encoded."""
    current.check_own()
    current.engine.begin_writing()
    new = [one for batch in in_batches(documents, BATCH_DOCUMENTS) for one in changed(current.engine, batch)]
    if not new:
        return
    tokenized = check_lengths([one.document for one in new], current.schema, current.encoder)
    own = current.own_vectors([one.document.text for one in new])  # all are checked before any is stored
    for start in range(0, len(new), BATCH_DOCUMENTS):
        stop = start + BATCH_DOCUMENTS
        part = points_of(current, new[start:stop], tokenized and tokenized.part(start, stop), own=own[start:stop])
        current.engine.upsert(part)
    current.has_changed()


def ingest(
    state: CollectionState,
    documents: Iterable[str | Document],
    *,
    batch_documents: int,
    progress: Callable[[int], None] | None,
    journal: IngestJournal,
    workers: int | Sequence[str],
    on_blank: OnBlank,
) -> IngestReport:
    """Add documents from an iterable of any length, batch by batch."""

    def begin(current: OpenCollection) -> OpenCollection:
        current.check_own()
        current.engine.begin_writing()
        current.engine.size()  # follow the name if the collection was replaced
        return current

    state.run(begin)
    current = state.current
    run = Ingestion(current, journal=journal, workers=workers, progress=progress, on_blank=on_blank)
    report = run.run(documents, batch_documents)
    if report.written:
        current.engine.optimize()
        current.has_changed()
    journal.finish()
    return report
