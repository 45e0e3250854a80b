"""ColBERT's punctuation skip list: which document tokens are not scored, in the two variants in use.

Both start from ``string.punctuation``. They differ for SentencePiece vocabularies, where ``"."`` is encoded as
``["▁", "."]``. Stanford's ColBERT, which Jina used for evaluation, and fastembed skip the *first* id, the bare "▁".
PyLate and sentence-transformers skip the piece "." itself.
"""

from __future__ import annotations

import string
from typing import Any, Literal

Skiplist = Literal["stanford", "pieces"]
SKIPLISTS: tuple[Skiplist, ...] = ("stanford", "pieces")


def skiplist_ids(tokenizer: Any, kind: Skiplist | None) -> list[int]:
    """Return the sorted ids of document tokens that are not scored: of each symbol the first, or its own piece."""
    if kind is None:
        return []
    if kind not in SKIPLISTS:
        raise ValueError(f"skiplist must be 'stanford', 'pieces' or None, got {kind!r}.")
    unknown = tokenizer.unk_token_id
    ids: set[int] = set()
    for symbol in string.punctuation:
        if kind == "stanford":
            encoded = tokenizer.encode(symbol, add_special_tokens=False)
            if encoded:
                ids.add(encoded[0])
        else:
            ids.add(tokenizer.convert_tokens_to_ids(symbol))
    # Skipping <unk> would drop every unknown word.
    return sorted(ids - {unknown})


def skiplist_words(tokenizer: Any, kind: Skiplist | None) -> list[str]:
    """Return the skip list as vocabulary entries, for ``MultiVectorMask(skiplist_words=...)``."""
    return [tokenizer.convert_ids_to_tokens(token_id) for token_id in skiplist_ids(tokenizer, kind)]
