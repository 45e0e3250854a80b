"""BM25: its tokens, its scores by the formula, and the published figures of real sets."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from jcv2_plugin.errors import Jcv2Error
from jcv2_plugin.evaluation.beir import BeirDataset, Passage
from jcv2_plugin.evaluation.bm25 import UnknownLanguageError, bm25_run, tokenizer_for
from jcv2_plugin.evaluation.metrics import evaluate_run


def dataset(documents: dict[str, str], query: str, language: str | None = None) -> BeirDataset:
    corpus = {own_id: Passage("", text) for own_id, text in documents.items()}
    return BeirDataset("made", corpus, {"q": query}, {"q": {next(iter(corpus)): 1}}, language)


@pytest.mark.parametrize(
    "lang, text, tokens",
    [
        ("en", "Running, the DOGS ran!", ["run", "the", "dog", "ran"]),
        ("en-GB", "Running dogs", ["run", "dog"]),
        ("de", "Die Häuser", ["die", "haus"]),
        ("sw", "Running dogs", ["running", "dogs"]),
        ("vi", "Tiếng Việt", ["tiếng", "việt"]),
        ("sw", "ｆｕｌｌ ｗｉｄｔｈ snake_case 3.5 ①", ["full", "width", "snake", "case", "3", "5", "1"]),
        ("bn", "বাংলা ভাষা। हिन्दी", ["বাংলা", "ভাষা", "हिन्दी"]),  # combining marks stay in their word
        ("nb", "Hundene løper", ["hund", "løp"]),
        ("en", "getHTTPResponse", ["gethttprespons"]),
        ("en-python", "getHTTPResponse(max_retries=3)", ["get", "http", "respons", "max", "retri", "3"]),
        ("de+en", "Running Häuser", ["running", "häuser"]),
        ("de+zh->en", "Running 中文字", ["run", "中文字"]),
        ("zh", "中文字，好 Python3很快", ["中文", "文字", "好", "python3", "很快"]),
        ("zh", "用iPhone打1990年", ["用", "iphone", "打", "1990", "年"]),
        ("zh", "Crème brûlée", ["crème", "brûlée"]),
        ("ja", "東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("ko", "대한민국 서울", ["대한", "한민", "민국", "서울"]),
        ("en+zh", "Running 中文字", ["running", "中文", "文字"]),
        ("zh-Hans", "中文字", ["中文", "文字"]),
        ("en", "?!", []),
        ("zh", "", []),
    ],
)
def test_tokens(lang: str, text: str, tokens: list[str]) -> None:
    assert tokenizer_for(lang)(text) == tokens


@pytest.mark.parametrize("lang", ["english", "", "e", "en+", "->", "de->english"])
def test_what_is_no_language(lang: str) -> None:
    with pytest.raises(UnknownLanguageError, match=r"is not a language\. Give a code such as 'en'"):
        tokenizer_for(lang)
    assert issubclass(UnknownLanguageError, Jcv2Error)


def test_scores_follow_the_formula() -> None:
    # N = 2 documents of 2 and 3 words, 2.5 on average. "pear" is in one of them, twice:
    # idf = ln(1 + (2 - 1 + 0.5) / (1 + 0.5)) = ln 2; tf / (tf + 1.5 * (1 - 0.75 + 0.75 * 3 / 2.5)) = 2 / 3.725.
    run = bm25_run(dataset({"d1": "red apple", "d2": "green pear pear"}, "Which pear?"), lang="sw")
    assert run["q"] == pytest.approx({"d2": math.log(2) * 2 / 3.725})


def test_title_and_text_are_one_field() -> None:
    corpus = {"d1": Passage("Pears", "They are green."), "d2": Passage("Apples", "They are red.")}
    run = bm25_run(BeirDataset("made", corpus, {"q": "pear"}, {"q": {"d1": 1}}))
    assert list(run["q"]) == ["d1"]


def test_the_language_is_the_arguments_the_data_sets_or_english() -> None:
    documents = {"d1": "running", "d2": "中文字", "d3": "something"}
    assert list(bm25_run(dataset(documents, "runs"))["q"]) == ["d1"]
    assert list(bm25_run(dataset(documents, "runs", "sw"))["q"]) == []
    assert list(bm25_run(dataset(documents, "中文", "zh"))["q"]) == ["d2"]
    assert list(bm25_run(dataset(documents, "中文", "zh"), lang="en")["q"]) == []


def test_k_is_a_limit() -> None:
    documents = {f"d{number}": "pear " * (number + 1) + "apple" for number in range(5)}
    made = dataset(documents, "pear")
    assert list(bm25_run(made, k=2)["q"]) == ["d4", "d3"]
    assert len(bm25_run(made, k=100)["q"]) == 5
    with pytest.raises(ValueError, match="k must be a positive integer, got 0"):
        bm25_run(made, k=0)


def test_what_finds_nothing() -> None:
    for query in ("?!", "unheard of"):
        assert bm25_run(dataset({"d1": "red apple", "d2": "pear"}, query)) == {"q": {}}
    assert bm25_run(dataset({"d1": "!", "d2": "?"}, "pear")) == {"q": {}}


@pytest.mark.parametrize(
    "name, figures",
    [
        ("xquad-en", {"ndcg@10": 0.966, "recall@100": 0.998, "mrr@10": 0.957}),
        ("xquad-zh", {"ndcg@10": 0.961, "recall@100": 0.995, "mrr@10": 0.951}),
    ],
)
def test_published_figures(data_dir: Path, name: str, figures: dict[str, float]) -> None:
    """Those of the README beside the data."""
    real = BeirDataset.read(data_dir / name)
    assert evaluate_run(bm25_run(real), real.qrels) == pytest.approx(figures, abs=0.01)
