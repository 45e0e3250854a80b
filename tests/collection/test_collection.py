"""Adding, reading, searching and deleting on both engines, and what is refused before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from collection_samples import DIM, Create, both_engines
from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection, DenseParams, Document, JinaColbertEncoder
from jcv2_plugin.errors import (
    CollectionError,
    CollectionNotFoundError,
    DocumentTooLongError,
    InvalidDocumentError,
    InvalidQueryError,
    InvalidVectorError,
    UnknownDimError,
)

TEXTS = {
    "colbert": "Late interaction compares the token vectors of query and document.",
    "rice": "Rice is cooked in twice its volume of water.",
    "ferry": "The ferry does not sail when the harbour is frozen.",
    "piano": "A piano has eighty-eight keys and more than two hundred strings.",
}
METADATA = [{"topic": "search", "year": 2020}, {"topic": "food", "year": 2021}, {"topic": "travel"}, {"topic": "music"}]
QUERIES = {
    "how are tokens compared?": "colbert",
    "how much water does rice need?": "rice",
    "when does the ship sail?": "ferry",
    "how many keys has the instrument?": "piano",
}


@pytest.fixture
def collection(create: Create) -> ColbertCollection:
    made = create(dim=64)
    made.add(TEXTS.values(), ids=list(TEXTS), metadata=METADATA)
    return made


@pytest.fixture(scope="module")
def shared(mini: JinaColbertEncoder) -> Iterator[ColbertCollection]:
    """A collection that refuses what it is given."""
    with ColbertCollection.create(":memory:", encoder=mini, dim=64) as made:
        made.add(TEXTS.values(), ids=list(TEXTS))
        yield made
        assert sorted(made.ids()) == sorted(TEXTS)


def topic(value: str) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="metadata.topic", match=models.MatchValue(value=value))])


@both_engines
class TestReadingAndWriting:
    def test_hits_are_ranked_by_maxsim(self, collection: ColbertCollection, mini: JinaColbertEncoder) -> None:
        texts = mini.encode_document(list(TEXTS.values()), dim=64)
        for query, expected in QUERIES.items():
            hits = collection.search(query, k=4)
            scores = mini.similarity(mini.encode_query([query], dim=64), texts)[0].tolist()
            assert {hit.id: hit.score for hit in hits} == pytest.approx(dict(zip(TEXTS, scores, strict=True)), abs=1e-2)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            assert hits[0].id == expected
            kept = collection.search(query, score_threshold=(hits[0].score + hits[1].score) / 2)
            assert [hit.id for hit in kept] == [expected]

    def test_documents_come_back_as_given(self, collection: ColbertCollection) -> None:
        found = collection.get(["piano", "missing", "colbert"])
        assert [(one.id, one.text, one.metadata) for one in found] == [
            ("piano", TEXTS["piano"], METADATA[3]),
            ("colbert", TEXTS["colbert"], METADATA[0]),
        ]
        assert len(collection) == 4
        assert sorted(collection.ids()) == sorted(TEXTS)
        assert {one.id: one.text for one in collection.scroll()} == TEXTS
        # These are the keys of langchain-qdrant.
        expected = {"page_content": TEXTS["piano"], "metadata": METADATA[3], "_id": "piano"}
        assert expected.items() <= found[0].payload.items()

    def test_adding_again_replaces(self, collection: ColbertCollection) -> None:
        collection.add(["Bread is baked in an oven."], ids=["rice"])
        assert collection.count() == 4
        assert collection.get(["rice"])[0].metadata == {}
        assert collection.search("what is baked?", k=1)[0].id == "rice"

    def test_any_string_is_an_id_and_one_is_drawn_where_none_is_given(self, create: Create) -> None:
        collection = create()
        ids = ["1", "foo", "päth/to#3", "a" * 500, "5c56c793-69f3-4fbf-87e6-c4bf54c28c26"]
        assert collection.add([f"Text number {n}." for n in range(5)], ids=ids) == ids
        assert [one.id for one in collection.get(ids)] == ids
        drawn = collection.add(["One text.", Document("Another text.", id="mine"), "A third."])
        assert drawn[1] == "mine"
        assert sorted(collection.ids()) == sorted({*ids, *drawn})
        assert len({*ids, *drawn}) == 8

    def test_filters_and_deleting(self, collection: ColbertCollection) -> None:
        assert [hit.id for hit in collection.search("how are tokens compared?", filter=topic("food"))] == ["rice"]
        recent = models.Filter(must=[models.FieldCondition(key="metadata.year", range=models.Range(gte=2020))])
        assert collection.count(recent) == 2
        assert sorted(collection.ids(recent)) == ["colbert", "rice"]
        assert collection.search("anything", filter=topic("nothing")) == []
        collection.delete(["rice", "never there"])
        collection.delete(filter=topic("music"))
        collection.delete([])
        assert sorted(collection.ids()) == ["colbert", "ferry"]

    def test_an_empty_collection(self, create: Create) -> None:
        collection = create()
        assert collection.search("anything") == collection.search_many([]) == []
        assert collection.add([]) == []
        assert (collection.count(), list(collection.ids()), collection.get(["x"])) == (0, [], [])

    def test_using_it_after_closing_is_an_error(self, create: Create) -> None:
        collection = create()
        collection.close()
        collection.close()
        with pytest.raises(CollectionError, match="is closed"):
            collection.search("anything")


def test_many_queries_at_once(shared: ColbertCollection) -> None:
    queries = [f"Question {n} about rice and water?" for n in range(70)]
    together = shared.search_many((query for query in queries), k=2)
    assert len(together) == 70
    assert [hit.id for hit in together[69]] == [hit.id for hit in shared.search(queries[69], k=2)]


class TestBadInput:
    """Each is refused before anything is written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"texts": ["good", " \n\t"], "on_blank": "error"}, "Document 1: the text is empty"),
            ({"texts": ["good", 3]}, "Document 1: the text must be a str, got int"),
            ({"texts": "one string"}, "Give a list of texts"),
            ({"texts": None}, "Give a list of texts, not None of type NoneType"),
            ({"texts": {"a text": 1}}, "Give a list of texts"),
            ({"texts": np.array([["good", "bad"]])}, "Give a list of texts"),
            ({"texts": ["good"], "ids": 7}, "ids must be a list with an entry for each text"),
            ({"texts": [Document("good")], "ids": ["x"]}, "Document 0 has an id and metadata of its own"),
            (
                {"texts": ["good", Document("bad")], "metadata": [{}, {}]},
                "Document 1 has an id and metadata of its own",
            ),
            ({"texts": ["good", "bad"], "ids": ["only one"]}, "2 texts but 1 ids"),
            ({"texts": ["good", "bad"], "ids": ["same", "same"]}, r"\(id 'same'\): this id comes twice"),
            ({"texts": ["good", "bad"], "ids": ["x", ""]}, "non-empty str, got ''"),
            ({"texts": ["good", "bad"], "ids": ["x", 7]}, "non-empty str, got 7"),
            ({"texts": ["good", "bad"], "metadata": [{}]}, "2 texts but 1 metadata"),
            ({"texts": ["good", "bad"], "metadata": [{}, {"x": object()}]}, "cannot be stored as JSON"),
            ({"texts": ["good", "bad"], "metadata": [{}, {"x": float("nan")}]}, "cannot be stored as JSON"),
            ({"texts": ["good", "bad"], "metadata": [{}, "text"]}, "must be a dict, got str"),
            ({"texts": ["good", "bad"], "metadata": [{}, {(1, 2): "a", "b": 2}]}, r"key \(1, 2\) is tuple, not str"),
            ({"texts": ["good", "bad"], "metadata": [{}, {"deep": [{"x": 2**70}]}]}, "does not fit 64 bits"),
            ({"texts": ["good", "bad"], "metadata": [{}, {"x": "\ud800"}]}, "lone surrogates"),
            ({"texts": ["good", "half a pair \ud800"]}, "lone surrogates"),
            ({"texts": ["good", "bad"], "ids": ["x", "\ud800"]}, "lone surrogates"),
            ({"texts": ["good", "bad"], "metadata": {"a": 1}}, "must be a list with an entry for each text"),
        ],
    )
    def test_documents(self, shared: ColbertCollection, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidDocumentError, match=message):
            shared.add(**arguments)
        assert shared.count() == 4

    def test_long_documents_are_split_truncated_or_refused_as_chosen(self, create: Create) -> None:
        text = "The tide comes in and the tide goes out again. " * 60
        rows = {}
        for choice in ("split", "truncate"):
            collection = create(long_documents=choice)
            collection.add([text], ids=["long"])
            rows[choice] = collection.explain("when does the tide come?", "long").similarities.shape[1]
        assert rows["truncate"] == 300
        assert rows["split"] > 600
        for options, texts, message in (
            ({"long_documents": "error"}, ["short", text], "long_documents='error'"),
            ({"dim": 384}, ["short", "The tide comes in. " * 700], r"makes \d+ vectors of dim=384.*at most 2730"),
        ):
            collection = create(**options)
            with pytest.raises(DocumentTooLongError, match=message):
                collection.add(texts)
            assert collection.count() == 0

    def test_the_beginning_of_a_huge_document_shows_that_it_is_too_long(
        self, create: Create, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Tokenising 60 MB took minutes and 8 GB."""
        longest: list[int] = []
        tokenized = JinaColbertEncoder.tokenized

        def watched(self: JinaColbertEncoder, texts: Any) -> Any:
            given = list(texts)
            longest.append(max(map(len, given)))
            return tokenized(self, given)

        monkeypatch.setattr(JinaColbertEncoder, "tokenized", watched)
        collection = create(dim=384)
        with pytest.raises(DocumentTooLongError, match=r"'huge' .* makes more than \d+ vectors of dim=384"):
            collection.add(["short", "The tide comes in. " * 20_000], ids=["short", "huge"])
        assert longest == [32 * 2**20 // 384]
        assert collection.count() == 0
        collection.add([" " * 100_000 + "A short text after many blanks."], ids=["blanks"])
        assert collection.search("a short text")[0].id == "blanks"

    def test_queries_and_numbers_of_results(self, shared: ColbertCollection) -> None:
        wrong: Any
        for wrong in ("", "  ", None, 3, ["a"]):
            with pytest.raises(InvalidQueryError, match="non-empty str"):
                shared.search(wrong)
        for wrong in (0, -1, 2.5, True):
            with pytest.raises(InvalidQueryError, match="k must be a positive integer"):
                shared.search("anything", k=wrong)
        wrong = {"must": []}
        with pytest.raises(InvalidQueryError, match=r"must be a qdrant_client\.models\.Filter, got dict"):
            shared.search("anything", filter=wrong)

    def test_what_is_read_and_deleted(self, shared: ColbertCollection) -> None:
        for call in (shared.get, shared.delete):
            several: list[Any] = ["rice", 5, {"rice": 1}, *([None] if call == shared.get else [])]
            for wrong, message in (([5], "Ids are str, got int: 5"), *((one, "Give a list of ids") for one in several)):
                with pytest.raises(InvalidDocumentError, match=message):
                    call(wrong)
        for arguments in ({}, {"ids": ["rice"], "filter": topic("food")}):
            with pytest.raises(ValueError, match="either ids or a filter"):
                shared.delete(**arguments)

    def test_options_that_are_none(self, create: Create) -> None:
        for options in ({"storage": "int3"}, {"long_documents": "cut"}):
            with pytest.raises(ValueError, match="must be one of"):
                create(**options)
        with pytest.raises(UnknownDimError, match=r"no head for dim=100; it has \[128, 32"):
            create(dim=100)

    @pytest.mark.parametrize("value", ["3", True, 1.0, float("nan"), np.bool_(True), -1])
    def test_numbers_are_strict(self, mini: JinaColbertEncoder, shared: ColbertCollection, value: Any) -> None:
        options: dict[str, Any] = {"encoder": mini, "dim": DIM}
        for refused in (
            lambda: shared.verify(sample=value),
            lambda: shared.verify(seed=value),
            lambda: shared.ingest(["a text"], workers=value),
            lambda: ColbertCollection.create(":memory:", **options, retries=value),
            lambda: ColbertCollection.open(":memory:", retries=value),
            lambda: ColbertCollection.open(":memory:", dim=value),
            lambda: DenseParams(value).check("own"),
        ):
            with pytest.raises(ValueError, match=r"must be .*, got"):
                refused()

    def test_numbers_of_numpy_are_taken(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        options: dict[str, Any] = {"dim": np.int64(DIM), "retries": np.int64(2), "pool_factor": np.float32(2)}
        with ColbertCollection.create(tmp_path / "numpy", encoder=mini, **options) as collection:
            collection.add(["A text with some words in it."])
        with ColbertCollection.open(tmp_path / "numpy", dim=np.int64(DIM), retries=np.int64(1)) as collection:  # type: ignore[arg-type]
            assert collection.schema.pool_factor == 2
            report = collection.verify(sample=np.int64(5), seed=np.int64(1))  # type: ignore[arg-type]
            assert (report.problems, report.encoded) == ([], 1)
        assert DenseParams(np.int64(3)) == DenseParams(3)  # type: ignore[arg-type]
        assert type(DenseParams(np.int64(3)).size) is int  # type: ignore[arg-type]

    def test_vectors_that_are_not_finite(self, create: Create) -> None:
        broken = JinaColbertEncoder.from_pretrained("mini", dims=64, device="cpu")
        with torch.no_grad():
            broken.heads.linears["64"].weight[0, 0] = float("nan")
        collection = create(encoder=broken, dim=64)
        with pytest.raises(InvalidVectorError, match="Document 'x': the model gave vectors that are not finite"):
            collection.add(["good text"], ids=["x"])
        assert collection.count() == 0
        with pytest.raises(InvalidVectorError, match="query vectors that are not finite"):
            collection.search("anything")


def test_exactly_one_location(mini: JinaColbertEncoder, tmp_path: Path) -> None:
    arguments: Any
    for arguments in ({}, {"location": ":memory:", "path": tmp_path}, {"path": ""}):
        with pytest.raises(ValueError, match=r"exactly one|is empty"):
            ColbertCollection.create(**arguments, encoder=mini)


def test_a_client_of_the_users_stays_open(mini: JinaColbertEncoder) -> None:
    client = QdrantClient(":memory:")
    with ColbertCollection.create(client=client, name="one", encoder=mini, dim=32) as collection:
        collection.add(["A text."], ids=["a"])
    with ColbertCollection.open(client=client, name="one") as again:
        assert again.count() == 1
        assert again.schema == collection.schema
    with pytest.raises(CollectionNotFoundError, match=r"'two'.*\['one'\]"):
        ColbertCollection.open(client=client, name="two")
    assert client.collection_exists("one")
