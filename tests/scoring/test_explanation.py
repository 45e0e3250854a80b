from __future__ import annotations

import html
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from official_checkpoint import write_checkpoint

from jcv2_plugin import ColbertCollection, JinaColbertEncoder, explain
from jcv2_plugin.encoder.scored_tokens import scored_tokens
from jcv2_plugin.errors import InvalidDocumentError

QUERY = "when does the ferry sail?"
TEXT = "The ferry doesn't sail <b>before</b> noon; in winter, it stays in the harbour."


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> JinaColbertEncoder:
    folder = tmp_path_factory.mktemp("official") / "colbert"
    write_checkpoint(folder, dim=64)
    return JinaColbertEncoder.from_pretrained(folder, device="cpu")


class TestTokens:
    @pytest.mark.parametrize(
        "text", [TEXT, "漢字と仮名 mixed", "  spaces   around  ", "a", "naïve café — ok…", "x" * 400]
    )
    def test_there_is_one_token_for_each_vector(
        self, mini: JinaColbertEncoder, official: JinaColbertEncoder, text: str
    ) -> None:
        for encoder in (mini, official):
            for choice in ("truncate", "split"):
                vectors = encoder.encode_document(text, dim=64, long_documents=choice)
                assert len(scored_tokens(encoder, text, "document", choice)) == len(vectors)
            assert len(scored_tokens(encoder, text, "query")) == len(encoder.encode_query(text, dim=64))

    def test_spans_are_the_words(self, mini: JinaColbertEncoder) -> None:
        tokens = scored_tokens(mini, TEXT, "document")
        words = [TEXT[token.start : token.end] for token in tokens if not token.is_special]
        assert "".join(words) == TEXT.replace(" ", "")
        assert words[:2] == ["The", "ferry"]
        assert [token.token for token in tokens if token.is_special] == ["[CLS]", "[SEP]"]

    def test_masks_and_markers_are_special(self, official: JinaColbertEncoder) -> None:
        tokens = scored_tokens(official, QUERY, "query")
        assert len(tokens) == 32
        assert [token.token for token in tokens[:2]] == ["<s>", "[QueryMarker]"]
        assert tokens[-1].token == "<mask>"
        assert tokens[-1].is_special


class TestExplanation:
    def test_the_matches_add_up_to_the_score(self, mini: JinaColbertEncoder) -> None:
        explanation = explain(mini, QUERY, TEXT, dim=128)
        expected = mini.similarity(mini.encode_query([QUERY], dim=128), mini.encode_document([TEXT], dim=128))
        assert explanation.score == pytest.approx(float(expected), abs=1e-4)
        assert sum(match.similarity for match in explanation.matches) == pytest.approx(explanation.score, abs=1e-4)
        assert explanation.contributions(words_only=False).sum() == pytest.approx(explanation.score, abs=1e-4)
        matched = {
            QUERY[m.query.start : m.query.end]: TEXT[m.document.start : m.document.end] for m in explanation.matches
        }
        assert matched["ferry"] == "ferry"
        assert matched["sail"] == "sail"

    def test_matched_spans_are_in_the_text_and_do_not_overlap(self, mini: JinaColbertEncoder) -> None:
        spans = explain(mini, QUERY, TEXT, dim=128).matched_spans()
        assert "ferry" in [TEXT[start:end] for start, end in spans]
        assert all(first[1] < second[0] for first, second in itertools.pairwise(spans))

    def test_vectors_of_another_text_are_refused(self, mini: JinaColbertEncoder) -> None:
        with pytest.raises(ValueError, match="but 3 vectors were given"):
            explain(mini, QUERY, TEXT, dim=64, document_vectors=np.zeros((3, 64), dtype=np.float32))

    def test_a_collection_explains_with_its_stored_vectors(self, mini: JinaColbertEncoder) -> None:
        with ColbertCollection.create(":memory:", encoder=mini, dim=64) as collection:
            collection.add([TEXT], ids=["ferry"])
            score = collection.search(QUERY, k=1)[0].score
            assert collection.explain(QUERY, "ferry").score == pytest.approx(score, abs=1e-4)
            with pytest.raises(InvalidDocumentError, match="no document 'other'"):
                collection.explain(QUERY, "other")


class TestHeatMap:
    def test_it_holds_the_text_escaped_and_nothing_from_outside(self, mini: JinaColbertEncoder) -> None:
        page = explain(mini, "</script><b>ferry?", TEXT, dim=64).to_html()
        assert "&lt;" in page
        assert "<b>" not in page
        assert not re.search(r"https?://|src=|@import", page)
        body = re.search(r'<div class="document">(.*?)</div>', page, re.DOTALL)
        assert body is not None
        assert html.unescape(re.sub(r"</?span[^>]*>", "", body[1])) == TEXT

    def test_its_data_is_the_comparison(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        explanation = explain(mini, QUERY, TEXT, dim=64)
        data = re.search(r"const similarities = (\[\[.*?\]\]);", explanation.to_html())
        assert data is not None
        np.testing.assert_allclose(json.loads(data[1]), explanation.similarities, atol=6e-4)
