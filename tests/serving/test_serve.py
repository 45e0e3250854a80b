"""``jcv2 serve`` over loopback: its answers are the encoder's own, whatever else it is asked, and refusals say why."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest
import starting
from full import FULL

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from serving_site import ServedSite, serving

from jcv2_plugin import JinaColbertEncoder, rerank
from jcv2_plugin.encoder import protocol
from jcv2_plugin.encoder.scored_tokens import scored_tokens
from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.serving.run import reserve
from jcv2_plugin.serving.settings import ServerSettings

pytestmark = pytest.mark.slow

LONG = " ".join(f"Paragraph {n} tells of harbour {n} and its ferries." for n in range(12))
TEXTS = ["Rice is cooked in twice its volume of water.", "The ferry sails at noon.", LONG, "Où est le port ?"]
SETTINGS = ServerSettings(max_texts=100, max_request_tokens=5000)


@pytest.fixture(scope="module")
def local() -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained("mini", device="cpu", document_length=40)


@pytest.fixture(scope="module")
def site() -> Iterator[ServedSite]:
    with serving(settings=SETTINGS) as running:
        yield running


def ask(site: ServedSite, path: str = "/v1/multi-vector", status: int = 200, **body: Any) -> dict[str, Any]:
    answer = site.client.post(path, json={"model": "mini", **body})
    assert answer.status_code == status, answer.text
    return answer.json()


def vectors_of(item: dict[str, Any], dim: int) -> np.ndarray:
    found = item["embeddings"]
    if isinstance(found, str):
        return np.frombuffer(base64.b64decode(found), dtype="<f2").reshape(-1, dim).astype(np.float32)
    return np.asarray(found, dtype=np.float32).reshape(-1, dim)


@pytest.mark.parametrize(("kind", "most"), [("float", 1e-6), ("base64", 1e-3)])
@pytest.mark.parametrize(
    "options",
    [
        {"input_type": "query"},
        {"input_type": "document", "dimensions": 64},
        {"dimensions": 32, "long_documents": "split", "document_length": 40},
        {"dimensions": 96, "long_documents": "split", "pool_factor": 2.0},
    ],
)
def test_vectors_are_the_encoders_own(
    site: ServedSite, local: JinaColbertEncoder, kind: str, most: float, options: dict[str, Any]
) -> None:
    dim = options.get("dimensions", 128)
    if options.get("input_type") == "query":
        own = local.query_vectors(TEXTS, dim)
    else:
        long_documents, factor = options.get("long_documents", "truncate"), options.get("pool_factor", 1.0)
        own = local.document_vectors(TEXTS, dim, long_documents, factor)
    answer = ask(site, input=TEXTS, embedding_type=kind, **options)
    assert [item["index"] for item in answer["data"]] == list(range(len(TEXTS)))
    for item, expected in zip(answer["data"], own, strict=True):
        found = vectors_of(item, dim)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= most
    assert answer["fingerprint"] == local.head_fingerprint(dim)
    assert answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("path", ["/v1/multi-vector", "/v1/tokenize"])
@pytest.mark.parametrize("task", ["query", "document"])
def test_tokens_are_the_encoders_own(site: ServedSite, local: JinaColbertEncoder, path: str, task: str) -> None:
    options = {"input_type": task, "long_documents": "split", "return_tokens": True}
    items = ask(site, path, input=TEXTS, **options)["data"]
    assert [item["ids"] for item in items] == local.tokenized(TEXTS).ids
    for text, item in zip(TEXTS, items, strict=True):
        own = scored_tokens(local, text, task, "split")
        assert [tuple(row) for row in item["tokens"]] == [(one.token, one.start, one.end) for one in own]
        assert len(item["tokens"]) == len(item.get("embeddings", own))


def test_the_model_is_described_as_the_protocol_says(site: ServedSite, local: JinaColbertEncoder) -> None:
    (entry,) = site.client.get("/v1/models").json()["data"]
    assert entry.keys() == protocol.ModelEntry.model_fields.keys()
    for name in ("query_length", "document_length", "content_length", "revision", "skiplist"):
        assert entry[name] == getattr(local, name)
    assert (entry["dims"], entry["default_dim"]) == (list(local.dims), local.dims[0])
    assert entry["fingerprints"] == {str(dim): local.head_fingerprint(dim) for dim in local.dims}
    assert set(entry["features"]) == set(get_args(protocol.Feature))


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_reranking_is_the_cores_own(site: ServedSite, local: JinaColbertEncoder, path: str) -> None:
    own = rerank(local, "when do ships leave?", TEXTS)
    documents = [{"text": text} if path == "/v1/rerank" and n % 2 else text for n, text in enumerate(TEXTS)]
    answer = ask(site, path, query="when do ships leave?", documents=documents)
    assert [row["index"] for row in answer["results"]] == [one.index for one in own]
    for row, one in zip(answer["results"], own, strict=True):
        assert row["relevance_score"] == pytest.approx(one.relevance, abs=1e-6)
        assert row.get("document") == ({"text": TEXTS[one.index]} if path == "/v1/rerank" else None)
    best = ask(site, path, query="when do ships leave?", documents=documents, top_n=1)
    assert best["results"] == answer["results"][:1]


def test_reranking_takes_what_published_clients_send(site: ServedSite) -> None:
    texts = ["Rice is cooked.", f"{'Nothing of interest here. ' * 8}The ferry sails at noon."]
    asked = {"query": "when does the ferry sail?", "documents": texts}
    usual = ask(site, "/v1/rerank", **asked)["results"]
    assert [row["index"] for row in usual] == [1, 0]
    for path, body in (
        ("/v2/rerank", {"top_n": 3, "max_tokens_per_doc": None}),  # langchain-cohere
        ("/v2/rerank", {"max_tokens_per_doc": 4096}),  # Haystack
        ("/v1/rerank", {"top_n": None, "max_chunks_per_doc": None, "rank_fields": None}),  # cohere.Client
        ("/v1/rerank", {"top_n": 2, "return_documents": False}),  # llama-index and LangChain for Jina
    ):
        rows = ask(site, path, **asked, **body)["results"]
        assert [(row["index"], row["relevance_score"]) for row in rows] == [
            (row["index"], row["relevance_score"]) for row in usual
        ]
    cut = ask(site, "/v2/rerank", **asked, max_tokens_per_doc=4)["results"]
    start = ask(site, "/v2/rerank", query=asked["query"], documents=["Rice is cooked.", "Nothing of interest here"])
    assert cut == start["results"]
    assert "max_chunks_per_doc" in ask(site, "/v1/rerank", 422, **asked, max_chunks_per_doc=3)["detail"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_documents_to_rank_are_counted_before_equal_ones_become_one(site: ServedSite, path: str) -> None:
    assert "101 texts, 100" in ask(site, path, 413, query="a", documents=["the same"] * 101)["detail"]
    assert len(ask(site, path, query="a", documents=["the same"] * 100)["results"]) == 100


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/multi-vector", {"input": "ab " * 6000}),
        ("/v1/tokenize", {"input": "ab " * 6000, "return_tokens": True}),
        ("/v1/rerank", {"query": "a", "documents": ["ab " * 3000, "cd " * 3000]}),
    ],
)
def test_what_is_too_long_is_refused_before_it_is_split(
    site: ServedSite, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    split: list[Any] = []
    monkeypatch.setattr(site.encoder, "split_documents", lambda *given: split.append(given))
    assert re.search(r"\d+ tokens, 5000", ask(site, path, 413, **body, long_documents="split")["detail"])
    assert not split


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("long_documents", ["split", "error"])
def test_blank_documents_come_last_as_in_the_core(
    site: ServedSite, local: JinaColbertEncoder, path: str, long_documents: str
) -> None:
    documents = ["", "A ferry left.", "\u200b", " \n"]
    own = rerank(local, "when do ships leave?", documents)
    answer = ask(site, path, query="when do ships leave?", documents=documents, long_documents=long_documents)
    found = [(row["index"], pytest.approx(row["relevance_score"], abs=1e-6)) for row in answer["results"]]
    assert found == [(one.index, one.relevance) for one in own] == [(1, own[0].relevance), (0, 0), (2, 0), (3, 0)]
    blank = ask(site, path, query="when do ships leave?", documents=["", "\u200b"], long_documents=long_documents)
    assert [(row["index"], row["relevance_score"]) for row in blank["results"]] == [(0, 0), (1, 0)]
    assert "the text is blank" in ask(site, path, 422, query="\u200b", documents=["a"])["detail"]
    assert (
        "Unicode"
        in site.client.post(
            path,
            content=b'{"model": "mini", "query": "a", "documents": ["\\ud800"]}',
            headers={"Content-Type": "application/json"},
        ).json()["detail"]
    )


async def test_no_answer_of_many_clients_is_lost_or_swapped(site: ServedSite, local: JinaColbertEncoder) -> None:
    clients, seconds = 64, 60.0 if FULL else 2.0
    texts = [f"Report {n}: " + " ".join(f"ferry {n + m} left" for m in range(n % 7)) for n in range(40)]
    own = {("query", dim): local.query_vectors(texts, dim) for dim in (128, 64)}
    own |= {("document", dim): local.document_vectors(texts, dim) for dim in (128, 64)}
    query = local.query_vectors(["which ferry left?"], 64)[0]
    scores = [float((query @ one.T).max(axis=1).mean()) for one in own["document", 64]]
    counters = ("jcv2_requests_total", "jcv2_batch_requests_sum", "jcv2_batch_seconds_count")
    before = [site.count(name) for name in counters]
    ends = time.monotonic() + seconds
    waits: list[float] = []

    async def be_a_client(number: int, client: httpx.AsyncClient) -> int:
        chance = random.Random(number)
        answered = 0
        while time.monotonic() < ends:
            chosen = chance.sample(range(len(texts)), chance.randint(1, 6))
            began = time.monotonic()
            if chance.random() < 0.2:
                body = {"query": "which ferry left?", "documents": [texts[n] for n in chosen], "dimensions": 64}
                answer = await client.post("/v1/rerank", json={**body, "return_documents": True})
                assert answer.status_code == 200, answer.text
                rows = answer.json()["results"]
                assert sorted(row["index"] for row in rows) == list(range(len(chosen)))
                for row in rows:
                    assert row["document"]["text"] == texts[chosen[row["index"]]]
                    assert row["relevance_score"] == pytest.approx(scores[chosen[row["index"]]], abs=1e-5)
            else:
                task, dim = chance.choice(["query", "document"]), chance.choice([128, 64])
                kind, most = chance.choice([("float", 1e-6), ("base64", 1e-3)])
                body = {"model": "mini", "input": [texts[n] for n in chosen], "input_type": task}
                answer = await client.post("/v1/multi-vector", json={**body, "dimensions": dim, "embedding_type": kind})
                assert answer.status_code == 200, answer.text
                for n, item in zip(chosen, answer.json()["data"], strict=True):
                    expected, found = own[task, dim][n], vectors_of(item, dim)
                    assert found.shape == expected.shape
                    assert np.abs(found - expected).max() <= most
            waits.append(time.monotonic() - began)
            answered += 1
        return answered

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=site.url, timeout=60, limits=limits) as client:
        answered = await asyncio.gather(*(be_a_client(number, client) for number in range(clients)))
    assert min(answered) > 0
    requests, parts, batches = (site.count(name) - old for name, old in zip(counters, before, strict=True))
    assert requests >= sum(answered)
    together = parts / batches
    assert together > 2  # requests are encoded together
    p50, p99 = np.percentile(waits, [50, 99])
    print(f"{sum(answered)} answers to {clients} clients in {seconds:.0f} s, {together:.1f} requests a batch, ", end="")
    print(f"p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms")


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"input": []}, 422, "invalid_request", "input: .*at least 1"),
        ({"input": ["a", " \n"]}, 422, "invalid_request", r"input\[1\]: the text is blank"),
        ({"input": ["a", "\x90\u200b"]}, 422, "invalid_request", r"input\[1\]: the text is blank"),
        ({"input": ["a", "\u200b\ufeff"]}, 422, "invalid_request", r"input\[1\]: the text is blank"),
        ({"input": ["a", 7]}, 422, "invalid_request", r"input\[1\]: .*string"),
        ({"input": ["a", "\ud800"]}, 422, "invalid_request", r"input\[1\]: .*Unicode"),
        ({"input": "a", "model": "bert"}, 404, "unknown_model", "'bert'.*'mini'"),
        ({"input": "a", "dimensions": 7}, 422, "unknown_dimension", r"dimensions=7.*128"),
        ({"input": "a", "dimension": 64}, 422, "invalid_request", "dimension: "),
        ({"input": "a", "input_type": "passage"}, 422, "invalid_request", "input_type: .*'query' or 'document'"),
        ({"input": "a", "document_length": 300}, 422, "other_length", "document_length=40, not 300"),
        ({"input": ["a", LONG], "long_documents": "error"}, 422, "document_too_long", "Document 1 .*'split'"),
        ({"input": ["a"] * 101}, 413, "too_large", "101 texts, 100"),
        ({"input": ["ab " * 6000], "long_documents": "split"}, 413, "too_large", "tokens, 5000"),
        ({"input": ["x" * 10_000_000]}, 413, "too_large", "4,194,304 bytes"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_bad_requests_are_refused_with_the_way_out(
    site: ServedSite, body: dict[str, Any], status: int, code: str, words: str
) -> None:
    content = json.dumps({"model": "mini", **body}).encode()
    answer = site.client.post("/v1/multi-vector", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert error.keys() <= protocol.ErrorAnswer.model_fields.keys()
    assert error["code"] == code
    assert re.search(words, error["detail"], re.DOTALL), error
    if "a" in body["input"][:1] and len(body["input"]) == 2:
        assert error["index"] == 1
    assert site.client.get("/health").json() == {"status": "ok", "model": "mini"}


def test_what_is_no_json_or_no_path_is_refused_in_json(site: ServedSite) -> None:
    answers = [
        site.client.post("/v1/multi-vector", content=b'{"model": ', headers={"Content-Type": "application/json"}),
        site.client.post("/v1/multi-vector", content=b'{"model": "mini", "input": "a"}'),
        site.client.post("/v1/multi-vector", json=["a"]),
        site.client.get("/v1/multi-vector"),
        site.client.post("/v1/embeddings", json={}),
        site.client.post("/v1/rerank", json={"query": "a", "documents": ["b", {"title": "c"}]}),
    ]
    assert [one.status_code for one in answers] == [400, 422, 422, 405, 404, 422]
    assert all(one.json()["detail"] for one in answers)
    assert "Content-Type" in answers[1].json()["detail"]
    assert answers[3].headers["allow"] == "POST"
    assert "/v1/multi-vector" in answers[4].json()["detail"]


def test_a_body_of_unknown_length_is_limited_too(site: ServedSite) -> None:
    pieces = (b" " * 2**16 for _ in range(100))
    answer = site.client.post("/v1/multi-vector", content=pieces, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_keys_are_asked_for() -> None:
    with serving(settings=ServerSettings(keys=("first-key", "second-key"))) as site:
        assert ask(site, input="a")["data"]
        assert site.client.get("/metrics").status_code == 200
        second = {"Authorization": "bearer second-key"}
        assert site.client.get("/v1/models", headers=second).status_code == 200
        for wrong in ("", "Bearer", "Bearer first-ke", "Basic first-key", "Bearer first-key2", "Bearer ÿ"):
            for path in ("/v1/models", "/metrics", "/v1/nothing"):
                headers = [(b"Authorization", wrong.encode("latin-1"))]
                answer = httpx.get(site.url + path, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
            refused = httpx.post(f"{site.url}/v1/multi-vector", json={"model": "mini", "input": "x" * 10**6})
            assert refused.status_code == 401
            assert "-key" not in refused.text
        for path in ("/health", "/docs", "/openapi.json"):
            assert httpx.get(site.url + path).status_code == 200
    assert "first-key" not in repr(ServerSettings(keys=("first-key",)))
    for keys in (("",), ("two words",), ("schlüssel",)):
        with pytest.raises(InvalidOptionError, match="printable ASCII"):
            ServerSettings(keys=keys)


@pytest.mark.parametrize("value", ["3", True, 0, float("nan"), None])
def test_limits_are_numbers(value: Any) -> None:
    for name in ("max_waiting", "max_body", "max_texts", "max_request_tokens", "body_seconds"):
        with pytest.raises(InvalidOptionError, match=f"{name} must be"):
            ServerSettings(**{name: value})
    if value is not None:
        with pytest.raises(InvalidOptionError, match="max_batch_tokens must be a positive integer"):
            ServerSettings(max_batch_tokens=value)
    ServerSettings(max_texts=np.int64(3), body_seconds=np.float32(0.5))


def wait_for(site: ServedSite, waiting: int) -> None:
    ends = time.monotonic() + 30
    while site.count("jcv2_requests_waiting") != waiting:
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_full_queue_says_when_to_come_again() -> None:
    with serving(settings=ServerSettings(max_waiting=2, body_seconds=0.5)) as site, ThreadPoolExecutor(2) as pool:
        ask(site, input=TEXTS)
        with site.encoder.tokenizer_lock:  # which encoding needs
            running = [pool.submit(ask, site, input=text) for text in TEXTS[:2]]
            wait_for(site, 2)
            answer = site.client.post("/v1/multi-vector", json={"model": "mini", "input": "a"})
            assert (answer.status_code, answer.json()["code"]) == (429, "busy")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert site.client.get("/health").status_code == 200
        assert all(one.result()["data"] for one in running)
        assert ask(site, input="a")["data"]
        wait_for(site, 0)

        # A client that gives up is forgotten: what it asked for is not encoded.
        before = site.count("jcv2_texts_total")
        with site.encoder.tokenizer_lock:
            with pytest.raises(httpx.ReadTimeout):
                site.client.post("/v1/multi-vector", json={"model": "mini", "input": ["a", "b"]}, timeout=0.2)
            wait_for(site, 0)
        assert ask(site, input="a")["data"]
        assert site.count("jcv2_texts_total") == before + 1

        # One that never sends its request does not keep a place.
        host, port = site.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as slow:
            slow.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            slow.sendall(b"Content-Length: 100\r\n\r\n{")
            assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
        wait_for(site, 0)


def test_a_request_that_fails_concerns_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as site, ThreadPoolExecutor(8) as pool:
        encode = type(site.encoder).encode_document

        def fail_at_one(self: JinaColbertEncoder, inputs: Any, *arguments: Any, **options: Any) -> Any:
            if self is site.encoder and "the one" in inputs:
                raise MemoryError("out of memory")
            return encode(self, inputs, *arguments, **options)

        monkeypatch.setattr(type(site.encoder), "encode_document", fail_at_one)
        with site.encoder.tokenizer_lock:  # so that all of them are encoded together
            others = [pool.submit(ask, site, input=f"text {n}") for n in range(5)]
            failed = pool.submit(ask, site, status=500, input="the one")
            wait_for(site, 6)
        assert "MemoryError" in failed.result()["detail"]
        assert all(len(one.result()["data"]) == 1 for one in others)


def test_spans_of_requests_and_batches_belong_to_the_callers_trace() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    with serving(tracer_provider=provider) as site:
        headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
        site.client.post("/v1/multi-vector", json={"model": "mini", "input": ["a", "b"]}, headers=headers)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    asked, encoded = spans["POST /v1/multi-vector"], spans["encode document"]
    assert f"{asked.context.trace_id:032x}" == trace_id
    assert asked.attributes["http.response.status_code"] == 200
    assert [link.context.span_id for link in encoded.links] == [asked.context.span_id]
    assert encoded.attributes["jcv2.texts"] == 2


def test_schemathesis_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it keeps what it finds in the current folder
    pytest.importorskip("schemathesis", minversion="4.12")  # earlier ones refuse other answers, and 4.12 needs pytest 9
    from click.testing import CliRunner
    from schemathesis.cli import schemathesis

    with serving(settings=ServerSettings(keys=("some-key",), max_texts=8, max_request_tokens=5000)) as site:
        options = ["--max-examples", "150" if FULL else "5", "--no-color", "--seed", "1"]
        options += ["--phases", "examples,coverage,fuzzing", "--header", "Authorization: Bearer some-key"]
        # Its own list of statuses that refuse a request lacks 413, which is for too many texts.
        refusals = '[400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429, "5xx"]'
        (tmp_path / "schemathesis.toml").write_text(
            f"[checks]\nnegative_data_rejection.expected-statuses = {refusals}\n"
        )
        done = CliRunner().invoke(schemathesis, ["run", f"{site.url}/openapi.json", *options])
        assert done.exit_code == 0, done.output
        print(done.output[-1500:])
        assert site.client.get("/health").status_code == 200


def test_sigterm_finishes_what_runs(tmp_path: Path) -> None:
    options = ("--model", "mini", "--port", 0, "--dims", 64, "--max-batch-tokens", 512)
    process = starting.start(starting.COMMAND, "serve", *options, cwd=tmp_path)
    try:
        said = [process.stderr.readline()]
        while "Serving mini" not in said[-1]:
            assert said[-1], said
            said.append(process.stderr.readline())
        assert any("There is no key" in line for line in said)
        url = said[-1].split()[-1]
        texts = [f"Report {n} tells of harbour {n}. " * 20 for n in range(40)]
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, timeout=120) as client:
            running = pool.submit(client.post, "/v1/multi-vector", json={"model": "mini", "input": texts})
            while 'jcv2_texts_total{type="document"}' not in httpx.get(f"{url}/metrics").text:
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            answer = running.result()
            assert process.wait(60) == 0
            assert answer.status_code == 200
            assert len(answer.json()["data"]) == len(texts)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{url}/health")
    finally:
        process.kill()
        process.communicate()


def test_an_address_that_is_taken_is_named() -> None:
    with reserve("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        with pytest.raises(InvalidOptionError, match=f"127.0.0.1:{port} cannot be listened on: .*--port"):
            reserve("127.0.0.1", port)
    with pytest.raises(InvalidOptionError, match=r"no address 'no\.such\.host\.invalid'"):
        reserve("no.such.host.invalid", 0)


def test_the_encoders_thread_ends_with_the_server() -> None:
    before = set(threading.enumerate())
    with serving() as site:
        assert ask(site, input="a")["data"]
        own = {thread.name.rpartition("_")[0] or thread.name for thread in set(threading.enumerate()) - before}
        assert {"jcv2-serve-encoder", "jcv2-serve-request"} <= own
    until = time.monotonic() + 30  # AnyIO's own threads are told to end, and not waited for
    while not set(threading.enumerate()) <= before and time.monotonic() < until:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before
