"""Sources of candidates for hard negatives: a collection, a model's own index, or BM25."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from jcv2_plugin.documents import has_text
from jcv2_plugin.errors import Jcv2Error
from jcv2_trainer.data.check import text_key
from jcv2_trainer.data.reading import DataError, mendable_rows
from jcv2_trainer.data.records import read_entries, sound_record
from jcv2_trainer.mining.resumable import file_identity, model_identity

if TYPE_CHECKING:
    from jcv2_plugin.collection.collection import ColbertCollection
    from jcv2_plugin.documents import Document


Progress = Callable[[int], None]


class Found(NamedTuple):
    """Candidates of a row as ``(text, score)``, best first, and the score of its positive on the same scale."""

    hits: list[tuple[str, float]]
    positive_score: float


Finder = Callable[[Sequence[str], Sequence[str], int, bool], list[Found]]
"""Return the best passages for each query, and the score of its positive.

The arguments are queries, their positives, the number of passages for each, and whether to rank all documents.
"""


@runtime_checkable
class Source(Protocol):
    """Where candidates come from."""

    def identity(self) -> dict[str, Any]:
        """Return what must stay the same to resume a run, as JSON."""

    def opened(self, data: Path, lang: str, scratch: Path, progress: Progress | None) -> AbstractContextManager[Finder]:
        """Index what there is to index, for the duration of the ``with`` block.

        The passages of the training file are the corpus if there is no other. An interrupted run keeps ``scratch``.
        ``progress`` gets the number of passages indexed since its last call.
        """


def passage_key(text: str) -> int:
    """Return a hash of a text that ignores differences in whitespace."""
    return text_key(" ".join(text.split()))


def passages(corpus: Path | None, data: Path) -> Iterator[str]:
    """Yield the distinct texts of a corpus, or without one the positives and negatives of the training file.

    Corpus records have a ``text``, and optionally a ``title``, which is prepended, as in BEIR datasets.

    Raises:
        DataError: A record has no text, or there are no passages.
    """
    seen: set[int] = set()
    for text in _corpus_texts(corpus) if corpus is not None else _row_texts(data):
        if (key := passage_key(text)) not in seen:
            seen.add(key)
            yield text
    if not seen:
        raise DataError(f"{corpus or data} has no passages. Give a corpus with a record for each.")


def _row_texts(data: Path) -> Iterable[str]:
    for row in mendable_rows(data):
        yield row["positive"]
        yield from row.get("negatives") or []


def _corpus_texts(corpus: Path) -> Iterable[str]:
    for entry in read_entries(corpus):
        record = sound_record(entry)
        text, title = record.get("text"), record.get("title") or ""
        if not isinstance(text, str) or not isinstance(title, str):
            what = 'A corpus has a record {"text": TEXT} for each passage.'
            raise DataError(f"{entry.position}: 'text' must be a text, got {text!r:.60}. {what}")
        if has_text(full := f"{title} {text}".strip()):
            yield full


@dataclass(frozen=True)
class CollectionSource:
    """The documents of an open collection, ranked by MaxSim."""

    collection: ColbertCollection

    def identity(self) -> dict[str, Any]:
        """See :class:`Source`."""
        schema, title = self.collection.schema, self.collection.engine.title
        return {"place": title, "model": schema.model, "dim": schema.dim, "documents": self.collection.count()}

    @contextmanager
    def opened(self, data: Path, lang: str, scratch: Path, progress: Progress | None) -> Iterator[Finder]:
        """See :class:`Source`."""
        if not self.collection.count():
            raise Jcv2Error(f"{self.collection.engine.title} has no documents. Index the corpus first.")
        yield self.find

    def find(self, queries: Sequence[str], positives: Sequence[str], k: int, exact: bool) -> list[Found]:
        """See :data:`Finder`."""
        found = self.collection.search_many(queries, k, exact=exact or None)
        scores: dict[int, float] = {}
        for row, (positive, hits) in enumerate(zip(positives, found, strict=True)):
            key = passage_key(positive)
            if (hit := next((hit for hit in hits if passage_key(hit.text) == key), None)) is not None:
                scores[row] = hit.score
        if absent := [row for row in range(len(queries)) if row not in scores]:
            computed = self._max_sim([queries[row] for row in absent], [positives[row] for row in absent])
            scores.update(zip(absent, computed, strict=True))
        return [Found([(hit.text, hit.score) for hit in hits], scores[row]) for row, hits in enumerate(found)]

    def _max_sim(self, queries: list[str], texts: list[str]) -> list[float]:
        """Return the scores that these texts would have in the collection."""
        schema, encoder = self.collection.schema, self.collection.encoder
        long_documents = "split" if schema.long_documents == "error" else schema.long_documents
        documents = encoder.document_vectors(texts, schema.dim, long_documents, schema.pool_factor)
        vectors = encoder.query_vectors(queries, schema.dim)
        return [float((query @ one.T).max(axis=1).sum()) for query, one in zip(vectors, documents, strict=True)]


@dataclass(frozen=True)
class ModelSource:
    """Passages of a corpus file (by default, those of the training file), encoded by a model and ranked by MaxSim."""

    model: str
    corpus: Path | None = None
    dim: int | None = None
    device: str | None = None

    def identity(self) -> dict[str, Any]:
        """See :class:`Source`."""
        return {**model_identity(self.model), "dim": self.dim, "corpus files": file_identity(self.corpus)}

    @contextmanager
    def opened(self, data: Path, lang: str, scratch: Path, progress: Progress | None) -> Iterator[Finder]:
        """See :class:`Source`. Passages encoded by an interrupted run are in ``scratch`` and are not encoded again."""
        from jcv2_plugin.collection.collection import ColbertCollection
        from jcv2_plugin.documents import Document
        from jcv2_plugin.encoder.model import JinaColbertEncoder
        from jcv2_plugin.errors import CollectionCorruptError, CollectionNotFoundError

        encoder = JinaColbertEncoder.from_pretrained(self.model, dims=self.dim, device=self.device)
        try:
            collection = ColbertCollection.open(path=scratch, encoder=encoder)
        except (CollectionNotFoundError, CollectionCorruptError):
            collection = ColbertCollection.create(path=scratch, encoder=encoder, dim=self.dim, overwrite=True)

        def documents() -> Iterator[Document]:
            for text in passages(self.corpus, data):
                yield Document(text, f"{passage_key(text) % 2**64:016x}")

        with collection:
            collection.ingest(documents(), progress=progress)
            yield CollectionSource(collection).find


@dataclass(frozen=True)
class Bm25Source:
    """Passages of a corpus file (by default, those of the training file), ranked by BM25. All are held in memory."""

    corpus: Path | None = None

    def identity(self) -> dict[str, Any]:
        """See :class:`Source`."""
        return {"bm25": True, "corpus files": file_identity(self.corpus)}

    @contextmanager
    def opened(self, data: Path, lang: str, scratch: Path, progress: Progress | None) -> Iterator[Finder]:
        """See :class:`Source`."""
        from jcv2_plugin.evaluation.bm25 import Bm25Index, UnknownLanguageError

        texts = list(passages(self.corpus, data))
        try:
            index = Bm25Index(texts, lang)
        except UnknownLanguageError as error:
            raise UnknownLanguageError(f"{error} Give the language of the passages with --lang.") from error
        if progress is not None:
            progress(len(texts))

        def find(queries: Sequence[str], positives: Sequence[str], k: int, exact: bool) -> list[Found]:
            return [
                Found([(texts[place], score) for place, score in index.search(query, k)], index.score(query, positive))
                for query, positive in zip(map(index.tokenize, queries), positives, strict=True)
            ]

        yield find
