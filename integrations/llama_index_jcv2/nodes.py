"""Convert LlamaIndex nodes to documents of a collection, and back.

The document's text, which is encoded and stored, is the node's content for embedding: its text with the metadata not
excluded from embedding. The payload also holds the complete node, in the layout of LlamaIndex's Qdrant store, which can
therefore read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from jcv2_plugin import Document, StoredDocument, documents
from jcv2_plugin.documents import json_value, list_of, warn_of_blank
from jcv2_plugin.errors import InvalidDocumentError

Node = TypeVar("Node", bound=BaseNode)

SOURCE_KEY = "doc_id"
SOURCE_KEYS = frozenset({SOURCE_KEY, "document_id", "ref_doc_id"})
"""Payload keys under which LlamaIndex stores the id of a node's source document."""
NO_SOURCE = "None"
"""Value that LlamaIndex stores there for a node without a source."""
SOURCE_HASH_KEY = "_doc_hash"
"""Payload key of the source document's hash: the only key that is not in LlamaIndex's layout."""
CONTENT_KEY = "_node_content"
TYPE_KEY = "_node_type"
UNREADABLE = (TypeError, ValueError, KeyError, AttributeError, RecursionError)
"""What LlamaIndex raises for a payload that is not that of a node."""


def embedded_text(node: BaseNode) -> str:
    """Return the text of a node to encode. It is empty if the node has none of its own, whatever its metadata."""
    return node.get_content(metadata_mode=MetadataMode.EMBED) if has_text(node) else ""


def has_text(node: BaseNode) -> bool:
    """Return whether a node has text of its own. Readers give even empty pages metadata, which is encoded with text."""
    return documents.has_text(node.get_content(metadata_mode=MetadataMode.NONE))


def node_list(nodes: Iterable[Node]) -> list[Node]:
    """Return nodes, which may come from a generator, as a list. Raises InvalidDocumentError for anything else."""
    way_out = "Wrap a text as TextNode(text=...) or Document(text=...)."
    return list_of(BaseNode, nodes, "Node", "LlamaIndex node", way_out)


def with_text(nodes: Sequence[BaseNode]) -> list[BaseNode]:
    """Return the nodes that have text to encode, and log a warning that names the others."""
    warn_of_blank([node.node_id for node in nodes if not has_text(node)])
    return [node for node in nodes if has_text(node)]


def document_of(node: BaseNode) -> Document:
    """Convert a node to a document with its ``node_id`` and metadata as JSON. Without text of its own, it is blank."""
    metadata: dict[str, Any] = json_value(node.metadata, f"{_named(node)}: metadata")
    stored = node.model_copy(update={"metadata": metadata})
    payload = node_to_metadata_dict(stored, remove_text=False, flat_metadata=False)
    source_hash = node.source_node.hash if node.source_node is not None else node.hash
    if source_hash is not None:
        payload[SOURCE_HASH_KEY] = source_hash
    return Document(embedded_text(stored), node.node_id, metadata, payload)


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


def node_of(stored: StoredDocument) -> BaseNode:
    """Return the node of a document, or a ``TextNode`` if LlamaIndex did not write it. Raises InvalidDocumentError."""
    if CONTENT_KEY not in stored.payload:
        return TextNode(id_=stored.id, text=stored.text, metadata=stored.metadata)
    try:
        return node_of_payload(stored.payload)
    except UNREADABLE as error:
        raise InvalidDocumentError(
            f"Document {stored.id!r:.200}: its payload is not that of a LlamaIndex node ({error!r:.200}). Delete the "
            "document, or add it again."
        ) from error


def node_of_payload(payload: Mapping[str, Any]) -> BaseNode:
    """Return the node in a payload of LlamaIndex's layout. Raises one of :data:`UNREADABLE` if there is none."""
    if payload.get(TYPE_KEY) == LlamaDocument.class_name():  # LlamaIndex's function returns a TextNode
        return LlamaDocument.from_json(payload[CONTENT_KEY])
    return metadata_dict_to_node(dict(payload))
