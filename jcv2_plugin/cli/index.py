"""``jcv2 index``: index files into a collection."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.folders import journal_of
from jcv2_plugin.cli.options import (
    FIRST_STAGES_HELP,
    POOL_HELP,
    STORAGES_HELP,
    ApiKey,
    Collection,
    Device,
    Grpc,
    Json,
    Name,
    Retries,
    Timeout,
    Workers,
)
from jcv2_plugin.cli.seen import SeenIds
from jcv2_plugin.cli.stream import DocumentStream, remove_stale
from jcv2_plugin.cli.target import Wanted, open_target
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.journal import IngestJournal
from jcv2_plugin.collection.sources import PassageReader, find_files
from jcv2_plugin.console import out, progress_bar, quiet_libraries, remark
from jcv2_plugin.encoder import DEFAULT_MODEL


def index(
    paths: Annotated[
        list[str], typer.Argument(help="Files and folders: .md .txt .rst .py .html, and .jsonl; - is JSONL from stdin.")
    ],
    collection: Collection,
    model: Annotated[
        str | None,
        typer.Option(help=f"A model by name or folder, for a new collection; {DEFAULT_MODEL} if not given."),
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Matryoshka dimension, for a new collection.")] = None,
    chunk_tokens: Annotated[int, typer.Option(help="Largest passage, in tokens.")] = 200,
    storage: Annotated[
        str | None, typer.Option(help=f"{STORAGES_HELP}; for a new collection, float16 if not given.")
    ] = None,
    first_stage: Annotated[
        str | None, typer.Option(help=f"{FIRST_STAGES_HELP}; for a new collection, hybrid if not given.")
    ] = None,
    pool_factor: Annotated[float | None, typer.Option(help=f"{POOL_HELP}; for a new collection.")] = None,
    document_length: Annotated[int | None, typer.Option(help="The model's window, for a new collection.")] = None,
    payload_index: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=KIND", help="Index metadata for filters, such as topic=keyword. Repeatable."),
    ] = None,
    shard_key: Annotated[str | None, typer.Option(help="The shard to write to, on a server with custom ones.")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Shards, for a new collection on a server.")] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Copies of each shard, for a new collection on a server.")
    ] = None,
    workers: Workers = 0,
    journal: Annotated[
        Path | None,
        typer.Option(help="A file that remembers how far the run got; a folder's ingest.journal if not given."),
    ] = None,
    prune: Annotated[bool, typer.Option(help="Also remove documents whose files are gone from the folders.")] = False,
    strict: Annotated[bool, typer.Option(help="Stop at an unreadable text file instead of skipping it.")] = False,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
    retries: Retries = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Index files; run it again and only what changed is encoded.

    Text files are split into passages. .jsonl files have one document per line, as {"_id", "title", "text"} (BEIR) or
    {"id", "text", "metadata"}.
    """
    connection = Connection(collection, name, api_key, timeout, grpc, retries)
    wanted = Wanted(
        model=model,
        dim=dim,
        storage=storage,
        first_stage=first_stage,
        pool_factor=pool_factor,
        document_length=document_length,
        payload_indexes=tuple(payload_index or ()),
        shard_key=shard_key,
        shards=shards,
        replicas=replicas,
        device=device,
    )
    files = find_files(paths, allow_empty=prune)
    if journal is None and not connection.is_server:
        journal = journal_of(connection.folder)
    try:
        opened = open_target(connection, wanted)
    except KeyboardInterrupt:
        remark("Stopped before anything was stored.")
        raise
    with opened, SeenIds() as seen:
        quiet_libraries()
        stream = DocumentStream(PassageReader(opened.encoder, chunk_tokens), files, seen, strict=strict)
        try:
            result = _index(opened, stream, seen, paths if prune else None, journal, workers)
        except KeyboardInterrupt:
            remark(f"Stopped with {opened.count()} documents stored. Run the command again to go on.")
            raise
        _print(result, opened, as_json=as_json)


def _index(
    collection: ColbertCollection,
    stream: DocumentStream,
    seen: SeenIds,
    pruned: Sequence[str] | None,
    journal: Path | None,
    workers: int,
) -> dict[str, Any]:
    start = time.perf_counter()
    if (before := _resumed_at(journal)) > 0:
        remark(f"going on with a run that was stopped after {before} documents")
    with progress_bar("Indexing", None) as advance:
        report = collection.ingest(
            stream,
            progress=lambda done: advance(done, stream.expected),
            journal=journal,
            workers=workers,
        )
    removed = remove_stale(collection, stream, seen, pruned)
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


def _resumed_at(journal: Path | None) -> int:
    """Return how far an interrupted run got. Read before the new run, so that it can be shown at the start."""
    if journal is None or not journal.exists():
        return 0
    with IngestJournal.open(journal) as opened:
        return opened.seen


def _print(result: dict[str, Any], collection: ColbertCollection, *, as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps(result), indent=None)
        return
    rate = result["written"] / result["seconds"] if result["seconds"] else 0.0
    remark(
        f"{result['files']} files: {result['written']} documents written, {result['unchanged']} unchanged, "
        f"{result['removed']} removed, in {result['seconds']:.1f} s ({rate:.0f} documents/s)."
    )
    remark(f"{collection.schema.model} at {collection.dim} dims; {result['documents']} documents in the collection.")
