"""Writing to a collection: add, ingest and delete documents."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qdrant_client import models

from jcv2_plugin.checks import in_batches
from jcv2_plugin.collection.checks import check_lengths
from jcv2_plugin.collection.ingest import BATCH_DOCUMENTS, Ingestion, IngestReport, changed, points_of
from jcv2_plugin.collection.journal import IngestJournal
from jcv2_plugin.collection.read import id_list
from jcv2_plugin.collection.state import CollectionState, OpenCollection
from jcv2_plugin.documents import Document, as_documents, point_id, validate
from jcv2_plugin.engines.base import PAYLOAD_INDEXES, PayloadIndex
from jcv2_plugin.errors import InvalidOptionError


class Writing(CollectionState):
    """Write methods of a collection."""

    def add(
        self,
        texts: Iterable[str | Document],
        *,
        ids: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[str]:
        """Encode and store documents. A document with an existing id replaces the stored one.

        All documents are checked before any is encoded. Documents that are already stored unchanged are not encoded
        again. More than 256 documents are written in batches. Use :meth:`ingest` for streams.

        Args:
            texts: Texts or :class:`Document` objects.
            ids: Id of each text. None generates random ids.
            metadata: Metadata dict of each text.

        Returns:
            Ids of the documents, in input order.

        Raises:
            InvalidDocumentError: A text is empty, an id is duplicated, metadata is not JSON, ... Nothing was written.
            DocumentTooLongError: A document exceeds a limit of the model or of Qdrant. Nothing was written.
        """
        documents = validate(as_documents(texts, ids, metadata))

        def work(current: OpenCollection) -> None:
            current.engine.begin_writing()
            new = [one for batch in in_batches(documents, BATCH_DOCUMENTS) for one in changed(current.engine, batch)]
            if not new:
                return
            check_lengths([one.document for one in new], current.schema, current.encoder)
            for batch in in_batches(new, BATCH_DOCUMENTS):
                points = points_of(current, batch)
                current.engine.upsert(points)
            current.has_changed()

        with self._writing:
            self._with_current(work)
        return [str(document.id) for document in documents]

    def ingest(
        self,
        documents: Iterable[str | Document],
        *,
        batch_documents: int = BATCH_DOCUMENTS,
        progress: Callable[[int], None] | None = None,
        journal: str | os.PathLike[str] | None = None,
        workers: int | Sequence[str] = 0,
    ) -> IngestReport:
        """Add documents from an iterable of any length, keeping only a few batches in memory.

        One batch is stored while the next is encoded. Each batch is checked as a whole before it is encoded. After an
        error, the batches before it are stored; after Ctrl-C too, except those that workers are still encoding.
        Documents that are already stored unchanged are not encoded again, so repeating an interrupted or killed run
        resumes it. If several batches contain the same id, the last document is kept.

        Args:
            documents: Texts or :class:`Document` objects.
            batch_documents: Maximum number of documents per batch. Batches of long documents are smaller.
            progress: Called after each stored batch with its number of documents.
            journal: File that records the progress of the run. It is removed when the run succeeds. Documents without
                an id need it to be recognised when a run is repeated: otherwise, they get random ids and are stored
                twice.
            workers: Number of processes to encode in, spread over the GPUs if there are any, or a list of devices
                (``["cuda:0", "cuda:1"]``). 0 encodes in this process.

        Raises:
            InvalidDocumentError: See :meth:`add`. Nothing of the batch was written.
            DocumentTooLongError: See :meth:`add`. Nothing of the batch was written.
            JournalError: The journal file is not a journal or is unreadable.
        """
        with self._writing, IngestJournal.open(journal) as opened:

            def begin(current: OpenCollection) -> None:
                current.engine.begin_writing()
                current.engine.size()  # follow the name if the collection was replaced

            self._with_current(begin)
            run = Ingestion(self._current, journal=opened, workers=workers, progress=progress)
            report = run.run(documents, batch_documents)
            if report.written:
                self._engine.optimize()
                self._current.has_changed()
            opened.finish()
        return report

    def delete(self, ids: Iterable[str] | None = None, *, filter: models.Filter | None = None) -> None:
        """Delete documents by id or by filter. Missing ids are ignored.

        Raises:
            ValueError: Neither or both of ``ids`` and ``filter`` are given.
        """
        if (ids is None) == (filter is None):
            raise ValueError("Give either ids or a filter to delete by.")
        points = None if ids is None else [point_id(one) for one in id_list(ids)]

        def work(current: OpenCollection) -> None:
            if filter is not None:
                current.engine.delete_where(filter)
            elif points is not None:
                current.engine.delete(points)
            current.has_changed()

        with self._writing:
            self._with_current(work)

    def create_payload_index(self, key: str, kind: PayloadIndex) -> None:
        """Index a payload field for filters, for example ``"metadata.topic"`` as ``"keyword"``.

        Qdrant's strict mode requires this for filtered fields.

        Raises:
            InvalidOptionError: The index type is unknown.
        """
        if kind not in PAYLOAD_INDEXES:
            raise InvalidOptionError(f"A payload index is one of {PAYLOAD_INDEXES}, got {kind!r} for {key!r}.")
        self._with_current(lambda current: current.engine.create_payload_index(key, kind))

    def optimize(self) -> None:
        """Merge segments, build the first stage's index and drop deleted documents. This can take a while.

        :meth:`ingest` calls this at the end. A server optimises itself.
        """
        with self._writing:
            self._with_current(lambda current: current.engine.optimize())
