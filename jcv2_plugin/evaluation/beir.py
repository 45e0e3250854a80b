"""Read test sets in BEIR layout: a folder with ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jcv2_plugin.documents import Document, has_text
from jcv2_plugin.errors import Jcv2Error
from jcv2_plugin.files import numbered_lines, parse_json, read_json

_LAYOUT = "A BEIR folder holds corpus.jsonl, queries.jsonl and qrels/<split>.tsv."
_HEADER = "query-id\\tcorpus-id\\tscore"
_NAMED = 5
_HIGHEST_SCORE = 10**6
"""trec_eval keeps a counter for each grade up to the highest."""

logger = logging.getLogger(__name__)


class BeirFormatError(Jcv2Error, ValueError):
    """A BEIR folder lacks a file, or a file has an invalid line."""


class Passage(NamedTuple):
    """A document of the corpus as stored in the file. ``title`` is ``""`` if there is none."""

    title: str
    text: str

    @property
    def full_text(self) -> str:
        """The text to index: title and text, separated by a space."""
        return f"{self.title} {self.text}".strip()


class CorpusReader(Iterator[Document]):
    """Iterate over the documents of a ``corpus.jsonl``, read line by line. Documents without any text are skipped.

    Attributes:
        skipped: Ids of the documents skipped so far. The list is complete when the reader is exhausted; a warning is
            then logged if there are any.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._path = _existing(Path(folder), "corpus.jsonl")
        self._passages = self._read()
        self.skipped: list[str] = []

    def __next__(self) -> Document:
        return _document(*next(self._passages))

    def passages(self) -> Iterator[tuple[str, Passage]]:
        """Iterate over pairs of id and passage instead. Both iterators consume the same stream."""
        return self._passages

    def _read(self) -> Iterator[tuple[str, Passage]]:
        kept = 0
        for where, record in _records(self._path):
            passage = Passage(_string(record, "title", where, required=False), _string(record, "text", where))
            own_id = _id(record, where)
            if not passage.full_text:
                self.skipped.append(own_id)
                continue
            kept += 1
            yield own_id, passage
        if not kept:
            raise BeirFormatError(f"{self._path} has no document with any text. {_LAYOUT}")
        if self.skipped:
            logger.warning(
                "%s: %d of %d documents have no text and are left out: %s.",
                self._path,
                len(self.skipped),
                kept + len(self.skipped),
                _some(self.skipped),
            )


def iter_corpus(folder: str | os.PathLike[str]) -> CorpusReader:
    """Stream the documents of a BEIR folder, for :meth:`ColbertCollection.ingest`.

    The text of a document is its title and text, separated by a space; the title is also stored in the metadata. Only
    one line is in memory at a time, so unlike :meth:`BeirDataset.read` this does not detect duplicate ids.

    Raises:
        BeirFormatError: If there is no such folder or file (immediately), or a line is invalid (when it is read).
    """
    return CorpusReader(folder)


@dataclass(frozen=True)
class BeirDataset:
    """A test set in memory.

    Attributes:
        name: Name of the folder.
        corpus: Passages by document id, in file order.
        queries: Query texts by query id, in file order; only queries with judgments in this split.
        qrels: Relevance by query id and document id. Higher is better; 0 or less is not relevant.
        language: ``lang`` (or ``language``) in the folder's ``meta.json``, if any.
        skipped: Ids of the documents skipped because they have no text.
        missing: Ids of the judged documents that are not in the corpus. They count as not found.
    """

    name: str
    corpus: dict[str, Passage]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    language: str | None = None
    skipped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: str | os.PathLike[str], split: str = "test") -> BeirDataset:
        """Read a test set from a folder.

        Args:
            folder: Folder with ``corpus.jsonl``, ``queries.jsonl``, ``qrels/<split>.tsv`` and optionally ``meta.json``.
            split: Split of the judgments.

        Raises:
            BeirFormatError: If a file is missing, empty or malformed, an id is duplicated, or the judgments refer to
                unknown queries, or to unknown documents only. A warning is logged if some documents are unknown.
        """
        folder = Path(folder)
        qrels_path = _qrels_path(folder, split)
        reader = CorpusReader(folder)
        queries_path = _existing(folder, "queries.jsonl")
        qrels = _read_qrels(qrels_path)
        queries = _read_queries(queries_path, qrels)
        if unknown := [query for query in qrels if query not in queries]:
            raise BeirFormatError(
                _unknown(unknown, "queries", qrels_path, queries_path) + " Add them, or remove their judgments."
            )
        corpus: dict[str, Passage] = {}
        for own_id, passage in reader.passages():
            if own_id in corpus:
                raise BeirFormatError(f"{folder / 'corpus.jsonl'}: the id {own_id!r} comes twice. Remove one.")
            corpus[own_id] = passage
        judged = dict.fromkeys(document for judgments in qrels.values() for document in judgments)
        known = corpus.keys() | set(reader.skipped)
        if missing := [document for document in judged if document not in known]:
            said = _unknown(missing, "documents", qrels_path, folder / "corpus.jsonl")
            if len(missing) == len(judged):
                raise BeirFormatError(f"{said} That is all of them: use the judgments of this corpus.")
            logger.warning("%s They count as not found, as in published figures.", said)
        language = _read_language(folder / "meta.json")
        name = folder.absolute().name
        return cls(name, corpus, queries, qrels, language, tuple(reader.skipped), tuple(missing))

    def documents(self) -> Iterator[Document]:
        """Iterate over the corpus as documents for :meth:`ColbertCollection.ingest`, as :func:`iter_corpus` does."""
        for own_id, passage in self.corpus.items():
            yield _document(own_id, passage)

    def own_documents(self, ignore_identical_ids: bool | None = None) -> frozenset[str]:
        """Return the ids of the queries whose own document is in the corpus, and is to be left out of their results.

        In some sets (ArguAna, Quora) the queries are themselves documents, under the same id. Published figures leave
        a query's own document out.

        Args:
            ignore_identical_ids: True for all documents with the id of the query, False for none. None for those that
                also have its text, and are not judged relevant to it.
        """
        if ignore_identical_ids is False:
            return frozenset()
        found = self.queries.keys() & self.corpus.keys()
        return frozenset(found if ignore_identical_ids else filter(self._is_its_own_document, found))

    def _is_its_own_document(self, query: str) -> bool:
        text, passage = self.queries[query].split(), self.corpus[query]
        same = text in (passage.text.split(), passage.full_text.split())
        return same and self.qrels.get(query, {}).get(query, 0) <= 0


def without_own(run: Mapping[str, Mapping[str, float]], own_documents: Container[str]) -> dict[str, dict[str, float]]:
    """Leave :meth:`~BeirDataset.own_documents` out of a run."""
    return {
        query: {document: score for document, score in found.items() if document != query or query not in own_documents}
        for query, found in run.items()
    }


def _document(own_id: str, passage: Passage) -> Document:
    metadata = {"title": passage.title} if passage.title else {}
    return Document(passage.full_text, own_id, metadata)


def _existing(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise BeirFormatError(f"There is no folder {folder}. {_LAYOUT}")
    path = folder / name
    if not path.is_file():
        raise BeirFormatError(f"There is no {name} in {folder}. {_LAYOUT}")
    return path


def _qrels_path(folder: Path, split: str) -> Path:
    if folder.is_dir() and not (folder / "qrels" / f"{split}.tsv").is_file():
        splits = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
        remedy = f"It has the splits {', '.join(splits)}; take one of them." if splits else _LAYOUT
        raise BeirFormatError(f"There is no qrels/{split}.tsv in {folder}. {remedy}")
    return _existing(folder, f"qrels/{split}.tsv")


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line's position, for error messages, and its JSON object. Blank lines are skipped."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = parse_json(line)
        except ValueError as error:
            raise BeirFormatError(f"{where} is not JSON in UTF-8 ({error}). Write one object a line.") from error
        if not isinstance(record, dict):
            raise BeirFormatError(f"{where} must be a JSON object, got {record!r:.60}.")
        yield where, record


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        yield from numbered_lines(path)
    except (OSError, ValueError) as error:
        raise BeirFormatError(f"{path} cannot be read ({error}). Check it, or write it again.") from error


def _string(record: dict[str, Any], key: str, where: str, *, required: bool = True) -> str:
    value = record.get(key)
    if value is None and not required:
        return ""
    if key not in record:
        found = ", ".join(map(repr, record)) or "no field at all"
        raise BeirFormatError(f"{where}: the field {key!r} is missing; there is {found}. Add it.")
    if not isinstance(value, str):
        raise BeirFormatError(f"{where}: {key!r} must be a string, got {value!r:.60}. Put it in quotes.")
    return value


def _id(record: dict[str, Any], where: str) -> str:
    own_id = _string(record, "_id", where)
    if not own_id:
        raise BeirFormatError(f"{where}: '_id' is empty. Give each line an id of its own.")
    _check_id(own_id, where)
    return own_id


def _check_id(own_id: str, where: str) -> None:
    if "\0" in own_id:
        raise BeirFormatError(f"{where}: the id {own_id!r:.60} has a NUL, where trec_eval would cut it. Rename it.")


def _read_queries(path: Path, wanted: Container[str]) -> dict[str, str]:
    queries: dict[str, str] = {}
    empty = True
    for where, record in _records(path):
        empty = False
        own_id, text = _id(record, where), _string(record, "text", where)
        if own_id not in wanted:
            continue
        if own_id in queries:
            raise BeirFormatError(f"{where}: the id {own_id!r} comes twice. Remove one.")
        if not has_text(text):
            raise BeirFormatError(
                f"{where}: the query {own_id!r} has judgments but no text. Write it, or remove its judgments."
            )
        queries[own_id] = text
    if empty:
        raise BeirFormatError(f"{path} has no queries. {_LAYOUT}")
    return queries


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        row = _qrels_row(line, where, header=number == 1)
        if row is None:
            continue
        query, document, score = row
        judgments = qrels.setdefault(query, {})
        if judgments.setdefault(document, score) != score:
            raise BeirFormatError(
                f"{where}: document {document!r} is judged {score} for query {query!r}, and "
                f"{judgments[document]} before. Keep one of them."
            )
    if not qrels:
        raise BeirFormatError(f"{path} has no judgments. Write the header {_HEADER}, then one a line.")
    return qrels


def _qrels_row(line: bytes, where: str, *, header: bool) -> tuple[str, str, int] | None:
    try:
        columns = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise BeirFormatError(f"{where} is not UTF-8 ({error}). Save the file as UTF-8.") from error
    if columns == [""]:
        return None
    if len(columns) != 3 or not all(columns):
        raise BeirFormatError(f"{where}: expected three columns, {_HEADER}, got {columns!r:.120}.")
    try:
        score = int(columns[2])
    except ValueError as error:
        if header:
            return None
        raise BeirFormatError(f"{where}: the score must be an integer, got {columns[2]!r:.60}.") from error
    if abs(score) > _HIGHEST_SCORE:
        raise BeirFormatError(f"{where}: a score is at most {_HIGHEST_SCORE:,}, got {columns[2]!r:.60}. Use grades.")
    if header:
        raise BeirFormatError(f"{where}: expected the header {_HEADER}, got {columns!r:.120}. Add it as first line.")
    for own_id in columns[:2]:
        _check_id(own_id, where)
    return columns[0], columns[1], score


def _unknown(ids: list[str], what: str, qrels: Path, file: Path) -> str:
    return f"{qrels} names {len(ids)} {what} that are not in {file}: {_some(ids)}."


def _some(ids: list[str]) -> str:
    more = len(ids) - _NAMED
    return ", ".join(map(repr, ids[:_NAMED])) + (f" and {more} more" if more > 0 else "")


def _read_language(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        meta = read_json(path)
    except ValueError as error:
        raise BeirFormatError(f"{path} is not JSON in UTF-8 ({error}). Mend it, or remove it.") from error
    language = (meta.get("lang") or meta.get("language")) if isinstance(meta, dict) else None
    if language is not None and not isinstance(language, str):
        raise BeirFormatError(f"{path}: the language must be a string such as 'en', got {language!r:.60}.")
    return language
