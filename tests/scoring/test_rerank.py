"""Texts ranked without an index: as a collection of them would rank them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_samples import DIM, QUERIES, documents

from jcv2_plugin import ColbertCollection, JinaColbertEncoder, rerank
from jcv2_plugin.errors import (
    DocumentTooLongError,
    InvalidDocumentError,
    InvalidOptionError,
    InvalidQueryError,
    InvalidVectorError,
    UnknownDimError,
)
from jcv2_plugin.scoring import rerank as reranking

LONG = "The tide comes in, and the ferry waits in the harbour. " * 60 + "Only here is a rhinoceros."
TEXTS = [*(one.text for one in documents(30)), LONG, "漢字と仮名 mixed", "a"]
ASKED = (*QUERIES, "a rhinoceros")


@pytest.fixture
def encoded_texts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    seen: list[list[str]] = []
    encode = JinaColbertEncoder.document_vectors

    def document_vectors(self: JinaColbertEncoder, texts: Any, *rest: Any) -> Any:
        seen.append(list(texts))
        return encode(self, texts, *rest)

    monkeypatch.setattr(JinaColbertEncoder, "document_vectors", document_vectors)
    return seen


@pytest.mark.parametrize("engine, dim, long_documents", [("edge", DIM, "split"), ("memory", 64, "truncate")])
def test_as_a_collection_of_them(
    engine: str, dim: int, long_documents: Any, mini: JinaColbertEncoder, tmp_path: Path
) -> None:
    location = ":memory:" if engine == "memory" else tmp_path / "c"
    with ColbertCollection.create(
        location, encoder=mini, dim=dim, storage="float32", long_documents=long_documents
    ) as collection:
        collection.add(TEXTS, ids=[str(index) for index in range(len(TEXTS))])
        for query in ASKED:
            hits = collection.search(query, len(TEXTS), exact=True)
            results = rerank(mini, query, TEXTS, dim=dim, long_documents=long_documents)
            assert len(results) == len(TEXTS)
            assert {str(one.index): one.score for one in results} == pytest.approx(
                {hit.id: hit.score for hit in hits}, abs=1e-5
            )
            assert [one.relevance for one in results] == pytest.approx([hit.relevance for hit in hits], abs=1e-6)
            assert [one.score for one in results] == sorted((one.score for one in results), reverse=True)


def test_windows_count(mini: JinaColbertEncoder) -> None:
    texts = ["Rice is cooked in water.", LONG]
    split, cut = (
        {one.index: one.score for one in rerank(mini, "a rhinoceros", texts, dim=DIM, long_documents=choice)}
        for choice in ("split", "truncate")
    )
    assert split[1] > cut[1] + 0.5
    assert split[0] == pytest.approx(cut[0], abs=1e-5)


def test_explanations(mini: JinaColbertEncoder) -> None:
    plain = rerank(mini, ASKED[-1], TEXTS, dim=DIM)
    explained = rerank(mini, ASKED[-1], TEXTS, dim=DIM, with_explanation=True)
    assert explained == plain
    assert {one.explanation for one in plain} == {None}
    assert "xplanation" not in repr(explained[0])
    for one in explained:
        assert one.explanation is not None
        assert (one.explanation.query, one.explanation.text) == (ASKED[-1], TEXTS[one.index])
        assert one.explanation.score == pytest.approx(one.score, abs=1e-5)
    found = next(one.explanation for one in explained if one.index == TEXTS.index(LONG))
    assert found is not None
    start, end = LONG.index("rhinoceros"), len(LONG) - 1
    assert any(start <= one and other <= end for one, other in found.matched_spans(0.8))


class TestTies:
    def test_the_earlier_one_comes_first_and_is_encoded_once(
        self, mini: JinaColbertEncoder, encoded_texts: list[list[str]]
    ) -> None:
        texts = ["Rice.", "The ferry sails.", "Rice.", "The ferry sails.", "Rice."]
        results = rerank(mini, "when does the ferry sail?", texts, dim=DIM)
        assert [one.index for one in results] == [1, 3, 0, 2, 4]
        assert results[0].score == results[1].score
        assert encoded_texts == [["Rice.", "The ferry sails."]]

    def test_texts_go_to_the_encoder_in_batches(
        self, mini: JinaColbertEncoder, encoded_texts: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = rerank(mini, QUERIES[0], TEXTS, dim=DIM)
        monkeypatch.setattr(reranking, "_TEXTS_AT_A_TIME", 10)
        encoded_texts.clear()
        parts = rerank(mini, QUERIES[0], TEXTS, dim=DIM)
        assert [len(batch) for batch in encoded_texts] == [10, 10, 10, 3]
        assert {one.index: one.score for one in parts} == pytest.approx(
            {one.index: one.score for one in whole}, abs=1e-5
        )


def test_blank_texts_come_last_with_scores_of_0(mini: JinaColbertEncoder) -> None:
    found = rerank(mini, "why?", ["", "One.", "\u200b", "Two."], with_explanation=True)
    assert [one.index for one in found[2:]] == [0, 2]
    assert [(one.score, one.relevance, one.explanation) for one in found[2:]] == [(0.0, 0.0, None)] * 2
    assert [one.score for one in rerank(mini, "why?", [" "])] == [0.0]


class TestBadInput:
    @pytest.mark.parametrize(
        ("query", "texts", "options", "error", "message"),
        [
            *(
                ("why?", ["One.", "Two.", text, "Three."], {}, InvalidDocumentError, "Document 2: the text")
                for text in (7, None, "\ud800")
            ),
            ("why?", "One.", {}, InvalidDocumentError, "Give a list of texts"),
            *((query, ["One."], {}, InvalidQueryError, "non-empty str") for query in ("", " ", None, 3)),
            ("", [], {}, InvalidQueryError, "non-empty str"),
            ("why\ud83d", ["One."], {}, InvalidQueryError, "The query has lone surrogates"),
            ("why?", ["One.", "One.", LONG], {"long_documents": "error"}, DocumentTooLongError, "Document 2 has"),
            ("why?", ["One."], {"dim": 7}, UnknownDimError, "dim=7"),
            ("why?", ["One."], {"long_documents": "cut"}, InvalidOptionError, "long_documents must be one of"),
        ],
    )
    def test_what_is_refused(
        self,
        mini: JinaColbertEncoder,
        encoded_texts: list[list[str]],
        query: Any,
        texts: Any,
        options: dict[str, Any],
        error: type[Exception],
        message: str,
    ) -> None:
        with pytest.raises(error, match=message):
            rerank(mini, query, texts, **{"dim": DIM, **options})
        assert [batch for batch in encoded_texts if batch != ["One."]] == []

    def test_what_is_not(self, mini: JinaColbertEncoder, encoded_texts: list[list[str]]) -> None:
        assert rerank(mini, QUERIES[0], []) == []
        assert encoded_texts == []
        assert len(rerank(mini, QUERIES[0], ["One.", "One."], dim=np.int64(DIM), long_documents="error")) == 2

    def test_vectors_that_are_not_finite(self, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        nan = np.full((3, DIM), np.nan, dtype=np.float32)
        monkeypatch.setattr(JinaColbertEncoder, "document_vectors", lambda self, texts, *rest: [nan for _ in texts])
        with pytest.raises(InvalidVectorError, match="Document 0"):
            rerank(mini, QUERIES[0], ["One."], dim=DIM)
        monkeypatch.setattr(JinaColbertEncoder, "query_vectors", lambda self, texts, *rest: [nan for _ in texts])
        with pytest.raises(InvalidVectorError, match="query vectors that are not finite"):
            rerank(mini, QUERIES[0], ["One."], dim=DIM)


def test_a_text_that_qdrant_would_not_take_is_ranked(mini):
    results = rerank(mini, "a word", ["word " * 9000, "unlike"], dim=256)
    assert [one.index for one in results] == [0, 1]
    assert results[0].relevance > results[1].relevance
