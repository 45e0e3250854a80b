"""Split documents that are longer than the model's window.

In late interaction a document is a bag of token vectors. A long document can therefore be encoded window by window and
its vectors concatenated: it stays one document and nothing is lost. Windows end at the best available boundary
(paragraph, sentence, word), found by ``semantic-text-splitter`` with the model's own token counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from semantic_text_splitter import TextSplitter
from tokenizers import Tokenizer

from jcv2_plugin.documents import has_text

LongDocuments = Literal["truncate", "split", "error"]
LONG_DOCUMENTS: tuple[LongDocuments, ...] = ("truncate", "split", "error")


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts and the ids of all their tokens, without special tokens and prompt.

    Made by :meth:`~jcv2_plugin.JinaColbertEncoder.tokenized`.
    """

    texts: list[str]
    ids: list[list[int]]

    @property
    def counts(self) -> list[int]:
        """Number of tokens of each text."""
        return list(map(len, self.ids))

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def part(self, start: int, stop: int) -> TokenizedTexts:
        """Return some of the texts."""
        return TokenizedTexts(self.texts[start:stop], self.ids[start:stop])


def content_capacity(tokenizer: Any, prompt: str, length: int) -> int:
    """Return how many content tokens fit in a window of ``length`` next to the special tokens and the marker."""
    return int(length - len(tokenizer(prompt)["input_ids"]))


def plain_tokenizer(tokenizer: Any) -> Tokenizer:
    """Return a copy of a fast tokenizer without truncation and padding."""
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def token_counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    """Return a token counter for ``semantic-text-splitter``.

    Passing the tokenizer itself would copy it, which takes 300 MB for XLM-RoBERTa's.
    """
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


class WindowSplitter:
    """Split texts into consecutive windows of at most ``capacity`` tokens. Joining the windows restores the text.

    The tokenizer must not truncate or pad; see :func:`plain_tokenizer`.
    """

    def __init__(self, tokenizer: Tokenizer, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"A window must hold at least one content token, got {capacity}.")
        self.capacity = capacity
        self._splitter = TextSplitter.from_callback(token_counter(tokenizer), capacity, trim=False)

    def windows(self, text: str, tokens: int) -> list[str]:
        """Split a text with the given number of tokens into windows."""
        if tokens <= self.capacity:
            return [text]
        # A passage without boundaries can exceed the capacity by one token; the model's slack keeps it whole.
        return [window for window in self._splitter.chunks(text) if window]


def window_by_characters(text: str, capacity: int) -> list[str]:
    """Split a text into windows of at most ``capacity`` characters, at good boundaries. Blank ones are left out."""
    if len(text) <= capacity:
        return [text]
    return [window for window in TextSplitter(capacity, trim=False).chunks(text) if has_text(window)]


def join_windows(vectors: list[Any], owners: list[int]) -> list[Any]:
    """Concatenate the tensors or arrays of each text's windows. ``owners`` names the text of each window, in order."""
    import torch  # here, since collections import this module and need no torch

    joined: list[list[Any]] = []
    for one, owner in zip(vectors, owners, strict=True):
        if owner == len(joined):
            joined.append([])
        joined[owner].append(one)
    return [
        parts[0] if len(parts) == 1 else torch.cat(parts) if torch.is_tensor(parts[0]) else np.concatenate(parts)
        for parts in joined
    ]
