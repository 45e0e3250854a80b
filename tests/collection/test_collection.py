from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.engines.base import Point, by_bytes
from jcv2_plugin.errors import (
    CollectionError,
    CollectionNotFoundError,
    DocumentTooLongError,
    InvalidDocumentError,
    InvalidOptionError,
    InvalidQueryError,
    UnknownDimError,
)

TEXTS = {
    "colbert": "Late interaction compares the token vectors of query and document.",
    "rice": "Rice is cooked in twice its volume of water.",
    "ferry": "The ferry does not sail when the harbour is frozen.",
    "piano": "A piano has eighty-eight keys and more than two hundred strings.",
}
METADATA = [{"topic": "search", "year": 2020}, {"topic": "food", "year": 2021}, {"topic": "travel"}, {"topic": "music"}]

Create = Callable[..., ColbertCollection]


@pytest.fixture(params=["edge", "memory"])
def create(request: pytest.FixtureRequest, mini: JinaColbertEncoder, tmp_path: Path) -> Iterator[Create]:
    """Makes empty collections on one of the engines, and closes them."""
    made: list[ColbertCollection] = []

    def make(**options: Any) -> ColbertCollection:
        location = ":memory:" if request.param == "memory" else tmp_path / f"collection-{len(made)}"
        made.append(ColbertCollection.create(location, **{"encoder": mini, "dim": 64, **options}))
        return made[-1]

    yield make
    for collection in made:
        collection.close()


@pytest.fixture
def collection(create: Create) -> ColbertCollection:
    made = create()
    made.add(TEXTS.values(), ids=list(TEXTS), metadata=METADATA)
    return made


def topic(value: str) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="metadata.topic", match=models.MatchValue(value=value))])


class TestReadingAndWriting:
    def test_the_right_document_comes_first(self, collection: ColbertCollection) -> None:
        for query, expected in {
            "how are tokens compared?": "colbert",
            "how much water does rice need?": "rice",
            "when does the ship sail?": "ferry",
            "how many keys has the instrument?": "piano",
        }.items():
            assert collection.search(query, k=1)[0].id == expected

    def test_scores_are_maxsim(self, collection: ColbertCollection, mini: JinaColbertEncoder) -> None:
        query = "how are tokens compared?"
        hits = collection.search(query, k=4)
        expected = mini.similarity(
            mini.encode_query([query], dim=64), mini.encode_document(list(TEXTS.values()), dim=64)
        )
        assert {hit.id: pytest.approx(hit.score, abs=1e-2) for hit in hits} == dict(
            zip(TEXTS, expected[0].tolist(), strict=True)
        )
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)

    def test_documents_come_back_as_given(self, collection: ColbertCollection) -> None:
        found = collection.get(["piano", "missing", "colbert"])
        assert [(one.id, one.text, one.metadata) for one in found] == [
            ("piano", TEXTS["piano"], METADATA[3]),
            ("colbert", TEXTS["colbert"], METADATA[0]),
        ]
        assert len(collection) == 4
        assert sorted(collection.ids()) == sorted(TEXTS)
        assert {one.id: one.text for one in collection.scroll()} == TEXTS

    def test_the_payload_has_the_keys_of_langchain_qdrant(self, collection: ColbertCollection) -> None:
        payload = collection.get(["rice"])[0].payload
        assert payload["page_content"] == TEXTS["rice"]
        assert payload["metadata"] == METADATA[1]
        assert payload["_id"] == "rice"

    def test_adding_again_replaces(self, collection: ColbertCollection) -> None:
        collection.add(["Bread is baked in an oven."], ids=["rice"])
        assert collection.count() == 4
        assert collection.get(["rice"])[0].metadata == {}
        assert collection.search("what is baked?", k=1)[0].id == "rice"

    def test_what_has_not_changed_is_not_encoded(
        self, collection: ColbertCollection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoded: list[str] = []
        original = JinaColbertEncoder.document_vectors
        monkeypatch.setattr(
            JinaColbertEncoder,
            "document_vectors",
            lambda self, texts, *args: (encoded.extend(texts), original(self, texts, *args))[1],
        )
        collection.add(TEXTS.values(), ids=list(TEXTS), metadata=METADATA)
        assert encoded == []
        collection.add(TEXTS.values(), ids=list(TEXTS), metadata=[*METADATA[:3], {"topic": "noise"}])
        assert encoded == [TEXTS["piano"]]
        assert collection.get(["piano"])[0].metadata == {"topic": "noise"}

    def test_ids_are_drawn_where_none_are_given(self, create: Create) -> None:
        collection = create()
        ids = collection.add(["One text.", Document("Another text.", id="mine"), "A third."])
        assert ids[1] == "mine"
        assert len(set(ids)) == 3
        assert sorted(collection.ids()) == sorted(ids)

    def test_any_string_is_an_id(self, create: Create) -> None:
        collection = create()
        ids = ["1", "foo", "päth/to#3", "a" * 500, "5c56c793-69f3-4fbf-87e6-c4bf54c28c26"]
        assert collection.add([f"Text number {n}." for n in range(5)], ids=ids) == ids
        assert [one.id for one in collection.get(ids)] == ids

    def test_deleting_by_id_and_by_filter(self, collection: ColbertCollection) -> None:
        collection.delete(["rice", "never there"])
        collection.delete(filter=topic("music"))
        assert sorted(collection.ids()) == ["colbert", "ferry"]
        collection.delete([])
        assert collection.count() == 2
        for arguments in ({}, {"ids": ["rice"], "filter": topic("food")}):
            with pytest.raises(ValueError, match="either ids or a filter"):
                collection.delete(**arguments)

    def test_filters(self, collection: ColbertCollection) -> None:
        assert [hit.id for hit in collection.search("how are tokens compared?", filter=topic("food"))] == ["rice"]
        recent = models.Filter(must=[models.FieldCondition(key="metadata.year", range=models.Range(gte=2020))])
        assert collection.count(recent) == 2
        assert sorted(collection.ids(recent)) == ["colbert", "rice"]
        assert collection.search("anything", filter=topic("nothing")) == []

    def test_score_threshold(self, collection: ColbertCollection) -> None:
        scores = [hit.score for hit in collection.search("how are tokens compared?")]
        kept = collection.search("how are tokens compared?", score_threshold=(scores[0] + scores[1]) / 2)
        assert [hit.id for hit in kept] == ["colbert"]

    def test_many_queries_at_once(self, collection: ColbertCollection) -> None:
        queries = [f"Question {n} about rice and water?" for n in range(70)]
        together = collection.search_many(queries, k=2)
        assert len(together) == 70
        assert [hit.id for hit in together[69]] == [hit.id for hit in collection.search(queries[69], k=2)]
        assert collection.search_many([]) == []

    def test_ingest_takes_a_stream_batch_by_batch(self, create: Create) -> None:
        collection = create()
        taken: list[int] = []

        def stream() -> Iterator[Document]:
            for number in range(10):
                taken.append(number)
                yield Document(f"This is text number {number}.", id=str(number))

        progress: list[tuple[int, int]] = []
        report = collection.ingest(stream(), batch_documents=4, progress=lambda n: progress.append((n, len(taken))))
        assert (report.written, report.unchanged, report.seen) == (10, 0, 10)
        assert [stored for stored, _ in progress] == [4, 4, 2]
        assert collection.ingest(stream()).unchanged == 10

    def test_ingest_holds_a_few_batches_only(self, create: Create) -> None:
        collection = create(dim=32)
        taken, stored, ahead = 0, 0, []

        def stream() -> Iterator[Document]:
            nonlocal taken
            for number in range(60):
                taken += 1
                yield Document(f"This is text number {number}.", id=str(number))

        def progress(documents: int) -> None:
            nonlocal stored
            ahead.append(taken - stored)
            stored += documents

        collection.ingest(stream(), batch_documents=4, progress=progress)
        assert (taken, stored) == (60, 60)
        # One batch being encoded, and those waiting to be stored.
        assert max(ahead) <= 4 * 4

    def test_threads_may_share_it(self, collection: ColbertCollection) -> None:
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for turn in range(5):
                    collection.add([f"Thread {number} writes text {turn}."], ids=[f"{number}-{turn}"])
                    assert collection.search("what does the thread write?", k=3)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert collection.count() == 24

    def test_an_empty_collection(self, create: Create) -> None:
        collection = create()
        assert collection.search("anything") == []
        assert collection.add([]) == []
        assert (collection.count(), list(collection.ids()), collection.get(["x"])) == (0, [], [])

    def test_using_it_after_closing_is_an_error(self, collection: ColbertCollection) -> None:
        collection.close()
        collection.close()
        with pytest.raises(CollectionError, match="is closed"):
            collection.search("anything")


class TestBadInput:
    """Each is refused before anything is written."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"texts": ["good", ""]}, "Document 1: the text is empty"),
            ({"texts": ["good", " \n\t"]}, "Document 1: the text is empty"),
            ({"texts": ["good", 3]}, "Document 1: the text must be a str, got int"),
            ({"texts": ["good", None]}, "the text must be a str, got NoneType"),
            ({"texts": "one string"}, "Give a list of texts"),
            ({"texts": ["good", "bad"], "ids": ["only one"]}, "2 texts but 1 ids"),
            ({"texts": ["good", "bad"], "ids": ["same", "same"]}, r"\(id 'same'\): this id comes twice"),
            ({"texts": ["good", "bad"], "ids": ["x", ""]}, "non-empty str, got ''"),
            ({"texts": ["good", "bad"], "ids": ["x", 7]}, "non-empty str, got 7"),
            ({"texts": ["good", "bad"], "metadata": [{}]}, "2 texts but 1 metadata"),
            ({"texts": ["good", "bad"], "metadata": [{}, {"x": object()}]}, "cannot be stored as JSON"),
            ({"texts": ["good", "bad"], "metadata": [{}, {"x": float("nan")}]}, "cannot be stored as JSON"),
            ({"texts": ["good", "bad"], "metadata": [{}, "text"]}, "must be a dict, got str"),
            ({"texts": ["good", "bad"], "metadata": [{}, {None: "a", "b": 2}]}, "key None is NoneType, not str"),
            ({"texts": ["good", "bad"], "metadata": [{}, {"deep": [{"x": 2**70}]}]}, "does not fit 64 bits"),
            ({"texts": ["good", "bad"], "metadata": [{}, {"x": "\ud800"}]}, "lone surrogates"),
            ({"texts": ["good", "half a pair \ud800"]}, "lone surrogates"),
            ({"texts": ["good", "bad"], "ids": ["x", "\ud800"]}, "lone surrogates"),
            ({"texts": ["good", "bad"], "metadata": {"a": 1}}, "must be a list with an entry for each text"),
        ],
    )
    def test_documents(self, create: Create, arguments: dict[str, Any], message: str) -> None:
        collection = create()
        with pytest.raises(InvalidDocumentError, match=message):
            collection.add(**arguments)
        assert collection.count() == 0

    def test_a_document_with_more_vectors_than_qdrant_takes(self, create: Create) -> None:
        collection = create(dim=384)
        with pytest.raises(DocumentTooLongError, match=r"makes \d+ vectors of dim=384.*at most 2730 vectors"):
            collection.add(["A short one.", "The tide comes in. " * 700], ids=["short", "long"])
        assert collection.count() == 0

    def test_long_documents_are_split_truncated_or_refused_as_chosen(self, create: Create) -> None:
        text = "The tide comes in and the tide goes out again. " * 60
        rows = {}
        for choice in ("split", "truncate"):
            collection = create(long_documents=choice)
            collection.add([text], ids=["long"])
            assert collection.count() == 1
            rows[choice] = collection.explain("when does the tide come?", "long").similarities.shape[1]
        assert rows["truncate"] == 300
        assert rows["split"] > 600
        collection = create(long_documents="error")
        with pytest.raises(DocumentTooLongError, match="long_documents='error'"):
            collection.add(["short", text])
        assert collection.count() == 0

    @pytest.mark.parametrize("query", ["", "  ", None, 3, ["a"]])
    def test_queries(self, collection: ColbertCollection, query: Any) -> None:
        with pytest.raises(InvalidQueryError, match="non-empty str"):
            collection.search(query)

    @pytest.mark.parametrize("k", [0, -1, 2.5, True])
    def test_numbers_of_results(self, collection: ColbertCollection, k: Any) -> None:
        with pytest.raises(InvalidQueryError, match="k must be a positive integer"):
            collection.search("anything", k=k)

    def test_ids_to_read_and_delete(self, collection: ColbertCollection) -> None:
        for call in (collection.get, collection.delete):
            with pytest.raises(InvalidDocumentError, match="Ids are str, got int: 5"):
                call([5])
            with pytest.raises(InvalidDocumentError, match="Give a list of ids"):
                call("rice")

    def test_filters(self, collection: ColbertCollection) -> None:
        with pytest.raises(InvalidQueryError, match=r"must be a qdrant_client\.models\.Filter, got dict"):
            collection.search("anything", filter={"must": []})

    @pytest.mark.parametrize("options", [{"storage": "int3"}, {"long_documents": "cut"}])
    def test_unknown_options(self, create: Create, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="must be one of"):
            create(**options)

    def test_a_dim_without_head(self, create: Create) -> None:
        with pytest.raises(UnknownDimError, match=r"no head for dim=100; it has \[128, 32"):
            create(dim=100)

    def test_vectors_that_are_not_finite(self, create: Create) -> None:
        import torch

        from jcv2_plugin.errors import InvalidVectorError

        broken = JinaColbertEncoder.from_pretrained("mini", dims=64, device="cpu")
        assert broken.heads is not None
        with torch.no_grad():
            broken.heads.linears["64"].weight[0, 0] = float("nan")
        collection = create(encoder=broken)
        with pytest.raises(InvalidVectorError, match="Document 'x': the model gave vectors that are not finite"):
            collection.add(["good text"], ids=["x"])
        assert collection.count() == 0
        with pytest.raises(InvalidVectorError, match="query vectors that are not finite"):
            collection.search("anything")


class TestLocations:
    def test_exactly_one_location(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        for arguments in ({}, {"location": ":memory:", "path": tmp_path}, {"path": ""}):
            with pytest.raises(ValueError, match=r"exactly one|is empty"):
                ColbertCollection.create(**arguments, encoder=mini)

    def test_a_client_of_the_users_stays_open(self, mini: JinaColbertEncoder) -> None:
        client = QdrantClient(":memory:")
        with ColbertCollection.create(client=client, name="one", encoder=mini, dim=32) as collection:
            collection.add(["A text."], ids=["a"])
        with ColbertCollection.open(client=client, name="one") as again:
            assert again.count() == 1
            assert again.schema == collection.schema
        with pytest.raises(CollectionNotFoundError, match=r"no collection 'two'; there are \['one'\]"):
            ColbertCollection.open(client=client, name="two")
        assert client.collection_exists("one")

    def test_collections_on_a_client_are_multivector_and_without_graph(self, mini: JinaColbertEncoder) -> None:
        client = QdrantClient(":memory:")
        ColbertCollection.create(client=client, name="one", encoder=mini, dim=32)
        info = client.get_collection("one").config
        vectors = info.params.vectors["colbert"]
        assert (vectors.size, vectors.distance) == (32, models.Distance.DOT)
        assert vectors.multivector_config.comparator == models.MultiVectorComparator.MAX_SIM
        assert vectors.hnsw_config.m == 0
        assert vectors.datatype == models.Datatype.FLOAT16
        assert json.loads(json.dumps(info.metadata))["jcv2"]["dim"] == 32

    def test_a_key_is_not_in_the_repr(self, mini: JinaColbertEncoder) -> None:
        client = QdrantClient(":memory:")
        client.api_key_of_a_test = "s3cr3t-key"
        assert "s3cr3t" not in repr(ColbertCollection.create(client=client, encoder=mini))

    @pytest.mark.filterwarnings("ignore:Failed to obtain server version")
    @pytest.mark.parametrize("grpc", [False, True])
    def test_a_server_out_of_reach_is_an_error_with_its_address(self, mini: JinaColbertEncoder, grpc: bool) -> None:
        options = {"timeout": 2, "prefer_grpc": grpc, "grpc_port": 9}
        with pytest.raises(CollectionError, match=r"http://127\.0\.0\.1:9 "):
            ColbertCollection.open(url="http://127.0.0.1:9", client_options=options)

    def test_a_misspelt_option_does_not_cost_the_collection_that_is_there(self, mini: JinaColbertEncoder) -> None:
        client = QdrantClient(":memory:")
        ColbertCollection.create(client=client, name="one", encoder=mini, dim=32).add(["A text."])
        for option in ("shard_numbers", "metadata", "vectors_config"):
            with pytest.raises(InvalidOptionError, match=option):
                ColbertCollection.create(
                    client=client, name="one", encoder=mini, dim=32, overwrite=True, collection_options={option: 1}
                )
        with ColbertCollection.open(client=client, name="one") as collection:
            assert collection.count() == 1

    def test_requests_stay_under_the_limit_of_a_server(self) -> None:
        small = np.zeros((100, 64), dtype=np.float32)
        points = [Point(str(n), small, {"page_content": "é" * 1_000_000}) for n in range(40)]
        batches = list(by_bytes(points, most=24 * 2**20, per_float=21))
        assert [point.id for batch in batches for point in batch] == [str(n) for n in range(40)]
        assert all(len(json.dumps([p.payload for p in batch]).encode()) < 32 * 2**20 for batch in batches)
        assert max(len(batch) for batch in batches) > 1
