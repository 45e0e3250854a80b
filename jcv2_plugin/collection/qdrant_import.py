"""Import documents from other Qdrant collections, such as those with dense vectors.

The import reads payloads and encodes their texts, since a dense vector cannot be converted to a multivector. A function
converts each payload to a document. Functions for well-known layouts are found by name: any installed package can
provide them as entry points in the group ``jcv2_plugin.layouts``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from qdrant_client import QdrantClient, models

from jcv2_plugin.documents import Document, has_text
from jcv2_plugin.engines.qdrant import ClientEngine
from jcv2_plugin.errors import CollectionNotFoundError, InvalidDocumentError, InvalidOptionError

if TYPE_CHECKING:
    from jcv2_plugin.collection.collection import ColbertCollection

DocumentOf = Callable[[str, Mapping[str, Any]], Document | None]
"""Function from a point's id and payload to its document, or to None if it has none."""

LAYOUTS = "jcv2_plugin.layouts"
"""Entry point group of the layouts."""
_SKIPPED_NAMED = 10
_KEYS_NAMED = 8


@dataclass(frozen=True)
class Skipped:
    """A skipped point: its id in the source and the reason."""

    point_id: str
    reason: str


@dataclass
class ImportReport:
    """Result of :func:`import_qdrant`.

    Attributes:
        read: Points read from the source.
        written: Documents encoded and stored.
        unchanged: Documents that were already stored unchanged, for example by an earlier call.
        skipped: Points skipped because they have no text.
        first_skipped: The first ten skipped points.
    """

    read: int = 0
    written: int = 0
    unchanged: int = 0
    skipped: int = 0
    first_skipped: list[Skipped] = field(default_factory=list)


def import_qdrant(
    source: QdrantClient,
    source_name: str,
    target: ColbertCollection,
    document_of: DocumentOf,
    *,
    filter: models.Filter | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> ImportReport:
    """Import the documents of another Qdrant collection.

    The source is read page by page, without its vectors, and is never modified. Documents in the target with the same
    ids are replaced. Repeat an interrupted or killed call to resume: stored documents are not encoded again.

    Args:
        source: Client of the source collection.
        source_name: Name or alias of the source collection.
        target: Collection to add the documents to.
        document_of: Function from a point's id and payload to its document. Points are skipped if it returns None or
            a document with blank text. Documents without an id get the point's id. :func:`load_layout` returns the
            functions for well-known layouts.
        filter: Import only the points that match.
        progress: Called after each batch with the number of points processed since the last call, including skipped
            ones.
        **options: ``batch_documents``, ``journal`` and ``workers`` of :meth:`ColbertCollection.ingest`.

    Raises:
        CollectionNotFoundError: The source does not exist.
        InvalidOptionError: Source and target are the same collection, or ``document_of`` is not a function.
        InvalidDocumentError: A document cannot be stored. The batches before it are stored.
    """
    if not callable(document_of):
        raise InvalidOptionError(
            f"document_of must be a function of a point's id and payload, got {document_of!r:.80}. "
            "load_layout(name) returns the function of a layout."
        )
    engine = source_engine(source, source_name)
    _check_different(engine, target.engine)
    report, told = ImportReport(), 0

    def advance(stored: int) -> None:
        nonlocal told
        stored, told = stored + report.skipped - told, report.skipped
        if progress is not None and stored:
            progress(stored)

    documents = _documents(engine.scroll(filter, with_payload=True), document_of, report)
    done = target.ingest(documents, progress=advance, **options)
    advance(0)
    report.written, report.unchanged = done.written, done.unchanged
    return report


def source_engine(client: QdrantClient, name: str) -> ClientEngine:
    """Open the source collection. Raises CollectionNotFoundError if there is none of this name."""
    try:
        return ClientEngine.open(client, name)
    except CollectionNotFoundError as error:
        found = str(error).removesuffix(" Create it first.")
        raise CollectionNotFoundError(f"Nothing to import: {found} Check the name of the source.") from error


def _documents(records: Iterator[Any], document_of: DocumentOf, report: ImportReport) -> Iterator[Document]:
    """Convert points to documents, and count what is read and skipped."""
    for record in records:
        report.read += 1
        document = document_of(record.id, record.payload)
        if document is not None and not isinstance(document, Document):
            raise InvalidDocumentError(
                f"document_of returned {type(document).__name__} for the point {record.id!r}. It must return a "
                "Document, or None to skip the point."
            )
        if document is not None and not (isinstance(document.text, str) and not has_text(document.text)):
            yield document if document.id is not None else replace(document, id=record.id)
            continue
        report.skipped += 1
        if len(report.first_skipped) < _SKIPPED_NAMED:
            keys = sorted(map(str, record.payload))
            named = ", ".join(map(repr, keys[:_KEYS_NAMED])) + (", ..." if len(keys) > _KEYS_NAMED else "") or "none"
            reason = f"no document in its payload, whose keys are {named}" if document is None else "its text is blank"
            report.first_skipped.append(Skipped(record.id, reason))


def _check_different(source: ClientEngine, target: Any) -> None:
    if not isinstance(target, ClientEngine) or target.physical != source.physical:
        return
    if target.client is source.client or (not source.is_local and target.address == source.address):
        raise InvalidOptionError(f"{target.title} is both source and target. Import into a collection of another name.")


def layouts() -> list[str]:
    """Return the names of the installed layouts, for :func:`load_layout`."""
    return sorted({one.name for one in entry_points(group=LAYOUTS)})


def load_layout(name: str, options: Mapping[str, Any] | None = None) -> DocumentOf:
    """Return the function that converts points of a well-known layout to documents, for :func:`import_qdrant`.

    Args:
        name: One of :func:`layouts`.
        options: Keyword arguments for the layout's function, such as the payload key of the text.

    Raises:
        InvalidOptionError: The layout or an option is unknown, or a package that the layout needs is not installed.
    """
    found = next((one for one in entry_points(group=LAYOUTS) if one.name == name), None)
    if found is None:
        raise InvalidOptionError(
            f"There is no layout {name!r}. Installed are {layouts()}. For another layout, pass a function of your own "
            "to import_qdrant."
        )
    try:
        document_of = found.load()
    except ImportError as error:
        package = "jcv2-plugin" if found.dist is None else found.dist.name
        raise InvalidOptionError(
            f"The layout {name!r} needs a package that is not installed ({error}). Install it with: "
            f"pip install '{package}[{name}]'"
        ) from error
    parameters = inspect.signature(document_of).parameters.values()
    known = [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]
    if wrong := sorted(set(options or {}) - set(known)):
        raise InvalidOptionError(f"The layout {name!r} has no option {wrong[0]!r}. Its options are {known}.")
    layout: DocumentOf = partial(document_of, **options) if options else document_of
    return layout
