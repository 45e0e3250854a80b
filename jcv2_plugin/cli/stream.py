"""The documents of all files as one stream, and which of the stored ones the files no longer have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from qdrant_client import models

from jcv2_plugin.cli.seen import SeenIds
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.sources import FILE_KEY, PassageReader, SourceError, SourceFile, source_name
from jcv2_plugin.console import remark
from jcv2_plugin.documents import ID_KEY, Document

_FILES_A_FILTER = 100


class DocumentStream:
    """The documents of all files, one after the other, each id once.

    Attributes:
        files: Those that were read, or are being read.
        skipped: How many could not be read, and were left out with a word.
    """

    def __init__(self, reader: PassageReader, files: Sequence[SourceFile], seen: SeenIds, *, strict: bool) -> None:
        self.files: list[SourceFile] = []
        self.skipped = 0
        self._reader = reader
        self._all = files
        self._seen = seen
        self._strict = strict
        self._documents = 0
        self._counts: list[int] = []
        # How much there is to come from a pipe nobody knows.
        self._bytes = 0 if any(file.is_stdin for file in files) else sum(file.size() for file in files)

    @property
    def expected(self) -> int | None:
        """About how many documents there are, by the bytes read so far; None while that is not known."""
        if not self._documents or not self._bytes or not self._reader.bytes_read:
            return None
        read = min(self._reader.bytes_read / self._bytes, 1.0)
        return max(round(self._documents / read), self._documents)

    @property
    def names(self) -> set[str]:
        """The names of all files, those that could not be read among them."""
        return {file.name for file in self._all}

    def __iter__(self) -> Iterator[Document]:
        for file in self._all:
            try:
                documents = self._reader.read(file)
            except SourceError as error:
                if self._strict:
                    raise
                remark(f"skipped: {error}")
                self.skipped += 1
                continue
            self.files.append(file)
            self._counts.append(0)
            number = len(self.files) - 1
            for document in documents:
                self._note(str(document.id), number)
                yield document

    def _note(self, own_id: str, number: int) -> None:
        first = self._seen.add(own_id, number)
        if first is not None:
            raise SourceError(
                f"{self.files[number].name}: the id {own_id!r} comes a second time (first in "
                f"{self.files[first].name}). Ids must be distinct; documents up to here are stored."
            )
        self._counts[number] += 1
        self._documents += 1

    def read_files(self) -> Iterator[tuple[str, int]]:
        """The names of the files read, and how many documents each has.

        What came from a pipe is left out: another pipe is another source, and not the same one with fewer rows.
        """
        for file, count in zip(self.files, self._counts, strict=True):
            if not file.is_stdin:
                yield file.name, count


def remove_stale(
    collection: ColbertCollection, stream: DocumentStream, seen: SeenIds, missing_from: Sequence[str] | None
) -> int:
    """Remove the documents that a file had when it was last indexed and has no more; how many they were.

    They are noted first and deleted then, so that no scroll runs over what is being deleted.

    Args:
        collection: Holding them.
        stream: The files, read to their end.
        seen: All their ids.
        missing_from: Paths that were given, of which folders are searched for files that are gone; None for none.
    """
    if missing_from is None:
        _note_stale(collection, stream, seen)
    else:
        _note_stale_and_missing(collection, stream, seen, missing_from)
    removed = 0
    for batch in seen.gone():
        collection.delete(batch)
        removed += len(batch)
    return removed


def _note_stale(collection: ColbertCollection, stream: DocumentStream, seen: SeenIds) -> None:
    files = list(stream.read_files())
    for start in range(0, len(files), _FILES_A_FILTER):
        part = files[start : start + _FILES_A_FILTER]
        names = models.MatchAny(any=[name for name, _ in part])
        of_files = models.Filter(must=[models.FieldCondition(key=FILE_KEY, match=names)])
        # All that was read is stored: where no more is, nothing is stale, and nothing need be listed.
        if collection.count(of_files) > sum(count for _, count in part):
            for own_id in collection.ids(of_files):
                if own_id not in seen:
                    seen.note_gone(own_id)


def _note_stale_and_missing(
    collection: ColbertCollection, stream: DocumentStream, seen: SeenIds, paths: Sequence[str]
) -> None:
    """Also documents of files that are gone from the folders given, and of no others."""
    roots = [source_name(path) for path in paths if Path(path).is_dir()]
    read = {name for name, _ in stream.read_files()}
    there = stream.names
    for payload in collection.payloads([FILE_KEY, ID_KEY]):
        name, own_id = payload.get(FILE_KEY), str(payload.get(ID_KEY))
        stale = name in read and own_id not in seen
        missing = name is not None and name not in there and any(_is_under(str(name), root) for root in roots)
        if stale or missing:
            seen.note_gone(own_id)


def _is_under(source: str, root: str) -> bool:
    if root == ".":
        return not (Path(source).is_absolute() or source.startswith("../"))
    return source.startswith(f"{root}/")
