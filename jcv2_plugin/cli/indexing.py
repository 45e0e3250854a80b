"""``jcv2 index``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.folders import journal_of
from jcv2_plugin.cli.opening import Wanted, open_or_create
from jcv2_plugin.cli.seen import SeenIds
from jcv2_plugin.cli.stream import DocumentStream, remove_stale
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.journal import IngestJournal
from jcv2_plugin.collection.sources import PassageReader, SourceFile, find_files
from jcv2_plugin.console import out, progress_bar, quiet_libraries, remark


@dataclass(frozen=True)
class IndexOptions:
    """How to index; what a new collection is to be like is said by :class:`~jcv2_plugin.cli.opening.Wanted`."""

    chunk_tokens: int
    workers: int
    journal: Path | None
    prune: bool
    strict: bool
    as_json: bool


def run_index(paths: Sequence[str], connection: Connection, wanted: Wanted, options: IndexOptions) -> None:
    """Index files into a collection, made if there is none, and say what was done."""
    files = find_files(paths, allow_empty=options.prune)
    try:
        collection = open_or_create(connection, wanted)
    except KeyboardInterrupt:
        remark("Stopped before anything was stored.")
        raise
    with collection, SeenIds() as seen:
        try:
            result = _index(collection, files, paths, seen, _journal(connection, options), options)
        except KeyboardInterrupt:
            remark(f"Stopped with {collection.count()} documents stored. Run the command again to go on.")
            raise
        _print(result, collection, options)


def _index(
    collection: ColbertCollection,
    files: Sequence[SourceFile],
    paths: Sequence[str],
    seen: SeenIds,
    journal: Path | None,
    options: IndexOptions,
) -> dict[str, Any]:
    quiet_libraries()
    reader = PassageReader(collection.encoder, options.chunk_tokens)
    start = time.perf_counter()
    stream = DocumentStream(reader, files, seen, strict=options.strict)
    if (before := _resumed_at(journal)) > 0:
        remark(f"going on with a run that was stopped after {before} documents")
    with progress_bar("Indexing", None) as advance:
        report = collection.ingest(
            stream,
            progress=lambda done: advance(done, stream.expected),
            journal=journal,
            workers=options.workers,
        )
    removed = remove_stale(collection, stream, seen, paths if options.prune else None)
    return {
        "files": len(stream.files),
        "skipped_files": stream.skipped,
        "written": report.written,
        "unchanged": report.unchanged,
        "removed": removed,
        "documents": collection.count(),
        "resumed_at": report.resumed_at,
        "seconds": round(time.perf_counter() - start, 2),
    }


def _journal(connection: Connection, options: IndexOptions) -> Path | None:
    """The file given; else one in the collection's folder, and none for a server."""
    if options.journal is not None or connection.is_server:
        return options.journal
    return journal_of(connection.folder)


def _resumed_at(journal: Path | None) -> int:
    """How far the run before got, if it was stopped: to be said before this one starts, not when it has ended."""
    if journal is None or not journal.exists():
        return 0
    with IngestJournal.open(journal) as opened:
        return opened.seen


def _print(result: dict[str, Any], collection: ColbertCollection, options: IndexOptions) -> None:
    if options.as_json:
        out.print_json(json.dumps(result), indent=None)
        return
    rate = result["written"] / result["seconds"] if result["seconds"] else 0.0
    remark(
        f"{result['files']} files: {result['written']} documents written, {result['unchanged']} unchanged, "
        f"{result['removed']} removed, in {result['seconds']:.1f} s ({rate:.0f} documents/s)."
    )
    remark(f"{collection.schema.model} at {collection.dim} dims; {result['documents']} documents in the collection.")
