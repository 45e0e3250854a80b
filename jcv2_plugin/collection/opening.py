"""Open or create collections on behalf of a framework's class: what its adapters have in common."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qdrant_client import QdrantClient, models

from jcv2_plugin.collection.checks import check_lengths
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.qdrant_import import DocumentOf, import_qdrant
from jcv2_plugin.collection.state import load_encoder
from jcv2_plugin.documents import Document, validate
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.errors import CollectionNotFoundError, InvalidOptionError

logger = logging.getLogger(__name__)

DEFAULT_ENCODER = "mini"
_FOREIGN = {
    "collection_name": "name=...",
    "force_recreate": "overwrite=True",
    "api_key": "client_options={'api_key': ...}",
    "prefer_grpc": "client_options={'prefer_grpc': True}",
    "embedding": "encoder=... (a multi-vector model, loaded or by name)",
    "embed_model": "encoder=... (a multi-vector model, loaded or by name)",
    "distance": "nothing: late interaction is ranked by MaxSim",
    "retrieval_mode": "first_stage='hybrid', 'pooled', 'bm25' or 'none'",
}
"""What the frameworks' Qdrant stores call it, and what to write here."""
_LOCATION_OPTIONS = ("location", "path", "url", "client")


def open_collection(collection: ColbertCollection | str | os.PathLike[str] | None, **options: Any) -> ColbertCollection:
    """A collection, opened if it is not.

    Args:
        collection: An open one, or its location.
        **options: Those of ``ColbertCollection.open``.

    Raises:
        CollectionNotFoundError: There is none.
        TypeError: Options are given with an open collection.
    """
    if not isinstance(collection, ColbertCollection):
        _refuse_foreign(options)
        if isinstance(collection, str) and _has_location(options):
            raise TypeError(
                f"{collection!r} is taken for a location, and another location is given beside it. For the collection "
                f"of that name write name={collection!r}."
            )
        return ColbertCollection.open(collection, **options)
    if options:
        raise TypeError(f"The collection is open: {sorted(options)} can no longer be chosen. Leave them out.")
    return collection


def create_collection(**options: Any) -> ColbertCollection:
    """A new collection, in memory where no location is given.

    Args:
        **options: Those of ``ColbertCollection.create``, ``location`` included. An ``encoder`` of None is ``"mini"``.
    """
    _refuse_foreign(options)
    if not _has_location(options):
        options["location"] = ":memory:"
    if options.get("encoder") is None:
        options["encoder"] = DEFAULT_ENCODER
    return ColbertCollection.create(**options)


def create_filled(
    documents: Sequence[Document], create: Callable[..., ColbertCollection] = create_collection, **options: Any
) -> ColbertCollection:
    """A new collection with documents in it. They are checked before anything is created or, what is worse, replaced.

    Args:
        documents: What to store.
        create: Makes a collection of the options.
        **options: As for :func:`create_collection`.

    Raises:
        InvalidDocumentError: A document cannot be stored. Nothing was created or replaced.
    """
    checked = validate(documents)
    encoder = options.get("encoder")
    if encoder is None or isinstance(encoder, (str, os.PathLike)):
        encoder = load_encoder(DEFAULT_ENCODER if encoder is None else encoder, dims=options.get("dim"))
    options["encoder"] = encoder
    schema = CollectionSchema.describe(
        encoder,
        encoder.resolve_dim(options.get("dim")),
        options.get("long_documents", "split"),
        options.get("storage", "float16"),
    )
    check_lengths(checked, schema, encoder)
    collection = create(**options)
    try:
        collection.add(checked)
    except BaseException:
        collection.close()
        raise
    return collection


def open_or_create(create: Callable[..., ColbertCollection] = create_collection, **options: Any) -> ColbertCollection:
    """The collection that is there, or else a new one.

    Args:
        create: Makes a new one of the options.
        **options: Those of ``ColbertCollection.create``; None stands for what is not said.

    Raises:
        CollectionMismatchError: The one that is there was made with another model or dimension.
    """
    if _has_location(options):
        known = inspect.signature(ColbertCollection.open).parameters
        try:
            return ColbertCollection.open(**{name: value for name, value in options.items() if name in known})
        except CollectionNotFoundError:
            pass
    return create(**options)


def import_into(
    client: QdrantClient,
    collection_name: str,
    document_of: DocumentOf,
    target: ColbertCollection | None,
    options: Mapping[str, Any],
    *,
    create: Callable[..., ColbertCollection] = create_collection,
    text_option: tuple[str, str],
    filter: models.Filter | None = None,
    progress: Callable[[int], None] | None = None,
) -> ColbertCollection:
    """A collection of ours with the documents of a foreign one, as :func:`~jcv2_plugin.import_qdrant` gives it.

    Args:
        client: Where the foreign one is.
        collection_name: Its name there.
        document_of: Its layout.
        target: An open collection to add to; else :func:`open_or_create` finds or makes one.
        options: For :func:`open_or_create`.
        create: For :func:`open_or_create`.
        text_option: The option that says which payload key holds the text, and what it is.
        filter: Take only the points that it selects.
        progress: Called now and then with the number of points done since.

    Raises:
        TypeError: A target is given together with what describes one.
        InvalidOptionError: No point has a text.
    """
    if target is not None and (unused := sorted(name for name, value in options.items() if value is not None)):
        raise TypeError(f"The target is open: {unused} can no longer be chosen. Leave them out.")
    into = open_or_create(create, **options) if target is None else target
    try:
        report = import_qdrant(client, collection_name, into, document_of, filter=filter, progress=progress)
        if report.read and report.skipped == report.read:
            option, key = text_option
            raise InvalidOptionError(
                f"None of the {report.read} points of {collection_name!r} has text under {key!r}. Say by {option}= "
                "which payload key holds it."
            )
    except BaseException:
        if target is None:
            into.close()
        raise
    if report.skipped:
        logger.warning(
            "Of %s %d of %d points were left out: no text. The first: %s",
            collection_name, report.skipped, report.read, [one.point_id for one in report.first_skipped],
        )  # fmt: skip
    return into


def _refuse_foreign(options: Mapping[str, Any]) -> None:
    """Raise for what other stores' users write, with the name it has here."""
    for name in options:
        if name in _FOREIGN:
            raise TypeError(f"There is no option {name!r} here. Write {_FOREIGN[name]} instead.")


def _has_location(options: Mapping[str, Any]) -> bool:
    return any(options.get(option) is not None for option in _LOCATION_OPTIONS)
