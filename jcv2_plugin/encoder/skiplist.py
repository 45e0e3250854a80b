"""Which document tokens are not scored: ColBERT's punctuation skip list, in the two readings in use.

Both start from ``string.punctuation``. They differ on SentencePiece vocabularies, where ``"."`` encodes to
``["▁", "."]``: Stanford's ColBERT (which the authors evaluated with) and fastembed skip the *first* id of
that, the bare "▁"; PyLate and sentence-transformers skip the piece "." itself.
"""

from __future__ import annotations

import string
from typing import Any, Literal

Skiplist = Literal["stanford", "pieces"]
SKIPLISTS: tuple[Skiplist, ...] = ("stanford", "pieces")


def skiplist_ids(tokenizer: Any, kind: Skiplist | None) -> list[int]:
    """Ids of the document tokens to leave out of scoring, sorted.

    Args:
        tokenizer: A transformers tokenizer.
        kind: ``"stanford"`` (first id of each encoded symbol), ``"pieces"`` (each symbol's own piece, where
            the vocabulary has one), or None for no skip list.

    Raises:
        ValueError: If ``kind`` is none of these.
    """
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
    # Skipping <unk> would drop every unknown word of a document.
    return sorted(ids - {unknown})


def skiplist_words(tokenizer: Any, kind: Skiplist | None) -> list[str]:
    """The same as vocabulary entries, as ``MultiVectorMask(skiplist_words=...)`` takes them."""
    return [tokenizer.convert_ids_to_tokens(token_id) for token_id in skiplist_ids(tokenizer, kind)]
