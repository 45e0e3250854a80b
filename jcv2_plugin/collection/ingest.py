"""Add documents, and streams of them: check, encode and store them batch by batch, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jcv2_plugin.checks import check_vectors, cut_by_length, in_batches
from jcv2_plugin.collection.journal import IngestJournal
from jcv2_plugin.collection.state import CollectionState, OpenCollection
from jcv2_plugin.collection.workers import Encoded, EncoderPool, as_devices
from jcv2_plugin.documents import (
    HASH_KEY,
    Document,
    OnBlank,
    accepted,
    as_documents,
    payload_of,
    point_id,
    warn_of_blank,
)
from jcv2_plugin.engines.base import Engine, Matrix, Point
from jcv2_plugin.engines.first_stage import StageVector
from jcv2_plugin.engines.schema import MAX_FLOATS, CollectionSchema
from jcv2_plugin.errors import DocumentTooLongError

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder
    from jcv2_plugin.encoder.windows import TokenizedTexts

BATCH_DOCUMENTS = 256
_STORES_AHEAD = 2
_CHARACTERS_PER_VECTOR = 32
"""A text with more is first judged by a part of it, since tokenising 60 MB takes minutes and gigabytes."""


@dataclass(frozen=True)
class NewDocument:
    """A document to be written, with its point id and payload."""

    point_id: str
    document: Document
    payload: dict[str, Any]


@dataclass
class IngestReport:
    """Result of :meth:`ColbertCollection.ingest`.

    Attributes:
        written: Documents encoded and stored.
        unchanged: Documents that were already stored unchanged.
        blank: Documents without text, which were left out.
        resumed_at: Documents processed by an earlier, interrupted run, according to the journal.
    """

    written: int = 0
    unchanged: int = 0
    resumed_at: int = 0
    blank: int = 0

    @property
    def seen(self) -> int:
        """Total number of documents processed."""
        return self.written + self.unchanged + self.blank


def changed(
    engine: Engine, documents: Sequence[Document], in_flight: frozenset[str] = frozenset()
) -> list[NewDocument]:
    """Return the documents that are new or differ from the stored ones. Points ``in_flight`` count as changed."""
    new = [NewDocument(point_id(str(one.id)), one, payload_of(one)) for one in documents]
    stored = {
        record.id: record.payload.get(HASH_KEY)
        for record in engine.retrieve([one.point_id for one in new], with_payload=[HASH_KEY], with_vectors=False)
        if record.id not in in_flight
    }
    return [one for one in new if stored.get(one.point_id) != one.payload[HASH_KEY]]


def points_of(
    current: OpenCollection,
    new: Sequence[NewDocument],
    tokenized: TokenizedTexts | None = None,
    vectors: Sequence[Matrix] | None = None,
    own: Sequence[Mapping[str, StageVector]] | None = None,
) -> list[Point]:
    """Encode documents and return them as points. All are checked before any is stored.

    ``tokenized`` texts come from :func:`check_lengths`. ``vectors``, and those of the user's ``own`` first stages, are
    given if they are already encoded.
    """
    schema = current.schema
    if tokenized is None and current.encoder.gives_tokens:
        tokenized = current.encoder.tokenized(one.document.text for one in new)
    if vectors is None:
        texts = [one.document.text for one in new] if tokenized is None else tokenized
        vectors = current.encoder.document_vectors(texts, schema.dim, schema.long_documents, schema.pool_factor)
    for one, matrix in zip(new, vectors, strict=True):
        check_vectors(matrix, schema.dim, f"Document {one.document.id!r}")
        if matrix.size >= MAX_FLOATS:
            raise _too_long(one.document, str(len(matrix)), schema.dim)
    ids = None if tokenized is None else tokenized.ids
    stages = current.stage_vectors([one.document.text for one in new], vectors, ids, own)
    return [
        Point(one.point_id, matrix, one.payload, vectors_of_one)
        for one, matrix, vectors_of_one in zip(new, vectors, stages, strict=True)
    ]


def check_lengths(documents: Sequence[Document], schema: CollectionSchema, encoder: Encoder) -> TokenizedTexts | None:
    """Refuse documents that exceed Qdrant's limit on floats, or the window if the collection does not split them.

    Returns:
        The texts with their tokens, for encoding them without tokenising them again. None if the encoder returns
        no tokens.

    Raises:
        DocumentTooLongError: A document is too long. The message contains its id, its size and a remedy.
    """
    texts = [document.text for document in documents]
    if not encoder.gives_tokens:  # what it makes of them is checked before it is stored
        if schema.long_documents == "error":
            encoder.check_lengths(texts)
        return None
    for document in documents if schema.long_documents == "split" else ():
        _check_beginning(document, schema.dim, encoder)
    capacity = encoder.content_length
    tokenized = encoder.tokenized(texts)
    overhead = encoder.document_length - capacity
    for document, tokens in zip(documents, tokenized.counts, strict=True):
        if schema.long_documents == "error" and tokens > capacity:
            raise DocumentTooLongError(
                f"Document {document.id!r} ({document.text[:40]!r}...) has {tokens} tokens, {capacity} fit "
                f"document_length={encoder.document_length}, and this collection was created with "
                "long_documents='error'. Split it, or create the collection with long_documents='split' or 'truncate'."
            )
        # Check an upper bound first: the exact number of vectors requires tokenising with offsets.
        windows = 1 if schema.long_documents == "truncate" else -(-tokens // (capacity // 2 or 1)) + 1
        if (tokens + windows * overhead) * schema.dim < MAX_FLOATS:
            continue
        rows = len(encoder.scored_tokens(document.text, "document", schema.long_documents))
        if rows * schema.dim >= MAX_FLOATS:
            raise _too_long(document, str(rows), schema.dim)
    return tokenized


def _check_beginning(document: Document, dim: int, encoder: Encoder) -> None:
    """Refuse a text whose beginning alone makes more than twice as many vectors as Qdrant takes."""
    length = _CHARACTERS_PER_VECTOR * MAX_FLOATS // dim
    skipped = getattr(encoder, "skiplist_ids", None) if len(document.text) > length else None
    if skipped is None:  # short, or not known of an encoder elsewhere
        return
    (ids,) = encoder.tokenized([document.text[:length]]).ids
    rows = sum(one not in skipped for one in ids) // 2  # windows may be tokenised a little differently
    if rows * dim >= MAX_FLOATS:
        raise _too_long(document, f"more than {rows}", dim)


def _too_long(document: Document, vectors: str, dim: int) -> DocumentTooLongError:
    return DocumentTooLongError(
        f"Document {document.id!r} ({document.text[:40]!r}...) makes {vectors} vectors of dim={dim}, Qdrant takes "
        f"fewer than {MAX_FLOATS:,} floats a document: at most {(MAX_FLOATS - 1) // dim} vectors. Split the document "
        "into several, or use a smaller dim."
    )


@dataclass
class _Batch:
    """A batch in flight: the number of its documents, of blank ones, and those to be written."""

    seen: int
    blank: int
    new: list[NewDocument]
    tokenized: TokenizedTexts | None = None
    vectors: Future[Encoded] | None = None


class Ingestion:
    """A run of :meth:`ColbertCollection.ingest`. This thread reads and checks documents, this thread or the workers
    encode, and another thread stores the batches in stream order.
    """

    def __init__(
        self,
        current: OpenCollection,
        *,
        journal: IngestJournal,
        workers: int | Sequence[str],
        progress: Callable[[int], None] | None,
        on_blank: OnBlank = "error",
    ) -> None:
        self._current = current
        self._journal = journal
        self._devices = as_devices(workers)
        self._progress = progress
        self._on_blank = on_blank
        self._blank: list[str] = []
        self._report = IngestReport(resumed_at=journal.seen)
        self._storing: deque[tuple[_Batch, Future[None]]] = deque()
        self._encoding: deque[_Batch] = deque()

    def run(self, documents: Iterable[str | Document], batch_documents: int) -> IngestReport:
        """Ingest all documents of the iterable."""
        pool = EncoderPool(self._current.encoder, self._devices, self._current.own) if self._devices else None
        with (
            pool if pool is not None else nullcontext(),
            # On an error or Ctrl-C, exiting waits until all submitted batches are stored.
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="jcv2-store") as store,
        ):
            batches = self._batches(documents, batch_documents)
            while (batch := self._next(batches, store)) is not None:
                if pool is not None and batch.new:
                    schema = self._current.schema
                    texts = [one.document.text for one in batch.new]
                    batch.vectors = pool.submit(texts, schema.dim, schema.long_documents, schema.pool_factor)
                self._encoding.append(batch)
                while len(self._encoding) > (len(self._devices) + 1 if pool is not None else 0):
                    self._store(store, self._encoding.popleft())
            self._drain(store)
        warn_of_blank(self._blank)
        return self._report

    def _next(self, batches: Iterator[_Batch], store: ThreadPoolExecutor) -> _Batch | None:
        try:
            return next(batches, None)
        except Exception:
            self._drain(store)  # the batches before the error
            raise

    def _drain(self, store: ThreadPoolExecutor) -> None:
        """Store all batches in flight, and wait until they are in the journal."""
        while self._encoding:
            self._store(store, self._encoding.popleft())
        while self._storing:
            self._finish_one()

    def _batches(self, documents: Iterable[str | Document], size: int) -> Iterator[_Batch]:
        current, seen = self._current, 0
        for items in cut_by_length(in_batches(documents, size)):
            named = self._journal.named(as_documents(items))
            kept, blank = accepted(named, self._on_blank, seen)
            seen += len(items)
            self._blank += blank
            new = changed(current.engine, kept, self._in_flight())
            texts = check_lengths([one.document for one in new], current.schema, current.encoder) if new else None
            yield _Batch(len(items), len(blank), new, texts)

    def _in_flight(self) -> frozenset[str]:
        waiting = [*self._encoding, *(batch for batch, _ in self._storing)]
        return frozenset(one.point_id for batch in waiting for one in batch.new)

    def _store(self, store: ThreadPoolExecutor, batch: _Batch) -> None:
        points: list[Point] = []
        if batch.new:
            vectors, own = (None, None) if batch.vectors is None else batch.vectors.result()
            points = points_of(self._current, batch.new, batch.tokenized, vectors, own)
        self._storing.append((batch, store.submit(self._current.engine.upsert, points)))
        while len(self._storing) > _STORES_AHEAD or (self._storing and self._storing[0][1].done()):
            self._finish_one()

    def _finish_one(self) -> None:
        batch, stored = self._storing.popleft()
        stored.result()
        self._report.written += len(batch.new)
        self._report.blank += batch.blank
        self._report.unchanged += batch.seen - batch.blank - len(batch.new)
        self._journal.stored(batch.seen)
        if self._progress is not None:
            self._progress(batch.seen)


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
    batch_documents: int,
    journal: IngestJournal,
    **options: Any,
) -> IngestReport:
    """Add documents from an iterable of any length, batch by batch. The options are those of :class:`Ingestion`."""

    def begin(current: OpenCollection) -> OpenCollection:
        current.check_own()
        current.engine.begin_writing()
        current.engine.size()  # follow the name if the collection was replaced
        return current

    state.run(begin)
    current = state.current
    run = Ingestion(current, journal=journal, **options)
    report = run.run(documents, batch_documents)
    if report.written:
        current.engine.optimize()
        current.has_changed()
    journal.finish()
    return report
