"""Whole collections on a Qdrant server, over REST and gRPC.

They run against the loopback server, and against the one of QDRANT_URL where that is set.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from collection_samples import DIM, contents, documents, encoded, expected_contents, group, maxsim, store
from qdrant_client import models
from server_site import Site

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.engines.base import Matrix
from jcv2_plugin.engines.first_stage import FIRST_STAGES
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.engines.storage import STORAGES
from jcv2_plugin.errors import CollectionError, CollectionExistsError, CollectionNotFoundError, InvalidOptionError

ITEMS = documents(30)
QUERY = "who sells bread at the market?"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def vectors(mini: JinaColbertEncoder) -> list[Matrix]:
    return encoded(mini, ITEMS)


@pytest.fixture
def filled(server: Site, mini: JinaColbertEncoder, vectors: list[Matrix]) -> Callable[..., ColbertCollection]:
    """Makes the test's collection, with 30 documents."""

    def make(**options: Any) -> ColbertCollection:
        collection: ColbertCollection = server.create(mini, **options)
        store(collection, ITEMS, vectors)
        return collection

    return make


class TestReadingAndWriting:
    def test_documents_are_added_replaced_and_deleted(self, server: Site, mini: JinaColbertEncoder) -> None:
        collection = server.create(mini)
        assert collection.add(ITEMS[:6]) == [f"d{n}" for n in range(6)]
        collection.add(["Honey is sold in jars."], ids=["d2"], metadata=[{"n": 2, "deep": {"a": [1, None, "ж"]}}])
        expected = expected_contents(
            [*ITEMS[:2], Document("Honey is sold in jars.", "d2", {"n": 2, "deep": {"a": [1, None, "ж"]}}), *ITEMS[3:6]]
        )
        assert contents(collection) == expected
        assert collection.search("what is in the jars?", k=1)[0].id == "d2"
        collection.delete(["d0", "not there"])
        collection.delete(filter=group("g3"))
        again = server.open(encoder=mini)
        assert sorted(again.ids()) == ["d1", "d2", "d4", "d5"]
        assert (len(again), again.count(group("g4"))) == (4, 1)
        assert [one.text for one in again.get(["d5", "d0", "d1"])] == [ITEMS[5].text, ITEMS[1].text]
        assert again.schema == collection.schema

    def test_scores_are_maxsim(
        self, filled: Callable[..., ColbertCollection], mini: JinaColbertEncoder, vectors: list[Matrix]
    ) -> None:
        collection = filled(storage="float32")
        [query] = mini.query_vectors([QUERY], DIM)
        scores = {str(one.id): maxsim(query, matrix) for one, matrix in zip(ITEMS, vectors, strict=True)}
        hits = collection.search(QUERY, k=30)
        assert {hit.id: hit.score for hit in hits} == pytest.approx(scores, abs=1e-4)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        threshold = hits[4].score - 1e-3
        assert [hit.id for hit in collection.search(QUERY, k=30, score_threshold=threshold)] == [
            hit.id for hit in hits if hit.score >= threshold
        ]
        some = models.Filter(must=[models.FieldCondition(key="metadata.n", range=models.Range(lt=6))])
        assert [hit.id for hit in collection.search(QUERY, k=9, filter=some)] == [
            hit.id for hit in hits if hit.metadata["n"] < 6
        ]

    @pytest.mark.parametrize("stage", [one for one in FIRST_STAGES if one != "none"])
    def test_a_first_stage_finds_what_maxsim_then_ranks(
        self, server: Site, filled: Callable[..., ColbertCollection], stage: str
    ) -> None:
        collection = filled(first_stage=stage)
        exact = [(hit.id, pytest.approx(hit.score, abs=1e-4)) for hit in collection.search(QUERY, k=5, exact=True)]
        assert [(hit.id, hit.score) for hit in collection.search(QUERY, k=5, candidates=30)] == exact
        for one in ITEMS[::13]:
            [hit] = collection.search(one.text, k=1, candidates=5)
            assert hit.id == one.id
        found = collection.search(QUERY, k=5, exact=False, filter=group("g7"))
        assert [hit.id for hit in found] == ["d7"]
        several = collection.search_many([ITEMS[3].text, ITEMS[4].text], k=1, exact=False)
        assert [hits[0].id for hits in several] == ["d3", "d4"]
        if server.kind == "rest":
            [search] = server.searches()[-1].body["searches"][1:]
            inner = search["prefetch"][0]
            stages = inner["prefetch"] if stage == "hybrid" else [inner]
            assert [one["using"] for one in stages] == (["pooled", "bm25"] if stage == "hybrid" else [stage])
            assert {one["limit"] for one in [inner, *stages]} == {300}

    def test_words_are_explained(self, filled: Callable[..., ColbertCollection]) -> None:
        collection = filled()
        explanation = collection.explain(QUERY, "d11")
        [hit] = [hit for hit in collection.search(QUERY, k=30) if hit.id == "d11"]
        assert explanation.score == pytest.approx(hit.score, abs=1e-2)

    def test_a_stream_is_stored_while_it_is_encoded(self, server: Site, mini: JinaColbertEncoder) -> None:
        collection = server.create(mini, first_stage="hybrid")
        batches: list[int] = []
        report = collection.ingest(iter(ITEMS), batch_documents=8, progress=batches.append)
        assert (report.written, report.unchanged, batches) == (30, 0, [8, 8, 8, 6])
        changed = [*ITEMS[:29], Document("Another text.", "d29")]
        again = server.open(encoder=mini).ingest(iter(changed), batch_documents=8)
        assert (again.written, again.unchanged) == (1, 29)
        assert contents(collection) == expected_contents(changed)

    def test_threads_share_a_collection(self, filled: Callable[..., ColbertCollection]) -> None:
        collection = filled()
        wrong: list[Any] = []

        def work(number: int) -> None:
            one = ITEMS[number]
            for _ in range(4):
                found = collection.search(one.text, k=1)[0].id
                if found != one.id or collection.get([str(one.id)])[0].text != one.text:
                    wrong.append(found)

        threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


class TestNames:
    def test_a_name_is_an_alias(self, server: Site, mini: JinaColbertEncoder) -> None:
        collection = server.create(mini)
        assert (server.physical(), server.names()) == (f"{server.name}.1", [f"{server.name}.1"])
        assert f"The collection {server.name!r} at {server.url}" in repr(collection)

    def test_it_is_created_once(self, server: Site, mini: JinaColbertEncoder) -> None:
        collection = server.create(mini)
        collection.add(ITEMS[:2])
        with pytest.raises(CollectionExistsError, match="set overwrite"):
            server.create(mini)
        assert collection.count() == 2

    def test_overwriting_replaces_it_by_an_empty_one(self, server: Site, mini: JinaColbertEncoder) -> None:
        old = server.create(mini)
        old.add(ITEMS[:2])
        new = server.create(mini, dim=64, overwrite=True)
        assert (new.count(), new.dim, server.names()) == (0, 64, [f"{server.name}.2"])
        # Who had the old one open goes on with the new one.
        assert (old.count(), old.dim) == (0, 64)
        new.add(ITEMS[:1])
        assert old.search(ITEMS[0].text, k=1)[0].id == "d0"

    def test_one_that_is_not_there(self, server: Site, mini: JinaColbertEncoder) -> None:
        server.create(mini)
        with pytest.raises(CollectionNotFoundError, match=rf"no collection 'nowhere'; there are .*'{server.name}'"):
            server.open(name="nowhere")

    def test_one_that_was_cut_off_before_it_had_its_name(self, server: Site, mini: JinaColbertEncoder) -> None:
        collection = server.create(mini)
        alias = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=server.name))
        server.client.update_collection_aliases([alias])
        collection.add(ITEMS[:2])
        # With documents it may be all there is of a collection, cut off in the last step of its migration.
        with pytest.raises(CollectionExistsError, match=rf"'{server.name}.1' has documents.*set overwrite"):
            server.create(mini)
        assert server.open(name=f"{server.name}.1").count() == 2
        collection.delete(["d0", "d1"])
        assert server.create(mini, dim=64).count() == 0
        assert (server.physical(), server.names()) == (f"{server.name}.1", [f"{server.name}.1"])

    def test_a_wrong_option_costs_nothing(self, server: Site, mini: JinaColbertEncoder) -> None:
        server.create(mini).add(ITEMS[:2])
        for options, match in (
            ({"shard_numbers": 2}, r"\['shard_numbers'\] are not to be given; there are .*'shard_number'"),
            ({"metadata": {}}, r"\['metadata'\] are not to be given"),
        ):
            with pytest.raises(InvalidOptionError, match=match):
                server.create(mini, overwrite=True, collection_options=options)
        with pytest.raises(CollectionError, match="shard_number"):
            server.create(mini, overwrite=True, collection_options={"shard_number": 0})
        assert server.open().count() == 2

    def test_one_of_an_older_version(self, server: Site, mini: JinaColbertEncoder) -> None:
        """It has no alias, and its description no first stage."""
        described = {**CollectionSchema.describe(mini, DIM, "split", "float16").to_dict(), "format": 1}
        for name in ("first_stage", "stage_options", "pool_factor"):
            del described[name]
        comparator = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        params = models.VectorParams(size=DIM, distance=models.Distance.DOT, multivector_config=comparator)
        server.client.create_collection(server.name, vectors_config={"colbert": params}, metadata={"jcv2": described})
        collection = server.open()
        assert (collection.schema.format, collection.schema.first_stage) == (1, "none")
        collection.add(ITEMS[:9])
        assert collection.search(ITEMS[4].text, k=1)[0].id == "d4"
        assert collection.verify().ok
        assert server.names() == [server.name]


class TestWhatIsCreated:
    @pytest.mark.parametrize("storage", STORAGES)
    def test_a_storage_is_a_datatype_and_a_quantisation(
        self, server: Site, filled: Callable[..., ColbertCollection], storage: str
    ) -> None:
        collection = filled(storage=storage, first_stage="hybrid")
        params = server.client.get_collection(server.name).config.params
        assert isinstance(params.vectors, dict)
        colbert, pooled = params.vectors["colbert"], params.vectors["pooled"]
        assert (colbert.size, colbert.distance) == (DIM, models.Distance.DOT)
        assert colbert.multivector_config == models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        assert colbert.datatype == models.Datatype("float16" if storage == "int8" else storage)
        assert colbert.hnsw_config is not None
        assert colbert.hnsw_config.m == 0
        quantised = None
        if storage == "int8":
            scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
            quantised = models.ScalarQuantization(scalar=scalar)
            assert isinstance(colbert.quantization_config, models.ScalarQuantization)
            assert colbert.quantization_config.scalar.quantile == pytest.approx(0.99)
            colbert.quantization_config.scalar.quantile = 0.99
        assert (colbert.quantization_config, colbert.on_disk) == (quantised, True if quantised else None)
        assert (pooled.size, pooled.distance, pooled.hnsw_config) == (DIM, models.Distance.DOT, None)
        assert (params.sparse_vectors or {})["bm25"].modifier == models.Modifier.IDF
        assert [hit.id for hit in collection.search(ITEMS[23].text, k=1)] == ["d23"]
        assert [hit.id for hit in collection.search(ITEMS[23].text, k=1, exact=False)] == ["d23"]
        assert collection.verify(sample=5).problems == []

    def test_a_first_stage_may_be_one_vector_or_none(self, server: Site, mini: JinaColbertEncoder) -> None:
        options = {"planes": 2, "projected": 8, "repetitions": 3}
        server.create(mini, first_stage="muvera", stage_options=options)
        params = server.client.get_collection(server.name).config.params
        assert isinstance(params.vectors, dict)
        assert {name: one.size for name, one in params.vectors.items()} == {"colbert": DIM, "muvera": 96}
        assert not params.sparse_vectors
        assert {**options, "seed": 0} == server.open().schema.stage_options

    def test_shards_replicas_and_indexes(self, loopback: Site, mini: JinaColbertEncoder) -> None:
        loopback.create(
            mini,
            payload_indexes={"metadata.group": "keyword", "metadata.n": "integer"},
            collection_options={
                "shard_number": 3,
                "replication_factor": 2,
                "write_consistency_factor": 2,
                "on_disk_payload": False,
                "strict_mode_config": models.StrictModeConfig(enabled=True, max_query_limit=50),
            },
        )
        info = loopback.client.get_collection(loopback.name)
        params = info.config.params
        assert (params.shard_number, params.replication_factor, params.write_consistency_factor) == (3, 2, 2)
        assert params.on_disk_payload is False
        assert info.config.strict_mode_config == models.StrictModeConfigOutput(enabled=True, max_query_limit=50)
        assert {key: str(one.data_type.value) for key, one in info.payload_schema.items()} == {
            "metadata.group": "keyword",
            "metadata.n": "integer",
        }

    @pytest.mark.parametrize("server", ["rest"], indirect=True)  # of gRPC no bodies are recorded
    def test_every_search_of_int8_says_how_to_rescore(
        self, server: Site, filled: Callable[..., ColbertCollection]
    ) -> None:
        collection = filled(storage="int8", first_stage="pooled")
        collection.search_many(["one", "two"], k=1)
        collection.search("three", k=1, exact=False)
        searches = [one for sent in server.searches() for one in sent.body["searches"]]
        assert len(searches) == 3
        wanted = {"ignore": False, "rescore": True, "oversampling": 2.0}
        assert [one["params"]["quantization"] for one in searches] == [wanted] * 3
        assert {one["using"] for one in searches} == {"colbert"}

    def test_numbers_are_rounded_only_where_halves_are_kept(
        self, server: Site, filled: Callable[..., ColbertCollection], vectors: list[Matrix]
    ) -> None:
        for number, (storage, tolerance) in enumerate((("float32", 0.0), ("float16", 5e-4))):
            collection = filled(storage=storage, first_stage="muvera", overwrite=number > 0)
            records = {one.payload["_id"]: one for one in collection._engine.scroll(
                None, with_payload=["_id"], with_vectors=True)}  # fmt: skip
            [stage] = collection._current.stages
            for one, matrix in zip(ITEMS[:5], vectors[:5], strict=True):
                stored = records[one.id]
                assert stored.vectors is not None
                np.testing.assert_allclose(stored.vectors, matrix, atol=tolerance)
                wanted = stage.document(one.text, matrix)
                np.testing.assert_allclose(stored.stages["muvera"], wanted, atol=1e-6 if tolerance else 0.0)
