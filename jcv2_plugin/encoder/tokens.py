"""Which token each row of a text's multivector stands for, with its position in the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jcv2_plugin.encoder.windows import LongDocuments

if TYPE_CHECKING:
    from jcv2_plugin.encoder.model import JinaColbertEncoder


@dataclass(frozen=True)
class ScoredToken:
    """One row of a multivector.

    Attributes:
        token: The vocabulary entry, as the tokenizer writes it.
        start: First character in the text.
        end: Character past the last. Equal to ``start`` for markers, [MASK] and other special tokens.
    """

    token: str
    start: int
    end: int

    @property
    def is_special(self) -> bool:
        """Whether no character of the text stands behind it."""
        return self.start == self.end


def scored_tokens(
    encoder: JinaColbertEncoder,
    text: str,
    task: Literal["query", "document"],
    long_documents: LongDocuments = "truncate",
) -> list[ScoredToken]:
    """The tokens of a text in the order of its vectors, one a row."""
    prompt = encoder.prompts.get(task) or ""
    if task == "query":
        return _query_tokens(encoder, prompt, text)
    windows = [text]
    if long_documents == "split":
        splitter = encoder._window_splitter(prompt)
        windows = splitter.windows(text, splitter.count([text])[0])
    tokens: list[ScoredToken] = []
    start = 0
    for window in windows:
        rows = _tokens(encoder, prompt, window, encoder.document_length, encoder.skiplist_ids)
        tokens.extend(
            ScoredToken(row.token, row.start + start, row.end + start) if not row.is_special else row for row in rows
        )
        start += len(window)
    return tokens


def _query_tokens(encoder: JinaColbertEncoder, prompt: str, text: str) -> list[ScoredToken]:
    expansion = encoder.backbone.query_expansion
    length = encoder.backbone.query_length or encoder.max_document_length
    if expansion is not None and expansion["strategy"] == "fixed":
        length = expansion["length"]
    tokens = _tokens(encoder, prompt, text, length, frozenset())
    if expansion is not None:
        tokenizer = encoder.tokenizer
        mask = str(expansion["token"] or tokenizer.mask_token or tokenizer.eos_token)
        tokens += [ScoredToken(mask, 0, 0)] * (expansion["length"] - len(tokens))
    return tokens


def _tokens(
    encoder: JinaColbertEncoder, prompt: str, text: str, length: int, skipped: frozenset[int]
) -> list[ScoredToken]:
    tokenizer = encoder.tokenizer
    with encoder._tokenizer_lock:
        encoding = tokenizer(prompt + text, truncation=True, max_length=length, return_offsets_mapping=True)
    rows = []
    for token_id, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        if token_id in skipped:
            continue
        start, end = max(start - len(prompt), 0), max(end - len(prompt), 0)
        # SentencePiece counts the space before a word as part of it.
        while start < end and text[start].isspace():
            start += 1
        rows.append(ScoredToken(tokenizer.convert_ids_to_tokens(token_id), start, end))
    return rows
