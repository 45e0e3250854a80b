"""``JinaColbertRerank``: rerank the nodes of any retriever by MaxSim, without an index."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher

from jcv2_plugin import RerankResult, rerank
from jcv2_plugin.checks import Flag, Positive, check_positive
from jcv2_plugin.encoder import DEFAULT_MODEL
from jcv2_plugin.encoder.base import Encoder, is_encoder
from jcv2_plugin.encoder.named import load_encoder
from jcv2_plugin.encoder.windows import LongDocuments
from jcv2_plugin.errors import InvalidOptionError, InvalidQueryError
from llama_index_jcv2.nodes import embedded_text
from llama_index_jcv2.results import ScoredNode

dispatcher = get_dispatcher(__name__)

RETRIEVAL_SCORE_KEY = "retrieval_score"


class JinaColbertRerank(BaseNodePostprocessor):
    """Rerank nodes by MaxSim with the query and keep the best.

    Results are new :class:`~llama_index_jcv2.results.ScoredNode` objects; the input nodes are not modified. Nodes
    without text come last, with a score of 0.

    Args:
        top_n: Number of nodes to keep.
        model: The model, by name or folder, on a server (``"https://..."``, ``"jina-api:..."``), or loaded.
        dim: One of the model's Matryoshka dimensions. Defaults to the model's default.
        long_documents: How to handle nodes longer than the model's window, as in ``jcv2_plugin.rerank``.
        keep_retrieval_score: Keep a node's previous score as ``retrieval_score`` in its metadata, excluded from prompts
            and embeddings.
        with_explanation: Add an ``explanation`` to each result.
        device: Device for a model loaded here.
        callback_manager: LlamaIndex's callback manager.

    Raises:
        ModelNotFoundError: The model does not exist.
        UnknownDimError: The model has no projection head for ``dim``.
        InvalidOptionError: ``top_n`` is not a positive integer.
    """

    model_config = ConfigDict(validate_assignment=True)

    top_n: Positive = Field(description="How many nodes to keep.")
    model: str = Field(description="The model's name or folder.")
    dim: Positive = Field(description="The Matryoshka dimension.")
    long_documents: LongDocuments = Field(description="What to do with nodes over the model's window.")
    keep_retrieval_score: Flag = Field(description="Whether to keep the former score in the metadata.")
    with_explanation: Flag = Field(description="Whether to explain scores.")

    # Private, to keep the model out of dumps, as in the vector store.
    _encoder: Encoder = PrivateAttr()

    def __init__(
        self,
        top_n: int = 5,
        model: Encoder | str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        dim: int | None = None,
        long_documents: LongDocuments = "split",
        keep_retrieval_score: bool = False,
        with_explanation: bool = False,
        device: str | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        top_n = check_positive(top_n, "top_n", InvalidOptionError)  # before a model is loaded
        encoder = model if is_encoder(model) else load_encoder(model, dims=dim, device=device)
        fields: dict[str, Any] = {
            "top_n": top_n,
            "model": encoder.name,
            "dim": encoder.resolve_dim(dim),
            "long_documents": long_documents,
            "keep_retrieval_score": keep_retrieval_score,
            "with_explanation": with_explanation,
            "callback_manager": callback_manager or CallbackManager(),
        }
        super().__init__(**fields)
        self._encoder = encoder

    @classmethod
    def class_name(cls) -> str:
        """Return the class name used in LlamaIndex's dumps."""
        return "JinaColbertRerank"

    @property
    def encoder(self) -> Encoder:
        """The model."""
        return self._encoder

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> JinaColbertRerank:
        return self.model_copy()

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            f"A JinaColbertRerank cannot be pickled: it holds the loaded model {self.model!r}. Make another one with "
            "the same arguments where it is needed."
        )

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        # LlamaIndex runs this in a thread for async callers.
        if query_bundle is None:
            raise InvalidQueryError("There is no query to rank nodes by: give query_str or query_bundle.")
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=self.model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            ranked = self._ranked(nodes, query_bundle.query_str)
            event.on_end(payload={EventPayload.NODES: ranked})
        dispatcher.event(ReRankEndEvent(nodes=ranked))
        return ranked

    def _ranked(self, nodes: list[NodeWithScore], query: str) -> list[NodeWithScore]:
        results = rerank(
            self._encoder,
            query,
            [embedded_text(one.node) for one in nodes],
            dim=self.dim,
            long_documents=self.long_documents,
            with_explanation=self.with_explanation,
        )
        return [self._scored(nodes[result.index], result) for result in results[: self.top_n]]

    def _scored(self, found: NodeWithScore, result: RerankResult) -> ScoredNode:
        node = _with_score(found.node, found.score) if self.keep_retrieval_score else found.node
        return ScoredNode(node=node, score=result.relevance, maxsim=result.score, explanation=result.explanation)


def _with_score(node: BaseNode, score: float | None) -> BaseNode:
    """Return a copy of a node with the score in its metadata, excluded from prompts and embeddings."""
    excluded = ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys")
    changes: dict[str, Any] = {name: [*getattr(node, name), RETRIEVAL_SCORE_KEY] for name in excluded}
    changes["metadata"] = {**node.metadata, RETRIEVAL_SCORE_KEY: score}
    return node.model_copy(update=changes)
