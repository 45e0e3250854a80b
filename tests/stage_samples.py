"""First stages of the user's own: one without a model, and small models of sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
from transformers import PreTrainedTokenizerFast

from jcv2_plugin import DenseParams, JinaColbertEncoder, SparseParams, SparseVector

LETTERS = DenseParams(24, "dot")


class Letters:
    """Counts letters: a stage that a user might write, which can be pickled and follows the protocol by its parts."""

    def __init__(self, name: str = "letters", params: Any = LETTERS) -> None:
        self.name, self.params = name, params

    def encode_documents(self, texts: Sequence[str]) -> Any:
        if isinstance(self.params, SparseParams):
            counts = [{letter: text.count(letter) for letter in set(text)} for text in texts]
            return [SparseVector([ord(one) for one in found], list(found.values())) for found in counts]
        return np.array([[1.0 + text.count(chr(97 + n)) for n in range(self.params.size)] for text in texts])

    encode_queries = encode_documents


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of a small vocabulary, else for each of its letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = [chr(one) for one in range(33, 127) if not chr(one).isupper()]
    vocabulary = ["[PAD]", "[UNK]", *letters, *(f"##{one}" for one in letters)]
    words = models.WordPiece({one: place for place, one in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = Tokenizer(words)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def dense_model(size: int = 32) -> SentenceTransformer:
    """The mean of a random vector per letter, and its place at the beginning of a word or within."""
    tokenizer = _tokenizer()
    weights = np.random.default_rng(5).normal(size=(len(tokenizer), size)).astype(np.float32)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


def sparse_model() -> SparseEncoder:
    """A random weight for each letter that a text has."""
    tokenizer = _tokenizer()
    weight = torch.rand(len(tokenizer), generator=torch.Generator().manual_seed(5)) + 0.1
    return SparseEncoder(modules=[SparseStaticEmbedding(tokenizer, weight=weight, frozen=True)], device="cpu")


def backbone_model(encoder: JinaColbertEncoder) -> SentenceTransformer:
    """The mean of an encoder's own states before its heads."""
    size = int(encoder.backbone.get_embedding_dimension())
    return SentenceTransformer(modules=[encoder.backbone, Pooling(size, "mean")], device="cpu")
