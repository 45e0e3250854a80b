"""A user's program that uses every public name of the four packages. It is read by mypy and never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from langchain_core.documents import BaseDocumentCompressor
from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from langchain_core.vectorstores import VectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever as LlamaIndexRetriever
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.schema import Document as LlamaIndexDocument
from llama_index.core.vector_stores.types import BasePydanticVectorStore, MetadataFilter, MetadataFilters
from qdrant_client import QdrantClient, models

import jcv2_plugin
import langchain_jcv2
import llama_index_jcv2
from jcv2_plugin import (
    ColbertCollection,
    CollectionSchema,
    DenseParams,
    Document,
    Encoder,
    Explanation,
    FirstStage,
    ImportReport,
    IndexBatch,
    IngestReport,
    JinaColbertEncoder,
    MatryoshkaHeads,
    RemoteEncoder,
    RerankResult,
    SearchHit,
    SearchOptions,
    SentenceTransformerStage,
    SparseEncoderStage,
    SparseParams,
    SparseVector,
    StoredDocument,
    TokenMatch,
    explain,
    import_qdrant,
    quantize,
    rerank,
)
from jcv2_plugin.errors import CollectionNotFoundError, Jcv2Error
from jcv2_trainer import CheckReport, DataError, Finding, check_file, read_jsonl, sample_texts

ROOM = models.Filter(must=[models.FieldCondition(key="metadata.room", match=models.MatchValue(value="hall"))])
VERSION: str = jcv2_plugin.__version__


def encoding() -> tuple[JinaColbertEncoder, MatryoshkaHeads | None]:
    encoder: JinaColbertEncoder = JinaColbertEncoder.from_pretrained("mini", dims=64, device="cpu")
    dims: tuple[int, ...] = encoder.dims
    vectors = encoder.encode_document(["a"], dim=dims[0]), encoder.encode_query("a", dim=dims)
    assert vectors
    encoder.save_pretrained("folder")
    encoder.export(Path("export"), dim=64)
    heads = MatryoshkaHeads(384, (128, 64))
    encoder.set_heads(heads)
    return encoder, encoder.heads


def elsewhere() -> Encoder:
    remote = RemoteEncoder("https://encoder.example.com:8080", model="mini", dim=64, api_key="a key")
    encoders: list[Encoder] = [remote, JinaColbertEncoder.from_pretrained("mini")]
    with ColbertCollection.create(":memory:", encoder=remote) as collection:
        return encoders[0] if collection.dim == 64 else collection.encoder


def collecting(encoder: JinaColbertEncoder, client: QdrantClient) -> IngestReport:
    with ColbertCollection.create("house", encoder=encoder, dim=64, storage="turbo4", pool_factor=1.5) as collection:
        ids: list[str] = collection.add(["a", Document("b", "b", {"room": "hall"})], ids=["a", None])
        collection.delete(ids)
        collection.delete(filter=ROOM)
        collection.create_payload_index("metadata.room", "keyword")
        schema: CollectionSchema = collection.schema
        assert (schema.dim, collection.dim) == (64, 64)
        assert collection.migrate(dim=128, progress=print).documents == collection.count(ROOM)
        assert collection.verify().ok
        collection.snapshot(Path("house.snapshot"))
    ColbertCollection.restore("house.snapshot", client=client, name="copy", overwrite=True).close()
    try:
        copy = ColbertCollection.open(client=client, name="copy", retries=2)
    except (CollectionNotFoundError, Jcv2Error) as error:
        raise SystemExit(str(error)) from error
    report: IngestReport = copy.ingest((Document(str(n)) for n in range(3)), progress=print, workers=2)
    assert report.written + report.unchanged == 3
    return report


def on_a_cluster() -> dict[str, list[int]]:
    worker = IndexBatch("http://qdrant:6333", name="house")
    return worker({"id": ["a"], "text": ["a b"], "metadata": [{"room": "hall"}]})


def finding(collection: ColbertCollection) -> Iterator[str]:
    hits: list[SearchHit] = collection.search("a", k=3, filter=ROOM, first_stage="bm25", with_explanation=True)
    options: SearchOptions = {"candidates": 100, "exact": False}
    many: list[list[SearchHit]] = collection.search_many(["a", "b"], **options)
    diverse: list[SearchHit] = collection.search_mmr("a", k=2, fetch_k=9, lambda_mult=0.3)
    for hit in [*hits, *many[0], *diverse]:
        scores: tuple[float, float] = hit.score, hit.relevance
        room: Any = hit.metadata.get("room")
        yield f"{hit.id} {hit.text} {scores} {room}"
    stored: list[StoredDocument] = collection.get(["a"])
    again: list[Document] = [one.as_document() for one in [*stored, *collection.scroll(ROOM)]]
    yield from (one.text for one in again)
    yield from collection.ids(ROOM)


class Lengths:
    """A first stage of the user's own, which follows the protocol by its parts."""

    name = "lengths"
    params = SparseParams(idf=True)

    def encode_documents(self, texts: Sequence[str]) -> list[SparseVector]:
        return [SparseVector([len(text)], [1.0]) for text in texts]

    encode_queries = encode_documents


def first_stages(encoder: JinaColbertEncoder) -> list[SearchHit]:
    own: FirstStage = Lengths()
    dense: FirstStage = SentenceTransformerStage("a/model", truncate_dim=64)
    stages = ["bm25", own, dense, SparseEncoderStage("a/sparse-model", name="sparse")]
    assert dense.params == DenseParams(64, "cosine")
    ColbertCollection.create("house", encoder=encoder, first_stage=own).close()
    with ColbertCollection.create("house", encoder=encoder, first_stage=["bm25", own, dense]) as collection:
        collection.migrate(first_stage=Lengths())
        assert stages
        return collection.search("a", rrf_k=60, rrf_weights={"bm25": 0.5})


async def finding_without_blocking(collection: ColbertCollection) -> AsyncIterator[str]:
    await collection.aadd(["a"], ids=["a"])
    await collection.aingest(["b"], progress=print)
    hits: list[SearchHit] = await collection.asearch("a", k=3)
    for found in await collection.asearch_many(["a"], k=3):
        hits += found
    count: int = await collection.acount()
    for one in await collection.aget(["a"]):
        yield f"{one.text} {count}"
    async for stored in collection.ascroll():
        yield stored.id
    await collection.adelete(["a"])


def explaining(collection: ColbertCollection, encoder: JinaColbertEncoder) -> str:
    explanation: Explanation = collection.explain("a", "id")
    other: Explanation = explain(encoder, "a", "b", dim=64)
    matches: list[TokenMatch] = explanation.matches + other.matches
    pairs: list[tuple[str, str, float]] = [(one.query.token, one.document.token, one.similarity) for one in matches]
    spans: list[tuple[int, int]] = explanation.matched_spans(least=0.5)
    assert pairs or spans
    eight_bits: JinaColbertEncoder = quantize(encoder, ["a", "b"], samples=10)
    assert eight_bits
    ranked: list[RerankResult] = rerank(encoder, "a", ["b", "c"], dim=64, with_explanation=True)
    best: tuple[int, float, float] = ranked[0].index, ranked[0].score, ranked[0].relevance
    assert best
    return explanation.to_html()


def taking_over(client: QdrantClient, collection: ColbertCollection) -> ImportReport:
    report: ImportReport = import_qdrant(
        client, "dense", collection, lambda point, payload: Document(payload["text"], point), filter=ROOM
    )
    assert report.read == report.written + report.unchanged + report.skipped
    return report


def in_langchain(client: QdrantClient, documents: list[LangChainDocument]) -> list[LangChainDocument]:
    store = langchain_jcv2.JinaColbertVectorStore.from_documents(documents, encoder="mini", dim=64)
    as_store: VectorStore = langchain_jcv2.import_qdrant(client, "dense", location="folder", encoder="mini")
    retriever = langchain_jcv2.JinaColbertRetriever.from_vectorstore(store, k=3, filter={"room": "hall"})
    as_retriever: LangChainRetriever = langchain_jcv2.JinaColbertRetriever.from_collection("folder", add_score=True)
    reranker: BaseDocumentCompressor = langchain_jcv2.JinaColbertReranker(encoder="mini", dim=64, top_n=3)
    found: list[LangChainDocument] = retriever.invoke("a") + as_retriever.invoke("a")
    found += as_store.similarity_search("a", k=3)
    return list(reranker.compress_documents(found, "a"))


def in_llama_index(client: QdrantClient, documents: list[LlamaIndexDocument]) -> list[NodeWithScore]:
    index = llama_index_jcv2.JinaColbertIndex.from_documents(documents, encoder="mini", dim=64, location="folder")
    as_index: VectorStoreIndex = llama_index_jcv2.import_qdrant(client, "dense", target=index.collection)
    store: BasePydanticVectorStore = llama_index_jcv2.JinaColbertVectorStore(index.collection)
    pipeline = IngestionPipeline(transformations=[llama_index_jcv2.EncodedByStore()], vector_store=store)
    stored: list[BaseNode] = list(pipeline.run(documents=documents))
    hall = MetadataFilters(filters=[MetadataFilter(key="room", value="hall")])
    retriever = index.as_retriever(similarity_top_k=3, filters=hall, with_explanation=True)
    own: llama_index_jcv2.JinaColbertRetriever = retriever.with_options(candidates=50)
    as_retriever: LlamaIndexRetriever = llama_index_jcv2.JinaColbertRetriever.from_collection("folder")
    found: list[NodeWithScore] = own.retrieve("a") + as_retriever.retrieve("a") + as_index.as_retriever().retrieve("a")
    for one in found:
        if isinstance(one, llama_index_jcv2.ScoredNode):
            relevance: float | None = one.relevance
            explanation: Explanation | None = one.explanation
            assert relevance or explanation or stored
    rerank_nodes: BaseNodePostprocessor = llama_index_jcv2.JinaColbertRerank(top_n=3, model="mini", dim=64)
    return rerank_nodes.postprocess_nodes(found, query_str="a")


def training_data(file: Path) -> list[str]:
    report: CheckReport = check_file(file)
    findings: list[Finding] = list(report.findings)
    lines: list[str] = [f"{one.line} {one.field} {one.severity} {one.remedy}" for one in findings]
    try:
        rows: list[tuple[int, dict[str, Any]]] = list(read_jsonl(file))
    except DataError:
        rows = []
    queries, positives = sample_texts(file, 100, seed=13, lang="en")
    return [*lines, *queries, *positives, *(str(number) for number, _ in rows)]
