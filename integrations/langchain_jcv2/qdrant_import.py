"""Documents of langchain-qdrant's collections, encoded anew as multivectors."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
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
    """The document in a point of a langchain-qdrant collection.

    Further payload keys beside the two are kept as they are.

    Args:
        point_id: The point's id, which becomes the document's.
        payload: The point's payload.
        content_key: Where the text is: langchain-qdrant's ``content_payload_key``.
        metadata_key: Where the metadata is: its ``metadata_payload_key``. It may be missing or None.

    Returns:
        None where the key is missing; a blank text is left out by who asks.

    Raises:
        InvalidDocumentError: The text is no str, or the metadata no dict.
    """
    text = payload.get(content_key)
    if text is None:
        return None
    metadata = payload.get(metadata_key)
    if metadata is None:
        metadata = {}
    for key, value, kind in ((content_key, text, str), (metadata_key, metadata, Mapping)):
        if not isinstance(value, kind):
            raise InvalidDocumentError(
                f"Point {point_id}: {key!r} is {value!r:.60}, not a {'str' if kind is str else 'dict'}, so this is not "
                "langchain-qdrant's layout. Name the payload keys of the text and of the metadata."
            )
    rest = {key: value for key, value in payload.items() if key not in (content_key, metadata_key)}
    return Document(text, str(point_id), metadata, rest)


def import_qdrant(
    client: QdrantClient,
    collection_name: str,
    *,
    target: ColbertCollection | None = None,
    location: str | os.PathLike[str] | None = None,
    encoder: JinaColbertEncoder | str | os.PathLike[str] | None = None,
    dim: int | None = None,
    content_payload_key: str = TEXT_KEY,
    metadata_payload_key: str = METADATA_KEY,
    filter: models.Filter | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> JinaColbertVectorStore:
    """A store with the documents of a langchain-qdrant collection.

    Their texts are encoded anew, since a multivector cannot be made of a dense vector. The source is only read. A
    document's id is that of its point. A call that was stopped is repeated to go on: what is stored already is not
    encoded again.

    Args:
        client: Where the source is.
        collection_name: The source's name there.
        target: An open collection to add the documents to. Without one, ``location`` and what follows say where to
            find or create it.
        location: A folder, ``":memory:"`` or a server's URL. None is memory, unless ``path``, ``url`` or ``client``
            is among the options. A collection of ours that is there already is added to.
        encoder: The model, loaded or by name; None takes ``"mini"``, or what an existing collection was made with.
        dim: One of the model's Matryoshka dimensions; None takes its default, or what an existing collection has.
        content_payload_key: As of the ``QdrantVectorStore``.
        metadata_payload_key: Likewise.
        filter: Take only the points that it selects.
        progress: Called now and then with the number of points done since.
        **options: Options of ``ColbertCollection.create``, for one that is created.

    Raises:
        CollectionNotFoundError: There is no such source.
        InvalidOptionError: No point has text under ``content_payload_key``.
        InvalidDocumentError: A point has another layout.
        CollectionMismatchError: The collection that is there was made with another model or dimension.
        TypeError: A target is given together with what describes one.
    """
    layout = functools.partial(document_of, content_key=content_payload_key, metadata_key=metadata_payload_key)
    options = {"location": location, "encoder": encoder, "dim": dim, **options}
    into = import_into(
        client,
        collection_name,
        layout,
        target,
        options,
        text_option=("content_payload_key", content_payload_key),
        filter=filter,
        progress=progress,
    )
    return JinaColbertVectorStore(into)
