"""Open or create collections for framework integrations: the code that their adapters share."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qdrant_client import QdrantClient, models

from jcv2_plugin.collection.collection import ColbertCollection, new_schema
from jcv2_plugin.collection.ingest import check_lengths
from jcv2_plugin.collection.qdrant_import import DocumentOf, import_qdrant
from jcv2_plugin.documents import Document, OnBlank, accepted, warn_of_blank
from jcv2_plugin.encoder import DEFAULT_MODEL
from jcv2_plugin.encoder.named import load_encoder
from jcv2_plugin.errors import (
    CollectionExistsError,
    CollectionNotFoundError,
    CollectionUnfinishedError,
    InvalidOptionError,
)

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder

logger = logging.getLogger(__name__)

_FOREIGN = {
    "collection_name": "name=...",
    "force_recreate": "overwrite=True",
    "api_key": "client_options={'api_key': ...}",
    "prefer_grpc": "client_options={'prefer_grpc': True}",
    "embedding": "encoder=... (a multi-vector model, loaded or by name)",
    "embed_model": "encoder=... (a multi-vector model, loaded or by name)",
    "distance": "nothing: late interaction is ranked by MaxSim",
    "retrieval_mode": "first_stage='hybrid', 'pooled', 'bm25' or 'none'",
    "sparse_embedding": "first_stage=SparseEncoderStage(...) or an object of your own",
}
"""Option names of the frameworks' Qdrant stores, and what to use here instead."""
_OF_THE_SCHEMA = inspect.signature(new_schema).parameters
_LOCATION_OPTIONS = ("location", "path", "url", "client")


def open_collection(collection: ColbertCollection | str | os.PathLike[str] | None, **options: Any) -> ColbertCollection:
    """Return a collection, opening it by ``ColbertCollection.open(collection, **options)`` if it is a location.

    Raises TypeError for an option that is not supported, or cannot be combined with ``collection``.
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
    """Create a collection by ``ColbertCollection.create``, by default in memory and with :data:`DEFAULT_MODEL`."""
    _refuse_foreign(options)
    if not _has_location(options):
        options["location"] = ":memory:"
    if options.get("encoder") is None:
        options["encoder"] = DEFAULT_MODEL
    return ColbertCollection.create(**options)


def create_filled(
    documents: Sequence[Document],
    create: Callable[..., ColbertCollection] = create_collection,
    *,
    on_blank: OnBlank = "skip",
    **options: Any,
) -> ColbertCollection:
    """Create a collection with documents by ``create(**options)``. All are checked before anything is replaced."""
    _refuse_foreign(options)  # before a model is loaded
    checked, blank = accepted(documents, on_blank)
    warn_of_blank(blank)
    encoder = options["encoder"] = _loaded(options.get("encoder"), options.get("dim"))
    schema, _ = new_schema(**{name: value for name, value in options.items() if name in _OF_THE_SCHEMA})
    check_lengths(checked, schema, encoder)
    collection = create(**options)
    try:
        collection.add(checked)
    except BaseException:
        collection.close()
        raise
    return collection


def _loaded(encoder: Encoder | str | os.PathLike[str] | None, dim: int | None) -> Encoder:
    if encoder is None or isinstance(encoder, (str, os.PathLike)):
        return load_encoder(DEFAULT_MODEL if encoder is None else encoder, dims=dim)
    return encoder


def open_or_create(create: Callable[..., ColbertCollection] = create_collection, **options: Any) -> ColbertCollection:
    """Open the collection, or create it by ``create(**options)`` if it does not exist or its creation was interrupted.

    Options are those of ``ColbertCollection.create``; None means that one is not set.
    """
    if _has_location(options):
        known = inspect.signature(ColbertCollection.open).parameters
        try:
            given = {name: value for name, value in options.items() if name in known}
            if _has_no_object(given.get("first_stage")):
                given.pop("first_stage", None)  # like the storage, names are of a new collection
            return ColbertCollection.open(**given)
        except CollectionNotFoundError:
            pass
        except CollectionUnfinishedError as error:
            try:
                return create(**options)
            except CollectionExistsError:  # it was not its creation that was interrupted
                raise error from None
    return create(**options)


def _has_no_object(first_stage: Any) -> bool:
    given = first_stage if isinstance(first_stage, (list, tuple)) else [first_stage]
    return all(one is None or isinstance(one, str) for one in given)


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
    """Import another Qdrant collection with :func:`~jcv2_plugin.import_qdrant` and return the target collection.

    Without an open ``target``, :func:`open_or_create` opens or creates one by ``create`` and ``options``.
    ``text_option`` is the name and value of the option that selects the payload key with the text. Raises TypeError if
    ``target`` is given with options, and InvalidOptionError if no point has a text.
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
    """Raise for option names of other stores, naming the equivalent here."""
    for name in options:
        if name in _FOREIGN:
            raise TypeError(f"There is no option {name!r} here. Write {_FOREIGN[name]} instead.")


def _has_location(options: Mapping[str, Any]) -> bool:
    return any(options.get(option) is not None for option in _LOCATION_OPTIONS)
