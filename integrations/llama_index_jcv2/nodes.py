"""LlamaIndex nodes as documents of a collection, and back.

What is encoded, and stored as the document's text, is the node's content for embedding: its text with the
metadata that is not excluded from embedding. The node itself lies beside it in the payload, in the layout of
LlamaIndex's Qdrant store, so nothing of it is lost and that store can read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from jcv2_plugin import Document, StoredDocument
from jcv2_plugin.errors import InvalidDocumentError

SOURCE_KEY = "doc_id"
SOURCE_KEYS = frozenset({SOURCE_KEY, "document_id", "ref_doc_id"})
"""Payload keys that LlamaIndex gives the id of a node's source document."""

_CONTENT = "_node_content"
_TYPE = "_node_type"


def embedded_text(node: BaseNode) -> str:
    """The text of a node that is encoded."""
    return node.get_content(metadata_mode=MetadataMode.EMBED)


def document_of(node: BaseNode) -> Document:
    """A node as a document; its ``node_id`` becomes the document's id.

    Raises:
        InvalidDocumentError: Its metadata cannot be written as JSON.
    """
    try:
        payload = node_to_metadata_dict(node, remove_text=False, flat_metadata=False)
    except (TypeError, ValueError) as error:
        raise InvalidDocumentError(
            f"Node {node.node_id!r} cannot be stored as JSON ({error}): metadata {node.metadata!r:.120}."
        ) from error
    metadata = json.loads(payload[_CONTENT]).get("metadata") or {}
    return Document(text=embedded_text(node), id=node.node_id, metadata=metadata, payload=payload)


def node_of(stored: StoredDocument) -> BaseNode:
    """The node of a document; one that LlamaIndex did not write becomes a ``TextNode``."""
    payload: Mapping[str, Any] = stored.payload
    if _CONTENT not in payload:
        return TextNode(id_=stored.id, text=stored.text, metadata=stored.metadata)
    if payload.get(_TYPE) == LlamaDocument.class_name():  # LlamaIndex's own function makes it a TextNode
        return LlamaDocument.from_json(payload[_CONTENT])
    return metadata_dict_to_node(dict(payload))
