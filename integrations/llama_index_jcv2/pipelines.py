"""``IngestionPipeline`` support for a vector store that encodes texts itself.

LlamaIndex's pipeline passes only nodes with an embedding to its vector store. This store needs no embeddings, so its
nodes would be dropped silently. A last step marks them, and is added to each pipeline that runs into such a store.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion import pipeline as pipeline_module
from llama_index.core.instrumentation.span import BaseSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index_instrumentation import get_dispatcher

from llama_index_jcv2.nodes import has_text, warn_of_nodes_without_text


class EncodedByStore(TransformComponent):
    """Last step of a pipeline into a ``JinaColbertVectorStore``: lets nodes without an embedding pass.

    Nodes get an empty embedding. The step is added automatically when a pipeline without it runs. Nodes without text
    cannot be encoded: they are passed through unchanged, not stored, and a warning is logged.
    """

    @classmethod
    def class_name(cls) -> str:
        """Return the class name used in LlamaIndex's dumps."""
        return "EncodedByStore"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """Return the nodes, in order. Marked nodes are copies."""
        warn_of_nodes_without_text(nodes)
        return [
            node.model_copy(update={"embedding": []}) if node.embedding is None and has_text(node) else node
            for node in nodes
        ]


class _AddsTheStep(BaseSpanHandler[BaseSpan]):
    """Span handler that LlamaIndex calls when a pipeline starts, before its steps run."""

    def __init__(self, store_class: type[BasePydanticVectorStore]) -> None:
        super().__init__()
        self._store_class = store_class

    _store_class: type[BasePydanticVectorStore]

    def new_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        parent_span_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append the step if it is missing. The user's list of steps is not modified."""
        if not isinstance(instance, IngestionPipeline) or not isinstance(instance.vector_store, self._store_class):
            return
        steps = instance.transformations
        if not steps or not isinstance(steps[-1], EncodedByStore):
            instance.transformations = [*steps, EncodedByStore()]

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


def let_pipelines_store(store_class: type[BasePydanticVectorStore]) -> None:
    """Add the step to all pipelines into stores of a class, from now on."""
    get_dispatcher(pipeline_module.__name__).add_span_handler(_AddsTheStep(store_class))
