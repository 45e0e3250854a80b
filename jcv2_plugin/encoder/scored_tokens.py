"""Map each row of a multivector to its token and the token's position in the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jcv2_plugin.encoder.windows import LongDocuments

if TYPE_CHECKING:
    from jcv2_plugin.encoder.model import JinaColbertEncoder


@dataclass(frozen=True)
class ScoredToken:
    """The token of one row of a multivector: its vocabulary entry, and ``text[start:end]`` in the text."""

    token: str
    start: int
    end: int

    @property
    def is_special(self) -> bool:
        """Whether the token corresponds to no characters of the text."""
        return self.start == self.end


def scored_tokens(
    encoder: JinaColbertEncoder,
    text: str,
    task: Literal["query", "document"],
    long_documents: LongDocuments = "truncate",
) -> list[ScoredToken]:
    """Return the tokens of a text, one for each row of its multivector."""
    prompt = encoder.prompts.get(task) or ""
    if task == "query":
        return _query_tokens(encoder, prompt, text)
    windows = [text]
    if long_documents == "split":
        windows, _ = encoder.split_documents(encoder.tokenized([text]), "split")
    skipped = encoder.skiplist_ids
    tokens: list[ScoredToken] = []
    start = 0
    for window in windows:
        rows = _tokens(encoder, prompt, window, encoder.document_length, skipped)
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
    with encoder.tokenizer_lock:
        encoding = tokenizer(prompt + text, truncation=True, max_length=length, return_offsets_mapping=True)
    rows = []
    for token_id, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        if token_id in skipped:
            continue
        start, end = max(start - len(prompt), 0), max(end - len(prompt), 0)
        # SentencePiece includes the space before a word in its offsets.
        while start < end and text[start].isspace():
            start += 1
        rows.append(ScoredToken(tokenizer.convert_ids_to_tokens(token_id), start, end))
    return rows
