"""``jcv2 index``: index files into a collection."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from qdrant_client import models

from jcv2_plugin.cli.connection import WritingConnection
from jcv2_plugin.cli.options import Json, Workers
from jcv2_plugin.cli.target import WantedForFiles, open_target
from jcv2_plugin.collection.cluster import Cluster
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.ingest import IngestReport
from jcv2_plugin.collection.journal import IngestJournal
from jcv2_plugin.collection.sources import (
    DEFAULT_CHUNK_TOKENS,
    DEFAULT_MAX_MIB,
    FILE_KEY,
    STDIN,
    STDIN_NAME,
    NotEntered,
    PassageReader,
    SourceError,
    SourceFile,
    find_files,
)
from jcv2_plugin.console import progress_bar, quiet_libraries, remark, to_json
from jcv2_plugin.documents import ID_KEY, Document, left_out
from jcv2_plugin.engines.edge import JOURNAL
from jcv2_plugin.errors import InvalidDocumentError, InvalidOptionError

_FILES_A_FILTER = 30
_DELETED_AT_ONCE = 1000
_CACHE_KIB = 8 * 1024


def index(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files and folders: .md, .txt, .rst, .py, .html and .jsonl; - reads JSON Lines from stdin."
        ),
    ],
    connection: WritingConnection,
    wanted: WantedForFiles,
    chunk_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum size of a passage, in tokens.")
    ] = DEFAULT_CHUNK_TOKENS,
    max_mib: Annotated[
        int, typer.Option(min=1, help="Maximum size of a text file, and of a line of .jsonl.", metavar="MIB")
    ] = DEFAULT_MAX_MIB,
    workers: Workers = 0,
    journal: Annotated[
        Path | None,
        typer.Option(help="File that records how far the run got. Default: ingest.journal in the collection's folder."),
    ] = None,
    prune: Annotated[
        bool, typer.Option(help="Also delete the documents of files that are gone from the given folders.")
    ] = False,
    strict: Annotated[bool, typer.Option(help="Stop at an unreadable file instead of skipping it.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Index on a Ray cluster: auto, its address, or local to start one here. --workers is the number of "
            "encoders; the default is one per GPU or core.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Index files. Run it again to encode only what has changed.

    Text files are split into passages. .jsonl files have one document per line, as {"_id", "title", "text"} (BEIR) or
    {"id", "text", "metadata"}.

    If the collection does not exist, it is created with the given settings. Defaults: model jinaai/jina-colbert-v2,
    storage float16, first stage hybrid. If it exists, the given settings must be those it was created with.
    """
    cluster = None if ray is None else _cluster(ray, paths, connection, wanted, journal, workers)
    not_entered = NotEntered()
    files = find_files(paths, allow_empty=prune, not_entered=not_entered)
    if strict and not_entered.unread:
        raise SourceError(not_entered.reasons()[0])
    for reason in not_entered.reasons():
        remark(f"skipped: {reason}")
    if journal is None and not connection.is_server:
        journal = connection.folder / JOURNAL
    try:
        # The reader refuses passages larger than the model's window: before a collection is created.
        opened = open_target(connection, wanted, lambda encoder: PassageReader(encoder, chunk_tokens, max_mib))
    except KeyboardInterrupt:
        remark("Stopped before anything was stored.")
        raise
    with opened, closing(SeenIds()) as seen:
        quiet_libraries()
        reader = PassageReader(opened.encoder, chunk_tokens, max_mib)
        stream = DocumentStream(reader, files, seen, strict=strict, not_entered=not_entered)
        try:
            result = _index(opened, stream, paths if prune else None, journal, workers, cluster)
        except (KeyboardInterrupt, SourceError, InvalidDocumentError):
            remark(f"Stopped with {opened.count()} documents stored. Run the command again to continue.")
            raise
        _print(result, opened, as_json=as_json)


def _cluster(
    address: str,
    paths: Sequence[str],
    connection: WritingConnection,
    wanted: WantedForFiles,
    journal: Path | None,
    workers: int,
) -> Cluster:
    if STDIN in paths:
        raise SourceError("The machines of a cluster cannot read this one's stdin (-). Write it to a .jsonl file.")
    if journal is not None:
        raise InvalidOptionError(
            f"A run on a cluster keeps no journal ({journal}), since what is stored is not encoded again. Leave out "
            "--journal."
        )
    options = {
        "first_stage": "none",  # as Connection.open
        "device": wanted.device,
        "shard_key": wanted.shard,
        **connection.arguments,
    }
    return Cluster(address, connection.location, options, workers)


def _index(
    collection: ColbertCollection,
    stream: DocumentStream,
    pruned: Sequence[str] | None,
    journal: Path | None,
    workers: int,
    cluster: Cluster | None,
) -> dict[str, Any]:
    start = time.perf_counter()
    if journal is not None and journal.exists():
        with IngestJournal.open(journal) as opened:
            if opened.seen:
                remark(f"Continuing a run that was stopped after {opened.seen} documents.")
    with progress_bar("Indexing", None) as advance:

        def progress(done: int) -> None:
            advance(done, stream.expected)

        if cluster is None:
            report = collection.ingest(stream, progress=progress, journal=journal, workers=workers)
        else:
            report = stream.index_on(cluster, progress)
    removed = stream.remove_stale(collection, pruned)
    if stream.blank:
        remark(left_out(stream.blank))
    return {
        "files": len(stream.files),
        "skipped_files": stream.skipped,
        "blank": len(stream.blank),
        "written": report.written,
        "unchanged": report.unchanged,
        "removed": removed,
        "documents": collection.count(),
        "resumed_at": report.resumed_at,
        "seconds": round(time.perf_counter() - start, 2),
    }


def _print(result: dict[str, Any], collection: ColbertCollection, *, as_json: bool) -> None:
    if as_json:
        typer.echo(to_json(result))
        return
    rate = result["written"] / result["seconds"] if result["seconds"] else 0.0
    remark(
        f"{result['files']} files: {result['written']} documents written, {result['unchanged']} unchanged, "
        f"{result['removed']} removed, in {result['seconds']:.1f} s ({rate:.0f} documents/s)."
    )
    remark(f"{collection.schema.model} at {collection.dim} dims; {result['documents']} documents in the collection.")


class SeenIds:
    """The ids that a run has read and those of documents to delete, in a temporary SQLite database.

    SQLite keeps it in an unnamed file, through a cache of a fixed size. So memory does not grow with the number of
    documents, and nothing is left on disk even if the process is killed.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect(":memory:")
        # Only temporary tables can be put on disk however SQLite was compiled. They need no journal.
        self._database.executescript(
            f"PRAGMA temp_store = FILE; PRAGMA temp.journal_mode = OFF; PRAGMA temp.cache_size = -{_CACHE_KIB};"
            "CREATE TEMP TABLE seen (id BLOB PRIMARY KEY, file INTEGER) WITHOUT ROWID; CREATE TEMP TABLE gone (id TEXT)"
        )

    def add(self, own_id: str, file: int) -> int | None:
        """Add an id found in file number ``file``. Return the file it was first found in, if it is a duplicate."""
        row = (_digest(own_id), file)
        added = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", row).rowcount
        return None if added else self._file_of(own_id)

    def __contains__(self, own_id: str) -> bool:
        return self._file_of(own_id) is not None

    def _file_of(self, own_id: str) -> int | None:
        row = self._database.execute("SELECT file FROM seen WHERE id = ?", (_digest(own_id),)).fetchone()
        return None if row is None else int(row[0])

    def note_gone(self, own_id: str) -> None:
        """Add the id of a document to delete."""
        self._database.execute("INSERT INTO gone VALUES (?)", (own_id,))

    def gone(self) -> Iterator[list[str]]:
        """Yield the ids of the documents to delete, in batches."""
        rows = self._database.execute("SELECT id FROM gone")
        while batch := rows.fetchmany(_DELETED_AT_ONCE):
            yield [own_id for (own_id,) in batch]

    def close(self) -> None:
        """Delete the database."""
        self._database.close()


def _digest(own_id: str) -> bytes:
    return hashlib.blake2b(own_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class DocumentStream:
    """Iterate over the documents of all files. Duplicate ids are an error.

    ``files`` are those read so far, and ``skipped`` counts those that could not be read and were skipped with a
    message.
    """

    def __init__(
        self,
        reader: PassageReader,
        files: Sequence[SourceFile],
        seen: SeenIds,
        *,
        strict: bool,
        not_entered: NotEntered | None = None,
    ) -> None:
        self._not_entered = not_entered or NotEntered()
        self.files: list[SourceFile] = []
        self.skipped = 0
        self._reader = reader
        self._all = files
        self._seen = seen
        self._strict = strict
        self._counts: Counter[str] = Counter()
        self._documents = 0
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
    def blank(self) -> list[str]:
        """Ids of the documents left out because they have no text."""
        return self._reader.blank

    def __iter__(self) -> Iterator[Document]:
        for number, file in enumerate(self._all):
            try:
                documents = self._reader.read(file)
            except SourceError as error:
                if self._strict:
                    raise
                self._skip(str(error))
                continue
            self.files.append(file)
            for document in documents:
                self._note(number, str(document.id))
                yield document

    def index_on(self, cluster: Cluster, progress: Callable[[int], None]) -> IngestReport:
        """Let a cluster read the files and store their documents, instead of iterating over them here.

        A duplicate id is noticed when both documents are read, and perhaps stored: the collection has one of them.
        """
        report = IngestReport()
        # Closed at once, so that an error or Ctrl-C ends the work of the cluster.
        with closing(cluster.index(self._all, self._reader, strict=self._strict)) as outcomes:
            for outcome in outcomes:
                self._reader.bytes_read += outcome.bytes_read
                self._reader.blank += outcome.blank
                self.files += [self._all[number] for number in outcome.read]
                for _, reason in outcome.skipped:
                    self._skip(reason)
                for number, own_id in zip(outcome.files, outcome.ids, strict=True):
                    self._note(number, own_id)
                report.written += outcome.written
                report.unchanged += outcome.unchanged
                progress(len(outcome.ids))
        return report

    def _skip(self, reason: str) -> None:
        remark(f"skipped: {reason}")
        self.skipped += 1

    def _note(self, number: int, own_id: str) -> None:
        name = self._all[number].name
        first = self._seen.add(own_id, number)
        if first is not None:
            raise SourceError(
                f"{name}: the id {own_id!r} occurs a second time (first in {self._all[first].name}). Give each "
                "document an id of its own."
            )
        self._counts[name] += 1
        self._documents += 1

    def remove_stale(self, collection: ColbertCollection, paths: Sequence[str] | None) -> int:
        """Delete documents that are no longer in their file, once all files are read, and return how many.

        With ``paths``, also those of files that no longer exist in these folders. All ids are collected before the
        first deletion, so that nothing is deleted while scrolling.
        """
        for own_id in self._stale(collection) if paths is None else self._stale_or_missing(collection, paths):
            self._seen.note_gone(own_id)
        removed = 0
        for batch in self._seen.gone():
            collection.delete(batch)
            removed += len(batch)
        return removed

    def _files_read(self) -> list[SourceFile]:
        # Without pipes, because each pipe is a new source, not a new version of the same one.
        return [file for file in self.files if not file.is_stdin]

    def _stale(self, collection: ColbertCollection) -> Iterator[str]:
        files = self._files_read()
        for start in range(0, len(files), _FILES_A_FILTER):
            part = files[start : start + _FILES_A_FILTER]
            names = models.MatchAny(any=sorted(set().union(*map(_names_of, part))))
            of_files = models.Filter(must=[models.FieldCondition(key=FILE_KEY, match=names)])
            # Everything that was read is stored. If nothing else is, there is nothing stale, and no need to list ids.
            if collection.count(of_files) > sum(self._counts[file.name] for file in part):
                yield from (own_id for own_id in collection.ids(of_files) if own_id not in self._seen)

    def _stale_or_missing(self, collection: ColbertCollection, paths: Sequence[str]) -> Iterator[str]:
        folders = [Path(path) for path in paths if Path(path).is_dir()]
        roots = {os.path.join(root, "") for path in folders for root in (os.path.realpath(path), os.path.abspath(path))}
        read = set().union(*map(_names_of, self._files_read()))
        found = {STDIN_NAME}.union(*map(_names_of, self._all))
        for payload in collection.payloads([FILE_KEY, ID_KEY]):
            name, own_id = payload.get(FILE_KEY), str(payload.get(ID_KEY))
            if name in read:
                stale = own_id not in self._seen
            else:
                file = "" if name is None else os.path.abspath(name)
                stale = file.startswith(tuple(roots)) and name not in found and not self._not_entered.holds(file)
            if stale:
                yield own_id


def _names_of(file: SourceFile) -> set[str]:
    """Return the name of a file, and those that earlier versions gave it, after the path that it was given by."""
    return {file.name, *(Path(path).as_posix() for path in (os.path.normpath(file.path), os.path.abspath(file.path)))}
