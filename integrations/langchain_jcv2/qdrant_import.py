"""Import langchain-qdrant collections by re-encoding their texts as multivectors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection, Document
from jcv2_plugin.collection.opening import import_into
from jcv2_plugin.documents import METADATA_KEY, TEXT_KEY
from jcv2_plugin.errors import InvalidDocumentError
from langchain_jcv2.vectorstores import JinaColbertVectorStore


def document_of(
    point_id: str,
    payload: Mapping[str, Any],
    *,
    content_key: str = TEXT_KEY,
    metadata_key: str = METADATA_KEY,
) -> Document | None:
    """Return the document in a point of a langchain-qdrant collection.

    Other payload keys than those of the text and the metadata, which may be missing or None, are kept. Blank texts are
    returned, for the caller to skip; None if there is no text. InvalidDocumentError for another layout.
    """
    text = payload.get(content_key)
    if text is None:
        return None
    metadata = {} if payload.get(metadata_key) is None else payload[metadata_key]
    for key, value, kind in ((content_key, text, str), (metadata_key, metadata, Mapping)):
        if not isinstance(value, kind):
            raise InvalidDocumentError(
                f"Point {point_id}: {key!r} is {value!r:.60}, not a {'str' if kind is str else 'dict'}, so this is not "
                "langchain-qdrant's layout. Pass the payload keys of the text and of the metadata."
            )
    rest = {key: value for key, value in payload.items() if key not in (content_key, metadata_key)}
    return Document(text, str(point_id), metadata, rest)


def import_qdrant(
    client: QdrantClient,
    collection_name: str,
    *,
    target: ColbertCollection | None = None,
    content_payload_key: str = TEXT_KEY,
    metadata_payload_key: str = METADATA_KEY,
    filter: models.Filter | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> JinaColbertVectorStore:
    """Import the documents of a langchain-qdrant collection and return a vector store over them.

    The texts are encoded again, since a multivector cannot be derived from a dense vector. The source is only read.
    Documents keep the ids of their points. To resume an interrupted import, repeat the call: documents already stored
    are not encoded again.

    Args:
        client: The client of the source.
        collection_name: Name of the source collection.
        target: An open collection to add the documents to. Without it, ``options`` say where to find or create one.
        content_payload_key: As in ``QdrantVectorStore``.
        metadata_payload_key: As in ``QdrantVectorStore``.
        filter: Import only the points that match.
        progress: Called periodically with the number of points processed since the last call.
        **options: Options of ``ColbertCollection.create``, such as ``location``, ``encoder`` and ``dim``. Documents
            are added to a collection that already exists there. Without a location, it is created in memory.

    Raises:
        CollectionNotFoundError: The source does not exist.
        InvalidOptionError: No point has text under ``content_payload_key``.
        InvalidDocumentError: A point has a different layout.
        CollectionMismatchError: The existing collection uses another model or dimension.
        TypeError: ``target`` is given together with ``options``.
    """
    layout = functools.partial(document_of, content_key=content_payload_key, metadata_key=metadata_payload_key)
    text_option = ("content_payload_key", content_payload_key)
    into = import_into(
        client, collection_name, layout, target, options, text_option=text_option, filter=filter, progress=progress
    )
    return JinaColbertVectorStore(into)
