"""How vectors are kept: what each storage loses, what pooling leaves, and that both outlive a reopening."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_samples import QUERIES, documents, encoded, maxsim, store, stored_vectors

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder
from jcv2_plugin.engines.base import Matrix
from jcv2_plugin.engines.storage import STORAGES, storage_profile
from jcv2_plugin.errors import InvalidOptionError

DIMS = (64, 128)
ROOT = Path(__file__).resolve().parents[2]

# The largest errors (1 - cosine) over 35,000 token vectors of English, Chinese and Arabic passages and of code, at 32,
# 64, 128 and 384 dimensions, were 2.1e-7, 1.5e-7, 1.5e-7, 7.4e-5 and 3.6e-2. At least so much is lost on average:
LEAST_MEAN_ERROR = {"turbo8": 1e-6, "turbo4": 1e-3}
# And so much may the scores of a query differ from those of exact vectors, for each of its tokens.
SCORES = {"float32": 1e-5, "float16": 1e-3, "int8": 1e-3, "turbo8": 1e-2, "turbo4": 0.1}


@pytest.fixture(scope="module")
def passages() -> list[Document]:
    """Real prose: the paragraphs of this documentation, with tables and code among them."""
    texts = [file.read_text(encoding="utf-8") for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]]
    paragraphs = [one.strip()[:300] for text in texts for one in text.split("\n\n") if len(one.strip()) > 40]
    return [Document(text, f"p{number}") for number, text in enumerate(paragraphs[:80])]


@pytest.fixture(scope="module")
def vectors(mini: JinaColbertEncoder, passages: list[Document]) -> dict[int, dict[str, Matrix]]:
    ids = [str(one.id) for one in passages]
    by_dim = mini.encode_document([one.text for one in passages], dim=DIMS, convert_to_numpy=True)
    return {dim: dict(zip(ids, by_dim[dim], strict=True)) for dim in DIMS}


@pytest.fixture(scope="module")
def folder(
    mini: JinaColbertEncoder,
    passages: list[Document],
    vectors: dict[int, dict[str, Matrix]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Any, int], Path]:
    """A folder with the passages by storage and dim, each filled once."""
    made: dict[tuple[Any, int], Path] = {}

    def filled(storage: Any, dim: int) -> Path:
        if (storage, dim) not in made:
            made[storage, dim] = tmp_path_factory.mktemp("storage") / "collection"
            with ColbertCollection.create(made[storage, dim], encoder=mini, dim=dim, storage=storage) as collection:
                store(collection, passages, list(vectors[dim].values()))
                collection.optimize()
        return made[storage, dim]

    return filled


@pytest.mark.parametrize(("storage", "dim"), [*((one, 64) for one in STORAGES), ("turbo4", 128)])
class TestProfiles:
    def test_what_is_read_back_is_as_near_as_promised(
        self, folder: Any, vectors: dict[int, dict[str, Matrix]], mini: JinaColbertEncoder, storage: str, dim: int
    ) -> None:
        with ColbertCollection.open(folder(storage, dim), encoder=mini) as collection:
            assert collection.schema.storage == storage
            stored = stored_vectors(collection)
        assert {one: matrix.shape for one, matrix in stored.items()} == {
            one: matrix.shape for one, matrix in vectors[dim].items()
        }
        errors = np.concatenate([one_minus_cosine(stored[one], matrix) for one, matrix in vectors[dim].items()])
        assert errors.max() < storage_profile(storage).error
        assert errors.mean() >= LEAST_MEAN_ERROR.get(storage, -1)
        if storage in ("float16", "int8"):
            for one, matrix in vectors[dim].items():
                np.testing.assert_array_equal(stored[one], matrix.astype(np.float16).astype(np.float32))
        if storage == "float32":
            assert all(np.array_equal(stored[one], matrix) for one, matrix in vectors[dim].items())

    def test_search_finds_what_exact_vectors_find(
        self, folder: Any, vectors: dict[int, dict[str, Matrix]], mini: JinaColbertEncoder, storage: str, dim: int
    ) -> None:
        queries = ["how is a collection migrated?", "the licence of the weights", "run the tests", "heat map of tokens"]
        with ColbertCollection.open(folder(storage, dim), encoder=mini) as collection:
            results = collection.search_many(queries, k=10)
            two_stage = collection.search_many(queries, k=10, candidates=80)
        for query, hits, again in zip(mini.query_vectors(queries, dim), results, two_stage, strict=True):
            scores = {one: maxsim(query, matrix) for one, matrix in vectors[dim].items()}
            best = sorted(scores, key=lambda one: -scores[one])
            slack = SCORES[storage] * len(query)
            assert [hit.id for hit in again] == [hit.id for hit in hits]
            for hit in hits:
                assert hit.score == pytest.approx(scores[hit.id], abs=slack)
                assert scores[hit.id] >= scores[best[9]] - 2 * slack
            assert scores[hits[0].id] >= scores[best[0]] - slack


@pytest.mark.parametrize("storage", ["float16", "int8", "turbo4"])
def test_reopening_changes_nothing(folder: Any, mini: JinaColbertEncoder, storage: str) -> None:
    found = []
    for _ in range(2):
        with ColbertCollection.open(folder(storage, 64), encoder=mini) as collection:
            hits = collection.search("how fast is encoding?", k=5)
            found.append((stored_vectors(collection), [(hit.id, hit.score) for hit in hits]))
            collection.optimize()
            assert collection.verify(sample=2).ok
    assert found[0][1] == found[1][1]
    assert all(np.array_equal(found[0][0][one], found[1][0][one]) for one in found[0][0])


@pytest.mark.parametrize("storage", STORAGES)
def test_the_engine_is_told(folder: Any, storage: str) -> None:
    """As the shard itself remembers it."""
    config = json.loads((folder(storage, 64) / "shard" / "edge_config.json").read_text())["vectors"]["colbert"]
    assert config["datatype"] == {"int8": "float16"}.get(storage, storage)
    quantized = config.get("quantization_config")
    if storage == "int8":
        assert quantized["scalar"]["type"] == "int8"
        assert config["memory"] == "cold"
    else:
        assert quantized is None


@pytest.mark.parametrize("storage", ["int8", "turbo8"])
def test_in_memory_too(mini: JinaColbertEncoder, storage: Any) -> None:
    """Local mode keeps what it is given; a turbo type must not be refused there."""
    with ColbertCollection.create(":memory:", encoder=mini, dim=32, storage=storage) as collection:
        items = documents(20)
        collection.add(items)
        assert collection.search(items[7].text, k=1)[0].id == "d7"
        assert collection.search(items[7].text, k=1, candidates=5)[0].id == "d7"
        assert collection.verify().ok


def test_a_storage_that_there_is_not(mini: JinaColbertEncoder, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="storage must be one of"):
        ColbertCollection.create(tmp_path / "c", encoder=mini, storage="float8")  # type: ignore[arg-type]
    assert not (tmp_path / "c").exists()


def one_minus_cosine(stored: Matrix, exact: Matrix) -> Any:
    stored, exact = stored.astype(np.float64), exact.astype(np.float64)
    return 1 - (stored * exact).sum(axis=1) / np.linalg.norm(stored, axis=1) / np.linalg.norm(exact, axis=1)


class TestPooling:
    ITEMS = documents(36)

    @pytest.fixture(scope="class")
    def pooled(
        self, mini: JinaColbertEncoder, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[dict[float, ColbertCollection]]:
        made = {}
        for factor in (1.0, 2, 3):
            location = tmp_path_factory.mktemp("pooled") / "collection"
            made[factor] = ColbertCollection.create(location, encoder=mini, dim=64, pool_factor=factor)
            made[factor].add(self.ITEMS)
        yield made
        for collection in made.values():
            collection.close()

    def test_about_one_vector_in_so_many_is_left(self, pooled: dict[float, ColbertCollection]) -> None:
        rows = {factor: sum(map(len, stored_vectors(one).values())) for factor, one in pooled.items()}
        assert rows[2] == pytest.approx(rows[1] / 2, rel=0.1)
        assert rows[3] == pytest.approx(rows[1] / 3, rel=0.15)

    def test_queries_are_not_pooled(
        self, pooled: dict[float, ColbertCollection], mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Matrix] = []
        engine = pooled[3].engine

        def search(requests: Any, *rest: Any, original: Any = engine.search, **options: Any) -> Any:
            asked.extend(one.vectors for one in requests)
            return original(requests, *rest, **options)

        monkeypatch.setattr(engine, "search", search)
        pooled[3].search(QUERIES[0])
        np.testing.assert_allclose(asked[0], mini.query_vectors([QUERIES[0]], 64)[0], atol=1e-6)

    def test_the_right_documents_are_still_found(self, pooled: dict[float, ColbertCollection]) -> None:
        for factor in (2, 3):
            hits = pooled[factor].search_many([one.text for one in self.ITEMS], k=3)
            missed = [
                one.id for one, found in zip(self.ITEMS, hits, strict=True) if one.id not in [h.id for h in found]
            ]
            assert len(missed) <= 3

    def test_scores_are_those_of_pooled_documents_and_whole_queries(
        self, pooled: dict[float, ColbertCollection], mini: JinaColbertEncoder
    ) -> None:
        hit = pooled[2].search(QUERIES[1], k=1)[0]
        document = mini.document_vectors([hit.text], 64, "split", 2)[0]
        assert hit.score == pytest.approx(maxsim(mini.query_vectors([QUERIES[1]], 64)[0], document), abs=1e-2)

    def test_explain_shows_all_tokens(self, pooled: dict[float, ColbertCollection]) -> None:
        whole, of_pooled = (pooled[factor].explain(QUERIES[1], "d4") for factor in (1.0, 3))
        assert of_pooled.document_tokens == whole.document_tokens
        np.testing.assert_allclose(of_pooled.similarities, whole.similarities, atol=2e-3)

    def test_they_verify(self, pooled: dict[float, ColbertCollection]) -> None:
        for collection in pooled.values():
            report = collection.verify(sample=36)
            assert report.problems == []
            assert (report.documents, report.encoded) == (36, 36)

    def test_it_is_recorded(self, mini: JinaColbertEncoder, tmp_path: Path) -> None:
        with ColbertCollection.create(tmp_path / "c", encoder=mini, dim=64, pool_factor=2) as collection:
            collection.add(self.ITEMS[:5])
        with ColbertCollection.open(tmp_path / "c", encoder=mini) as collection:
            assert collection.schema.pool_factor == 2
            collection.add(self.ITEMS[5:10])
            own = {one: len(matrix) for one, matrix in stored_vectors(collection).items()}
        unpooled = dict(zip([one.id for one in self.ITEMS], map(len, encoded(mini, self.ITEMS[:10], 64)), strict=False))
        assert all(own[str(one)] < 0.7 * rows for one, rows in unpooled.items())

    @pytest.mark.parametrize("factor", [0.5, 100, "2", True, float("nan")])
    def test_factors_out_of_range(self, mini: JinaColbertEncoder, factor: Any) -> None:
        with pytest.raises(InvalidOptionError, match="pool_factor must be a number from 1"):
            ColbertCollection.create(":memory:", encoder=mini, dim=64, pool_factor=factor)
