"""``IngestionPipeline`` over a store that encodes by itself.

LlamaIndex's pipeline hands its vector store only nodes that have an embedding. Ours need none, so they would be left
out, and nothing would say so. A last step marks them; it is added to each pipeline that runs into such a store.
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
    """The last step of a pipeline into a ``JinaColbertVectorStore``: lets nodes without an embedding pass.

    It gives them an empty embedding. A pipeline that runs gets this step by itself where it is missing. Nodes without
    text cannot be encoded: they stay as they are, are not stored, and are warned of.
    """

    @classmethod
    def class_name(cls) -> str:
        """The class's name in LlamaIndex's dumps."""
        return "EncodedByStore"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """The nodes, in order; those that are marked are copies."""
        warn_of_nodes_without_text(nodes)
        return [
            node.model_copy(update={"embedding": []}) if node.embedding is None and has_text(node) else node
            for node in nodes
        ]


class _AddsTheStep(BaseSpanHandler[BaseSpan]):
    """Called by LlamaIndex when a pipeline begins to run, before its steps do."""

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
        """Append the step where it is missing. The user's list of steps stays as it is."""
        if not isinstance(instance, IngestionPipeline) or not isinstance(instance.vector_store, self._store_class):
            return
        steps = instance.transformations
        if not steps or not isinstance(steps[-1], EncodedByStore):
            instance.transformations = [*steps, EncodedByStore()]

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is to be done."""

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is to be done."""


def let_pipelines_store(store_class: type[BasePydanticVectorStore]) -> None:
    """Give pipelines into stores of a class the step that they need, from now on."""
    get_dispatcher(pipeline_module.__name__).add_span_handler(_AddsTheStep(store_class))
