"""Results of the retriever and the reranker: ``NodeWithScore`` with MaxSim and explanation."""

from __future__ import annotations

from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.schema import NodeWithScore

from jcv2_plugin import Explanation


class ScoredNode(NodeWithScore):
    """A node with its relevance as the score, and MaxSim beside it.

    It works wherever LlamaIndex expects a ``NodeWithScore``. The additional fields are not part of the node's metadata,
    so they do not appear in prompts, hashes, dumps or comparisons.

    Attributes:
        node: The node.
        score: MaxSim divided by the number of query vectors, in 0..1, as ``similarity_cutoff`` expects.
        maxsim: The sum, over query vectors, of the largest dot product with a vector of the node.
        explanation: Which token of the node each query token matched, or None if not requested.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    maxsim: float | None = Field(default=None, exclude=True)
    explanation: Explanation | None = Field(default=None, exclude=True, repr=False)

    @property
    def relevance(self) -> float | None:
        """Same as ``score``."""
        return self.score

    def __eq__(self, other: object) -> bool:
        # Pydantic would compare the explanations, whose arrays have no truth value.
        return isinstance(other, NodeWithScore) and self.node == other.node and self.score == other.score
