"""Split documents that are longer than the model's window.

In late interaction a document is a bag of token vectors. A long document can therefore be encoded window by window and
its vectors concatenated: it stays one document and nothing is lost. Windows end at the best available boundary
(paragraph, sentence, word), found by ``semantic-text-splitter`` with the model's own token counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from semantic_text_splitter import TextSplitter
from tokenizers import Tokenizer

LongDocuments = Literal["truncate", "split", "error"]
LONG_DOCUMENTS: tuple[LongDocuments, ...] = ("truncate", "split", "error")


def content_capacity(tokenizer: Any, prompt: str, length: int) -> int:
    """Return how many content tokens fit in a window of ``length`` next to the special tokens and the marker."""
    return int(length - len(tokenizer(prompt or "")["input_ids"]))


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

    Args:
        tokenizer: A tokenizer without truncation and padding; see :func:`plain_tokenizer`.
        capacity: Content tokens per window.
    """

    def __init__(self, tokenizer: Tokenizer, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"A window must hold at least one content token, got {capacity}.")
        self.capacity = capacity
        self._counter = tokenizer
        self._splitter = TextSplitter.from_callback(token_counter(tokenizer), capacity, trim=False)

    def count(self, texts: list[str]) -> list[int]:
        """Return the number of content tokens of each text."""
        return [len(encoding) for encoding in self._counter.encode_batch_fast(texts, add_special_tokens=False)]

    def windows(self, text: str, tokens: int) -> list[str]:
        """Split a text with the given number of tokens into windows."""
        if tokens <= self.capacity:
            return [text]
        # A passage without boundaries can exceed the capacity by one token; the model's slack keeps it whole.
        return [window for window in self._splitter.chunks(text) if window]
