"""Heads to train: those of the model, new ones started from them, and the weight-tied form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from jcv2_plugin.encoder.heads import MatryoshkaHeads

_FRESH_SHARE = 0.1
"""Length of a new component beside the old ones, at the start of training: small, so that the scores of the head it
comes from are nearly kept, and not zero, where no gradient would ever reach it."""


def with_dims(heads: MatryoshkaHeads, dims: Sequence[int], moment: Tensor) -> MatryoshkaHeads:
    """Heads for ``dims``, in that order: those that are there, and new ones started from the nearest larger.

    MaxSim compares dot products of vectors, which a rotation keeps. A smaller head is therefore its parent's output
    rotated to its principal axes and cut, which of all cuts loses the least of the dot products on average; a larger
    one is its parent with the main directions of the token states that the parent does not see, at small length.

    Args:
        heads: The model's heads.
        dims: The dimensions wanted.
        moment: Mean outer product of the normalised token states of some texts, ``(in_features, in_features)``; see
            :func:`jcv2_trainer.heads.principal.second_moment`.

    Raises:
        ValueError: If a dimension exceeds the token states' size.
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
    # Orthonormal basis of what the parent does not see, and the states' main directions within.
    unseen = torch.linalg.svd(parent, full_matrices=True).Vh[parent.shape[0] :]
    axes = torch.linalg.eigh(unseen @ moment @ unseen.T).eigenvectors.flip(1)[:, : dim - parent.shape[0]]
    fresh = axes.T @ unseen
    size = parent.square().sum(dim=1).mean().sqrt()
    return torch.cat([parent, fresh * size * _FRESH_SHARE]).float()


class TiedHeads(MatryoshkaHeads):
    """The weight-tied form (MRL-E, arXiv 2205.13147): a head is the first rows of the one matrix there is.

    The paper compares it with untied heads and finds it clearly worse for late interaction. :meth:`untied` gives the
    heads that the rest of the package works with.
    """

    def __init__(self, in_features: int, dims: Iterable[int], normalize: bool, weight: Tensor) -> None:
        dims = tuple(dims)
        super().__init__(in_features, (max(dims),), normalize, weights={max(dims): weight})
        self.dims = dims

    @classmethod
    def of(cls, heads: MatryoshkaHeads, moment: Tensor) -> TiedHeads:
        """Start from the largest head, rotated to its principal axes so that every prefix is the best of its size."""
        largest = max(heads.dims)
        weight = heads.weight(largest)
        turned = weight.double().cpu()
        axes = torch.linalg.eigh(turned @ moment.double().cpu() @ turned.T).eigenvectors.flip(1)
        return cls(heads.in_features, heads.dims, heads.normalize, (axes.T @ turned).float().to(weight))

    def project(self, states: Tensor, dim: int) -> Tensor:
        """Token states ``(..., in_features)`` to token vectors ``(..., dim)``."""
        weight = self.get_parameter(f"linears.{max(self.dims)}.weight")
        vectors = F.linear(states, weight[:dim])
        return F.normalize(vectors, p=2, dim=-1) if self.normalize else vectors

    def weight(self, dim: int) -> Tensor:
        """The head's weight, of shape ``(dim, in_features)``, detached from training."""
        return super().weight(max(self.dims))[:dim]

    def untied(self) -> MatryoshkaHeads:
        """The same heads, each with a matrix of its own."""
        weights = {dim: self.weight(dim) for dim in self.dims}
        return MatryoshkaHeads(self.in_features, self.dims, self.normalize, weights=weights)
