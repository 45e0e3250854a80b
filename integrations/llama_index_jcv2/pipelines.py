"""The last step of an ``IngestionPipeline`` into a vector store that encodes texts itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import BaseNode, TransformComponent


class EncodedByStore(TransformComponent):
    """Last step of an ``IngestionPipeline`` into a ``JinaColbertVectorStore``: lets its nodes pass to the store.

    LlamaIndex hands a vector store only nodes that have an embedding, and drops the others silently. This step gives
    nodes an empty embedding, which the store ignores. Without it nothing is stored.

    Example:
        >>> pipeline = IngestionPipeline(transformations=[SentenceSplitter(), EncodedByStore()], vector_store=store)
    """

    @classmethod
    def class_name(cls) -> str:
        """Return the class name used in LlamaIndex's dumps."""
        return "EncodedByStore"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """Return the nodes, in order. Nodes that get an embedding are copies."""
        return [node if node.embedding is not None else node.model_copy(update={"embedding": []}) for node in nodes]
