"""What the comparison with peers stands on: fair turns, right ratios, exact references, workers that tell errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jcv2_plugin import JinaColbertEncoder

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def importable() -> Any:
    """The benchmarks import each other from their own folder, as scripts do."""
    folders = [str(BENCHMARKS), str(BENCHMARKS / "peers")]
    sys.path[:0] = folders
    yield
    for folder in folders:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import peer_texts

    return peer_texts.checkpoint(tmp_path_factory.mktemp("models"), 64, 300)


@pytest.fixture(scope="module")
def source() -> list[str]:
    import peer_texts

    return peer_texts.docstrings()


class TestMeasures:
    def test_each_engine_comes_first_in_turn(self) -> None:
        from peer_measures import turns

        orders = list(turns(["a", "b", "c"], 4))
        assert [order[0] for order in orders] == ["a", "b", "c", "a"]
        assert all(sorted(order) == ["a", "b", "c"] for order in orders)

    def test_ratios_are_of_rounds_and_above_one_where_ours_is_faster(self) -> None:
        from peer_measures import ratios

        ours = [{"clock": 1.0, "processor": 2.0}, {"clock": 10.0, "processor": 2.0}, {"clock": 2.0, "processor": 2.0}]
        theirs = [{"clock": 3.0, "processor": 1.0}, {"clock": 20.0, "processor": 1.0}, {"clock": 8.0, "processor": 1.0}]
        found = ratios(theirs, ours)
        assert found["clock"] == {"median": 3.0, "low": 2.0, "high": 4.0}
        assert found["processor"]["median"] == 0.5
        with pytest.raises(ValueError, match="zip"):
            ratios(theirs, ours[:2])

    def test_the_exact_reference_is_maxsim(self) -> None:
        from peer_storing import exact_top

        chance = np.random.default_rng(0)
        documents = [chance.standard_normal((length, 8)).astype(np.float32) for length in (1, 5, 3, 9)]
        query = chance.standard_normal((4, 8)).astype(np.float32)
        plain = [sum(max(float(token @ other) for other in one) for token in query) for one in documents]
        (found,) = exact_top([query], documents, 3)
        assert list(found) == sorted(range(4), key=lambda index: -plain[index])[:3]
        assert list(found.values()) == pytest.approx(sorted(plain, reverse=True)[:3], rel=1e-5)

    def test_vectors_that_cannot_be_compared_are_told(self, tmp_path: Path) -> None:
        from peer_encoding import difference
        from worker import write_vectors

        one, other = np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)
        write_vectors(tmp_path / "a.npz", [one, other])
        write_vectors(tmp_path / "b.npz", [one, other + 0.5])
        write_vectors(tmp_path / "c.npz", [one, one])
        assert difference(tmp_path / "a.npz", tmp_path / "b.npz") == pytest.approx(0.5)
        assert difference(tmp_path / "a.npz", tmp_path / "c.npz") == "1 of 2 texts have another number of vectors"


class TestTexts:
    def test_the_texts_are_as_long_as_they_are_said_to_be(self, source: list[str]) -> None:
        import peer_texts

        assert len(source) > 5000
        assert len(set(source)) == len(source)
        made = peer_texts.documents("100 tokens", 5, lambda text: len(text.split()), source)
        assert len(set(made)) == 5
        assert all(len(text.split()) >= 100 for text in made)
        with pytest.raises(ValueError, match="text for 1 documents"):
            peer_texts.documents("100 tokens", 2, lambda text: 60, ["a", "b", "c"])

    def test_no_text_comes_twice_in_a_batch_of_triplets(self, source: list[str]) -> None:
        from peer_training import TrainingScale, triplets

        batch = next(triplets(source, TrainingScale(1, 1, batch_size=3, negatives=4)))
        texts = [text for row in batch for text in (row["query"], row["positive"], *row["negatives"])]
        assert len(batch) == 3
        assert len(texts) == len(set(texts)) == 3 * 6

    def test_the_checkpoint_is_made_up_like_the_real_model(self, checkpoint: Path) -> None:
        encoder = JinaColbertEncoder.from_pretrained(checkpoint, device="cpu")
        assert (encoder.query_length, encoder.document_length) == (32, 300)
        assert set(encoder.tokenizer.convert_tokens_to_ids([".", ",", "!"])) <= encoder.skiplist_ids
        marker = encoder.tokenizer.convert_tokens_to_ids("[unused0]")
        features = encoder.preprocess(["late interaction"], prompt=encoder.prompts["query"], task="query")
        assert features["input_ids"][0, 1] == marker
        assert features["attention_mask"].sum() == 32

    def test_a_longer_window_leaves_short_texts_as_they_are(self, checkpoint: Path) -> None:
        import peer_texts

        short = JinaColbertEncoder.from_pretrained(checkpoint, device="cpu")
        long = JinaColbertEncoder.from_pretrained(
            peer_texts.checkpoint(checkpoint.parent, 64, peer_texts.LONG), device="cpu"
        )
        text = "Tokens are compared one by one."
        np.testing.assert_allclose(short.encode_document(text), long.encode_document(text), atol=1e-6)
        assert len(long.encode_document("word " * 1500)) == 1500 + 3


class TestWorkers:
    def test_a_worker_encodes_as_the_encoder_does(self, checkpoint: Path, tmp_path: Path) -> None:
        from peer_measures import write_json
        from peer_process import Worker
        from worker import read_vectors

        texts = ["Late interaction, token by token.", "Rice."]
        file = write_json(tmp_path / "texts.json", texts)
        with Worker("ours", "jcv2", threads=1) as worker:
            assert worker.load(checkpoint)["versions"]["torch"]
            done = worker.ask("encode", texts=file, role="document", save=str(tmp_path / "vectors.npz"))
        expected = JinaColbertEncoder.from_pretrained(checkpoint, device="cpu").encode_document(texts)
        assert done["clock"] > 0
        assert done["vectors"] == sum(map(len, expected))
        for one, other in zip(read_vectors(tmp_path / "vectors.npz"), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)

    def test_a_store_that_holds_everything_finds_what_exact_search_finds(self, tmp_path: Path) -> None:
        from peer_measures import write_json
        from peer_process import Worker, WorkerError
        from peer_storing import exact_top
        from worker import write_vectors

        chance = np.random.default_rng(1)
        documents = [chance.standard_normal((length, 16)).astype(np.float32) for length in range(2, 12)]
        queries = [chance.standard_normal((3, 16)).astype(np.float32) for _ in range(4)]
        write_vectors(tmp_path / "documents.npz", documents)
        write_vectors(tmp_path / "queries.npz", queries)
        texts = write_json(tmp_path / "texts.json", [str(number) for number in range(10)])
        asked = write_json(tmp_path / "asked.json", ["q"] * 4)
        with Worker("local", "qdrant-local", threads=1) as worker:
            worker.load(None)
            with pytest.raises(WorkerError, match="local failed in 'encode': NotImplementedError"):
                worker.ask("encode", texts=texts, role="document")
            files = {"vectors": str(tmp_path / "documents.npz"), "texts": texts, "folder": str(tmp_path / "none")}
            stored = worker.ask("store", **files, options={})
            answer = worker.ask("search", vectors=str(tmp_path / "queries.npz"), texts=asked, k=5)
        assert stored["bytes"] == 0
        assert answer["found"] == [list(best) for best in exact_top(queries, documents, 5)]
        assert len(answer["clock"]) == 4

    def test_the_last_words_of_a_worker_are_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import peer_process
        from peer_environments import Peer

        class Broken(Peer):
            worker = tmp_path / "broken.py"  # type: ignore[assignment]

        Broken.worker.write_text("raise SystemExit('no such engine here')")
        monkeypatch.setitem(peer_process.PEERS, "broken", Broken("broken", own=False))
        with (
            peer_process.Worker("broken", "broken", threads=1) as worker,
            pytest.raises(peer_process.WorkerError, match="no such engine here"),
        ):
            worker.load(None)


def test_operators_are_told_apart_in_a_profile(source: list[str], checkpoint: Path) -> None:
    import encoding_profile

    seconds = {"aten::addmm": 3.0, "aten::_scaled_dot_product_flash_attention_for_cpu": 2.0, "aten::add": 1.0}
    found = encoding_profile.split(seconds, 10.0)
    assert found == {"matrices": 3.0, "attention": 2.0, "other operators": 1.0, "outside of torch": 4.0}
    encoder = JinaColbertEncoder.from_pretrained(checkpoint, device="cpu")
    measured = encoding_profile.measure(encoder, source[:4])
    assert sum(measured["shares"].values()) == pytest.approx(1.0, abs=0.05)
    assert min(measured["shares"][kind] for kind in ("matrices", "attention")) > 0.01
    assert 0.01 < measured["matrices, of the peak"] < 3


def test_a_table_without_results_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import docs_tables

    monkeypatch.setattr(docs_tables, "RESULTS", tmp_path)
    page = "<!-- table: peers-encode -->\n| old |\n<!-- end -->"
    assert docs_tables.NOT_MEASURED in docs_tables.render(page)


RATIOS = {"clock": {"median": 2.0, "low": 1.5, "high": 3.0}, "processor": {"median": 1.9, "low": 1, "high": 2}}


def search_row(engine: str, effort: Any, recall: float, ratio: float) -> dict[str, Any]:
    return {
        "documents": 2000,
        "engine": engine,
        "effort": effort,
        "recall@10": recall,
        "milliseconds": {"median": ratio},
        "over_ours": {"clock": {"median": ratio}},
    }


class TestTables:
    def test_equal_recall_takes_our_fastest_search_that_finds_as_much(self) -> None:
        import peer_tables

        rows = [
            search_row("jcv2", None, 0.99, 1.0),
            search_row("jcv2", 50, 0.90, 0.5),
            search_row("jcv2", "exact", 1.0, 4.0),
            search_row("fast-plaid", None, 0.95, 3.0),
            search_row("fast-plaid", {"n_ivf_probe": 2}, 0.85, 2.0),
        ]
        lines = peer_tables.equal_recall({"tasks": {"search": rows}}).splitlines()[2:]
        assert lines == [
            "| 2,000 | fast-plaid | default | 0.950 | default | 0.990 | 3.00 |",
            "| 2,000 | fast-plaid | n_ivf_probe 2 | 0.850 | 50 candidates | 0.900 | 4.00 |",
        ]

    def test_vectors_that_differ_are_marked(self) -> None:
        import peer_tables

        row = {
            "kind": "short",
            "documents": 3,
            "tokens": {"median": 7.0},
            "engine": "other",
            "batch": 8,
            "documents_per_second": {"median": 10.0},
            "over_ours": RATIOS,
            "peak_bytes": 1 << 20,
            "difference": 2e-3,
        }
        (line,) = peer_tables.encode({"tasks": {"encode": [row]}}).splitlines()[2:]
        assert "8 (its best)" in line
        assert "2.00 (1.50 to 3.00)" in line
        assert line.endswith("| 2e-03 (!) |")


def test_states_that_are_kept_give_the_models_own_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import multilingual_quality

    from jcv2_plugin.evaluation.beir import BeirDataset, Passage

    monkeypatch.setattr(multilingual_quality, "STATES", tmp_path)
    encoder = multilingual_quality.StatesOnce.from_pretrained("mini", device="cpu")
    assert encoder.heads is not None
    encoder.prefix, encoder.projection = "mini", encoder.heads.project
    texts = {"a": "The boiler is behind the red door.", "b": "Bicycles stand in the yard."}
    corpus = {key: Passage("", text) for key, text in texts.items()}
    dataset = BeirDataset("house", corpus, {"q": "Where is the boiler?"}, {"q": {"a": 1}})
    for _ in range(2):  # encoded, then read
        encoder.read(dataset)
        found = encoder.document_vectors(list(texts.values()), 64)
        plain = JinaColbertEncoder.from_pretrained("mini", device="cpu").document_vectors(list(texts.values()), 64)
        for one, other in zip(found, plain, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-3)
        assert multilingual_quality.in_memory(dataset, encoder, 64) == 1.0
    assert sorted(file.name.split("-")[2] for file in tmp_path.iterdir()) == ["document", "query"]
