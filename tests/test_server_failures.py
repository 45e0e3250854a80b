"""Keys, timeouts, wrong addresses, and requests that fail for a while or for good."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from collection_samples import contents, documents, encoded, expected_contents, store
from loopback_qdrant import Fault, LoopbackQdrant, Recorded
from qdrant_client import QdrantClient, models
from server_site import LOOPBACKS, Site, open_site

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder, places
from jcv2_plugin.documents import point_id
from jcv2_plugin.engines import transport
from jcv2_plugin.engines.base import Matrix
from jcv2_plugin.errors import (
    CollectionAccessError,
    CollectionError,
    CollectionExistsError,
    CollectionNotFoundError,
    InvalidOptionError,
    ServerBusyError,
)

ITEMS = documents(24)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection"),
]


@pytest.fixture(autouse=True)
def _no_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that would have been, none of which takes time."""
    taken: list[float] = []
    monkeypatch.setattr(transport, "_sleep", taken.append)
    return taken


@pytest.fixture(scope="module")
def vectors(mini: JinaColbertEncoder) -> list[Matrix]:
    return encoded(mini, ITEMS)


@pytest.fixture
def filled(loopback: Site, mini: JinaColbertEncoder, vectors: list[Matrix]) -> ColbertCollection:
    collection: ColbertCollection = loopback.create(mini)
    store(collection, ITEMS, vectors)
    return collection


def let_fail(site: Site, monkeypatch: pytest.MonkeyPatch, choose: Callable[[Recorded], Fault | None]) -> None:
    """Let a function choose which requests fail."""
    original = site.loopback.next_fault

    def next_fault(request: Recorded) -> Fault | None:
        original(request)
        return choose(request)

    monkeypatch.setattr(site.loopback, "next_fault", next_fault)


def lose_every_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Carry out each request twice, since its first answer is lost; but for the question that is asked first."""
    lost: list[str] = []
    waiting: set[str] = set()

    def choose(request: Recorded) -> Fault | None:
        sent = f"{request.method} {request.path} {request.size}"
        if sent in waiting:
            waiting.remove(sent)
            return None
        if request.path.endswith(("/exists", "/CollectionExists")):
            return None
        waiting.add(sent)
        lost.append(sent)
        return Fault(1, "", drop=True, carried_out=True)

    let_fail(site, monkeypatch, choose)
    return lost


class TestKeys:
    @pytest.fixture(params=LOOPBACKS)
    def guarded(self, request: pytest.FixtureRequest) -> Iterator[Site]:
        with open_site(request.param, api_key="right-key", read_only_api_key="look-key") as site:
            yield site

    def test_the_right_one(self, guarded: Site, mini: JinaColbertEncoder) -> None:
        collection = guarded.create(mini)
        collection.add(ITEMS[:3])
        assert guarded.open().count() == 3

    @pytest.mark.parametrize(("key", "reason"), [(None, "Must provide an API key"), ("bad-key", "Invalid API key")])
    def test_none_and_a_wrong_one(
        self, guarded: Site, mini: JinaColbertEncoder, waits: list[float], key: str | None, reason: str
    ) -> None:
        for act in (lambda **given: guarded.create(mini, **given), lambda **given: guarded.open(**given)):
            with pytest.raises(CollectionAccessError, match=rf"{reason}.*'api_key'.*QDRANT_API_KEY") as caught:
                act(client_options={"api_key": key})
            assert "bad-key" not in str(caught.value)
            assert guarded.url in str(caught.value)
        assert waits == []

    def test_one_of_the_environment(
        self, guarded: Site, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        guarded.create(mini).add(ITEMS[:3])
        options = {key: value for key, value in guarded.client_options.items() if key != "api_key"}
        monkeypatch.setenv("QDRANT_API_KEY", "right-key")
        with ColbertCollection.open(guarded.url, name=guarded.name, client_options=options) as collection:
            assert collection.count() == 3
        with pytest.raises(CollectionAccessError):  # one that is given comes first
            guarded.open(client_options={"api_key": "bad-key"})
        monkeypatch.setenv("QDRANT_API_KEY", "")
        with pytest.raises(CollectionAccessError, match="Must provide"):
            ColbertCollection.open(guarded.url, name=guarded.name, client_options=options)

    def test_one_that_only_reads(self, guarded: Site, mini: JinaColbertEncoder, vectors: list[Matrix]) -> None:
        store(guarded.create(mini, first_stage="bm25"), ITEMS, vectors)
        collection = guarded.open(encoder=mini, client_options={"api_key": "look-key"})
        assert collection.search(ITEMS[7].text, k=1)[0].id == "d7"
        assert collection.search(ITEMS[7].text, k=1, exact=False)[0].id == "d7"
        assert contents(collection) == expected_contents(ITEMS)
        assert collection.add(ITEMS[:2]) == ["d0", "d1"], "nothing has changed, so nothing is written"
        for act in (
            lambda: collection.add(["new"]),
            lambda: collection.delete(["d1"]),
            lambda: collection.migrate(storage="turbo8"),
            lambda: collection.create_payload_index("metadata.n", "integer"),
            lambda: guarded.create(mini, overwrite=True, client_options={"api_key": "look-key"}),
        ):
            with pytest.raises(CollectionAccessError, match="Global manage access is required"):
                act()
        assert collection.count() == len(ITEMS)

    def test_one_that_may_not_list_names(
        self, loopback: Site, filled: ColbertCollection, mini: JinaColbertEncoder, waits: list[float]
    ) -> None:
        """As one for a single collection: the server then finds what the name stands for."""
        path = "/aliases" if loopback.kind == "rest" else "ListAliases"
        loopback.loopback.fail(1000, 403, path_contains=path, reason="Forbidden: Global access is required")
        collection = loopback.open(encoder=mini)
        assert collection.search(ITEMS[7].text, k=1)[0].id == "d7"
        collection.add(["One more."], ids=["new"])
        assert filled.get(["new"])[0].text == "One more."
        with pytest.raises(CollectionNotFoundError, match=r"There is no collection 'x'\. Create it first"):
            loopback.open(name="x")
        assert waits == []


class TestAddresses:
    @pytest.mark.parametrize("prefer_grpc", [False, True])
    def test_nobody_there_is_said_at_once(
        self, mini: JinaColbertEncoder, waits: list[float], prefer_grpc: bool
    ) -> None:
        options = {"check_compatibility": False, "prefer_grpc": prefer_grpc, "grpc_port": 9}
        url = "http://user:hunter2@127.0.0.1:9"
        for act in (
            lambda: ColbertCollection.open(url, client_options=options),
            lambda: ColbertCollection.create(url, encoder=mini, client_options=options),
        ):
            started = time.perf_counter()
            with pytest.raises(CollectionError, match=r"Qdrant at http://127.0.0.1:9 is out of reach") as caught:
                act()
            assert time.perf_counter() - started < 3
            assert "hunter2" not in str(caught.value)
            assert "Check that it runs" in str(caught.value)
        assert waits == [], "it is not tried again"

    @pytest.mark.parametrize(
        "url",
        ["ftp://host:6333", "grpc://user:hunter2@host:6334", "http://", "http://host:port", "http://u:hunter2@h:0", ""],
    )
    def test_what_is_no_address(self, mini: JinaColbertEncoder, url: str) -> None:
        for act in (
            lambda: ColbertCollection.open(url=url),
            lambda: ColbertCollection.create(url=url, encoder="no such model"),
        ):
            with pytest.raises(InvalidOptionError, match="is no address of a Qdrant server") as caught:
                act()
            assert "hunter2" not in str(caught.value)

    def test_a_host_and_port_are_no_folder(self, mini: JinaColbertEncoder) -> None:
        for location in ("localhost:6333", "10.0.0.7:6333", "qdrant.example.org:443"):
            with pytest.raises(InvalidOptionError, match=f"write it as 'http://{location}'"):
                ColbertCollection.create(location, encoder=mini)

    def test_a_url_may_lack_a_scheme(self, loopback: Site, filled: ColbertCollection) -> None:
        address = loopback.url.removeprefix("http://")
        with ColbertCollection.open(url=address, name=loopback.name, client_options=loopback.client_options) as again:
            assert again.count() == len(ITEMS)

    def test_an_option_that_is_none(self, loopback: Site) -> None:
        for options, reason in (({"api_ky": "s3cret"}, "api_ky"), ({"prefix": "x", "timeout": "soon"}, "")):
            with pytest.raises(InvalidOptionError, match=rf"client_options \[.*\]: .*{reason}") as caught:
                ColbertCollection.open("http://user:hunter2@host:6333/path", client_options=options)
            assert "keyword arguments of QdrantClient" in str(caught.value)
            assert "hunter2" not in str(caught.value)
            assert "s3cret" not in str(caught.value)
            assert caught.value.__suppress_context__

    def test_https_where_http_is_spoken(self, waits: list[float]) -> None:
        with LoopbackQdrant() as server:
            url = server.url.replace("http://", "https://")
            with pytest.raises(CollectionError, match=rf"{url} is out of reach .*http or https"):
                ColbertCollection.open(url, client_options={"check_compatibility": False})
        assert waits == []

    def test_another_service(self, waits: list[float]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "5")
                self.end_headers()
                self.wfile.write(b"hello")

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        with HTTPServer(("127.0.0.1", 0), Handler) as other:
            threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
            url = f"http://127.0.0.1:{other.server_port}"
            with pytest.raises(CollectionError, match=f"What answers at {url} is no Qdrant server"):
                ColbertCollection.open(url, client_options={"check_compatibility": False})
            other.shutdown()
        assert waits == []

    def test_an_address_of_ip_version_6_keeps_its_brackets(self) -> None:
        with pytest.raises(CollectionError, match=r"Qdrant at http://\[::1\]:9 is out of reach"):
            ColbertCollection.open("http://[::1]:9", client_options={"check_compatibility": False})

    def test_no_client_stays_open_where_opening_fails(
        self, loopback: Site, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loopback.create(mini)
        made: list[QdrantClient] = []

        class Noted(QdrantClient):
            def __init__(self, **options: Any) -> None:
                super().__init__(**options)
                made.append(self)

        monkeypatch.setattr(places, "QdrantClient", Noted)
        for act in (lambda: loopback.open(name="x"), lambda: loopback.open(dim=64), lambda: loopback.create(mini)):
            with pytest.raises(CollectionError):
                act()
            assert made.pop()._client.closed
        assert not loopback.open()._engine.client._client.closed


class TestTime:
    def test_an_answer_that_takes_too_long(
        self, loopback: Site, filled: ColbertCollection, mini: JinaColbertEncoder
    ) -> None:
        collection = loopback.open(encoder=mini, retries=1, client_options={"timeout": 1})
        loopback.loopback.delay(1.5, times=1)
        started = time.perf_counter()
        with pytest.raises(CollectionError, match=r"did not answer in time.*client_options=\{'timeout': seconds\}"):
            collection.count()
        assert 0.9 < time.perf_counter() - started < 1.5
        loopback.loopback.heal()
        assert collection.count() == len(ITEMS)

    def test_more_time_helps(self, loopback: Site, filled: ColbertCollection) -> None:
        collection = loopback.open(retries=1, client_options={"timeout": 20})
        loopback.loopback.delay(1.2, times=1)
        assert collection.count() == len(ITEMS)

    def test_it_is_tried_again(
        self, loopback: Site, filled: ColbertCollection, mini: JinaColbertEncoder, waits: list[float]
    ) -> None:
        collection = loopback.open(encoder=mini, client_options={"timeout": 1})
        loopback.loopback.delay(1.3, times=1)
        assert collection.search(ITEMS[7].text, k=1)[0].id == "d7"
        assert len(waits) == 1


class TestPassingFailures:
    @pytest.mark.parametrize("failure", [{"status": 503}, {"status": 502}, {"status": 500}, {"drop": True}])
    def test_everything_is_tried_again(
        self,
        loopback: Site,
        filled: ColbertCollection,
        mini: JinaColbertEncoder,
        waits: list[float],
        failure: dict[str, Any],
    ) -> None:
        acts: list[Callable[[], Any]] = [
            lambda: filled.add(["Another text."], ids=["new"]),
            lambda: filled.count(),
            lambda: filled.search(ITEMS[7].text, k=1)[0].id,
            lambda: filled.get(["new"])[0].text,
            lambda: len(list(filled.ids())),
            lambda: filled.delete(["new"]),
            lambda: filled.create_payload_index("metadata.n", "integer"),
            lambda: filled.migrate(first_stage="pooled").documents,
        ]
        expected = [["new"], 25, "d7", "Another text.", 25, None, None, 24]
        for act, result in zip(acts, expected, strict=True):
            waits.clear()
            loopback.loopback.fail(times=2, **failure)
            assert act() == result
            assert len(waits) == 2
        assert loopback.open(encoder=mini).verify(sample=3).problems == []

    def test_an_answer_of_the_first_contact_may_pass_too(
        self, loopback: Site, filled: ColbertCollection, mini: JinaColbertEncoder, waits: list[float]
    ) -> None:
        for act in (loopback.open, lambda: loopback.create(mini, overwrite=True)):
            waits.clear()
            loopback.loopback.fail(times=2, status=503)
            act()
            assert len(waits) == 2
        loopback.loopback.fail(times=1, drop=True)
        with pytest.raises(CollectionError, match="is out of reach"):
            loopback.open()
        assert len(waits) == 2

    def test_lost_answers_lose_and_double_nothing(
        self, loopback: Site, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch, waits: list[float]
    ) -> None:
        lost = lose_every_answer(loopback, monkeypatch)
        indexes = {"metadata.group": "keyword"}
        collection = loopback.create(mini, payload_indexes=indexes)
        collection.add(ITEMS[:4])
        collection.add([Document("Replaced.", "d1")])
        collection.ingest(ITEMS[4:12], batch_documents=3)
        collection.delete(["d0"])
        collection.delete(filter=models.Filter(must=[models.HasIdCondition(has_id=[point_id("d2")])]))
        expected = expected_contents([Document("Replaced.", "d1"), *ITEMS[3:12]])
        assert contents(collection) == expected
        report = collection.migrate(first_stage="pooled")
        assert (report.documents, report.copied) == (10, 10)
        assert contents(loopback.open(encoder=mini)) == expected
        assert loopback.names() == [f"{loopback.name}.2"]
        assert loopback.create(mini, overwrite=True).count() == 0
        assert loopback.names() == [f"{loopback.name}.3"]
        assert len(lost) > 20

    def test_lost_answers_in_the_making_of_shards(
        self, loopback: Site, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch, waits: list[float]
    ) -> None:
        lose_every_answer(loopback, monkeypatch)
        custom = {"sharding_method": "custom"}
        collection = loopback.create(mini, shard_key="north", collection_options=custom)
        collection.add(ITEMS[:4])
        assert loopback.open(shard_key="north").count() == 4

    def test_a_collection_of_another_is_not_taken_for_a_lost_answer(
        self, loopback: Site, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch, waits: list[float]
    ) -> None:
        """Somebody creates a collection of the same name at the same moment."""
        raced: list[str] = []

        def choose(request: Recorded) -> Fault | None:
            is_create = request.path.endswith(("/Create", f"/{loopback.name}.1")) and request.method in ("PUT", "GRPC")
            if is_create and not raced:
                raced.append(request.path)
                loopback.create(mini, dim=64).add(ITEMS[:1])
            return None

        let_fail(loopback, monkeypatch, choose)
        with pytest.raises(CollectionExistsError):
            loopback.create(mini)
        assert loopback.open().count() == 1


class TestLastingFailures:
    def test_an_ingestion_leaves_what_was_stored_before(
        self, loopback: Site, mini: JinaColbertEncoder, waits: list[float]
    ) -> None:
        collection = loopback.create(mini, retries=3)

        def progress(number: int) -> None:
            path = "/points" if loopback.kind == "rest" else "Points/Upsert"
            loopback.loopback.fail(99, 503, path_contains=path)

        with pytest.raises(ServerBusyError, match=r"temporarily unavailable.*retries=..."):
            collection.ingest(ITEMS, batch_documents=4, progress=progress)
        assert len(waits) in (2, 4), "of the batch that failed, and of one that was ready to be stored"
        loopback.loopback.heal()
        stored = contents(collection)
        assert 0 < len(stored) < len(ITEMS)
        assert stored == expected_contents(ITEMS[: len(stored)])
        report = collection.ingest(ITEMS, batch_documents=4)
        assert (report.written, report.unchanged) == (len(ITEMS) - len(stored), len(stored))
        assert contents(collection) == expected_contents(ITEMS)

    def test_retries_of_one_is_one_attempt(self, loopback: Site, filled: ColbertCollection, waits: list[float]) -> None:
        collection = loopback.open(retries=1)
        loopback.loopback.fail(status=503)
        with pytest.raises(ServerBusyError):
            collection.count()
        assert waits == []
        for retries in (0, -1, True, 2.5):
            with pytest.raises(InvalidOptionError, match="must be a positive integer"):
                loopback.open(retries=retries)

    @pytest.mark.parametrize("cleanup", ["works", "fails too"])
    def test_a_creation_that_fails_leaves_nothing_and_says_why(
        self,
        loopback: Site,
        mini: JinaColbertEncoder,
        vectors: list[Matrix],
        monkeypatch: pytest.MonkeyPatch,
        waits: list[float],
        cleanup: str,
    ) -> None:
        store(loopback.create(mini), ITEMS, vectors)

        def choose(request: Recorded) -> Fault | None:
            if request.path.endswith(("/index", "/CreateFieldIndex")):
                return Fault(1, "", status=507, reason="Insufficient storage: the disk is full")
            if cleanup == "fails too" and (request.method == "DELETE" or request.path.endswith("/Delete")):
                return Fault(1, "", drop=True)
            return None

        let_fail(loopback, monkeypatch, choose)
        with pytest.raises(CollectionError, match="the disk is full"):
            loopback.create(mini, overwrite=True, payload_indexes={"metadata.n": "integer"})
        monkeypatch.undo()
        assert loopback.open().count() == len(ITEMS)
        left = [f"{loopback.name}.2"] if cleanup == "fails too" else []
        assert loopback.names() == [f"{loopback.name}.1", *left]
        loopback.create(mini, overwrite=True)
        assert loopback.names() == [f"{loopback.name}.2"]
