"""``jcv2 index``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdrant_client import models

from jcv2_plugin.cli.app import OFFICIAL
from jcv2_plugin.cli.console import client_options, err, out, progress_bar, quiet_libraries
from jcv2_plugin.collection import ColbertCollection
from jcv2_plugin.documents import ID_KEY, Document
from jcv2_plugin.errors import CollectionMismatchError, CollectionNotFoundError
from jcv2_plugin.sources import FILE_KEY, PassageReader, SourceError, SourceFile, count_lines, find_files, source_name

if TYPE_CHECKING:
    from jcv2_plugin.storage import Storage


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
    strict: bool
    name: str
    api_key: str | None
    device: str | None
    as_json: bool


def run_index(paths: Sequence[str], options: IndexOptions) -> None:
    """Index files into a collection, made if there is none, and say what was done."""
    files = find_files(paths, allow_empty=options.prune)
    with _open_or_create(options) as collection:
        quiet_libraries()
        start = time.perf_counter()
        reader = PassageReader(collection.encoder, options.chunk_tokens)
        # Texts are split twice, once to count: that is quick, and the bar then knows its end.
        sizes = _sizes(reader, files, strict=options.strict)
        stream = _Stream(reader, [file for file in files if file.name in sizes])
        try:
            with progress_bar("Indexing", sum(sizes.values())) as advance:
                report = collection.ingest(stream, progress=advance)
        except KeyboardInterrupt:
            err.print(f"Stopped with {collection.count()} documents stored. Run the command again to go on.")
            raise
        gone = [one for file in stream.files for one in _stale(collection, file, stream.ids)]
        if options.prune:
            gone += _of_missing_files(collection, paths, files)
        collection.delete(gone)
        result = {
            "files": len(stream.files),
            "skipped_files": len(files) - len(stream.files),
            "written": report.written,
            "unchanged": report.unchanged,
            "removed": len(gone),
            "documents": collection.count(),
            "seconds": round(time.perf_counter() - start, 2),
        }
        _print(result, collection, options)


def _sizes(reader: PassageReader, files: Sequence[SourceFile], *, strict: bool) -> dict[str, int]:
    """Documents in each file that can be read; one that cannot is left out with a word."""
    sizes = {}
    for file in files:
        try:
            sizes[file.name] = count_lines(file.path) if file.is_jsonl else sum(1 for _ in reader.read(file))
        except SourceError as error:
            if strict:
                raise
            err.print(f"skipped: {error}", soft_wrap=True, markup=False)
    return sizes


class _Stream:
    """The documents of all files, one after the other, remembering which file each id came from."""

    def __init__(self, reader: PassageReader, files: Sequence[SourceFile]) -> None:
        self.files = files
        self.ids: dict[str, str] = {}
        self._reader = reader

    def __iter__(self) -> Iterator[Document]:
        for file in self.files:
            for document in self._reader.read(file):
                own_id = str(document.id)
                if own_id in self.ids:
                    raise SourceError(
                        f"{file.name}: the id {own_id!r} comes a second time (first in {self.ids[own_id]}). Ids must "
                        "be distinct; documents up to here are stored."
                    )
                self.ids[own_id] = file.name
                yield document


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


def _stale(collection: ColbertCollection, file: SourceFile, present: Mapping[str, str]) -> list[str]:
    """Documents that a file had when it was last indexed and has no more."""
    of_file = models.FieldCondition(key=FILE_KEY, match=models.MatchValue(value=file.name))
    return [one for one in collection.ids(models.Filter(must=[of_file])) if one not in present]


def _of_missing_files(collection: ColbertCollection, paths: Sequence[str], files: Sequence[SourceFile]) -> list[str]:
    """Documents of files that are gone from the folders given, and of no others."""
    roots = [source_name(path) for path in paths if Path(path).is_dir()]
    present = {file.name for file in files}
    missing = []
    for payload in collection.payloads([FILE_KEY, ID_KEY]):
        name = payload.get(FILE_KEY)
        if name is not None and name not in present and any(_is_under(name, root) for root in roots):
            missing.append(str(payload[ID_KEY]))
    return missing


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
