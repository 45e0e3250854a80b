"""MaxSim between the packed queries and passages of a batch, for one head at a time.

A score is the sum, over a query's tokens, of the largest dot product with a passage's tokens (arXiv 2004.12832). The
formula is sentence-transformers'. It is applied to each forward pass, so that scoring pads no more than encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from sentence_transformers.util.similarity import maxsim, maxsim_pairwise
from torch import Tensor


@dataclass
class TokenVectors:
    """Token vectors of texts, as returned by the forward passes.

    Attributes:
        rows: Positions of the texts, for each pass.
        vectors: Token vectors of shape ``(texts, tokens, sum of dims)``, for each pass.
        masks: Masks of shape ``(texts, tokens)``, for each pass; true where a token is scored.
        count: Number of texts.
    """

    rows: list[list[int]]
    vectors: list[Tensor]
    masks: list[Tensor]
    count: int

    def head(self, start: int, dim: int) -> TokenVectors:
        """Return the vectors of one head, which are the components ``start:start + dim``, in float32.

        MaxSim sums dozens of dot products. In half precision, these sums lose more precision than the rest of the
        model.
        """
        parts = [vectors[..., start : start + dim].float() for vectors in self.vectors]
        return TokenVectors(self.rows, parts, self.masks, self.count)

    @property
    def order(self) -> Tensor:
        """Position of each text in the concatenated passes, shape ``(texts,)``."""
        flat = torch.tensor([row for rows in self.rows for row in rows], device=self.vectors[0].device)
        return flat.argsort()

    def padded(self) -> tuple[Tensor, Tensor]:
        """Return all texts in their original order as one tensor ``(texts, most tokens, dim)``, and its mask."""
        most = max(mask.shape[1] for mask in self.masks)
        vectors = [torch.nn.functional.pad(one, (0, 0, 0, most - one.shape[1])) for one in self.vectors]
        masks = [torch.nn.functional.pad(one, (0, most - one.shape[1])) for one in self.masks]
        order = self.order
        return torch.cat(vectors)[order], torch.cat(masks)[order]


def head_slices(dims: Sequence[int]) -> list[tuple[int, int]]:
    """Return ``(first component, dim)`` of each head in concatenated vectors."""
    return list(zip(accumulate(dims, initial=0), dims, strict=False))


def all_scores(queries: TokenVectors, documents: TokenVectors) -> Tensor:
    """Return the MaxSim score of every query with every document, shape ``(queries, documents)``, float32."""
    right = list(zip(documents.vectors, documents.masks, strict=True))
    blocks = [
        torch.cat(
            [maxsim(query, document, a_mask=mask, b_mask=document_mask) for document, document_mask in right], dim=1
        )
        for query, mask in zip(queries.vectors, queries.masks, strict=True)
    ]
    return torch.cat(blocks)[queries.order][:, documents.order]


def candidate_scores(queries: TokenVectors, documents: TokenVectors, candidates: Tensor) -> Tensor:
    """Return the MaxSim scores of each query with its own candidates only, shape ``(queries, candidates)``, float32.

    ``candidates`` are positions among the documents, of the same shape. A negative one gets the score ``-inf``.
    """
    padded, padded_mask = queries.padded()
    scores = padded.new_full(candidates.shape, float("-inf"), dtype=torch.float32)
    for rows, vectors, mask in zip(documents.rows, documents.vectors, documents.masks, strict=True):
        position = torch.full((documents.count,), -1, device=candidates.device)
        position[torch.tensor(rows, device=candidates.device)] = torch.arange(len(rows), device=candidates.device)
        here = torch.where(candidates >= 0, position[candidates.clamp(min=0)], -1)
        query, column = (here >= 0).nonzero(as_tuple=True)
        if len(query):
            document = here[query, column]
            pair = maxsim_pairwise(padded[query], vectors[document], padded_mask[query], mask[document])
            scores = scores.index_put((query, column), pair)
    return scores
