"""``RemoteEncoder`` against a server over loopback: as good as the local encoder, and safe from bad servers."""

from __future__ import annotations

import copy
import gzip
import json
import logging
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_samples import DIM, QUERIES, documents
from encoder_server import EncoderServer, answering, break_off, changed, hang, rows_are

from jcv2_plugin import ColbertCollection, JinaColbertEncoder, RemoteEncoder, rerank
from jcv2_plugin.encoder import remote_client
from jcv2_plugin.encoder.named import load_encoder
from jcv2_plugin.errors import (
    CollectionMismatchError,
    DocumentTooLongError,
    EncoderAccessError,
    EncoderAnswerError,
    EncoderBusyError,
    EncoderServerError,
    InvalidDocumentError,
    InvalidOptionError,
    ModelNotFoundError,
    TokensUnknownError,
    UnknownDimError,
)

TEXTS = [one.text for one in documents(70)]
LONG = " ".join(TEXTS)
KEY = "s3cret-key"


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []

    async def note(seconds: float) -> None:
        taken.append(seconds)

    monkeypatch.setattr(remote_client, "_sleep", note)
    for name in ("JCV2_API_KEY", "JCV2_ENCODER_URL"):
        monkeypatch.delenv(name, raising=False)
    return taken


@pytest.fixture
def site(mini: JinaColbertEncoder) -> Iterator[EncoderServer]:
    with EncoderServer(mini) as opened:
        yield opened


@pytest.fixture
def plain(mini: JinaColbertEncoder) -> Iterator[EncoderServer]:
    with EncoderServer(mini, plain=True) as opened:
        yield opened


def of(site: EncoderServer, **options: Any) -> RemoteEncoder:
    return RemoteEncoder(site.url, **{"model": site.model, "dim": DIM, **options})


def assert_close(found: Any, expected: Any, most: float) -> None:
    assert [one.shape for one in found] == [one.shape for one in expected]
    assert max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)) <= most


@pytest.mark.parametrize(("kind", "most"), [("float", 1e-6), ("base64", 1e-3)])
async def test_vectors_are_those_of_the_local_encoder(
    site: EncoderServer, mini: JinaColbertEncoder, kind: Any, most: float
) -> None:
    remote = of(site, embedding_type=kind, batch_texts=16)
    assert_close(remote.query_vectors(QUERIES, DIM), mini.query_vectors(QUERIES, DIM), most)
    assert_close(await remote.aquery_vectors(QUERIES, DIM), mini.query_vectors(QUERIES, DIM), most)
    assert_close(remote.document_vectors(TEXTS, DIM), mini.document_vectors(TEXTS, DIM), most)
    assert [len(texts) for texts in site.encodings()[2:]] != [70]  # in parts
    assert_close(await remote.adocument_vectors(TEXTS[:3], DIM), mini.document_vectors(TEXTS[:3], DIM), most)
    for options in (("split", 1.0), ("truncate", 2.0)):
        assert_close(remote.document_vectors([LONG], DIM, *options), mini.document_vectors([LONG], DIM, *options), most)


def test_it_says_of_the_model_what_the_local_encoder_says(site: EncoderServer, mini: JinaColbertEncoder) -> None:
    remote = RemoteEncoder(site.url)
    for name in ("dims", "document_length", "content_length", "query_length", "skiplist", "revision", "gives_tokens"):
        assert getattr(remote, name) == getattr(mini, name), name
    assert remote.head_fingerprint(DIM) == mini.head_fingerprint(DIM)
    assert remote.tokenized(TEXTS).ids == mini.tokenized(TEXTS).ids
    for task in ("query", "document"):
        assert remote.scored_tokens(TEXTS[0], task) == mini.scored_tokens(TEXTS[0], task)
    assert (remote.name, remote.reference) == ("mini", f"{site.url}#mini")
    assert load_encoder(remote.reference).reference == remote.reference
    with pytest.raises(DocumentTooLongError, match="Document 1 has"):
        remote.check_lengths(["Short.", LONG])
    counted = remote.token_counter()(LONG)
    assert 0.5 < counted / mini.token_counter()(LONG) < 2
    assert rerank(remote, QUERIES[0], TEXTS, dim=DIM)[0].index == rerank(mini, QUERIES[0], TEXTS, dim=DIM)[0].index


@pytest.mark.parametrize("first_stage", [None, "bm25", "pooled", "none"])
async def test_a_collection_is_the_same_with_either(
    site: EncoderServer, mini: JinaColbertEncoder, tmp_path: Path, first_stage: Any
) -> None:
    items = documents(40)
    with (
        ColbertCollection.create(":memory:", encoder=mini, dim=DIM, first_stage=first_stage) as local,
        ColbertCollection.create(tmp_path / "c", encoder=f"{site.url}", dim=DIM, first_stage=first_stage) as made,
    ):
        local.add(items)
        made.add(items)
        assert made.schema.model == f"{site.url}#mini"
        for found, expected in (
            (made.search(QUERIES[0], 5, exact=first_stage == "none"), local.search(QUERIES[0], 5)),
            (await made.asearch(QUERIES[1], 5), await local.asearch(QUERIES[1], 5)),
            (await made.asearch_mmr(QUERIES[2], 3), local.search_mmr(QUERIES[2], 3)),
        ):
            assert [hit.id for hit in found] == [hit.id for hit in expected]
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=0.02)
        assert made.search(QUERIES[0], 1, with_explanation=True)[0].explanation.score == pytest.approx(
            local.search(QUERIES[0], 1, with_explanation=True)[0].explanation.score, abs=0.02
        )
        assert made.verify().ok
        with pytest.raises(InvalidOptionError, match="Leave out workers"):
            made.ingest(["Another."], workers=1)
    # It is opened again by its own description, and by the local encoder of the same weights.
    for encoder in (None, mini, site.url):
        with ColbertCollection.open(tmp_path / "c", encoder=encoder) as again:
            assert again.search(QUERIES[0], 1)[0].id == found_id(local_best := QUERIES[0], mini, items), local_best
    if first_stage is None:
        queries = [body for _, _, body in site.requests if body and body.get("input_type") == "query"]
        assert all(body["return_tokens"] for body in queries)  # so that BM25 needs no second request
        tokenized = [body["input"] for path, _, body in site.requests if path == "/v1/tokenize"]
        assert [QUERIES[1]] not in tokenized


def found_id(query: str, mini: JinaColbertEncoder, items: list[Any]) -> str:
    return str(items[rerank(mini, query, [one.text for one in items], dim=DIM)[0].index].id)


def test_a_plain_server_serves_what_needs_no_tokens(plain: EncoderServer, mini: JinaColbertEncoder) -> None:
    remote = of(plain, document_length=120, parallel=1)
    assert (remote.dims, remote.gives_tokens) == ((DIM,), False)
    with ColbertCollection.create(":memory:", encoder=remote) as collection:
        assert (collection.schema.first_stage, collection.schema.skiplist) == ("pooled", None)
        collection.add([*TEXTS[:20], LONG], ids=[str(n) for n in range(21)])
        assert collection.search(QUERIES[0], 1)
        with pytest.raises(TokensUnknownError, match="first_stage='pooled' or 'none'"):
            collection.search(QUERIES[0], 1, with_explanation=True)
    sent = [text for texts in plain.encodings() for text in texts]
    assert max(map(len, sent)) <= 120
    assert "".join(text for text in sent if text not in {*TEXTS[:20], *QUERIES}) == LONG
    (rows,) = remote.document_vectors([LONG], DIM, "split")
    assert len(rows) > 10 * len(remote.document_vectors([LONG], DIM, "truncate")[0]) > 0
    with pytest.raises(DocumentTooLongError, match="120"):
        remote.document_vectors([LONG], DIM, "error")
    for first_stage in ("bm25", "hybrid"):
        with pytest.raises(InvalidOptionError, match="'pooled' or 'none'"):
            ColbertCollection.create(":memory:", encoder=remote, first_stage=first_stage)
    with pytest.raises(InvalidOptionError, match="no token pooling"):
        remote.document_vectors(["A text."], DIM, "truncate", 2.0)
    assert {name for _, _, body in plain.requests if body for name in body} == {
        "model", "input", "input_type", "dimensions", "embedding_type"
    }  # fmt: skip


def inflating() -> bytes:
    """A few hundred bytes, which are 200 MB after they were inflated twice."""
    once = b"".join(gzip.compress(bytes(2**20)) for _ in range(200))
    return gzip.compress(once)


BAD_ANSWER = EncoderAnswerError
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "one too few": (changed(lambda one: {**one, "data": one["data"][1:]}), BAD_ANSWER, "1 items for 2"),
    "an index twice": (
        changed(lambda one: {**one, "data": [{**item, "index": 0} for item in one["data"]]}),
        BAD_ANSWER,
        "indices",
    ),
    "another dimension": (rows_are(lambda rows: rows[:, :-1].tolist()), BAD_ANSWER, "dim=31"),
    "NaN": (rows_are(lambda rows: (rows * np.nan).tolist()), BAD_ANSWER, "finite"),
    "not normalised": (rows_are(lambda rows: (rows * 3).tolist()), BAD_ANSWER, "length 1"),
    "words": (rows_are(lambda rows: [["a"] * DIM]), BAD_ANSWER, "numbers"),
    "base64 unasked": (rows_are(lambda rows: "AAAA"), BAD_ANSWER, "no list"),
    "no vectors": (rows_are(lambda rows: []), InvalidDocumentError, "no token is left"),
    "no data": (answering(200, {"model": "mini"}), BAD_ANSWER, "no list 'data'"),
    "a list": (answering(200, [1, 2]), BAD_ANSWER, "no list 'data'"),
    "other weights": (changed(lambda one: {**one, "fingerprint": "0" * 16}), BAD_ANSWER, "other weights"),
    "HTML": (answering(200, b"<html>Log in</html>"), BAD_ANSWER, "a page of HTML"),
    "wrong JSON": (answering(200, b'{"data": ['), BAD_ANSWER, "instead of JSON"),
    "too much": (answering(200, b" " * 2**23), BAD_ANSWER, "larger than"),
    "inflates": (
        answering(200, inflating(), Content_Encoding="gzip, gzip"),
        BAD_ANSWER,
        r"compressed \('gzip, gzip'\), which was not asked for",
    ),
    "a redirect to no address": (answering(302, b"", Location="http://[no"), BAD_ANSWER, "it redirects to what is no"),
    "a redirect": (answering(307, b"", Location="https://evil.example/v1"), BAD_ANSWER, "https://evil.example"),
    "hangs": (hang, EncoderServerError, "longer timeout"),
    "breaks off": (break_off, EncoderServerError, "cannot be reached, or broke off"),
    "busy": (answering(429, {"detail": "full"}, Retry_After="7"), EncoderBusyError, "in 7 seconds"),
    "broken": (answering(500, b"<h1>no</h1>"), EncoderBusyError, "status 500"),
    "no key": (answering(401, {"detail": f"not {KEY}"}), EncoderAccessError, "api_key="),
    "not there": (answering(404, b"none"), BAD_ANSWER, "Check the address"),
    "no such dimension": (answering(422, {"code": "unknown_dimension", "detail": "64"}), UnknownDimError, "64"),
    "no such model": (answering(404, {"code": "unknown_model", "detail": "maxi"}), ModelNotFoundError, "maxi"),
    "refused": (answering(422, {"detail": [{"msg": "bad"}]}), EncoderServerError, "bad"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_a_named_error_and_nothing_is_written(
    site: EncoderServer, name: str, no_waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    misbehave, kind, match = BAD[name]
    remote = of(site, embedding_type="float", timeout=0.4 if name == "hangs" else 20, retries=3, api_key=KEY)
    with ColbertCollection.create(":memory:", encoder=remote, first_stage="pooled") as collection:
        site.misbehave = misbehave
        with caplog.at_level(logging.DEBUG), pytest.raises(kind, match=match) as raised:
            collection.add(["A first text.", "A second text."])
        assert collection.count() == 0
        assert "evil.example" not in str([path for path, _, _ in site.requests])
        said = f"{caplog.text}{raised.value!r}{raised.value.__cause__!r}{remote!r}"
        assert KEY not in said
        tries = 3 if kind is EncoderBusyError or name in ("hangs", "breaks off") else 1
        assert len(site.encodings()) == tries
        assert len(no_waits) == tries - 1
        assert all(wait >= 7 for wait in no_waits) or name != "busy"
        site.misbehave = lambda handler, answer: False  # the same objects go on
        collection.add(["A first text."])
        assert collection.search("first", 1)


def test_a_passing_failure_is_tried_again_and_large_requests_are_halved(
    site: EncoderServer, mini: JinaColbertEncoder, no_waits: list[float]
) -> None:
    failures = iter([503, 429, 500])

    def misbehave(handler: Any, answer: Any) -> bool:
        if (status := next(failures, None)) is not None:
            handler.refuse(status, "busy", "later")
        elif len(answer["data"]) > 5:
            handler.refuse(413, "too_large", "too many texts")
        else:
            return False
        return True

    site.misbehave = misbehave
    assert_close(of(site, parallel=1).document_vectors(TEXTS[:17], DIM), mini.document_vectors(TEXTS[:17], DIM), 1e-3)
    assert len(no_waits) == 3


def test_a_server_that_dies_in_an_ingestion_is_resumed(
    site: EncoderServer, tmp_path: Path, mini: JinaColbertEncoder
) -> None:
    items = [one.text for one in documents(60)]  # without ids: the journal knows them
    journal = tmp_path / "journal"
    with ColbertCollection.create(tmp_path / "c", encoder=of(site, retries=2, batch_texts=10)) as collection:
        served = 0

        def die_later(handler: Any, answer: Any) -> bool:
            nonlocal served
            served += 1
            return break_off(handler, answer) if served > 3 else False

        site.misbehave = die_later
        with pytest.raises(EncoderServerError, match="repeat the call"):
            collection.ingest(items, batch_documents=10, journal=journal)
        stored = collection.count()
        assert stored == 30
        assert journal.exists()
        site.misbehave = lambda handler, answer: False
        before = len(site.encodings())
        report = collection.ingest(items, batch_documents=10, journal=journal)
        assert (report.written, report.unchanged) == (30, 30)
        assert sum(map(len, site.encodings()[before:])) == 30
        assert sorted(one.text for one in collection.scroll()) == sorted(items)
        assert collection.verify().ok


def test_another_encoder_is_compared_by_its_vectors(
    plain: EncoderServer, site: EncoderServer, mini: JinaColbertEncoder, tmp_path: Path
) -> None:
    site.tells_weights = False
    with ColbertCollection.create(tmp_path / "c", encoder=of(plain)) as collection:
        collection.add(TEXTS[:10])
    for same in (mini, of(site), site.url, of(plain)):
        with ColbertCollection.open(tmp_path / "c", encoder=same) as collection:
            assert collection.search(QUERIES[0], 1)

    def turned(answer: Any) -> Any:  # another model: the same lengths, other directions
        for item in answer["data"]:
            item["embeddings"] = np.roll(np.array(item["embeddings"]), 1, axis=1).tolist()
        return answer

    site.misbehave = changed(turned)
    with pytest.raises(CollectionMismatchError, match=r"The server differs.*another version") as raised:
        ColbertCollection.open(tmp_path / "c", encoder=of(site, embedding_type="float"))
    assert plain.url in str(raised.value)
    assert site.url in str(raised.value)
    site.model = "maxi"
    with pytest.raises(CollectionMismatchError, match="The model differs: this encoder is 'maxi'"):
        ColbertCollection.open(tmp_path / "c", encoder=of(site, embedding_type="float"))
    ColbertCollection.create(tmp_path / "empty", encoder=of(plain)).close()
    ColbertCollection.open(tmp_path / "empty", encoder=mini).close()
    with pytest.raises(CollectionMismatchError, match="it is empty"):
        ColbertCollection.open(tmp_path / "empty", encoder=of(site))


def test_keys_stay_where_they_belong(mini: JinaColbertEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(opened: EncoderServer) -> set[str | None]:
        return {headers.get("Authorization") for _, headers, _ in opened.requests}

    with EncoderServer(mini, key=KEY) as opened:
        with pytest.raises(EncoderAccessError, match=r"needs an API key.*JCV2_API_KEY"):
            load_encoder(opened.url).resolve_dim(None)
        with pytest.raises(EncoderAccessError, match="refused the API key") as raised:
            RemoteEncoder(opened.url, api_key="wr0ng").resolve_dim(None)
        assert "wr0ng" not in str(raised.value)
        monkeypatch.setenv("JCV2_API_KEY", KEY)
        encoder = load_encoder(opened.url, dims=DIM)
        with ColbertCollection.create(tmp_path / "c", encoder=encoder) as collection:
            collection.add(TEXTS[:3])
            for kept in (repr(collection), repr(encoder), str(vars(encoder)), repr(pickle.dumps(encoder))):
                assert KEY not in kept
        for file in (tmp_path / "c").rglob("*"):
            assert not file.is_file() or KEY.encode() not in file.read_bytes()
        assert pickle.loads(pickle.dumps(encoder)).query_vectors(["x"], DIM)  # with the key of its environment
        assert copy.deepcopy(encoder) is encoder
        # A collection may come from somebody else: its server gets the key only if it is ours.
        opened.requests.clear()
        with (
            ColbertCollection.open(tmp_path / "c") as collection,
            pytest.raises(EncoderAccessError, match=f"needs an API key.*set JCV2_ENCODER_URL={opened.url} if"),
        ):
            collection.search(QUERIES[0], 1)
        assert sent(opened) == {None}
        monkeypatch.setenv("JCV2_ENCODER_URL", opened.url)
        with ColbertCollection.open(tmp_path / "c") as collection:
            assert collection.search(QUERIES[0], 1)
        with EncoderServer(mini) as other:
            load_encoder(other.url).resolve_dim(None)
            assert sent(other) == {None}
    with pytest.warns(UserWarning, match="unencrypted"):
        RemoteEncoder("http://encoder.example", api_key=KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RemoteEncoder("http://localhost:1", api_key=KEY)
        RemoteEncoder("https://encoder.example", api_key=KEY)
        RemoteEncoder("http://encoder.example", api_key="")


def test_wrong_options_are_refused_before_anything_is_sent() -> None:
    for url in ("https://", "ftp://host", "https://user:pa55@host", "https://host/?q=1", "https://ho st", "host:80"):
        with pytest.raises(InvalidOptionError) as raised:
            RemoteEncoder(url)
        assert "pa55" not in str(raised.value)
    options: Any
    for options in (
        {"dim": 0}, {"timeout": 0}, {"timeout": float("nan")}, {"parallel": 0}, {"batch_texts": True},
        {"embedding_type": "ubinary"}, {"api_key": "a\nb"}, {"model": "other"}, {"timeout": "3"}, {"timeout": True},
    ):  # fmt: skip
        with pytest.raises(InvalidOptionError):
            RemoteEncoder("https://host#model", **options)
    with pytest.raises(InvalidOptionError, match="decides about device itself"):
        load_encoder("https://host", device="cuda")
    with pytest.raises(EncoderServerError, match="cannot be reached"):
        RemoteEncoder("http://127.0.0.1:9", timeout=5).resolve_dim(None)
    with pytest.raises(ModelNotFoundError, match="jina-colbert-v2"):
        load_encoder("jina-api:jina-embeddings-v4").resolve_dim(None)


def test_a_server_says_which_models_it_has(site: EncoderServer) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model 'maxi'. It has \['mini'\]"):
        RemoteEncoder(site.url, model="maxi").resolve_dim(None)
    with pytest.raises(UnknownDimError, match="dim=33"):
        RemoteEncoder(site.url, dim=33).resolve_dim(None)
    encoder = load_encoder(site.url, dims=np.int64(64))
    assert [type(dim) for dim in (encoder.resolve_dim(None), encoder.resolve_dim(np.int64(32)))] == [int, int]  # type: ignore[arg-type]
    wrong: list[Any] = [64.0, "64", True, (64, 32)]
    for dim in wrong:
        with pytest.raises(UnknownDimError, match="dim"):
            encoder.resolve_dim(dim)
    for given in ("one text", None):
        with pytest.raises(InvalidDocumentError, match="Give a list of texts"):
            encoder.query_vectors(given, 64)  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="document_length"):
        RemoteEncoder(site.url, document_length=7).resolve_dim(None)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"id": "\ud800"}, "the id .*unicode"),
        ({"id": "x" * 10**5}, "the id .*at most 1000"),
        ({"dims": [DIM] * 10**5}, "the dims"),
        ({"features": "all"}, "the features"),
    ],
)
def test_a_model_s_description_cannot_be_anything(
    site: EncoderServer, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], match: str
) -> None:
    listed = site.listed()
    monkeypatch.setattr(site, "listed", lambda: {"data": [{**listed["data"][0], **change}]})
    with pytest.raises(EncoderAnswerError, match=match) as raised:
        RemoteEncoder(site.url).document_vectors(["A text."], DIM)
    assert len(str(raised.value)) < 600


def test_jina_s_api_is_asked_as_its_callers_ask(mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    from jcv2_plugin.encoder import remote

    monkeypatch.setenv("JINA_API_KEY", KEY)
    facts = remote.ModelEntry(id="jina-colbert-v2", dims=[DIM, 64])
    with EncoderServer(mini, plain=True, model="jina-colbert-v2", key=KEY) as opened:
        monkeypatch.setattr(remote, "JINA_URL", opened.url)
        monkeypatch.setattr(remote, "_JINA_MODELS", {"jina-colbert-v2": facts})
        encoder = load_encoder("jina-api:jina-colbert-v2", dims=DIM)
        assert encoder.reference == "jina-api:jina-colbert-v2"
        assert_close(encoder.query_vectors(QUERIES, DIM), mini.query_vectors(QUERIES, DIM), 1e-6)
        (request,) = opened.requests
        assert request[2] == {
            "model": "jina-colbert-v2", "input": list(QUERIES), "input_type": "query", "dimensions": DIM,
            "embedding_type": "float",
        }  # fmt: skip


@pytest.mark.skipif(not os.environ.get("JINA_API_KEY"), reason="needs JINA_API_KEY and the network")
def test_jina_s_api_itself() -> None:
    encoder = load_encoder("jina-api:jina-colbert-v2", dims=64)
    with ColbertCollection.create(":memory:", encoder=encoder) as collection:
        collection.add(["Tokens meet tokens.", "Cooking rice."], ids=["a", "b"])
        assert collection.search("late interaction of tokens", 1)[0].id == "a"


SEARCHING = """
import json, sys, time
start, used = time.perf_counter(), time.process_time()
from jcv2_plugin import ColbertCollection, RemoteEncoder
with ColbertCollection.open(sys.argv[1], encoder=RemoteEncoder(sys.argv[2])) as collection:
    hits = collection.search("who sells bread at the market?", 3)
own = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
print(json.dumps({
    "seconds": time.perf_counter() - start, "cpu": time.process_time() - used, "hits": len(hits),
    "mib": int(own.split()[1]) / 1024,
    "heavy": sorted({"torch", "transformers", "sentence_transformers", "qdrant_client", "grpc"} & set(sys.modules)),
}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_a_process_with_remote_encoders_only_is_light(site: EncoderServer, tmp_path: Path) -> None:
    with ColbertCollection.create(tmp_path / "c", encoder=of(site)) as collection:
        collection.add(TEXTS[:20])
    command = [sys.executable, "-c", SEARCHING, str(tmp_path / "c"), site.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["hits"], report["heavy"]) == (3, [])
    assert report["mib"] < 150  # without mapped files: libraries, and those of Edge, which the system may drop
    print(report)
    assert report["cpu"] < 3  # a busy machine doubles it


COMMAND = """
import sys
from jcv2_plugin.cli import main
try:
    main()
except SystemExit as ended:
    print(ended.code or 0, sorted({"torch", "transformers"} & set(sys.modules)))
"""


def test_a_command_with_a_remote_encoder_imports_no_model_code(site: EncoderServer, tmp_path: Path) -> None:
    with ColbertCollection.create(tmp_path / "c", encoder=of(site)) as collection:
        collection.add(TEXTS[:20])
    command = [sys.executable, "-c", COMMAND, "search", "who sells bread?", "-c", str(tmp_path / "c"), "-k", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
