"""Stream the documents of all files, and delete stored documents that the files no longer contain."""

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
    """Iterate over the documents of all files. Duplicate ids are an error.

    Attributes:
        files: Files read so far, including the current one.
        skipped: Number of files that could not be read and were skipped with a message.
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
        # The size of a pipe is unknown.
        self._bytes = 0 if any(file.is_stdin for file in files) else sum(file.size() for file in files)

    @property
    def expected(self) -> int | None:
        """Estimated number of documents, based on the bytes read so far; None if not known yet."""
        if not self._documents or not self._bytes or not self._reader.bytes_read:
            return None
        read = min(self._reader.bytes_read / self._bytes, 1.0)
        return max(round(self._documents / read), self._documents)

    @property
    def names(self) -> set[str]:
        """Names of all files, including those that could not be read."""
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
        """Yield the names of the files read and their numbers of documents.

        Pipes are left out, because each pipe is a new source, not a new version of the same one.
        """
        for file, count in zip(self.files, self._counts, strict=True):
            if not file.is_stdin:
                yield file.name, count


def remove_stale(
    collection: ColbertCollection, stream: DocumentStream, seen: SeenIds, missing_from: Sequence[str] | None
) -> int:
    """Delete documents that are no longer in their file, and return how many.

    All ids are collected before the first deletion, so that nothing is deleted while scrolling.

    Args:
        collection: Collection with the documents.
        stream: The files, read to the end.
        seen: All ids in the files.
        missing_from: Paths whose folders are also checked for files that no longer exist. If None, only files that were
            read are checked.
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
        # Everything that was read is stored. If nothing else is, there is nothing stale, and no need to list ids.
        if collection.count(of_files) > sum(count for _, count in part):
            for own_id in collection.ids(of_files):
                if own_id not in seen:
                    seen.note_gone(own_id)


def _note_stale_and_missing(
    collection: ColbertCollection, stream: DocumentStream, seen: SeenIds, paths: Sequence[str]
) -> None:
    """Also note documents of files that no longer exist in the given folders."""
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
