"""``jcv2 index``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdrant_client import models

from jcv2_plugin.cli.app import OFFICIAL
from jcv2_plugin.cli.console import client_options, err, out, progress_bar, quiet_libraries
from jcv2_plugin.collection import ColbertCollection
from jcv2_plugin.documents import Document
from jcv2_plugin.errors import CollectionMismatchError, CollectionNotFoundError
from jcv2_plugin.sources import PassageReader, SourceFile, count_lines, find_files, source_name

if TYPE_CHECKING:
    from jcv2_plugin.schema import Storage


@dataclass(frozen=True)
class IndexOptions:
    """The command's options."""

    collection: str
    model: str | None
    dim: int | None
    chunk_tokens: int
    storage: str | None
    document_length: int | None
    prune: bool
    name: str
    api_key: str | None
    device: str | None
    as_json: bool


def run_index(paths: Sequence[str], options: IndexOptions) -> None:
    """Index files into a collection, made if there is none, and say what was done."""
    files = find_files(paths)
    with _open_or_create(options) as collection:
        quiet_libraries()
        start = time.perf_counter()
        reader = PassageReader(collection.encoder, options.chunk_tokens)
        # Texts are split twice, once to count: that is quick, and the bar then knows its end.
        passages = {file.name: sum(1 for _ in reader.read(file)) for file in files if not file.is_jsonl}
        total = sum(passages.values()) + sum(count_lines(file.path) for file in files if file.is_jsonl)
        removed = 0
        with progress_bar("Indexing", total) as advance:
            report = collection.ingest(_documents(reader, files), progress=advance)
        for name, count in passages.items():
            removed += _drop_stale_passages(collection, name, count)
        if options.prune:
            removed += _prune(collection, paths, files)
        result = {
            "files": len(files),
            "written": report.written,
            "unchanged": report.unchanged,
            "removed": removed,
            "documents": collection.count(),
            "seconds": round(time.perf_counter() - start, 2),
        }
        _print(result, collection, options)


def _open_or_create(options: IndexOptions) -> ColbertCollection:
    connection = client_options(options.api_key)
    try:
        collection = ColbertCollection.open(
            options.collection, name=options.name, device=options.device, client_options=connection
        )
    except CollectionNotFoundError:
        quiet_libraries()
        from jcv2_plugin.encoder import JinaColbertEncoder

        encoder = JinaColbertEncoder.from_pretrained(
            options.model or OFFICIAL,
            dims=options.dim,
            device=options.device,
            document_length=options.document_length,
        )
        storage: Storage = options.storage or "float16"  # type: ignore[assignment]  # checked by create
        return ColbertCollection.create(
            options.collection, encoder=encoder, dim=options.dim, storage=storage, name=options.name,
            client_options=connection,
        )  # fmt: skip
    try:
        _check_same(collection, options)
    except BaseException:
        collection.close()
        raise
    return collection


def _check_same(collection: ColbertCollection, options: IndexOptions) -> None:
    schema = collection.schema
    model = options.model
    if model is not None and Path(model).is_dir():
        model = str(Path(model).resolve())
    for option, wanted, found in (
        ("--model", model, schema.model),
        ("--dim", options.dim, schema.dim),
        ("--document-length", options.document_length, schema.document_length),
        ("--storage", options.storage, schema.storage),
    ):
        if wanted is not None and wanted != found:
            raise CollectionMismatchError(
                f"{options.collection!r} was made with {option} {found}, not {wanted}. Leave {option} out, or index "
                "into a new collection."
            )


def _documents(reader: PassageReader, files: Sequence[SourceFile]) -> Iterator[Document]:
    for file in files:
        yield from reader.read(file)


def _source_is(file: str) -> models.FieldCondition:
    return models.FieldCondition(key="metadata.source", match=models.MatchValue(value=file))


def _drop_stale_passages(collection: ColbertCollection, name: str, passages: int) -> int:
    """A file that has become shorter has fewer passages than it had."""
    beyond = models.FieldCondition(key="metadata.chunk", range=models.Range(gte=passages))
    stale = models.Filter(must=[_source_is(name), beyond])
    removed = collection.count(stale)
    if removed:
        collection.delete(filter=stale)
    return removed


def _prune(collection: ColbertCollection, paths: Sequence[str], files: Sequence[SourceFile]) -> int:
    """Remove the passages of files that are gone from the folders given, and nothing else."""
    roots = [source_name(path) for path in paths if Path(path).is_dir()]
    present = {file.name for file in files}
    gone = []
    for document in collection.scroll():
        source = str(document.metadata.get("source"))
        is_passage = document.id == f"{source}#{document.metadata.get('chunk')}"
        if is_passage and source not in present and any(_is_under(source, root) for root in roots):
            gone.append(document.id)
    collection.delete(gone)
    return len(gone)


def _is_under(source: str, root: str) -> bool:
    if root == ".":
        return not (Path(source).is_absolute() or source.startswith("../"))
    return source.startswith(f"{root}/")


def _print(result: dict[str, Any], collection: ColbertCollection, options: IndexOptions) -> None:
    if options.as_json:
        out.print_json(json.dumps(result), indent=None)
        return
    rate = result["written"] / result["seconds"] if result["seconds"] else 0.0
    err.print(
        f"{result['files']} files: {result['written']} documents written, {result['unchanged']} unchanged, "
        f"{result['removed']} removed, in {result['seconds']:.1f} s ({rate:.0f} documents/s)."
    )
    err.print(f"{collection.schema.model} at {collection.dim} dims; {result['documents']} documents in the collection.")
