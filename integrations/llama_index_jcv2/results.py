"""What retriever and reranker give back: LlamaIndex's ``NodeWithScore``, with more to be read from it."""

from __future__ import annotations

from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.schema import NodeWithScore

from jcv2_plugin import Explanation


class ScoredNode(NodeWithScore):
    """A node with its MaxSim score, its relevance and, where it was asked for, the explanation of the score.

    Everywhere else it is LlamaIndex's ``NodeWithScore``: what is added lies beside the node and not in its metadata,
    so it gets neither into prompts nor into hashes, and is left out of dumps and comparisons.

    Attributes:
        node: The node.
        score: MaxSim: the sum over query vectors of the largest dot product with a vector of the node.
        relevance: The score divided by the number of query vectors, within 0 and 1. Unlike scores it can be compared
            between queries.
        explanation: Which token of the node each query token matched; None where it was not asked for.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    relevance: float | None = Field(default=None, exclude=True)
    explanation: Explanation | None = Field(default=None, exclude=True, repr=False)

    def __eq__(self, other: object) -> bool:
        # Pydantic would compare the explanations' arrays, which have no truth value.
        return isinstance(other, NodeWithScore) and self.node == other.node and self.score == other.score
