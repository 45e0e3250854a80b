"""First stages of the user's own: what is stored, what has to be passed again, what is refused, on each engine."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_samples import DIM, QUERIES, documents, encoded, store
from pydantic import ValidationError
from qdrant_client import QdrantClient, models
from server_site import Site
from stage_samples import LETTERS, Letters, backbone_model, dense_model, sparse_model

from jcv2_plugin import (
    ColbertCollection,
    DenseParams,
    Document,
    FirstStage,
    JinaColbertEncoder,
    SentenceTransformerStage,
    SparseEncoderStage,
    SparseParams,
    SparseVector,
    import_qdrant,
)
from jcv2_plugin.engines.base import Matrix
from jcv2_plugin.errors import (
    CollectionCorruptError,
    CollectionMismatchError,
    InvalidOptionError,
    InvalidQueryError,
    InvalidVectorError,
)
from jcv2_plugin.evaluation.beir import BeirDataset

DOCUMENTS = documents(120)
TEXTS = [one.text for one in DOCUMENTS]
SIZE = LETTERS.size


class Hashed(Letters):
    """A random vector for each text, so that no two scores are equal."""

    def encode_documents(self, texts: Sequence[str]) -> Any:
        seeds = [zlib.crc32(text.encode()) for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=self.params.size) for seed in seeds])

    encode_queries = encode_documents


STAGES: dict[str, Any] = {
    "dot": Letters(),
    "euclid": Letters(params=DenseParams(SIZE, "euclid")),
    "sparse": Letters(params=SparseParams()),
    "idf": Letters(params=SparseParams(idf=True)),
}


@pytest.fixture(scope="module")
def vectors(mini: JinaColbertEncoder) -> list[Matrix]:
    return encoded(mini, DOCUMENTS)


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    """With the shipped stages, on small random models."""
    dense, sparse = dense_model(), sparse_model()
    return {
        **STAGES,
        "model": SentenceTransformerStage(dense, name="dense-model"),
        "sparse-model": SparseEncoderStage(sparse, name="sparse-model"),
    }


def best(stage: Any, query: str, number: int) -> list[str]:
    """The ids that a stage ranks first, by a plain computation over all documents."""
    found, (asked,) = stage.encode_documents(TEXTS), stage.encode_queries([query])
    if isinstance(stage.params, SparseParams):
        rows = [dict(zip(one.indices, one.values, strict=True)) for one in found]
        weights = dict(zip(asked.indices, asked.values, strict=True))
        if stage.params.idf:
            having = {place: sum(place in row for row in rows) for place in weights}
            total = len(rows)
            weights = {p: w * np.log(1 + (total - having[p] + 0.5) / (having[p] + 0.5)) for p, w in weights.items()}
        scores = np.array([sum(row.get(place, 0.0) * weight for place, weight in weights.items()) for row in rows])
    elif stage.params.distance == "euclid":
        scores = -np.linalg.norm(np.asarray(found) - asked, axis=1)
    else:
        scores = np.asarray(found) @ np.asarray(asked)
        if stage.params.distance == "cosine":
            scores = scores / np.linalg.norm(found, axis=1)
    order = np.argsort(-scores)
    least = scores[order[number - 1]] - 1e-5 * max(1.0, abs(scores[order[0]]))
    return [str(one.id) for one, score in zip(DOCUMENTS, scores, strict=True) if score >= least]


@pytest.mark.parametrize("kind", [*STAGES, "model", "sparse-model"])
@pytest.mark.parametrize("engine", ["edge", "memory"])
def test_its_candidates_are_those_it_ranks_first(
    mini: JinaColbertEncoder, vectors: list[Matrix], stages: dict[str, Any], tmp_path: Path, engine: str, kind: str
) -> None:
    stage = stages[kind]
    assert isinstance(stage, FirstStage)
    location = ":memory:" if engine == "memory" else tmp_path / "c"
    with ColbertCollection.create(location, encoder=mini, dim=DIM, first_stage=stage) as collection:
        store(collection, DOCUMENTS, vectors)
        collection.optimize()
        for query in QUERIES:
            found = [hit.id for hit in collection.search(query, k=9, candidates=9)]
            assert len(found) == 9
            assert set(found) <= set(best(stage, query, 9))
            exact = collection.search(query, k=120, exact=True)
            assert [h.id for h in collection.search(query, k=120, first_stage="none")] == [h.id for h in exact]
            scores = {hit.id: hit.score for hit in exact}
            assert all(
                hit.score == pytest.approx(scores[hit.id], abs=1e-3)
                for hit in collection.search(query, k=5, first_stage=stage.name)
            )
        assert collection.verify(sample=5).problems == []


@pytest.mark.parametrize("kind", ["dot", "sparse-model", "model"])
def test_a_server_stores_and_searches_it(
    mini: JinaColbertEncoder, vectors: list[Matrix], stages: dict[str, Any], server: Site, kind: str
) -> None:
    stage = stages[kind]
    collection = server.create(mini, first_stage=[stage, "bm25"])
    store(collection, DOCUMENTS, vectors)
    again = server.open(encoder=mini, first_stage=stage)
    assert again.schema.first_stage == f"{stage.name}+bm25"
    found = [hit.id for hit in again.search(QUERIES[0], k=9, candidates=9, first_stage=stage.name)]
    assert set(found) <= set(best(stage, QUERIES[0], 9))
    weights = {"bm25": 0.0}
    merged = again.search(QUERIES[0], k=9, candidates=9, rrf_k=7, rrf_weights=weights)
    assert {hit.id for hit in merged} <= {*found, *best(stage, QUERIES[0], 9)}
    assert again.verify(sample=3).problems == []
    again.migrate(storage="turbo4")
    assert again.verify(sample=0).problems == []
    with pytest.raises(CollectionMismatchError, match=r"own first stage '.*' \(.*first_stage='none' to do without"):
        server.open(encoder=mini)


class TestReopening:
    @pytest.fixture
    def folder(self, mini: JinaColbertEncoder, tmp_path: Path) -> Path:
        with ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM, first_stage=Letters()) as collection:
            collection.add(TEXTS[:5], ids=list("abcde"))
        return tmp_path / "c"

    def test_the_object_is_passed_again(self, folder: Path, mini: JinaColbertEncoder) -> None:
        described = json.loads((folder / "jcv2.json").read_text())
        assert described["first_stage"] == "letters"
        assert described["stage_options"] == {"letters": {"size": SIZE, "distance": "dot"}}
        with ColbertCollection.open(folder, encoder=mini, first_stage=Letters()) as collection:
            collection.add(["The ferry sails at noon."], ids=["ferry"])
            assert collection.search("The ferry sails at noon.", k=1, candidates=6)[0].id == "ferry"
            assert collection.verify().problems == []

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (None, r"your own first stage 'letters' \(dense, size 24, dot\).*first_stage= the object"),
            (Letters("others"), r"does not have the first stage 'others'.*'letters' \(dense"),
            (Letters(params=DenseParams(8, "dot")), r"'letters' \(dense, size 8, dot\)\. Open.*size 24"),
            (Letters(params=SparseParams()), r"'letters' \(sparse"),
            ("hybrid", r"does not have the first stage 'hybrid'"),
            (["pooled", Letters()], r"does not have the first stage"),
        ],
    )
    def test_another_or_none_is_refused(self, folder: Path, mini: JinaColbertEncoder, given: Any, message: str) -> None:
        with pytest.raises(CollectionMismatchError, match=message):
            ColbertCollection.open(folder, encoder=mini, first_stage=given)
        ColbertCollection.open(folder, first_stage=Letters()).close()  # it was let go of

    def test_without_the_object_searches_are_exact_and_nothing_is_added(
        self, folder: Path, mini: JinaColbertEncoder, tmp_path: Path
    ) -> None:
        with ColbertCollection.open(folder, encoder=mini, first_stage="none") as collection:
            assert collection.search(TEXTS[2], k=1)[0].id == "c"
            for act in (
                lambda: collection.search(TEXTS[2], candidates=3),
                lambda: collection.add(["The ferry sails at noon."]),
                lambda: collection.ingest(["The ferry sails at noon."]),
                lambda: collection.migrate(dim=128),
            ):
                with pytest.raises(CollectionMismatchError, match="open without its object"):
                    act()
            collection.delete(["a"])
            assert collection.migrate(storage="turbo4").copied == 4  # vectors are copied
            assert collection.verify().problems == []
            assert collection.migrate(first_stage="bm25").copied == 4
            assert collection.search(TEXTS[2], k=1, candidates=2)[0].id == "c"
        ColbertCollection.open(folder).close()

    def test_a_description_of_another_size_is_damaged(self, folder: Path, mini: JinaColbertEncoder) -> None:
        file = folder / "jcv2.json"
        file.write_text(file.read_text().replace(f'"size": {SIZE}', '"size": 25'))
        with pytest.raises(CollectionCorruptError, match=r"\{'letters': 25\}.*\{'letters': 24\}"):
            ColbertCollection.open(folder, encoder=mini, first_stage=Letters(params=DenseParams(25, "dot")))

    def test_another_model_of_the_same_name_is_found_by_verifying(self, folder: Path, mini: JinaColbertEncoder) -> None:
        class Reversed(Letters):
            def encode_documents(self, texts: Sequence[str]) -> Any:
                return super().encode_documents(texts)[:, ::-1]

        with ColbertCollection.open(folder, encoder=mini, first_stage=Reversed()) as collection:
            assert "may be of another model" in collection.verify().problems[0]


def test_migrating_snapshots_and_imports_keep_it(
    mini: JinaColbertEncoder, vectors: list[Matrix], tmp_path: Path
) -> None:
    letters, sparse = Letters(), Letters("sparse", SparseParams())
    theirs = QdrantClient(":memory:")
    theirs.create_collection("dense", vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE))
    points = [models.PointStruct(id=n, vector=[1.0, 0.5], payload={"body": TEXTS[n]}) for n in range(6)]
    theirs.upsert("dense", points)
    with ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM) as collection:
        store(collection, DOCUMENTS[6:60], vectors[6:60])
        report = collection.migrate(first_stage=[letters, sparse, "pooled"])
        assert (report.copied, report.encoded) == (54, 0)
        assert collection.schema.first_stage == "letters+sparse+pooled"
        import_qdrant(theirs, "dense", collection, lambda point, payload: Document(payload["body"], str(point)))
        assert collection.count() == 60
        assert not collection.migrate(first_stage=[letters, sparse, "pooled"]).needed
        assert collection.migrate(dim=128).encoded == 60
        assert collection.verify().problems == []
        collection.snapshot(tmp_path / "s")
        asked = {"k": 5, "candidates": 5, "first_stage": "sparse"}
        wanted = [hit.id for hit in collection.search(QUERIES[0], **asked)]
    with pytest.raises(CollectionMismatchError, match=r"The snapshot .* does not have the first stage"):
        ColbertCollection.restore(tmp_path / "s", tmp_path / "r", first_stage=letters)
    assert not (tmp_path / "r").exists()
    for location in (tmp_path / "r", ":memory:"):
        with ColbertCollection.restore(tmp_path / "s", location, first_stage=[letters, sparse]) as restored:
            assert restored.verify(sample=4).problems == []
            again = [hit.id for hit in restored.search(QUERIES[0], **asked)]
            assert len(set(again) & set(wanted)) >= 3  # of equal scores, an engine chooses
    with ColbertCollection.restore(tmp_path / "s", ":memory:") as restored:
        assert len(restored.search(QUERIES[0], k=3)) == 3


class TestWorkers:
    @pytest.mark.usefixtures("quick_workers")
    def test_workers_encode_it(self, mini: JinaColbertEncoder) -> None:
        with ColbertCollection.create(":memory:", encoder=mini, dim=DIM, first_stage=Letters()) as collection:
            assert collection.ingest(DOCUMENTS[:20], workers=1).written == 20
            assert collection.verify(sample=20).problems == []

    def test_what_cannot_be_pickled_is_refused_before_a_process_is_started(self, mini: JinaColbertEncoder) -> None:
        stage = Letters()
        stage.lock = threading.Lock()  # type: ignore[attr-defined]
        with ColbertCollection.create(":memory:", encoder=mini, dim=DIM, first_stage=stage) as collection:
            with pytest.raises(InvalidOptionError, match=r"'letters' cannot be sent to the workers.*workers=0"):
                collection.ingest(TEXTS[:3], workers=1)
            assert collection.count() == 0
            assert collection.ingest(TEXTS[:3]).written == 3

    def test_a_stage_of_a_named_model_is_loaded_again(self, tmp_path: Path) -> None:
        import pickle

        dense_model().save(str(tmp_path / "some model"))
        sparse_model().save(str(tmp_path / "sparse"))
        for stage in (SentenceTransformerStage(tmp_path / "some model"), SparseEncoderStage(tmp_path / "sparse")):
            found = stage.encode_queries(TEXTS[:2])
            again = pickle.loads(pickle.dumps(stage))
            assert len(pickle.dumps(stage)) < 5000
            assert (again.name, again.params) == (stage.name, stage.params)
            assert again.name in ("some-model", "sparse")
            for one, other in zip(found, again.encode_queries(TEXTS[:2]), strict=True):
                assert one == other if isinstance(one, SparseVector) else np.allclose(one, other)


def bad(result: Any, params: Any) -> Any:
    stage = Letters(params=params)
    stage.encode_documents = stage.encode_queries = lambda texts: result(texts)  # type: ignore[method-assign]
    return stage


DOT, COSINE, SPARSE = DenseParams(2, "dot"), DenseParams(2), SparseParams()


@pytest.mark.parametrize(
    ("result", "params", "message"),
    [
        (lambda texts: [[1.0, 2.0]] * (len(texts) + 1), DOT, r"returned \d+ vectors for \d+ texts"),
        (lambda texts: None, DOT, "returned NoneType"),
        (lambda texts: [[1.0, 2.0, 3.0]] * len(texts), DOT, r"shape \(3,\)"),
        (lambda texts: [[[1.0, 2.0]]] * len(texts), DOT, r"shape \(1, 2\)"),
        (lambda texts: [["a", "b"]] * len(texts), DOT, "no array of numbers"),
        (lambda texts: [[1.0, 2.0]] * (len(texts) - 1) + [[np.nan, 1.0]], DOT, "not finite"),
        (lambda texts: [[0.0, 0.0]] * len(texts), COSINE, "no direction"),
        (lambda texts: [[0.0, 1.0]] * len(texts), SPARSE, "Return a jcv2_plugin.SparseVector"),
        (lambda texts: [SparseVector([1, 1], [1.0, 2.0])] * len(texts), SPARSE, "more than once"),
        (lambda texts: [SparseVector([1], [1.0, 2.0])] * len(texts), SPARSE, "indices of shape"),
        (lambda texts: [SparseVector([-1], [1.0])] * len(texts), SPARSE, "integers from 0"),
        (lambda texts: [SparseVector([2**32], [1.0])] * len(texts), SPARSE, "integers from 0"),
        (lambda texts: [SparseVector([1], [float("inf")])] * len(texts), SPARSE, "not finite"),
    ],
)
def test_bad_vectors_are_refused_before_anything_is_written(
    mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch, result: Any, params: Any, message: str
) -> None:
    monkeypatch.setattr("jcv2_plugin.collection.ingest.BATCH_DOCUMENTS", 2)  # the last one is of a later batch
    with ColbertCollection.create(":memory:", encoder=mini, dim=DIM, first_stage=bad(result, params)) as collection:
        for write in (collection.add, collection.ingest):
            with pytest.raises(InvalidVectorError, match=rf"first stage 'letters'.*{message}"):
                write(TEXTS[:5])
            assert collection.count() == 0
        with pytest.raises(InvalidVectorError, match=message):
            collection.search("anything", candidates=3)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Letters, "a class, not an object"),
        (object(), "without name, params, encode_documents, encode_queries"),
        (Letters("a+b"), "letters, digits"),
        (Letters("bm25"), "none of"),
        (Letters("x" * 65), "up to 64"),
        (Letters(params=24), "params must be"),
        (Letters(params=DenseParams(0)), "size must be an integer from 1"),
        (Letters(params=DenseParams(8, "manhattan")), "distance must be one of"),  # type: ignore[arg-type]
        (Letters(params=SparseParams("yes")), "idf must be True or False"),  # type: ignore[arg-type]
        ([Letters(), Letters()], "more than once"),
        (["hybrid", "bm25"], "more than once"),
        (["none", Letters()], "first_stage must be one of"),
        ([], "empty list"),
    ],
)
def test_what_is_no_first_stage_is_refused(mini: JinaColbertEncoder, tmp_path: Path, stage: Any, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM, first_stage=stage)
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_stages_say_what_they_lack() -> None:
    with pytest.raises(InvalidOptionError, match="Give the stage of a loaded SentenceTransformer a name"):
        SentenceTransformerStage(dense_model())
    with pytest.raises(InvalidOptionError, match=r"is loaded: \['device', 'revision'\]"):
        SparseEncoderStage(sparse_model(), name="s", device="cpu", revision="main")
    with pytest.raises(InvalidOptionError, match="batch_size"):
        SparseEncoderStage("model", batch_size=0)


class TestFusion:
    @pytest.fixture(scope="class", params=["edge", "memory"])
    def collection(
        self,
        request: pytest.FixtureRequest,
        mini: JinaColbertEncoder,
        vectors: list[Matrix],
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[ColbertCollection]:
        location = ":memory:" if request.param == "memory" else tmp_path_factory.mktemp("edge") / "c"
        stages: Any = ["hybrid", Hashed()]
        with ColbertCollection.create(location, encoder=mini, dim=DIM, first_stage=stages) as collection:
            store(collection, DOCUMENTS, vectors)
            yield collection

    @pytest.mark.parametrize("k", [1, 60])
    @pytest.mark.parametrize("weights", [{}, {"bm25": 0.0, "letters": 3.0}, {"pooled": 0.25}])
    def test_it_is_what_it_is_defined_to_be(
        self, collection: ColbertCollection, k: int, weights: dict[str, float]
    ) -> None:
        """Against the ranks of each stage: none of the candidates scores less than one that was left out."""
        names = ("pooled", "letters")
        deep, number = 120, 8
        for query in QUERIES[:2]:
            ranked = {name: ranks(collection, query, name, deep) for name in names}
            given = {"bm25": 0.0, **weights}
            found = collection.search(query, k=number, candidates=number, rrf_k=k, rrf_weights=given)
            # Each stage is asked for so many candidates, so only points among these are merged.
            merged = {
                one: sum(
                    1 / (place[one] / given.get(name, 1.0) + k - 1)
                    for name, place in ranked.items()
                    if place.get(one, deep) <= number
                )
                for one in ranked["pooled"]
            }
            cut = sorted(merged.values(), reverse=True)[number - 1]
            assert {hit.id for hit in found} <= {one for one, score in merged.items() if score >= cut - 1e-6}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rrf_k": 0}, "rrf_k must be a positive integer"),
            ({"rrf_weights": [1.0, 2.0]}, "must be a dict"),
            ({"rrf_weights": {"bm25": -1}}, "must be 0 or more"),
            ({"rrf_weights": {"bm25": float("inf")}}, "must be 0 or more"),
            ({"rrf_weights": {"bm25": "x"}}, "must be a number"),
            ({"rrf_weights": {"other": 1}}, r"has \['other'\]"),
            ({"rrf_weights": {"bm25": 0, "pooled": 0, "letters": 0}}, "are all 0"),
            ({"rrf_k": 5, "exact": True}, "is exact"),
            ({"rrf_k": 5, "first_stage": "bm25"}, "'bm25' alone"),
            ({"rrf_k": 5, "first_stage": "none"}, "is exact"),
            ({"first_stage": Letters()}, "takes the name"),
            ({"first_stage": "others"}, r"a search can use \['none', 'pooled', 'bm25', 'letters', 'hybrid', 'pooled\+"),
        ],
    )
    def test_bad_options(self, collection: ColbertCollection, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidQueryError, match=message):
            collection.search(QUERIES[0], **options)

    def test_an_older_server_would_ignore_them(self, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        with ColbertCollection.create(":memory:", encoder=mini, dim=DIM) as collection:
            collection.add(TEXTS[:3])
            engine: Any = collection.engine
            monkeypatch.setattr(engine, "_fuses", None)
            monkeypatch.setattr(engine.client, "info", lambda: models.VersionInfo(title="qdrant", version="1.16.2"))
            assert len(collection.search(QUERIES[0], k=3, exact=False)) == 3
            with pytest.raises(InvalidOptionError, match=r"need Qdrant 1\.17 or later"):
                collection.search(QUERIES[0], rrf_k=3)


def ranks(collection: ColbertCollection, query: str, name: str, number: int) -> dict[str, int]:
    """The rank of each document by one stage, by a plain computation."""
    stage: Any = Hashed()
    if name == "pooled":
        matrix = collection.encoder.query_vectors([query], DIM)[0]
        built = {one.name: one for one in collection.current.stages}["pooled"]
        asked: Any = built.query(query, matrix)
        rows = {
            record.payload["_id"]: record.stages["pooled"]
            for record in collection.engine.scroll(None, with_payload=["_id"], with_vectors=True)
        }
    else:
        (asked,) = stage.encode_queries([query])
        rows = dict(zip((str(one.id) for one in DOCUMENTS), stage.encode_documents(TEXTS), strict=True))
    scores = {one: float(np.asarray(row) @ asked) for one, row in rows.items()}
    order = sorted(scores, key=lambda one: -scores[one])
    return {one: place for place, one in enumerate(order[:number], start=1)}


def test_the_adapters_pass_it_on(mini: JinaColbertEncoder, tmp_path: Path) -> None:
    from llama_index.core.schema import Document as LlamaIndexDocument

    from langchain_jcv2 import JinaColbertRetriever, JinaColbertVectorStore
    from llama_index_jcv2 import JinaColbertIndex
    from llama_index_jcv2 import JinaColbertRetriever as LlamaIndexRetriever

    options: dict[str, Any] = {"encoder": mini, "dim": DIM, "first_stage": Letters()}
    stored = JinaColbertVectorStore.from_texts(TEXTS[:4], location=tmp_path / "l", ids=list("abcd"), **options)
    assert stored.similarity_search(TEXTS[1], k=1, first_stage="letters")[0].id == "b"
    stored.collection.close()
    retriever = JinaColbertRetriever.from_collection(tmp_path / "l", encoder=mini, first_stage=Letters(), k=1)
    assert retriever.invoke(TEXTS[2], first_stage="letters")[0].id == "c"
    opened = JinaColbertRetriever.from_collection(retriever.collection, first_stage="letters", k=1)
    assert opened.invoke(TEXTS[2])[0].id == "c"
    with pytest.raises(ValidationError, match=r"(?s)first_stage.*'letters'\], got 'others'"):
        opened.first_stage = "others"
    with pytest.raises(ValidationError, match="first_stage"):  # before anything is created
        JinaColbertRetriever.from_texts(TEXTS[:2], location=tmp_path / "n", first_stage="letters", encoder=mini)
    assert not (tmp_path / "n").exists()
    retriever.collection.close()
    theirs = LlamaIndexRetriever.from_collection(
        tmp_path / "l", encoder=mini, first_stage=Letters(), similarity_top_k=1
    )
    assert theirs.retrieve(TEXTS[3])[0].node.node_id == "d"
    theirs.collection.close()
    index = JinaColbertIndex.from_documents([LlamaIndexDocument(text=text) for text in TEXTS[:4]], **options)
    found = index.as_retriever(similarity_top_k=1, first_stage="letters", rrf_k=None).retrieve(TEXTS[1])
    assert found[0].node.get_content() == TEXTS[1]


def test_on_a_real_set_a_dense_model_finds_what_it_should(mini: JinaColbertEncoder, data_dir: Path) -> None:
    """The mean of the backbone's own states, with the pooling of sentence-transformers."""
    dataset = BeirDataset.read(data_dir / "cosqa-dev")
    chosen = list(dataset.queries)[:12]
    wanted = [one for query in chosen for one in dataset.qrels[query]]
    rest = [one for one in dataset.corpus if one not in set(wanted)][:150]
    stage = SentenceTransformerStage(backbone_model(mini), name="backbone")
    with ColbertCollection.create(":memory:", encoder=mini, dim=DIM, first_stage=stage) as collection:
        texts = {one: dataset.corpus[one].full_text for one in dict.fromkeys([*wanted, *rest])}
        collection.add(list(texts.values()), ids=list(texts))
        hits = collection.search_many([dataset.queries[one] for one in chosen], k=10, candidates=40)
        exact = collection.search_many([dataset.queries[one] for one in chosen], k=10, exact=True)
    shared = sum(len({h.id for h in a} & {h.id for h in b}) for a, b in zip(hits, exact, strict=True))
    assert shared >= 0.7 * 10 * len(chosen)
