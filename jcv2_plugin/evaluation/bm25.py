"""BM25 as a lexical baseline, on stemmed words, or on character bigrams for languages without spaces."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice

import bm25s
import Stemmer

from jcv2_plugin.checks import check_integer
from jcv2_plugin.errors import Jcv2Error
from jcv2_plugin.evaluation.beir import BeirDataset, without_own

K1 = 1.5
B = 0.75

_UNSPACED = frozenset({"bo", "dz", "ja", "km", "ko", "lo", "my", "th", "yue", "zh"})
"""Languages written without spaces between words. In Korean, spaces separate phrases that include their particles."""

_LANGUAGE = re.compile(r"([a-z]{2,3})([-_][a-z0-9]+)*", re.IGNORECASE)
_CASE_CHANGE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LATIN = re.compile(r"((?:[\da-z\u00df-\u00f6\u00f8-\u02af\u1e00-\u1eff][\u0300-\u036f]*)+)")

Tokenizer = Callable[[str], list[str]]


class UnknownLanguageError(Jcv2Error, ValueError):
    """A string is not a language code."""


def bm25_run(
    dataset: BeirDataset, lang: str | None = None, k: int = 100, *, ignore_identical_ids: bool | None = None
) -> dict[str, dict[str, float]]:
    """Search a test set with BM25 (k1 = 1.5, b = 0.75, Lucene's idf, no stop words).

    Args:
        dataset: Test set. Title and text of its documents are indexed as one field.
        lang: Language that determines the tokenizer, see :func:`tokenizer_for`. By default that of the test set, or
            English.
        k: Maximum number of results per query. Documents that share no token with the query are not results.
        ignore_identical_ids: Which queries' own documents are no results, see :meth:`BeirDataset.own_documents`.

    Returns:
        Scores by query id and document id, for :func:`jcv2_plugin.evaluation.metrics.evaluate_run`.

    Raises:
        UnknownLanguageError: If ``lang`` is not a language code.
        InvalidOptionError: If ``k`` is not a positive integer.
    """
    k = check_integer(k, "k")
    index = Bm25Index([passage.full_text for passage in dataset.corpus.values()], lang or dataset.language or "en")
    ids, own = list(dataset.corpus), dataset.own_documents(ignore_identical_ids)
    run = {
        query: {ids[place]: score for place, score in index.search(index.tokenize(text), k + bool(own))}
        for query, text in dataset.queries.items()
    }
    return {query: dict(islice(found.items(), k)) for query, found in without_own(run, own).items()}


class Bm25Index:
    """BM25 index of texts, in memory."""

    def __init__(self, texts: Sequence[str], lang: str) -> None:
        self.tokenize = tokenizer_for(lang)
        corpus = [self.tokenize(text) for text in texts]
        self._count, self._mean_length = len(texts), sum(map(len, corpus)) / max(1, len(texts))
        self._index = bm25s.BM25(k1=K1, b=B, method="lucene")
        if self._mean_length:
            self._index.index(corpus, show_progress=False)

    def search(self, query: list[str], k: int) -> list[tuple[int, float]]:
        """Return the positions and scores of the best texts, without those that share no token with the query's."""
        if not self._mean_length or not query:
            return []
        found, scores = self._index.retrieve([query], k=min(k, self._count), show_progress=False)
        return [(place, score) for place, score in zip(found[0].tolist(), scores[0].tolist(), strict=True) if score > 0]

    def score(self, query: list[str], text: str) -> float:
        """Return the score that a text would have with the index's word statistics, even if it is not in the index.

        ``query`` holds the tokens of the query.
        """
        tokens = self.tokenize(text)
        if not self._mean_length or not tokens:
            return 0.0
        frequencies = Counter(tokens)
        vocabulary, starts = self._index.vocab_dict, self._index.scores["indptr"]
        norm = K1 * (1 - B + B * len(tokens) / self._mean_length)
        score = 0.0
        for token in query:
            if (number := vocabulary.get(token)) is not None and (frequency := frequencies[token]):
                found_in = int(starts[number + 1] - starts[number])
                weight = math.log(1 + (self._count - found_in + 0.5) / (found_in + 0.5))
                score += weight * frequency / (norm + frequency)
        return score


def tokenizer_for(lang: str) -> Tokenizer:
    """Return the tokenizer for a language.

    Words are runs of letters, marks and digits after NFKC, lower-cased, and stemmed if Snowball supports the language.
    For languages written without spaces, and Korean, tokens are character bigrams of these runs; Latin words and
    numbers are kept whole.

    Args:
        lang: An ISO 639 code such as ``"en"``; a region or script suffix (``"en-GB"``) is ignored. ``"en-python"`` is
            English mixed with code, whose identifiers are split on case changes and underscores. ``"de+zh"`` is a
            mixture, which is not stemmed and uses bigrams if one of its languages does. ``"de+zh->en"`` has an English
            corpus and is treated as English.

    Raises:
        UnknownLanguageError: If ``lang`` has none of these forms.
    """
    documents = lang.rpartition("->")[2]
    matches = [_LANGUAGE.fullmatch(one.strip()) for one in documents.split("+")]
    languages = {match[1].lower() for match in matches if match}
    if not all(matches):
        raise UnknownLanguageError(
            f"{lang!r} is not a language. Give a code such as 'en', 'zh', 'en-python', 'de+fr' or 'de+fr->en'."
        )
    if not _UNSPACED.isdisjoint(languages):
        return _bigrams
    stem = _stemmer(next(iter(languages))) if len(languages) == 1 else None
    code = documents.strip().endswith("-python")

    def words(text: str) -> list[str]:
        found = _words(_CASE_CHANGE.sub(" ", text) if code else text)
        return stem(found) if stem else found

    return words


def _stemmer(language: str) -> Callable[[list[str]], list[str]] | None:
    try:  # Snowball knows ISO codes, but not those of the two standards of Norwegian.
        stem: Callable[[list[str]], list[str]] = Stemmer.Stemmer(
            {"nb": "no", "nn": "no"}.get(language, language)
        ).stemWords
    except KeyError:
        return None
    return stem


class _Separators(dict[int, int]):
    """Table for ``str.translate``, filled on demand, that replaces all but letters, marks and digits with a space."""

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LMN" else ord(" ")
        return self[code]


_SEPARATORS = _Separators()


def _words(text: str) -> list[str]:
    return unicodedata.normalize("NFKC", text).lower().translate(_SEPARATORS).split()


def _bigrams(text: str) -> list[str]:
    found: list[str] = []
    for word in _words(text):
        for position, part in enumerate(_LATIN.split(word)):
            whole = position % 2 or len(part) == 1
            found += [part] if whole else [part[start : start + 2] for start in range(len(part) - 1)]
    return found
