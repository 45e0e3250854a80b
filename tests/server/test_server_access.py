"""Keys and addresses of a Qdrant server: right ones, wrong ones, and ones that may not do everything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from collection_samples import contents, documents, expected_contents, store
from loopback_samples import remote
from qdrant_client import QdrantClient
from server_site import LOOPBACKS, REST, Site, open_site

from jcv2_plugin import ColbertCollection, JinaColbertEncoder
from jcv2_plugin.engines.base import Matrix
from jcv2_plugin.errors import (
    CollectionAccessError,
    CollectionError,
    CollectionNotFoundError,
    InvalidOptionError,
)

ITEMS = documents(24)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection"),
]


@pytest.fixture(autouse=True)
def _no_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


class TestKeys:
    @pytest.fixture(params=LOOPBACKS)
    def guarded(self, request: pytest.FixtureRequest) -> Iterator[Site]:
        with open_site(request.param, api_key="right-key", read_only_api_key="look-key") as site:
            yield site

    @pytest.mark.parametrize(("key", "reason"), [(None, "Must provide an API key"), ("bad-key", "Invalid API key")])
    def test_none_and_a_wrong_one(
        self, guarded: Site, mini: JinaColbertEncoder, waits: list[float], key: str | None, reason: str
    ) -> None:
        for act in (lambda **given: guarded.create(mini, **given), lambda **given: guarded.open(**given)):
            with pytest.raises(CollectionAccessError, match=rf"{reason}.*Give an API key.*QDRANT_API_KEY") as caught:
                act(client_options={"api_key": key})
            assert "bad-key" not in str(caught.value)
            assert guarded.url in str(caught.value)
        assert waits == []

    @pytest.mark.parametrize("guarded", ["rest"], indirect=True)
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

    @REST
    def test_one_that_may_not_list_names(
        self, loopback: Site, stored: ColbertCollection, mini: JinaColbertEncoder, waits: list[float]
    ) -> None:
        """As one for a single collection: the server then finds what the name stands for."""
        loopback.loopback.fail(1000, 403, path_contains="/aliases", reason="Forbidden: Global access is required")
        collection = loopback.open(encoder=mini)
        assert collection.search(ITEMS[7].text, k=1)[0].id == "d7"
        collection.add(["One more."], ids=["new"])
        assert stored.get(["new"])[0].text == "One more."
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
            with pytest.raises(CollectionError, match=r"Qdrant at http://127.0.0.1:9 cannot be reached") as caught:
                act()
            assert time.perf_counter() - started < 3
            assert "hunter2" not in str(caught.value)
            assert "Check that it is running" in str(caught.value)
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
            with pytest.raises(InvalidOptionError, match="of a Qdrant server") as caught:
                act()
            assert "hunter2" not in str(caught.value)

    def test_a_host_and_port_are_no_folder(self, mini: JinaColbertEncoder) -> None:
        for location in ("localhost:6333", "10.0.0.7:6333", "qdrant.example.org:443"):
            with pytest.raises(InvalidOptionError, match=f"write it as 'http://{location}'"):
                ColbertCollection.create(location, encoder=mini)

    @REST
    def test_a_url_may_lack_a_scheme(self, loopback: Site, stored: ColbertCollection) -> None:
        address = loopback.url.removeprefix("http://")
        with ColbertCollection.open(url=address, name=loopback.name, client_options=loopback.client_options) as again:
            assert again.count() == len(ITEMS)

    def test_an_option_that_is_none(self) -> None:
        for options, reason in (({"api_ky": "s3cret"}, "api_ky"), ({"prefix": "x", "timeout": "soon"}, "")):
            with pytest.raises(InvalidOptionError, match=rf"client_options \[.*\]: .*{reason}") as caught:
                ColbertCollection.open("http://user:hunter2@host:6333/path", client_options=options)
            assert "keyword arguments of QdrantClient" in str(caught.value)
            assert "hunter2" not in str(caught.value)
            assert "s3cret" not in str(caught.value)
            assert caught.value.__suppress_context__

    def test_an_address_of_ip_version_6_keeps_its_brackets(self) -> None:
        with pytest.raises(CollectionError, match=r"Qdrant at http://\[::1\]:9 cannot be reached"):
            ColbertCollection.open("http://[::1]:9", client_options={"check_compatibility": False})

    @REST
    def test_no_client_stays_open_where_opening_fails(
        self, loopback: Site, mini: JinaColbertEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loopback.create(mini)
        made: list[QdrantClient] = []

        class Noted(QdrantClient):
            def __init__(self, **options: Any) -> None:
                super().__init__(**options)
                made.append(self)

        monkeypatch.setattr("jcv2_plugin.engines.deadlines.QdrantClient", Noted)
        for act in (lambda: loopback.open(name="x"), lambda: loopback.open(dim=64), lambda: loopback.create(mini)):
            with pytest.raises(CollectionError):
                act()
            assert remote(made.pop()).closed
        loopback.open()
        assert not remote(made.pop()).closed
