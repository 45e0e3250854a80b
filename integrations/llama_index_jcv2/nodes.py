"""Convert LlamaIndex nodes to documents of a collection, and back.

The document's text, which is encoded and stored, is the node's content for embedding: its text with the metadata not
excluded from embedding. The payload also holds the complete node, in the layout of LlamaIndex's Qdrant store, which can
therefore read it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from jcv2_plugin import Document, StoredDocument
from jcv2_plugin.errors import InvalidDocumentError

logger = logging.getLogger(__name__)

SOURCE_KEY = "doc_id"
SOURCE_KEYS = frozenset({SOURCE_KEY, "document_id", "ref_doc_id"})
"""Payload keys under which LlamaIndex stores the id of a node's source document."""
NO_SOURCE = "None"
"""Value that LlamaIndex stores there for a node without a source."""
SOURCE_HASH_KEY = "_doc_hash"
"""Payload key of the source document's hash: the only key that is not in LlamaIndex's layout."""
CONTENT_KEY = "_node_content"
TYPE_KEY = "_node_type"


def embedded_text(node: BaseNode) -> str:
    """Return the text of a node to encode."""
    return node.get_content(metadata_mode=MetadataMode.EMBED)


def has_text(node: BaseNode) -> bool:
    """Return whether a node has text to encode."""
    return bool(embedded_text(node).strip())


def warn_of_nodes_without_text(nodes: Sequence[BaseNode]) -> None:
    """Log how many nodes are skipped because they have no text."""
    if missing := [node.node_id for node in nodes if not has_text(node)]:
        logger.warning("Left out %d nodes that have no text to encode: %.200s", len(missing), ", ".join(missing))


def document_of(node: BaseNode) -> Document:
    """Convert a node to a document. The ``node_id`` becomes the document's id.

    Raises:
        InvalidDocumentError: The node's metadata is not JSON-serializable, or contains NaN or an infinity.
    """
    try:
        payload = node_to_metadata_dict(node, remove_text=False, flat_metadata=False)
    except (TypeError, ValueError) as error:
        raise InvalidDocumentError(
            f"{_named(node)} cannot be stored as JSON ({error}): metadata {node.metadata!r:.120}."
        ) from error
    # The dump replaces NaN and infinities with null.
    if (path := _not_finite(node.metadata, "metadata")) is not None:
        raise InvalidDocumentError(
            f"{_named(node)} cannot be stored as JSON: {path}, which JSON does not have. Leave such entries out, or "
            "set them to None."
        )
    metadata = json.loads(payload[CONTENT_KEY]).get("metadata") or {}
    source_hash = node.source_node.hash if node.source_node is not None else node.hash
    if source_hash is not None:
        payload[SOURCE_HASH_KEY] = source_hash
    return Document(text=embedded_text(node), id=node.node_id, metadata=metadata, payload=payload)


@contextmanager
def naming_sources(nodes: Sequence[BaseNode]) -> Iterator[None]:
    """Add the source document to errors about a node, since node ids are mostly random."""
    try:
        yield
    except InvalidDocumentError as error:
        message = str(error)
        for node in nodes:
            id = repr(node.node_id)
            if node.ref_doc_id is not None and (message.startswith(f"Document {id}") or f"(id {id})" in message):
                raise type(error)(f"{_source(node)}{message}") from error
        raise


def _source(node: BaseNode) -> str:
    return "" if node.ref_doc_id is None else f"Source document {node.ref_doc_id!r}: "


def _named(node: BaseNode) -> str:
    return f"{_source(node)}Node {node.node_id!r}"


def _not_finite(value: Any, path: str) -> str | None:
    """Describe the first number in a value that JSON cannot represent, with its path."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{path} is {value!r}"
    parts: Iterator[tuple[str, Any]] = iter(())
    if isinstance(value, Mapping):
        parts = ((f"{path}[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = ((f"{path}[{number}]", part) for number, part in enumerate(value))
    return next((found for name, part in parts if (found := _not_finite(part, name)) is not None), None)


def node_of(stored: StoredDocument) -> BaseNode:
    """Return the node of a document. A document not written by LlamaIndex becomes a ``TextNode``."""
    if CONTENT_KEY not in stored.payload:
        return TextNode(id_=stored.id, text=stored.text, metadata=stored.metadata)
    return node_of_payload(stored.payload)


def node_of_payload(payload: Mapping[str, Any]) -> BaseNode:
    """Return the node in a payload of LlamaIndex's layout.

    Raises:
        ValueError: The payload contains no node, or one that cannot be read.
    """
    if payload.get(TYPE_KEY) == LlamaDocument.class_name():  # LlamaIndex's function returns a TextNode
        return LlamaDocument.from_json(payload[CONTENT_KEY])
    return metadata_dict_to_node(dict(payload))
