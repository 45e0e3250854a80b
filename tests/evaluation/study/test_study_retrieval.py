"""Draws of test sets; figures of studies are those of ``jcv2 eval``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pytest_mock import MockerFixture
from study_samples import write_set, write_sets

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.bm25 import bm25_run
from jcv2_plugin.evaluation.metrics import evaluate_collection, evaluate_run
from jcv2_plugin.evaluation.study import Cell, Result, StudyError
from jcv2_plugin.evaluation.study.languages import LanguagesStudy
from jcv2_plugin.evaluation.study.masks import MasksStudy
from jcv2_plugin.evaluation.study.matryoshka import MatryoshkaStudy
from jcv2_plugin.evaluation.study.retrieval import Sampling, by_bucket, by_language, number_of_queries, paired


def sampling(data: Path, sets: tuple[str, ...] = ("one", "two"), **changes: object) -> Sampling:
    options = {"split": "test", "queries": 100, "documents": None, "seeds": 2, **changes}
    return Sampling(data, sets, **options)  # type: ignore[arg-type]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_sets(tmp_path / "data")


@pytest.mark.parametrize("dim", [384, 32])
def test_figures_are_those_of_eval(data: Path, tmp_path: Path, mini: JinaColbertEncoder, dim: int) -> None:
    measured = MatryoshkaStudy(mini, sampling(data)).measure(Cell({"set": "one", "seed": 0, "dim": dim}))
    dataset = BeirDataset.read(data / "one")
    with ColbertCollection.create(tmp_path / "store", encoder=mini, dim=dim, storage="float16") as collection:
        collection.ingest(dataset.documents())
        metrics = evaluate_collection(collection, dataset)
    assert 0.5 < metrics.ndcg_at_10 < 1
    for name, value in metrics.as_dict().items():
        assert measured.values[name] == pytest.approx(value, abs=1e-9), name
    assert measured.samples["ndcg@10"] == {
        query: pytest.approx(values["ndcg@10"], abs=1e-9) for query, values in metrics.per_query.items()
    }


def test_bm25_is_that_of_eval(data: Path, mini: JinaColbertEncoder) -> None:
    measured = LanguagesStudy(mini, 32, sampling(data)).measure(Cell({"set": "two", "seed": 0, "system": "BM25"}))
    dataset = BeirDataset.read(data / "two")
    assert {**measured.values} == {**measured.values, **evaluate_run(bm25_run(dataset), dataset.qrels)}


def test_bytes_are_those_of_the_vectors(data: Path, mini: JinaColbertEncoder) -> None:
    values = MatryoshkaStudy(mini, sampling(data)).measure(Cell({"set": "one", "seed": 0, "dim": 64})).values
    texts = [document.text for document in BeirDataset.read(data / "one").documents()]
    vectors = mini.document_vectors(texts, 64)
    assert values["bytes a document, float32"] == pytest.approx(sum(one.nbytes for one in vectors) / len(vectors))
    assert values["bytes a document, float16"] == pytest.approx(sum(one.nbytes for one in vectors) / len(vectors) / 2)
    assert 0 < float(values["scoring time, to the largest head"] or 0) < 3


def test_the_order_of_cells_does_not_matter(data: Path, mini: JinaColbertEncoder) -> None:
    study = LanguagesStudy(mini, 32, sampling(data, documents=20, queries=5))
    cells = [cell for cell in study.cells() if cell.parameters["system"] == "model"]
    forth = [study.measure(cell) for cell in cells]
    back = [study.measure(cell) for cell in reversed(cells)]
    assert forth == back[::-1]


def test_draws_differ_by_seed_and_repeat(data: Path) -> None:
    drawn = sampling(data, ("two",), queries=5, documents=12)
    one, other = (drawn.dataset({"set": "two", "seed": seed}) for seed in (0, 1))
    assert one == drawn.dataset({"set": "two", "seed": 0})
    assert one.queries != other.queries
    for dataset in (one, other):
        assert len(dataset.queries) == 5
        assert len(dataset.corpus) == 12
        assert dataset.qrels.keys() == dataset.queries.keys()
        assert {document for judged in dataset.qrels.values() for document in judged} <= dataset.corpus.keys()
        order = list(BeirDataset.read(data / "two").corpus)
        assert [key for key in order if key in dataset.corpus] == list(dataset.corpus)


def test_what_a_draw_takes_whole_is_drawn_once(data: Path) -> None:
    assert list(sampling(data).draws()) == [{"set": "one", "seed": 0}, {"set": "two", "seed": 0}]
    assert [one["seed"] for one in sampling(data, queries=10).draws()] == [0, 0, 1]
    assert [one["set"] for one in sampling(data, documents=25).draws()] == ["one", "two", "two"]


def test_all_judged_documents_are_searched_even_if_they_are_more(data: Path) -> None:
    assert len(sampling(data, documents=3).dataset({"set": "one", "seed": 0}).corpus) == 8


def mixed(folder: Path, language: str) -> Path:
    """A set whose queries take turns in being German, English, and in a language that is not said."""
    write_set(folder, language=language, queries=6)
    rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    for row, said in zip(rows, ("de", "en", None) * 2, strict=True):
        row.update({"lang": said} if said else {})
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("language", "german", "english"),
    [("de+es->en", "de->en", "en"), ("de+en", "de->mixed", "en->mixed"), ("en", "de->en", "en")],
)
def test_a_query_has_a_language_where_its_set_says_so(
    data: Path, mini: JinaColbertEncoder, language: str, german: str, english: str
) -> None:
    mixed(data / "mixed", language)
    for study, cell in (
        (MatryoshkaStudy(mini, sampling(data)), Cell({"set": "mixed", "seed": 0, "dim": 32})),
        (LanguagesStudy(mini, 32, sampling(data)), Cell({"set": "mixed", "seed": 0, "system": "BM25"})),
    ):
        measured = study.measure(cell)
        assert measured.languages == {"q0": german, "q1": english, "q3": german, "q4": english}
        parts = by_language([Result(cell.parameters, measured.values, measured.samples, measured.languages)])
        assert {name: number_of_queries(own) for name, own in parts.items()} == (
            {german: 2, english: 4} if english == language else {german: 2, english: 2, language: 2}
        )
    assert MatryoshkaStudy(mini, sampling(data)).measure(Cell({"set": "one", "seed": 0, "dim": 32})).languages == {}


def test_parts_end_at_their_ends_and_take_sets_together() -> None:
    lengths = {"a": 300.0, "b": 64.0, "c": 64.5, "d": 128.0, "e": 257.0}
    results = [
        Result(
            {"set": name, "seed": 0, "dim": dim},
            {"language": "en"},
            {"ndcg@10": {query: dim + index for index, query in enumerate("abcdef")}, "length": lengths},
        )
        for name in ("one", "two")
        for dim in (2, 1)
    ]
    parts = by_bucket(results, "length", (64, 128, 256))
    assert {name: number_of_queries(own) for name, own in parts.items()} == {"1–64": 2, "65–128": 4, "257 and more": 4}
    pairs = paired(parts["65–128"], "ndcg@10", {"dim": 2}, {"dim": 1})
    assert pairs == [({f"{name} c": 4, f"{name} d": 5}, {f"{name} c": 3, f"{name} d": 4}) for name in ("one", "two")]


def test_texts_are_encoded_once_for_all_heads(data: Path, mini: JinaColbertEncoder, mocker: MockerFixture) -> None:
    documents, queries = (mocker.spy(mini, f"encode_{kind}") for kind in ("document", "query"))
    study = MatryoshkaStudy(mini, sampling(data, queries=10))
    for cell in study.cells():
        study.measure(cell)
    assert len(study.cells()) == 18
    # Both draws of two are of all its documents, and of other queries.
    assert [len(call.args[0]) for call in documents.call_args_list] == [24, 30]
    assert [len(call.args[0]) for call in queries.call_args_list] == [8, 10, 10]


def test_no_sets_are_refused(data: Path) -> None:
    with pytest.raises(StudyError, match="--sets"):
        list(sampling(data, ()).draws())


class TestMasks:
    def test_each_variant_has_the_vectors_it_says(self, data: Path, mini: JinaColbertEncoder) -> None:
        study = MasksStudy(mini, 32, sampling(data), length=20)
        found = {
            variant: study.measure(Cell({"set": "one", "seed": 0, "expansion": variant}))
            for variant in ("attended", "unattended", "none")
        }
        assert found["attended"].values["vectors a query"] == found["unattended"].values["vectors a query"] == 20
        tokens = found["none"].samples["query tokens"]
        assert found["none"].values["vectors a query"] == pytest.approx(sum(tokens.values()) / len(tokens))
        assert mini.query_length is None

    def test_none_is_the_models_own_way_where_it_does_not_expand(self, data: Path, mini: JinaColbertEncoder) -> None:
        masks = MasksStudy(mini, 32, sampling(data)).measure(Cell({"set": "one", "seed": 0, "expansion": "none"}))
        plain = MatryoshkaStudy(mini, sampling(data)).measure(Cell({"set": "one", "seed": 0, "dim": 32}))
        assert masks.samples["ndcg@10"] == plain.samples["ndcg@10"]

    def test_the_models_own_way_is_put_back_after_an_error(self, data: Path) -> None:
        encoder = JinaColbertEncoder.from_pretrained("mini", dims=32, device="cpu")
        own = {"strategy": "fixed", "attend": True, "length": 16, "token": None}
        encoder.backbone.query_expansion = own  # type: ignore[assignment]
        study = MasksStudy(encoder, 32, sampling(data))
        assert study.settings["the model's own expansion"] == "attended"
        with pytest.raises(KeyError):
            study.measure(Cell({"set": "one", "seed": 0}))
        study.measure(Cell({"set": "one", "seed": 0, "expansion": "none"}))
        assert encoder.backbone.query_expansion == own


def test_unknown_tokens_are_counted(tmp_path: Path, mini: JinaColbertEncoder) -> None:
    folder = write_set(tmp_path / "data" / "odd", documents=2, queries=2)
    text = (folder / "corpus.jsonl").read_text().replace("Note 0", "\U0001f980 \U0001f980 \U0001f980 \U0001f980")
    (folder / "corpus.jsonl").write_text(text)
    study = LanguagesStudy(mini, 32, sampling(tmp_path / "data", ("odd",)))
    share = study.measure(Cell({"set": "odd", "seed": 0, "system": "model"})).values["unknown tokens"]
    texts = [passage.full_text for passage in BeirDataset.read(folder).corpus.values()]
    tokens = [token for text in texts for token in mini.tokenizer.tokenize(text)]
    assert share == pytest.approx(4 / len(tokens))
