"""Projection heads to train: the model's own, new ones initialised from them, and weight-tied ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from jcv2_plugin.encoder.heads import MatryoshkaHeads

_FRESH_SHARE = 0.1
"""Initial length of a new component relative to the old ones. It is small, to nearly preserve the scores of the parent
head, but not zero, because no gradient would ever reach a zero component."""


def with_dims(heads: MatryoshkaHeads, dims: Sequence[int], moment: Tensor) -> MatryoshkaHeads:
    """Return heads for ``dims``, in that order: existing heads, and new ones initialised from the nearest larger head.

    MaxSim compares dot products, which a rotation preserves. A smaller head is therefore its parent's output, rotated
    to its principal axes and truncated. On average, no other truncation loses less of the dot products. A larger head
    is its parent, extended with the main directions of the hidden states that the parent does not cover, at small
    length. ``moment`` is the :func:`~jcv2_trainer.heads.principal.second_moment` of some texts.

    Raises:
        ValueError: A dimension exceeds the size of the hidden states.
    """
    if (largest := max(dims)) > heads.in_features:
        raise ValueError(
            f"A head of {largest} dimensions needs token states of that size, and this model's have "
            f"{heads.in_features} components. Give dims of at most {heads.in_features}."
        )
    weights = {dim: heads.weight(dim) if dim in heads.dims else _started(heads, dim, moment) for dim in dims}
    return MatryoshkaHeads(heads.in_features, dims, normalize=heads.normalize, weights=weights)


def _started(heads: MatryoshkaHeads, dim: int, moment: Tensor) -> Tensor:
    larger = [one for one in heads.dims if one > dim]
    parent = heads.weight(min(larger) if larger else max(heads.dims)).double().cpu()
    moment = moment.double().cpu()
    if larger:
        axes = torch.linalg.eigh(parent @ moment @ parent.T).eigenvectors.flip(1)[:, :dim]
        rotated: Tensor = axes.T @ parent
        return rotated.float()
    # Orthonormal basis of what the parent does not cover, and the hidden states' main directions within it.
    unseen = torch.linalg.svd(parent, full_matrices=True).Vh[parent.shape[0] :]
    axes = torch.linalg.eigh(unseen @ moment @ unseen.T).eigenvectors.flip(1)[:, : dim - parent.shape[0]]
    fresh = axes.T @ unseen
    size = parent.square().sum(dim=1).mean().sqrt()
    return torch.cat([parent, fresh * size * _FRESH_SHARE]).float()


class TiedHeads(MatryoshkaHeads):
    """Weight-tied heads (MRL-E, arXiv 2205.13147): each head is the first rows of a single matrix.

    The Jina-ColBERT-v2 paper (arXiv 2408.16672) finds them clearly worse than untied heads for late interaction.
    :meth:`untied` returns the heads that the rest of the package works with.
    """

    def __init__(self, in_features: int, dims: Iterable[int], normalize: bool, weight: Tensor) -> None:
        dims = tuple(dims)
        super().__init__(in_features, (max(dims),), normalize, weights={max(dims): weight})
        self.dims = dims

    @classmethod
    def of(cls, heads: MatryoshkaHeads, moment: Tensor) -> TiedHeads:
        """Initialise from the largest head, rotated to its principal axes: every prefix is the best of its size."""
        largest = max(heads.dims)
        weight = heads.weight(largest)
        turned = weight.double().cpu()
        axes = torch.linalg.eigh(turned @ moment.double().cpu() @ turned.T).eigenvectors.flip(1)
        return cls(heads.in_features, heads.dims, heads.normalize, (axes.T @ turned).float().to(weight))

    def project(self, states: Tensor, dim: int) -> Tensor:
        """Project hidden states ``(..., in_features)`` to token vectors ``(..., dim)``."""
        weight = self.get_parameter(f"linears.{max(self.dims)}.weight")
        vectors = F.linear(states, weight[:dim])
        return F.normalize(vectors, p=2, dim=-1) if self.normalize else vectors

    def weight(self, dim: int) -> Tensor:
        """Return the weight of a head, of shape ``(dim, in_features)``, detached from the graph."""
        return super().weight(max(self.dims))[:dim]

    def untied(self) -> MatryoshkaHeads:
        """Return the same heads, each with its own matrix."""
        weights = {dim: self.weight(dim) for dim in self.dims}
        return MatryoshkaHeads(self.in_features, self.dims, self.normalize, weights=weights)
