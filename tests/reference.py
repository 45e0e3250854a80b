"""A slow reference of Jina-ColBERT-v2, written from its description and sharing no code with the package.

It reads the published tensors by name, one text at a time, in float64 (rotary angles in float32, as the model
has them), and prepares texts as Stanford's ColBERT does: tokenise to one token less than the length, then
insert the marker's id after ``<s>``.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from official_checkpoint import DOCUMENT_MARKER, QUERY_MARKER, load_json
from safetensors import safe_open
from tokenizers import Tokenizer

PAD, UNK = 1, 3


class Reference:
    """Token vectors of one checkpoint, with its own head or with the one in ``head_folder``."""

    def __init__(self, folder: Path, *, theta: float = 10000.0, head_folder: Path | None = None) -> None:
        self.config = load_json(folder / "config.json")
        self.tensors = read_tensors(folder)
        self.head = read_tensors(head_folder or folder)["linear.weight"]
        self.theta = theta
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.mask_id = self.tokenizer.token_to_id("<mask>")

    # Preparing texts

    def marked(self, text: str, marker: str, length: int) -> list[int]:
        """``<s>``, the marker, the text's tokens and ``</s>``, at most ``length`` in all."""
        self.tokenizer.enable_truncation(length - 1)
        ids = self.tokenizer.encode(text).ids
        return [ids[0], self.tokenizer.token_to_id(marker), *ids[1:]]

    def query_ids(self, text: str, length: int = 32) -> list[int]:
        """The marked query, filled up with ``<mask>``."""
        ids = self.marked(text, QUERY_MARKER, length)
        return ids + [self.mask_id] * (length - len(ids))

    def skipped_ids(self, skiplist: str | None) -> set[int]:
        """Ids that documents are not scored by."""
        self.tokenizer.no_truncation()
        if skiplist is None:
            return set()
        if skiplist == "stanford":
            return {self.tokenizer.encode(symbol, add_special_tokens=False).ids[0] for symbol in string.punctuation}
        pieces = {self.tokenizer.token_to_id(symbol) for symbol in string.punctuation}
        return {piece for piece in pieces if piece is not None and piece != UNK}

    # The network

    def states(self, ids: Sequence[int], attended: Sequence[bool]) -> torch.Tensor:
        """Token states of one text, all positions; those not attended are hidden from every position."""
        tensors = self.tensors
        hidden = tensors["roberta.embeddings.word_embeddings.weight"][list(ids)]
        hidden = hidden + tensors["roberta.embeddings.token_type_embeddings.weight"][0]
        hidden = self.norm(hidden, "roberta.emb_ln")
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"roberta.encoder.layers.{layer}"
            attention = self.attention(hidden, attended, f"{prefix}.mixer")
            hidden = self.norm(hidden + attention, f"{prefix}.norm1")
            inner = self.linear(hidden, f"{prefix}.mlp.fc1")
            inner = inner * 0.5 * (1.0 + torch.erf(inner / math.sqrt(2.0)))
            hidden = self.norm(hidden + self.linear(inner, f"{prefix}.mlp.fc2"), f"{prefix}.norm2")
        return hidden

    def attention(self, hidden: torch.Tensor, attended: Sequence[bool], name: str) -> torch.Tensor:
        """Self-attention, one head after the other."""
        width, heads = self.config["hidden_size"], self.config["num_attention_heads"]
        size = width // heads
        queries, keys, values = self.linear(hidden, f"{name}.Wqkv").split(width, dim=1)
        outputs = []
        for head in range(heads):
            columns = slice(head * size, (head + 1) * size)
            query, key = self.rotate(queries[:, columns]), self.rotate(keys[:, columns])
            scores = query @ key.T / math.sqrt(size)
            scores[:, ~torch.tensor(attended)] = -math.inf
            outputs.append(torch.softmax(scores, dim=-1) @ values[:, columns])
        return self.linear(torch.cat(outputs, dim=-1), f"{name}.out_proj")

    def rotate(self, vectors: torch.Tensor) -> torch.Tensor:
        """Turn the pair (i, i + half) of the vector at position p by the angle p * theta^(-2i/size)."""
        positions, size = vectors.shape
        half = size // 2
        frequencies = self.theta ** (-2.0 * torch.arange(half, dtype=torch.float32) / size)
        angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies[None, :]
        cosines, sines = angles.cos().double(), angles.sin().double()
        left, right = vectors[:, :half], vectors[:, half:]
        return torch.cat([left * cosines - right * sines, right * cosines + left * sines], dim=-1)

    def linear(self, inputs: torch.Tensor, name: str) -> torch.Tensor:
        """An affine layer, by name."""
        return inputs @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def norm(self, inputs: torch.Tensor, name: str) -> torch.Tensor:
        """A layer norm, by name."""
        centred = inputs - inputs.mean(dim=-1, keepdim=True)
        variance = centred.pow(2).mean(dim=-1, keepdim=True)
        scaled = centred / torch.sqrt(variance + self.config["layer_norm_eps"])
        return scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def project(self, states: torch.Tensor) -> NDArray[np.float64]:
        """The head, then rows of length one."""
        vectors = states @ self.head.T
        return (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()

    # Texts to vectors

    def query(self, text: str, *, length: int = 32, attend_to_masks: bool = True) -> NDArray[np.float64]:
        """All ``length`` vectors of a query."""
        ids = self.query_ids(text, length)
        return self.project(self.states(ids, [attend_to_masks or token != self.mask_id for token in ids]))

    def document(self, text: str, *, length: int = 300, skiplist: str | None = "stanford") -> NDArray[np.float64]:
        """The vectors of a document's scored tokens."""
        ids = self.marked(text, DOCUMENT_MARKER, length)
        vectors = self.project(self.states(ids, [True] * len(ids)))
        skipped = self.skipped_ids(skiplist)
        return vectors[[token not in skipped and token != PAD for token in ids]]


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of ``model.safetensors``, in float64."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118


def maxsim(query: NDArray[np.floating], document: NDArray[np.floating]) -> float:
    """Sum over query tokens of the largest dot product with a document token."""
    return sum(max(float(np.dot(token, other)) for other in document) for token in query)


def assert_same(found: Sequence[Any], expected: Sequence[Any], tolerance: float = 1e-5) -> None:
    """The same number of matrices, each of the same shape and with the same values."""
    for one, other in zip(found, expected, strict=True):
        assert tuple(one.shape) == tuple(other.shape)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)
