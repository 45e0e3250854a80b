"""Sources of candidates for hard negatives: a collection, a model's own index, or BM25."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jcv2_plugin.documents import has_text
from jcv2_plugin.errors import Jcv2Error
from jcv2_trainer.data.check import text_key
from jcv2_trainer.data.lines import DataError
from jcv2_trainer.data.records import read_entries, sound_record
from jcv2_trainer.mining.resumable import file_identity, model_identity, sound_rows

if TYPE_CHECKING:
    from jcv2_plugin.collection.collection import ColbertCollection
    from jcv2_plugin.documents import Document

PASSED = ("positive-as-negative", "duplicate-negatives", "score-count", "non-finite-score")
"""Errors of a row that mining corrects."""


class Found(NamedTuple):
    """Candidates of a row as ``(text, score)``, best first, and the score of its positive on the same scale."""

    hits: list[tuple[str, float]]
    positive_score: float


class Finder(Protocol):
    """Search for candidates."""

    def find(self, queries: Sequence[str], positives: Sequence[str], k: int, exact: bool) -> list[Found]:
        """Return the ``k`` best passages for each query, and the score of its positive."""


@runtime_checkable
class Source(Protocol):
    """Where candidates come from."""

    def identity(self) -> dict[str, Any]:
        """Return what must stay the same to resume a run, as JSON."""

    def opened(
        self, data: Path, lang: str, scratch: Path, progress: Callable[[int], None] | None
    ) -> AbstractContextManager[Finder]:
        """Index what there is to index, for the duration of the ``with`` block.

        Args:
            data: The training file, whose passages are the corpus if there is no other.
            lang: Language, for BM25.
            scratch: Folder that an interrupted run keeps.
            progress: Called with the number of passages indexed since the last call.
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
    for row in sound_rows(data, needless=("scores",), passed=PASSED):
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
    def opened(self, data: Path, lang: str, scratch: Path, progress: Callable[[int], None] | None) -> Iterator[Finder]:
        """See :class:`Source`."""
        if not self.collection.count():
            raise Jcv2Error(f"{self.collection.engine.title} has no documents. Index the corpus first.")
        yield self

    def find(self, queries: Sequence[str], positives: Sequence[str], k: int, exact: bool) -> list[Found]:
        """See :class:`Finder`."""
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
    def opened(self, data: Path, lang: str, scratch: Path, progress: Callable[[int], None] | None) -> Iterator[Finder]:
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
            yield CollectionSource(collection)


@dataclass(frozen=True)
class Bm25Source:
    """Passages of a corpus file (by default, those of the training file), ranked by BM25. All are held in memory."""

    corpus: Path | None = None

    def identity(self) -> dict[str, Any]:
        """See :class:`Source`."""
        return {"bm25": True, "corpus files": file_identity(self.corpus)}

    @contextmanager
    def opened(self, data: Path, lang: str, scratch: Path, progress: Callable[[int], None] | None) -> Iterator[Finder]:
        """See :class:`Source`."""
        finder = _Bm25Finder(list(passages(self.corpus, data)), lang)
        if progress is not None:
            progress(len(finder.texts))
        yield finder


class _Bm25Finder:
    """BM25 index of texts, with the same scores as :func:`jcv2_plugin.evaluation.bm25.bm25_run`."""

    def __init__(self, texts: list[str], lang: str) -> None:
        import bm25s

        from jcv2_plugin.evaluation.bm25 import K1, B, UnknownLanguageError, tokenizer_for

        try:
            self._tokenize = tokenizer_for(lang)
        except UnknownLanguageError as error:
            raise UnknownLanguageError(f"{error} Give the language of the passages with --lang.") from error
        self.texts, self._k1, self._b = texts, K1, B
        corpus = [self._tokenize(text) for text in texts]
        self._mean_length = sum(map(len, corpus)) / len(corpus)
        self._index: Any = None
        if self._mean_length:
            self._index = bm25s.BM25(k1=K1, b=B, method="lucene")
            self._index.index(corpus, show_progress=False)

    def find(self, queries: Sequence[str], positives: Sequence[str], k: int, exact: bool) -> list[Found]:
        """See :class:`Finder`."""
        return [self._find(query, positive, k) for query, positive in zip(queries, positives, strict=True)]

    def _find(self, query: str, positive: str, k: int) -> Found:
        tokens = self._tokenize(query)
        if self._index is None or not tokens:
            return Found([], 0.0)
        scores = self._index.get_scores(tokens)
        best = np.argpartition(-scores, k)[:k] if k < len(scores) else np.arange(len(scores))
        best = best[np.lexsort((best, -scores[best]))]
        hits = [(self.texts[position], float(scores[position])) for position in best.tolist() if scores[position] > 0]
        return Found(hits, self._score(tokens, positive))

    def _score(self, query: list[str], text: str) -> float:
        """Return the score that a text would have with the index's word statistics, even if it is not in the index."""
        tokens = self._tokenize(text)
        frequencies = Counter(tokens)
        vocabulary, starts = self._index.vocab_dict, self._index.scores["indptr"]
        norm = self._k1 * (1 - self._b + self._b * len(tokens) / self._mean_length)
        score = 0.0
        for token in query:
            if (number := vocabulary.get(token)) is None or not (frequency := frequencies[token]):
                continue
            found_in = int(starts[number + 1] - starts[number])
            weight = math.log(1 + (len(self.texts) - found_in + 0.5) / (found_in + 0.5))
            score += weight * frequency / (norm + frequency)
        return score
