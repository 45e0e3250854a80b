"""Documents longer than the model's window: cut, refused, or encoded in several windows.

In late interaction a document is a bag of token vectors, so a long one can be encoded window by window and
its vectors put together: nothing is lost and it stays one document. Windows end at the best boundary there
is (paragraph, sentence, word), found by ``semantic-text-splitter`` counting the model's own tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from semantic_text_splitter import TextSplitter
from tokenizers import Tokenizer

LongDocuments = Literal["truncate", "split", "error"]
LONG_DOCUMENTS: tuple[LongDocuments, ...] = ("truncate", "split", "error")


def content_capacity(tokenizer: Any, prompt: str, length: int) -> int:
    """How many content tokens fit a window of ``length`` beside the special tokens and the marker."""
    return int(length - len(tokenizer(prompt or "")["input_ids"]))


def plain_tokenizer(tokenizer: Any) -> Tokenizer:
    """A copy of a fast tokenizer that neither truncates nor pads, whatever the original was last used for."""
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def token_counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    """How ``semantic-text-splitter`` is to measure texts. Handed the tokenizer itself, it would make a copy of it:
    300 MB of XLM-RoBERTa's.
    """
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


class WindowSplitter:
    """Split texts into consecutive windows of at most ``capacity`` tokens; joined they are the text again.

    Args:
        tokenizer: One that neither truncates nor pads, see :func:`plain_tokenizer`.
        capacity: Content tokens a window.
    """

    def __init__(self, tokenizer: Tokenizer, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"A window must hold at least one content token, got {capacity}.")
        self.capacity = capacity
        self._counter = tokenizer
        self._splitter = TextSplitter.from_callback(token_counter(tokenizer), capacity, trim=False)

    def count(self, texts: list[str]) -> list[int]:
        """Content tokens of each text."""
        return [len(encoding) for encoding in self._counter.encode_batch_fast(texts, add_special_tokens=False)]

    def windows(self, text: str, tokens: int) -> list[str]:
        """The text in windows, given its number of tokens."""
        if tokens <= self.capacity:
            return [text]
        # A stretch without boundaries can come out a token over; the slack keeps it whole.
        return [window for window in self._splitter.chunks(text) if window]
