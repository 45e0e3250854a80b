"""The part of a collection that writes: adding, ingesting streams, deleting."""

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
    """See the module."""

    def add(
        self,
        texts: Iterable[str | Document],
        *,
        ids: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[str]:
        """Encode and store documents; one whose id is there already replaces it.

        Everything is checked before the first is encoded, and documents that are stored unchanged are not
        encoded again. More than 256 are written in batches; use :meth:`ingest` for streams.

        Args:
            texts: Texts, or :class:`Document` objects.
            ids: An id for each text; None draws random ones.
            metadata: A dict for each text.

        Returns:
            The documents' ids, in order.

        Raises:
            InvalidDocumentError: Empty text, an id twice, metadata that is no JSON, ... Nothing was written.
            DocumentTooLongError: A document exceeds what the model or Qdrant takes. Nothing was written.
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
        """Add documents from any iterable, however long, holding a few batches in memory.

        While one batch is encoded the one before it is stored. Each batch is checked as a whole before it is
        encoded; an error leaves the batches before it stored, as does Ctrl-C but for what workers are encoding just
        then. Documents that are stored unchanged are not encoded again: so a run that was stopped, even killed, goes
        on where it was when it is repeated. Of documents with the same id in different batches the last one stays.

        Args:
            documents: Texts or :class:`Document` objects.
            batch_documents: Documents a batch, at most; a batch of long ones has fewer.
            progress: Called after each batch is stored with the number of documents in it.
            journal: A file that remembers the run until it ends well. Documents without an id need it to be
                recognised when the run is repeated: they get random ids otherwise, and would come twice.
            workers: Encode in so many processes, one for each GPU where there are any, or on these devices
                (``["cuda:0", "cuda:1"]``). 0 encodes in this process.

        Raises:
            InvalidDocumentError: As :meth:`add`, of one batch.
            DocumentTooLongError: Likewise.
            JournalError: The journal is another file, or unreadable.
        """
        with self._writing, IngestJournal.open(journal) as opened:

            def begin(current: OpenCollection) -> None:
                current.engine.begin_writing()
                current.engine.size()  # asked of the collection that the name stands for by now

            self._with_current(begin)
            run = Ingestion(self._current, journal=opened, workers=workers, progress=progress)
            report = run.run(documents, batch_documents)
            if report.written:
                self._engine.optimize()
                self._current.has_changed()
            opened.finish()
        return report

    def delete(self, ids: Iterable[str] | None = None, *, filter: models.Filter | None = None) -> None:
        """Remove documents by id, or all that a filter selects. Ids that are not there are no error.

        Raises:
            ValueError: If neither or both of them are given.
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
        """Index a field for filters, such as ``"metadata.topic"`` as ``"keyword"``. Qdrant in strict mode wants it.

        Raises:
            InvalidOptionError: There is no such kind.
        """
        if kind not in PAYLOAD_INDEXES:
            raise InvalidOptionError(f"A payload index is one of {PAYLOAD_INDEXES}, got {kind!r} for {key!r}.")
        self._with_current(lambda current: current.engine.create_payload_index(key, kind))

    def optimize(self) -> None:
        """Merge what many small writes left, build the first stage's index, drop deleted documents; takes a while.

        :meth:`ingest` does so at its end. A server does it by itself.
        """
        with self._writing:
            self._with_current(lambda current: current.engine.optimize())
