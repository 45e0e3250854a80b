"""Import collections of LlamaIndex's Qdrant store by re-encoding their nodes as multivectors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.utils import DEFAULT_TEXT_KEY, legacy_metadata_dict_to_node
from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection, Document
from jcv2_plugin.collection.opening import import_into
from jcv2_plugin.errors import InvalidDocumentError
from llama_index_jcv2 import nodes
from llama_index_jcv2.indices import JinaColbertIndex
from llama_index_jcv2.opening import create_collection


def document_of(point_id: str, payload: Mapping[str, Any], *, text_key: str = DEFAULT_TEXT_KEY) -> Document | None:
    """Return the document in a point of llama-index-vector-stores-qdrant.

    It is the point's node, with its id, relationships and metadata, or in payloads of the store's first releases the
    text under ``text_key``. Other payload keys are kept. Blank texts are returned, for the caller to skip; None if
    there is neither a node nor a text. InvalidDocumentError for a node that cannot be read.
    """
    text = payload.get(text_key)
    try:
        if nodes.CONTENT_KEY in payload:
            node = nodes.node_of_payload(payload)
            if isinstance(text, str) and not nodes.has_text(node):
                node.set_content(text)
        elif isinstance(text, str):
            metadata, info, relationships = legacy_metadata_dict_to_node(dict(payload), text_key)
            span = {"start_char_idx": info.get("start"), "end_char_idx": info.get("end")}
            node = TextNode(id_=str(point_id), text=text, metadata=metadata, relationships=relationships, **span)
        else:
            return None
    except nodes.UNREADABLE as error:
        raise InvalidDocumentError(
            f"Point {point_id}: its payload is not that of a LlamaIndex node ({error!r:.200}). Delete the point, or "
            "exclude it with filter=..."
        ) from error
    document = nodes.document_of(node)
    rest = {key: value for key, value in payload.items() if key != text_key}
    return replace(document, payload={**rest, **document.payload})


def import_qdrant(
    client: QdrantClient,
    collection_name: str,
    *,
    target: ColbertCollection | None = None,
    text_key: str = DEFAULT_TEXT_KEY,
    filter: models.Filter | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> JinaColbertIndex:
    """Import the nodes of a llama-index-vector-stores-qdrant collection and return an index over them.

    The texts are encoded again, since a multivector cannot be derived from a dense vector. The source is only read.
    Nodes keep their ids, relationships and metadata. To resume an interrupted import, repeat the call: nodes already
    stored are not encoded again.

    Args:
        client: The client of the source.
        collection_name: Name of the source collection.
        target: An open collection to add the nodes to. Without it, ``options`` say where to find or create one.
        text_key: As in ``QdrantVectorStore``.
        filter: Import only the points that match.
        progress: Called periodically with the number of points processed since the last call.
        **options: Options of ``ColbertCollection.create``, such as ``location``, ``encoder`` and ``dim``. Nodes are
            added to a collection that already exists there. Without a location, it is created in memory.

    Raises:
        CollectionNotFoundError: The source does not exist.
        InvalidOptionError: No point has text, or source and target are the same.
        InvalidDocumentError: A point's node cannot be read.
        CollectionMismatchError: The existing collection uses another model or dimension.
        TypeError: ``target`` is given together with ``options``.
    """
    into = import_into(
        client,
        collection_name,
        functools.partial(document_of, text_key=text_key),
        target,
        options,
        create=create_collection,
        text_option=("text_key", text_key),
        filter=filter,
        progress=progress,
    )
    return JinaColbertIndex.from_collection(into)
