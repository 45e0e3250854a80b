"""Limits of a Qdrant server: what a request and a point may hold, and what strict mode allows."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_samples import contents, documents, encoded, expected_contents, group, store
from loopback_qdrant import MAX_BODY_BYTES
from qdrant_client import models
from server_site import Site, open_site

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.engines.base import Matrix, Point
from jcv2_plugin.errors import DocumentTooLongError, ServerBusyError, ServerLimitError

ITEMS = documents(24)

pytestmark = pytest.mark.usefixtures("one_thread")
only_rest = pytest.mark.parametrize("loopback", ["rest"], indirect=True)


@pytest.fixture(scope="module")
def vectors(mini: JinaColbertEncoder) -> list[Matrix]:
    return encoded(mini, ITEMS)


@pytest.fixture
def strict(server: Site, mini: JinaColbertEncoder, vectors: list[Matrix]) -> Callable[..., ColbertCollection]:
    """Makes a collection of 24 documents, whose strict mode then has limits."""

    def make(first_stage: str = "none", **limits: Any) -> ColbertCollection:
        collection: ColbertCollection = server.create(mini, first_stage=first_stage)
        store(collection, ITEMS, vectors)
        config = models.StrictModeConfig(enabled=True, **limits)
        server.client.update_collection(server.name, strict_mode_config=config)
        return collection

    return make


class TestBytes:
    """32 MiB a request over REST."""

    @only_rest
    @pytest.mark.parametrize("filling", ["x", "ж\U0001f600"])
    def test_large_documents_go_in_several_requests(
        self, loopback: Site, mini: JinaColbertEncoder, filling: str
    ) -> None:
        large = filling * (11_000_000 // len(filling.encode()))
        collection = loopback.create(mini)
        collection.add([Document(f"Text {n}.", f"d{n}", {"blob": large}) for n in range(4)])
        sizes = [one.size for one in loopback.writes()]
        assert len(sizes) in (2, 4)
        assert sum(sizes) > 44_000_000 > MAX_BODY_BYTES
        assert all(size < MAX_BODY_BYTES for size in sizes)
        assert collection.count() == 4
        assert collection.get(["d3"])[0].metadata == {"blob": large}

    @only_rest
    @pytest.mark.parametrize("storage", ["float16", "float32"])
    def test_many_numbers_go_in_several_requests(self, loopback: Site, mini: JinaColbertEncoder, storage: str) -> None:
        options = {"planes": 6, "projected": 32, "repetitions": 8}  # 16,384 numbers
        collection = loopback.create(mini, storage=storage, first_stage="muvera", stage_options=options)
        random = np.random.default_rng(1)
        points = [
            Point(
                str(uuid.UUID(int=n)),
                (random.standard_normal((40, 32)) / 6).astype(np.float32),
                {"_id": str(n)},
                {"muvera": random.standard_normal(16_384).astype(np.float32)},
            )
            for n in range(150 if storage == "float16" else 80)
        ]
        collection._engine.upsert(points)
        sizes = [one.size for one in loopback.writes()]
        assert len(sizes) == 2
        assert all(size < 24 * 1024 * 1024 for size in sizes)
        assert collection.count() == len(points)

    @only_rest
    def test_a_document_that_is_too_large_for_a_request(self, loopback: Site, mini: JinaColbertEncoder) -> None:
        collection = loopback.create(mini)
        with pytest.raises(ServerLimitError, match=r"larger than allowed.*Write fewer or shorter documents"):
            collection.add(["Small.", Document("A text.", "a", {"blob": "x" * 34_000_000}), "After it."])
        assert len(loopback.writes()) == 2
        assert [one.text for one in collection.scroll()] == ["Small."], "what comes before it is stored"

    @pytest.mark.parametrize("status", [400, 413])
    def test_a_smaller_limit_of_the_server_is_found_out(self, mini: JinaColbertEncoder, status: int) -> None:
        with open_site("rest", max_body_bytes=40_000, oversize_status=status) as site:
            collection = site.create(mini)
            collection.add(ITEMS)
            sizes = [one.size for one in site.writes()]
            assert max(sizes) > 40_000, "the first did not fit"
            assert len([size for size in sizes if size <= 40_000]) >= 3
            assert contents(collection) == expected_contents(ITEMS)
            queries = [one.text for one in ITEMS]
            assert [hits[0].id for hits in collection.search_many(queries, k=1)] == [one.id for one in ITEMS]
            assert max(one.size for one in site.searches()) > 40_000
            with pytest.raises(ServerLimitError, match="limit: 40000 bytes"):
                collection.add([Document("A text.", "a", {"blob": "x" * 40_000})])


class TestFloats:
    """Fewer than 1,048,576 numbers a document."""

    def test_a_document_with_more_is_refused_before_anything_is_sent(
        self, loopback: Site, mini: JinaColbertEncoder
    ) -> None:
        collection = loopback.create(mini, dim=384, first_stage="hybrid")
        long = " ".join(f"word{n}" for n in range(2000))
        for add in (collection.add, collection.ingest):
            with pytest.raises(DocumentTooLongError, match=r"'long'.*1,048,576 floats.*at most 2730 vectors"):
                add([ITEMS[0], Document(long, "long")])
        assert loopback.writes() == []

    def test_vectors_that_come_from_elsewhere_are_refused_by_the_server(
        self, loopback: Site, mini: JinaColbertEncoder
    ) -> None:
        collection = loopback.create(mini, dim=384)
        rows = np.zeros((2731, 384), dtype=np.float32)
        with pytest.raises(ServerLimitError, match="No document may have 1048576 numbers"):
            collection._engine.upsert([Point(str(uuid.UUID(int=1)), rows, {})])


class TestFilters:
    def acts(self, collection: ColbertCollection) -> Iterator[Callable[[], Any]]:
        """All that filters."""
        yield lambda: [hit.id for hit in collection.search("a map", filter=group("g7"))]
        yield lambda: [hit.id for hit in collection.search("a map", filter=group("g7"), exact=False)]
        yield lambda: list(collection.ids(group("g7")))
        yield lambda: [one.id for one in collection.scroll(group("g7"))]

    def test_one_without_an_index_says_how_to_make_it(self, strict: Callable[..., ColbertCollection]) -> None:
        collection = strict("hybrid", unindexed_filtering_retrieve=False, unindexed_filtering_update=False)
        wanted = (
            r"payload_indexes=\{'metadata.group': 'keyword'\} when the collection is created, or "
            r"collection.create_payload_index\('metadata.group', 'keyword'\)"
        )
        for act in self.acts(collection):
            with pytest.raises(ServerLimitError, match=wanted):
                act()
        for act in (lambda: collection.count(group("g7")), lambda: collection.delete(filter=group("g7"))):
            with pytest.raises(ServerLimitError, match=wanted):
                act()
        collection.create_payload_index("metadata.group", "keyword")
        assert [act() for act in self.acts(collection)] == [["d7"]] * 4
        assert collection.count(group("g7")) == 1
        collection.delete(filter=group("g7"))
        assert collection.count() == 23
        collection.create_payload_index("metadata.group", "keyword")

    def test_an_index_may_be_there_from_the_start(self, server: Site, mini: JinaColbertEncoder) -> None:
        limits = models.StrictModeConfig(enabled=True, unindexed_filtering_retrieve=False)
        collection = server.create(
            mini, payload_indexes={"metadata.group": "keyword"}, collection_options={"strict_mode_config": limits}
        )
        collection.add(ITEMS[:9])
        assert [hit.id for hit in collection.search("a map", filter=group("g7"))] == ["d7"]
        year = models.Filter(must=[models.FieldCondition(key="metadata.n", range=models.Range(gte=5))])
        with pytest.raises(ServerLimitError, match=r"create_payload_index\('metadata.n', 'float'\)"):
            collection.count(year)

    def test_one_that_is_too_large(self, strict: Callable[..., ColbertCollection]) -> None:
        collection = strict(filter_max_conditions=1, condition_max_size=2)
        condition = models.FieldCondition(key="metadata.group", match=models.MatchValue(value="g7"))
        with pytest.raises(ServerLimitError, match="Use a smaller filter"):
            collection.count(models.Filter(must=[condition, condition]))
        several = models.FieldCondition(key="metadata.group", match=models.MatchAny(any=["g1", "g2", "g3"]))
        with pytest.raises(ServerLimitError, match="Use a smaller filter"):
            collection.search("a map", filter=models.Filter(must=[several]))


class TestNumbers:
    def test_listing_keeps_to_the_largest_page(
        self, server: Site, strict: Callable[..., ColbertCollection], tmp_path: Path
    ) -> None:
        collection = strict(max_query_limit=7)
        assert sorted(collection.ids()) == sorted(str(one.id) for one in ITEMS)
        assert contents(collection) == expected_contents(ITEMS)
        assert list(collection.ids(group("g7"))) == ["d7"]
        if server.kind == "rest":
            limits = [one.body["limit"] for one in server.loopback.sent("POST", "/scroll")]
            assert limits == [1000] + [7] * 9, "it is refused once"
        assert collection.verify(sample=3).problems == []
        assert collection.snapshot(tmp_path / "s.snapshot").documents == 24
        assert collection.migrate(first_stage="pooled").copied == 24
        assert collection.verify(sample=3).problems == []

    def test_a_limit_that_is_lowered_meanwhile_is_kept_to_as_well(
        self, server: Site, strict: Callable[..., ColbertCollection]
    ) -> None:
        collection = strict(max_query_limit=20)
        ids = collection.ids()
        first = next(ids)
        lower = models.StrictModeConfig(max_query_limit=3)
        server.client.update_collection(server.name, strict_mode_config=lower)
        assert len({first, *ids}) == 24

    def test_a_page_of_no_size_is_an_error(self, strict: Callable[..., ColbertCollection]) -> None:
        collection = strict(max_query_limit=0)
        with pytest.raises(ServerLimitError, match="max_query_limit=0"):
            list(collection.ids())

    def test_fewer_results_or_candidates(self, strict: Callable[..., ColbertCollection]) -> None:
        collection = strict("hybrid", max_query_limit=20)
        assert len(collection.search("a map", k=20)) == 20
        with pytest.raises(ServerLimitError, match=r"max_query_limit=20.*at most 20 results \(k=...\)"):
            collection.search("a map", k=21)
        with pytest.raises(ServerLimitError, match=r"at most 20 .*candidates \(candidates=...\)"):
            collection.search("a map", k=1, exact=False)
        assert collection.search(ITEMS[9].text, k=1, candidates=20)[0].id == "d9"

    def test_a_narrower_walk_of_the_graph(self, strict: Callable[..., ColbertCollection]) -> None:
        collection = strict("pooled", search_max_hnsw_ef=50)
        with pytest.raises(ServerLimitError, match=r"search_max_hnsw_ef=50.*at most 50 candidates"):
            collection.search("a map", exact=False)
        assert collection.search(ITEMS[9].text, k=1, candidates=50)[0].id == "d9"

    def test_writing_keeps_to_the_largest_batch(self, server: Site, strict: Callable[..., ColbertCollection]) -> None:
        collection = strict(upsert_max_batchsize=5)
        more = documents(12, start=100)
        collection.add(more)
        collection.ingest(documents(12, start=200), batch_documents=9)
        assert contents(collection) == expected_contents([*ITEMS, *more, *documents(12, start=200)])
        if server.kind == "rest":
            written = [len(one.body["points"]) for one in server.writes()]
            assert written == [24, 12, 5, 5, 2, 5, 4, 3], "it is refused once"
        assert collection.migrate(first_stage="bm25").copied == 48

    def test_searching_keeps_to_the_largest_batch(self, server: Site, strict: Callable[..., ColbertCollection]) -> None:
        collection = strict(search_max_batchsize=2)
        queries = [one.text for one in ITEMS[:5]]
        for _ in range(2):
            assert [hits[0].id for hits in collection.search_many(queries, k=1)] == ["d0", "d1", "d2", "d3", "d4"]
        if server.running is not None:
            assert len(server.searches()) == 1 + 3 + 3, "it is refused once"

    def test_a_collection_that_is_full(self, strict: Callable[..., ColbertCollection]) -> None:
        collection = strict(max_points_count=24)
        with pytest.raises(ServerLimitError, match=r"Max points count limit of 24.*is full"):
            collection.add(["One more."])

    def test_documents_of_fewer_vectors(self, strict: Callable[..., ColbertCollection]) -> None:
        collection = strict(multivector_config={"colbert": models.StrictModeMultivector(max_vectors=6)})
        with pytest.raises(ServerLimitError, match=r"max_vectors=6.*document_length=6 or less"):
            collection.add(["A text that has a few more tokens than six."])


class TestExactness:
    """search_allow_exact=False: nothing that looks at all documents."""

    def test_a_first_stage_is_needed(self, strict: Callable[..., ColbertCollection]) -> None:
        collection = strict("hybrid", search_allow_exact=False)
        with pytest.raises(
            ServerLimitError, match=r"Search with the first stage \(a migration can add one.*allow_exact=True"
        ):
            collection.search("a map")
        assert collection.search(ITEMS[9].text, k=1, exact=False)[0].id == "d9"
        assert collection.search(ITEMS[7].text, k=1, exact=False, filter=group("g7"))[0].id == "d7"

    def test_one_can_be_added(self, strict: Callable[..., ColbertCollection]) -> None:
        collection = strict(search_allow_exact=False)
        with pytest.raises(ServerLimitError, match="a migration can add one, such as hybrid"):
            collection.search("a map")
        assert collection.migrate(first_stage="hybrid").documents == 24
        assert collection.search(ITEMS[9].text, k=1, exact=False)[0].id == "d9"

    def test_counting_is_exact_all_the_same(
        self, strict: Callable[..., ColbertCollection], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Documents are listed, by ids alone, since an estimate may be far off."""
        collection = strict("pooled", search_allow_exact=False)
        monkeypatch.setattr("jcv2_plugin.engines.qdrant._SCROLL_PAGE", 15)
        assert (collection.count(), len(collection)) == (24, 24)
        assert collection.count(group("g7")) == 1
        assert collection.verify(sample=3).problems == []


class TestRates:
    def test_a_rate_limit_is_waited_for(self, loopback: Site, mini: JinaColbertEncoder, waits: list[float]) -> None:
        collection = loopback.create(mini)
        loopback.loopback.fail(times=2, status=429, retry_after=7)
        assert collection.count() == 0
        assert waits == [7, 7]
        loopback.loopback.fail(times=9, status=429, retry_after=7)
        with pytest.raises(ServerBusyError, match=r"in 7 seconds, or allow more retries"):
            collection.count()
