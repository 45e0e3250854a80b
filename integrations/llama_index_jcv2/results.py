"""Results of the retriever and the reranker: ``NodeWithScore`` with relevance and explanation."""

from __future__ import annotations

from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.schema import NodeWithScore

from jcv2_plugin import Explanation


class ScoredNode(NodeWithScore):
    """A node with its MaxSim score, its relevance and, if requested, an explanation of the score.

    It works wherever LlamaIndex expects a ``NodeWithScore``. The additional fields are not part of the node's metadata,
    so they do not appear in prompts, hashes, dumps or comparisons.

    Attributes:
        node: The node.
        score: MaxSim: the sum, over query vectors, of the largest dot product with a vector of the node.
        relevance: The score divided by the number of query vectors, in 0..1. Unlike scores, it is comparable between
            queries.
        explanation: Which token of the node each query token matched, or None if not requested.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    relevance: float | None = Field(default=None, exclude=True)
    explanation: Explanation | None = Field(default=None, exclude=True, repr=False)

    def __eq__(self, other: object) -> bool:
        # Pydantic would compare the explanations, whose arrays have no truth value.
        return isinstance(other, NodeWithScore) and self.node == other.node and self.score == other.score
