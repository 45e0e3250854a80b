"""Open or create collections for framework integrations: the code that their adapters share."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qdrant_client import QdrantClient, models

from jcv2_plugin.collection.checks import check_lengths
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.qdrant_import import DocumentOf, import_qdrant
from jcv2_plugin.documents import Document, OnBlank, accepted, warn_of_blank
from jcv2_plugin.encoder import DEFAULT_MODEL
from jcv2_plugin.encoder.named import load_encoder
from jcv2_plugin.engines.first_stage import choose_first_stage
from jcv2_plugin.engines.schema import CollectionSchema
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
_LOCATION_OPTIONS = ("location", "path", "url", "client")


def open_collection(collection: ColbertCollection | str | os.PathLike[str] | None, **options: Any) -> ColbertCollection:
    """Return a collection, opening it if necessary.

    Args:
        collection: An open collection or its location.
        **options: Keyword arguments for ``ColbertCollection.open``.

    Raises:
        CollectionNotFoundError: The collection does not exist.
        TypeError: An option is not supported, or cannot be combined with ``collection``.
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
    """Create a collection, in memory if no location is given.

    Args:
        **options: Keyword arguments for ``ColbertCollection.create``, including ``location``. ``encoder`` defaults to
            ``"jinaai/jina-colbert-v2"``.
    """
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
    """Create a collection with documents. All documents are checked before anything is created or replaced.

    Args:
        documents: Documents to store.
        create: Function that creates the collection from the options.
        on_blank: See :func:`~jcv2_plugin.documents.accepted`.
        **options: See :func:`create_collection`.

    Raises:
        InvalidDocumentError: A document cannot be stored. Nothing was created or replaced.
    """
    _refuse_foreign(options)  # before a model is loaded
    checked, blank = accepted(documents, on_blank)
    warn_of_blank(blank)
    encoder = options["encoder"] = _loaded(options.get("encoder"), options.get("dim"))
    dim, long_documents = encoder.resolve_dim(options.get("dim")), options.get("long_documents", "split")
    stages = choose_first_stage(options.get("first_stage"), encoder)
    schema = CollectionSchema.describe(
        encoder,
        dim,
        long_documents,
        options.get("storage", "float16"),
        first_stage=stages.name,
        stage_options=stages.options,
    )
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
    """Open the collection, or create it if it does not exist or its creation was interrupted.

    Args:
        create: Function that creates the collection from the options.
        **options: Keyword arguments for ``ColbertCollection.create``. None means that an option is not set.

    Raises:
        CollectionMismatchError: The existing collection was created with another model or dimension.
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

    Args:
        client: Client of the source.
        collection_name: Name of the source collection.
        document_of: Function that converts a point's payload to a document.
        target: Open collection to add to. Otherwise :func:`open_or_create` opens or creates one.
        options: Options for :func:`open_or_create`.
        create: See :func:`open_or_create`.
        text_option: Name and value of the option that selects the payload key with the text.
        filter: Import only the points that match.
        progress: Called periodically with the number of points processed since the last call.

    Raises:
        TypeError: ``target`` is given together with ``options``.
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
    """Raise for option names of other stores, naming the equivalent here."""
    for name in options:
        if name in _FOREIGN:
            raise TypeError(f"There is no option {name!r} here. Write {_FOREIGN[name]} instead.")


def _has_location(options: Mapping[str, Any]) -> bool:
    return any(options.get(option) is not None for option in _LOCATION_OPTIONS)
