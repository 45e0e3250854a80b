"""Projection heads: one bias-free linear layer per Matryoshka dimension, not weight-tied.

Jina-ColBERT-v2 (arXiv 2408.16672, section on Matryoshka representation learning) trains a separate linear head for each
dimension. The weight-tied variant, in which a small vector is a prefix of a large one, clearly hurts late interaction.
Heads are therefore never sliced: a dimension without a head is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from sentence_transformers.base.modules import Module
from torch import Tensor, nn
from torch.nn import functional as F

from jcv2_plugin.checks import as_dims
from jcv2_plugin.errors import ModelLayoutError, UnknownDimError
from jcv2_plugin.files import new_file, write_atomically


class MatryoshkaHeads(Module):
    """Project hidden states to one or several dimensions, each with its own linear head, and L2-normalise them.

    The module reads ``features["token_embeddings"]`` of shape ``(batch, tokens, in_features)`` and replaces it with the
    projections to the requested dimensions, concatenated along the last axis: ``(batch, tokens, sum(dims))``. Later
    modules (scoring mask, re-padding of unpadded batches) then treat several dimensions as one; :meth:`split`
    separates them again.

    Args:
        in_features: Size of the backbone's hidden states.
        dims: Dimensions to create heads for, in order; the first is the default.
        normalize: Whether to L2-normalise each head's output, as MaxSim with cosine similarity expects.
        weights: Initial weights, ``{dim: tensor of shape (dim, in_features)}``. Heads without an entry keep torch's
            random initialisation.

    Raises:
        ValueError: If ``dims`` is empty, repeats a dimension, or a weight has another shape.

    Example:
        >>> heads = MatryoshkaHeads(in_features=16, dims=(8, 4))
        >>> heads.project(torch.ones(3, 16), 4).shape
        torch.Size([3, 4])
    """

    config_keys: list[str] = ["in_features", "dims", "normalize"]  # noqa: RUF012
    forward_kwargs: set[str] = {"dim"}  # noqa: RUF012

    def __init__(
        self,
        in_features: int,
        dims: Iterable[int],
        normalize: bool = True,
        weights: Mapping[int, Tensor] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.in_features = int(in_features)
        self.dims = tuple(int(dim) for dim in dims)
        self.normalize = bool(normalize)
        if not self.dims or min(self.dims) < 1 or len(set(self.dims)) != len(self.dims):
            raise ValueError(f"dims must be distinct positive integers, got {self.dims!r}.")
        given = dict(weights or {})
        for dim, weight in given.items():
            if dim not in self.dims:
                raise UnknownDimError(f"A weight was given for dim={dim}, but the heads are {list(self.dims)}.")
            if tuple(weight.shape) != (dim, self.in_features):
                raise ValueError(
                    f"The head for dim={dim} needs a weight of shape {(dim, self.in_features)}, got "
                    f"{tuple(weight.shape)}."
                )
        self.linears = nn.ModuleDict({str(dim): nn.Linear(self.in_features, dim, bias=False) for dim in self.dims})
        for dim, weight in given.items():
            self.linears[str(dim)].weight = nn.Parameter(weight.detach().clone())

    def resolve_dims(self, dim: int | Iterable[int] | None) -> tuple[int, ...]:
        """Return the dimensions that ``dim`` refers to: one, several, or the first for None.

        Raises:
            UnknownDimError: If there is no head for one of them.
        """
        if dim is None:
            return self.dims[:1]
        wanted = as_dims(dim)
        for one in wanted:
            if one not in self.dims:
                raise UnknownDimError(
                    f"This model has no head for dim={one!r}; it has {list(self.dims)}. "
                    "Heads are not weight-tied, so a larger one cannot be sliced."
                )
        if not wanted or len(set(wanted)) != len(wanted):
            raise UnknownDimError(f"dim must name one or several distinct dims of {list(self.dims)}, got {dim!r}.")
        return wanted

    def weight(self, dim: int) -> Tensor:
        """Return the weight of a head, of shape ``(dim, in_features)``, detached from the graph."""
        weight: Tensor = self.get_submodule(f"linears.{dim}").weight  # type: ignore[assignment]
        return weight.detach()

    def project(self, states: Tensor, dim: int) -> Tensor:
        """Project hidden states ``(..., in_features)`` to token vectors ``(..., dim)``."""
        vectors: Tensor = self.linears[str(dim)](states)
        return F.normalize(vectors, p=2, dim=-1) if self.normalize else vectors

    def forward(  # type: ignore[override]
        self, features: dict[str, Any], dim: int | Iterable[int] | None = None
    ) -> dict[str, Any]:
        """Replace hidden states with token vectors. ``dim=None`` uses the first head."""
        states = features["token_embeddings"]
        vectors = [self.project(states, one) for one in self.resolve_dims(dim)]
        features["token_embeddings"] = vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=-1)
        return features

    @staticmethod
    def split(vectors: Any, dims: tuple[int, ...]) -> dict[int, Any]:
        """Split concatenated vectors ``(tokens, sum(dims))`` into ``{dim: (tokens, dim)}``."""
        return {dim: vectors[..., end - dim : end] for dim, end in zip(dims, accumulate(dims), strict=True)}

    def get_embedding_dimension(self) -> int:
        """Return the default (first) dimension."""
        return self.dims[0]

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write ``config.json`` and ``model.safetensors`` (never pickle)."""
        write_atomically(Path(output_path) / self.config_file_name, json.dumps(self.get_config_dict(), indent=4))
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        # Not save_file, which creates files readable by their owner only.
        with new_file(Path(output_path) / "model.safetensors") as stream:
            stream.write(save(tensors))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> MatryoshkaHeads:  # type: ignore[override]
        """Load heads from a folder written by :meth:`save`.

        Raises:
            ModelLayoutError: If weights are missing, unexpected or of the wrong shape.
        """
        names = ("token", "cache_folder", "revision", "local_files_only")
        hub: dict[str, Any] = {key: kwargs[key] for key in names if key in kwargs}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        path = cls.load_file_path(model_name_or_path, "model.safetensors", subfolder=subfolder, **hub)
        if path is None:
            raise ModelLayoutError(
                f"{Path(model_name_or_path, subfolder, 'model.safetensors')} is missing, so there are no heads. Copy "
                "the whole folder again, or save the model anew."
            )
        try:
            expected = {f"linears.{dim}.weight": dim for dim in config["dims"]}
            tensors = load_file(path)
        except (OSError, KeyError, TypeError, SafetensorError) as error:
            raise ModelLayoutError(f"{path} or the config.json beside it is damaged ({error!r:.300}).") from error
        if set(tensors) != set(expected):
            raise ModelLayoutError(f"{path}: expected the tensors {sorted(expected)}, found {sorted(tensors)}.")
        try:
            weights = {dim: tensors[name] for name, dim in expected.items()}
            return cls(**{key: config[key] for key in cls.config_keys if key in config}, weights=weights)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelLayoutError(f"{path}: {error}") from error
