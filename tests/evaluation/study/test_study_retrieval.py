"""Draws of test sets; figures of studies are those of ``jcv2 eval``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture
from study_samples import write_set, write_sets

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.bm25 import bm25_run
from jcv2_plugin.evaluation.metrics import evaluate_collection, evaluate_run
from jcv2_plugin.evaluation.study import Cell, StudyError, retrieval
from jcv2_plugin.evaluation.study.languages import LanguagesStudy
from jcv2_plugin.evaluation.study.masks import MasksStudy
from jcv2_plugin.evaluation.study.matryoshka import MatryoshkaStudy
from jcv2_plugin.evaluation.study.retrieval import Draws, Sampling
from jcv2_trainer.training.dev import DevEvaluator, DevSet

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def read_anew() -> None:
    """pytest may give one folder to several tests, one after the other, and sets are read once for each folder."""
    retrieval._read.cache_clear()
    retrieval._query_languages.cache_clear()


def sampling(data: Path, *sets: str, **changes: Any) -> Sampling:
    return Sampling(data, sets or ("one", "two"), **{"queries": 100, "seeds": 2, **changes})


def cell(name: str = "one", seed: int = 0, **parameters: Any) -> Cell:
    return Cell({"set": name, "seed": seed, **parameters})


def test_a_query_that_is_a_document_too(tmp_path: Path, mini: JinaColbertEncoder) -> None:
    """Its own document is left out, by a study and by the evaluation during training, as by ``jcv2 eval``."""
    folder = write_set(tmp_path / "own")
    text = BeirDataset.read(folder).corpus["d1"].text
    with (folder / "queries.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "d1", "text": text}) + "\n")
    with (folder / "qrels" / "test.tsv").open("a") as file:
        file.write("d1\td12\t1\n")
    with ColbertCollection.create(":memory:", encoder=mini, dim=32) as collection:
        collection.ingest(BeirDataset.read(folder).documents())
        ranks = [hit.id for hit in collection.search(text, 24)]
    assert ranks[0] == "d1"
    measured = MatryoshkaStudy(mini, sampling(tmp_path, "own")).measure(cell("own", dim=32))
    found = DevEvaluator(DevSet.read(folder), [32]).metrics(mini)[32].per_query["d1"]
    assert found["ndcg@10"] == measured.samples["ndcg@10"]["d1"]
    rank = ranks.index("d12")  # of 1 and more, without d1
    assert found["ndcg@10"] == pytest.approx(1 / math.log2(rank + 1) if rank <= 10 else 0)
    assert rank <= 10


def test_figures_are_those_of_eval(data: Path, tmp_path: Path, mini: JinaColbertEncoder) -> None:
    measured = MatryoshkaStudy(mini, sampling(data)).measure(cell(dim=32))
    dataset = BeirDataset.read(data / "one")
    with ColbertCollection.create(tmp_path / "store", encoder=mini, dim=32, storage="float16") as collection:
        collection.ingest(dataset.documents())
        metrics = evaluate_collection(collection, dataset)
    assert 0.5 < metrics.ndcg_at_10 < 1
    for name, value in metrics.as_dict().items():
        assert measured.values[name] == pytest.approx(value, abs=1e-9), name
    own = {query: values["ndcg@10"] for query, values in metrics.per_query.items()}
    assert measured.samples["ndcg@10"] == pytest.approx(own, abs=1e-9)
    vectors = mini.document_vectors([document.text for document in dataset.documents()], 32)
    for size in (2, 4):
        found = measured.values[f"bytes a document, float{8 * size}"]
        assert found == pytest.approx(sum(one.size for one in vectors) / len(vectors) * size)
    assert 0 < float(measured.values["scoring time, to the largest head"] or 0) < 3

    bm25 = LanguagesStudy(mini, sampling(data), 32).measure(cell("two", system="BM25"))
    dataset = BeirDataset.read(data / "two")
    assert {**bm25.values} == {**bm25.values, **evaluate_run(bm25_run(dataset), dataset.qrels)}


def test_the_order_of_cells_does_not_matter(data: Path, mini: JinaColbertEncoder) -> None:
    study = LanguagesStudy(mini, sampling(data, documents=20, queries=5), 32)
    cells = [one for one in study.cells() if one.parameters["system"] == "model"]
    forth = [study.measure(one) for one in cells]
    assert [study.measure(one) for one in reversed(cells)] == forth[::-1]


def test_draws_differ_by_seed_and_repeat(data: Path) -> None:
    drawn = sampling(data, queries=5, documents=12)
    one, other = (drawn.dataset(cell("two", seed).parameters) for seed in (0, 1))
    assert one == drawn.dataset(cell("two").parameters)
    assert one.queries != other.queries
    for dataset in (one, other):
        assert (len(dataset.queries), len(dataset.corpus)) == (5, 12)
        assert dataset.qrels.keys() == dataset.queries.keys()
        assert {document for judged in dataset.qrels.values() for document in judged} <= dataset.corpus.keys()
        order = list(BeirDataset.read(data / "two").corpus)
        assert [key for key in order if key in dataset.corpus] == list(dataset.corpus)
    # All judged documents are searched, even if they are more than asked for.
    assert len(sampling(data, documents=3).dataset(cell().parameters).corpus) == 8


@pytest.mark.parametrize(
    ("changes", "draws"),
    [
        ({}, ["one 0", "two 0"]),
        ({"queries": 10}, ["one 0", "two 0", "two 1"]),
        ({"documents": 25}, ["one 0", "two 0", "two 1"]),
    ],
)
def test_what_a_draw_takes_whole_is_drawn_once(data: Path, changes: dict[str, int], draws: list[str]) -> None:
    cells = sampling(data, **changes).cells("way", [1])
    assert [f"{one.parameters['set']} {one.parameters['seed']}" for one in cells] == draws


def test_no_sets_are_refused(data: Path) -> None:
    with pytest.raises(StudyError, match="--sets"):
        Sampling(data, ()).cells("way", [1])


@pytest.mark.parametrize(
    ("language", "german", "english"),
    [("de+es->en", "de->en", "en"), ("de+en", "de->mixed", "en->mixed"), ("en", "de->en", "en")],
)
def test_a_query_has_a_language_where_its_set_says_so(
    tmp_path: Path, mini: JinaColbertEncoder, language: str, german: str, english: str
) -> None:
    folder = write_set(tmp_path / "mixed", language=language, queries=6)
    rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    for row, said in zip(rows, ("de", "en", None) * 2, strict=True):
        row.update({"lang": said} if said else {})
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = LanguagesStudy(mini, sampling(tmp_path), 32).measure(cell("mixed", system="BM25"))
    assert measured.languages == {"q0": german, "q1": english, "q3": german, "q4": english}
    parts = {name: own.queries for name, own in Draws("system", [measured]).by_language().items()}
    assert parts == ({german: 2, english: 4} if english == language else {german: 2, english: 2, language: 2})


def test_parts_end_at_their_ends_and_take_sets_together() -> None:
    lengths = {"a": 300.0, "b": 64.0, "c": 64.5, "d": 128.0, "e": 257.0}
    cells = [
        cell(name, dim=dim).measured(
            {"language": "en"},
            {"ndcg@10": {query: dim + index for index, query in enumerate("abcdef")}, "length": lengths},
        )
        for name in ("one", "two")
        for dim in (2, 1)
    ]
    parts = Draws("dim", cells).by_bucket("length", (64, 128, 256))
    assert {name: own.queries for name, own in parts.items()} == {"1–64": 2, "65–128": 4, "257 and more": 4}
    pairs = parts["65–128"].pairs(2, 1)
    assert pairs == [({f"{name} c": 4, f"{name} d": 5}, {f"{name} c": 3, f"{name} d": 4}) for name in ("one", "two")]


def test_texts_are_encoded_once_for_all_heads(data: Path, mini: JinaColbertEncoder, mocker: MockerFixture) -> None:
    documents, queries = (mocker.spy(mini, f"encode_{kind}") for kind in ("document", "query"))
    study = MatryoshkaStudy(mini, sampling(data, queries=10))
    for one in study.cells():
        study.measure(one)
    assert len(study.cells()) == 18
    # Both draws of two are of all its documents, and of other queries.
    assert [len(call.args[0]) for call in documents.call_args_list] == [24, 30]
    assert [len(call.args[0]) for call in queries.call_args_list] == [8, 10, 10]


def test_each_kind_of_expansion_has_the_vectors_it_says(data: Path, mini: JinaColbertEncoder) -> None:
    study = MasksStudy(mini, sampling(data), 32, length=20)
    found = {kind: study.measure(cell(expansion=kind)) for kind in ("attended", "unattended", "none")}
    assert found["attended"].values["vectors a query"] == found["unattended"].values["vectors a query"] == 20
    tokens = found["none"].samples["query tokens"]
    assert found["none"].values["vectors a query"] == pytest.approx(sum(tokens.values()) / len(tokens))
    # The model does not expand queries itself.
    plain = MatryoshkaStudy(mini, sampling(data)).measure(cell(dim=32))
    assert found["none"].samples["ndcg@10"] == plain.samples["ndcg@10"]


@pytest.fixture
def expanding(mini: JinaColbertEncoder) -> Iterator[dict[str, Any]]:
    """The query expansion that mini has during the test."""
    own: dict[str, Any] = {"strategy": "fixed", "attend": True, "length": 16, "token": None}
    mini.backbone.query_expansion = own  # type: ignore[assignment]
    yield own
    mini.backbone.query_expansion = None


def test_the_models_own_expansion_is_put_back_after_an_error(
    data: Path, mini: JinaColbertEncoder, expanding: dict[str, Any], mocker: MockerFixture
) -> None:
    study = MasksStudy(mini, sampling(data), 32)
    assert study.settings["the model's own expansion"] == "attended"
    mocker.patch.object(mini, "encode_query", side_effect=RuntimeError)
    with pytest.raises(RuntimeError):
        study.measure(cell(expansion="none"))
    assert mini.backbone.query_expansion == expanding


def test_unknown_tokens_are_counted(tmp_path: Path, mini: JinaColbertEncoder) -> None:
    folder = write_set(tmp_path / "odd", documents=2, queries=2)
    text = (folder / "corpus.jsonl").read_text().replace("Note 0", "\U0001f980 \U0001f980 \U0001f980 \U0001f980")
    (folder / "corpus.jsonl").write_text(text)
    measured = LanguagesStudy(mini, sampling(tmp_path), 32).measure(cell("odd", system="model"))
    texts = [passage.full_text for passage in BeirDataset.read(folder).corpus.values()]
    tokens = [token for text in texts for token in mini.tokenizer.tokenize(text)]
    assert measured.values["unknown tokens"] == pytest.approx(4 / len(tokens))
