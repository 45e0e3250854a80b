"""Nodes of LlamaIndex's own Qdrant store, encoded anew as multivectors."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llama_index.core.schema import BaseNode, TextNode
from llama_index.core.vector_stores.utils import DEFAULT_TEXT_KEY, legacy_metadata_dict_to_node
from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.collection.opening import import_into
from jcv2_plugin.errors import InvalidDocumentError
from llama_index_jcv2 import nodes
from llama_index_jcv2.indices import JinaColbertIndex
from llama_index_jcv2.opening import create_collection


def document_of(point_id: str, payload: Mapping[str, Any], *, text_key: str = DEFAULT_TEXT_KEY) -> Document | None:
    """The document in a point of llama-index-vector-stores-qdrant: its node, with id, relationships and metadata.

    Payloads of the store's first releases, which have the text under a key of its own and no node, are read too.
    Further payload keys, such as Qdrant's users add, are kept.

    Args:
        point_id: The point's id.
        payload: The point's payload.
        text_key: Where those first releases have the text: the store's ``text_key``.

    Returns:
        None where there is neither a node nor a text. A blank text is given as it is, for the caller to leave out.

    Raises:
        InvalidDocumentError: A node cannot be read.
    """
    text = payload.get(text_key)
    try:
        if nodes.CONTENT_KEY in payload:
            node = nodes.node_of_payload(payload)
            if isinstance(text, str) and not nodes.has_text(node):
                node.set_content(text)
        elif isinstance(text, str):
            node = _legacy_node(point_id, payload, text, text_key)
        else:
            return None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InvalidDocumentError(
            f"Point {point_id}: its payload is not that of a LlamaIndex node ({error!r:.200}). Take it out, or leave "
            "it out by a filter."
        ) from error
    document = nodes.document_of(node)
    rest = {key: value for key, value in payload.items() if key != text_key}
    return replace(document, payload={**rest, **document.payload})


def _legacy_node(point_id: str, payload: Mapping[str, Any], text: str, text_key: str) -> BaseNode:
    metadata, node_info, relationships = legacy_metadata_dict_to_node(dict(payload), text_key)
    return TextNode(
        id_=str(point_id),
        text=text,
        metadata=metadata,
        start_char_idx=node_info.get("start"),
        end_char_idx=node_info.get("end"),
        relationships=relationships,
    )


def import_qdrant(
    client: QdrantClient,
    collection_name: str,
    *,
    target: ColbertCollection | None = None,
    location: str | os.PathLike[str] | None = None,
    encoder: JinaColbertEncoder | str | os.PathLike[str] | None = None,
    dim: int | None = None,
    text_key: str = DEFAULT_TEXT_KEY,
    filter: models.Filter | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> JinaColbertIndex:
    """An index of the nodes in a collection of llama-index-vector-stores-qdrant.

    Their texts are encoded anew, since a multivector cannot be made of a dense vector. The source is only read. Nodes
    keep their ids, relationships and metadata. A call that was stopped is repeated to go on: what is stored already
    is not encoded again.

    Args:
        client: Where the source is.
        collection_name: The source's name there.
        target: An open collection to add the nodes to. Without one, ``location`` and what follows say where to find
            or create it.
        location: A folder, ``":memory:"`` or a server's URL. None is memory, unless ``path``, ``url`` or ``client``
            is among the options. A collection of ours that is there already is added to.
        encoder: The model, loaded or by name; None takes ``"mini"``, or what an existing collection was made with.
        dim: One of the model's Matryoshka dimensions; None takes its default, or what an existing collection has.
        text_key: As of the ``QdrantVectorStore``.
        filter: Take only the points that it selects.
        progress: Called now and then with the number of points done since.
        **options: Options of ``ColbertCollection.create``, for one that is created.

    Raises:
        CollectionNotFoundError: There is no such source.
        InvalidOptionError: No point has a text, or source and target are the same.
        InvalidDocumentError: A point's node cannot be read.
        CollectionMismatchError: The collection that is there was made with another model or dimension.
        TypeError: A target is given together with what describes one.
    """
    into = import_into(
        client,
        collection_name,
        functools.partial(document_of, text_key=text_key),
        target,
        {"location": location, "encoder": encoder, "dim": dim, **options},
        create=create_collection,
        text_option=("text_key", text_key),
        filter=filter,
        progress=progress,
    )
    return JinaColbertIndex.from_collection(into)
