"""Import documents from other Qdrant collections, such as those with dense vectors.

The import reads payloads and encodes their texts, since a dense vector cannot be converted to a multivector. A function
converts each payload to a document. Functions for well-known layouts are found by name: any installed package can
provide them as entry points in the group ``jcv2_plugin.layouts``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from qdrant_client import QdrantClient, models

from jcv2_plugin.collection.ingest import BATCH_DOCUMENTS
from jcv2_plugin.documents import Document
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
    batch_documents: int = BATCH_DOCUMENTS,
    progress: Callable[[int], None] | None = None,
    journal: str | os.PathLike[str] | None = None,
    workers: int | Sequence[str] = 0,
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
        batch_documents: See :meth:`ColbertCollection.ingest`.
        progress: Called after each batch with the number of points processed since the last call, including skipped
            ones.
        journal: See :meth:`ColbertCollection.ingest`.
        workers: See :meth:`ColbertCollection.ingest`.

    Raises:
        CollectionNotFoundError: The source does not exist.
        InvalidOptionError: Source and target are the same collection, or ``document_of`` is not a function.
        InvalidDocumentError: A document cannot be stored. The batches before it are stored.
    """
    if not callable(document_of):
        raise InvalidOptionError(
            f"document_of must be a function of a point's id and payload, got {document_of!r:.80}. For a layout by "
            "name, take load_layout(name)."
        )
    engine = source_engine(source, source_name)
    _check_different(engine, target)
    reader = _Reader(document_of)
    done = target.ingest(
        reader.documents(engine, filter),
        batch_documents=batch_documents,
        progress=None if progress is None else lambda stored: progress(stored + reader.newly_skipped()),
        journal=journal,
        workers=workers,
    )
    if progress is not None and (rest := reader.newly_skipped()):
        progress(rest)
    report = reader.report
    report.written, report.unchanged = done.written, done.unchanged
    return report


def source_engine(client: QdrantClient, name: str) -> ClientEngine:
    """Open the source collection.

    Raises:
        CollectionNotFoundError: There is no collection of this name.
    """
    try:
        return ClientEngine.open(client, name)
    except CollectionNotFoundError as error:
        found = str(error).removesuffix(" Create it first.")
        raise CollectionNotFoundError(f"Nothing to import: {found} Check the source's name.") from error


class _Reader:
    """Convert points to documents and count them."""

    def __init__(self, document_of: DocumentOf) -> None:
        self.report = ImportReport()
        self._document_of = document_of
        self._told = 0

    def documents(self, engine: ClientEngine, filter: models.Filter | None) -> Iterator[Document]:
        """Yield the documents of all points that match the filter, in order of point ids."""
        for record in engine.scroll(filter, with_payload=True):
            self.report.read += 1
            document = self._document_of(record.id, record.payload)
            if document is not None and not isinstance(document, Document):
                raise InvalidDocumentError(
                    f"document_of gave {type(document).__name__} for the point {record.id!r}. It must give a Document, "
                    "or None to leave the point out."
                )
            if document is None:
                self._skip(record.id, f"no document in its payload, whose keys are {_named(record.payload)}")
            elif isinstance(document.text, str) and not document.text.strip():
                self._skip(record.id, "its text is blank")
            else:
                yield document if document.id is not None else replace(document, id=record.id)

    def newly_skipped(self) -> int:
        """Return the number of points skipped since the last call."""
        new, self._told = self.report.skipped - self._told, self.report.skipped
        return new

    def _skip(self, point_id: str, reason: str) -> None:
        self.report.skipped += 1
        if len(self.report.first_skipped) < _SKIPPED_NAMED:
            self.report.first_skipped.append(Skipped(point_id, reason))


def _named(payload: Mapping[str, Any]) -> str:
    keys = sorted(map(str, payload))
    return ", ".join(map(repr, keys[:_KEYS_NAMED])) + (", ..." if len(keys) > _KEYS_NAMED else "") or "none"


def _check_different(source: ClientEngine, target: ColbertCollection) -> None:
    into = target.engine
    if not isinstance(into, ClientEngine) or into.physical != source.physical:
        return
    if into.client is source.client or (not source.is_local and into.address == source.address):
        raise InvalidOptionError(f"{into.title} is both source and target. Import into a collection of another name.")


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
    found = [one for one in entry_points(group=LAYOUTS) if one.name == name]
    if not found:
        there = f"Installed are {layouts()}" if layouts() else "None is installed"
        raise InvalidOptionError(
            f"There is no layout {name!r}. {there}; for another layout give import_qdrant a function of your own."
        )
    try:
        document_of = found[0].load()
    except ImportError as error:
        raise InvalidOptionError(
            f"The layout {name!r} needs a package that is not installed ({error}). Install it with: "
            f"pip install {_requirement(found[0])!r}"
        ) from error
    given = dict(options or {})
    known = _options_of(document_of)
    if wrong := sorted(set(given) - set(known)):
        raise InvalidOptionError(f"The layout {name!r} has no option {wrong[0]!r}; there are {known}.")
    layout: DocumentOf = partial(document_of, **given) if given else document_of
    return layout


def _requirement(layout: EntryPoint) -> str:
    """Return the requirement to install for a layout: its distribution, with the extra of the layout's name, if any."""
    distribution = layout.dist
    if distribution is None:
        return layout.module.partition(".")[0]
    extras = distribution.metadata.get_all("Provides-Extra") or []
    return f"{distribution.name}[{layout.name}]" if layout.name in extras else distribution.name


def _options_of(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]
