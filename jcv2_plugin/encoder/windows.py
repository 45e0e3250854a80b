"""Split documents that are longer than the model's window.

In late interaction a document is a bag of token vectors. A long document can therefore be encoded window by window and
its vectors concatenated: it stays one document and nothing is lost. Windows end at the best available boundary
(paragraph, sentence, word), found by ``semantic-text-splitter`` with the model's own token counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from semantic_text_splitter import TextSplitter
from tokenizers import Tokenizer

from jcv2_plugin.documents import has_text

LongDocuments = Literal["truncate", "split", "error"]
LONG_DOCUMENTS: tuple[LongDocuments, ...] = ("truncate", "split", "error")

# All tokenizers take these for spaces. Others that Unicode has may be removed, which joins what is beside them.
_WORDS = re.compile(r"[^ \t\n\r]+")
_SAMPLE = 'Two  words, "três" palavras\nund e-mail: 3.5 % of naïve ﬁsh 日本語 の 文 (don\'t!) नमस्ते дом 안녕 hello.world'
_MOST_WORDS, _LONGEST_WORD = 100_000, 50


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts and the ids of all their tokens, without special tokens and prompt."""

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


class TokenCounter:
    """Count the tokens of texts, for ``semantic-text-splitter``, which asks for those of many overlapping parts.

    BERT's and XLM-RoBERTa's tokenizers have no tokens across spaces, so the counts of words add up, and a word is
    tokenised once. Other tokenizers get the whole text. Passing the tokenizer, which must not truncate or pad, to the
    splitter would copy it, which takes 300 MB for XLM-RoBERTa's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._counts: dict[str, int] = {}
        words = _WORDS.findall(_SAMPLE)
        self._by_words = self._ids(_SAMPLE) == [one for word in words for one in self._ids(word)]

    def __call__(self, text: str) -> int:
        """Return the number of tokens of a text, without special tokens."""
        if not self._by_words:
            return len(self._ids(text))
        words, counts = _WORDS.findall(text), self._counts
        new = [word for word in dict.fromkeys(words) if word not in counts]
        if not new:
            return sum(map(counts.__getitem__, words))
        found = self._tokenizer.encode_batch(new, add_special_tokens=False)
        here = {word: len(one.ids) for word, one in zip(new, found, strict=True)}
        total = sum(here[word] if word in here else counts[word] for word in words)
        # Texts without spaces, as in Chinese, are long words, each of which is asked for once.
        counts.update((word, count) for word, count in here.items() if len(word) <= _LONGEST_WORD)
        if len(counts) > _MOST_WORDS:
            self._counts = {}  # not cleared, for another thread may be using it
        return total

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_counts": {}}

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class WindowSplitter:
    """Split texts into windows of at most ``capacity`` tokens, which joined are the text. Takes a plain tokenizer."""

    def __init__(self, tokenizer: Tokenizer, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"A window must hold at least one content token, got {capacity}.")
        self.capacity = capacity
        self._splitter = TextSplitter.from_callback(TokenCounter(tokenizer), capacity, trim=False)

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
