"""The command against a server."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import MINI, error, run, run_both, run_json, write_rows
from loopback_grpc import LoopbackGrpc
from loopback_qdrant import LoopbackQdrant
from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection
from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.errors import (
    CollectionAccessError,
    CollectionError,
    CollectionExistsError,
    CollectionMismatchError,
    CollectionNotFoundError,
    CollectionUnfinishedError,
    InvalidOptionError,
)


@pytest.fixture
def url(folder: Path, server: LoopbackQdrant) -> str:
    """A server with 30 rows in ``documents``."""
    write_rows(folder / "rows.jsonl", range(30))
    run("index", "rows.jsonl", "-c", server.url, *MINI, "--payload-index", "source=keyword")
    return server.url


@pytest.fixture
def client(server: LoopbackQdrant) -> Iterator[QdrantClient]:
    opened = QdrantClient(url=server.url, check_compatibility=False)
    yield opened
    opened.close()


class TestConnection:
    def test_what_the_options_say_to_the_client(self) -> None:
        said = Connection("http://host:6333", "name", "key", 7, True, 2)
        assert said.client_options == {"api_key": "key", "timeout": 7, "prefer_grpc": True}
        assert said.arguments == {"name": "name", "client_options": said.client_options, "retries": 2}
        assert Connection("folder").arguments == {"name": "documents", "client_options": {}}

    def test_a_url_may_hold_a_secret(self) -> None:
        assert Connection("https://me:secret@host:6333/x").title == "the collection 'documents' at https://host:6333"

    def test_a_secret_is_not_told_in_an_error(self, url: str) -> None:
        with pytest.raises(InvalidOptionError, match="not the URL of a Qdrant server") as caught:
            run("info", "-c", "http://me:secret@host:port")
        assert "secret" not in str(caught.value)
        assert "host:port" in str(caught.value)
        with pytest.raises(CollectionMismatchError, match="was created with --dim") as mismatch:
            run("index", "docs", "-c", url.replace("://", "://me:secret@"), "--dim", "64")
        assert "secret" not in str(mismatch.value)
        assert url in str(mismatch.value)

    @pytest.mark.parametrize("url", ["foo://bar", "http://", "http://[::1", "http://host:port", "://"])
    def test_a_url_that_is_none(self, url: str) -> None:
        with pytest.raises(InvalidOptionError, match=r"not the URL of a Qdrant server.*, or give a folder"):
            run("info", "-c", url)

    def test_a_key(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with LoopbackQdrant(api_key="right") as server:
            commands: list[tuple[str, ...]] = [("info", "-c", server.url), ("collections", "list", "-c", server.url)]
            for command in commands:
                with pytest.raises(CollectionAccessError):
                    run(*command)
                with pytest.raises(CollectionAccessError):
                    run(*command, "--api-key", "wrong")
            assert run_json("collections", "list", "-c", server.url, "--api-key", "right") == []
            monkeypatch.setenv("QDRANT_API_KEY", "right")
            assert run_json("collections", "list", "-c", server.url) == []
            said = error("collections", "list", "-c", server.url, "--api-key", "wrong")
            assert "Give an API key with the permission to do this (to write, write access to this collection)" in said

    def test_a_server_that_is_slow(self, url: str, folder: Path, server: LoopbackQdrant) -> None:
        server.delay(1.5, times=2)
        for command in (("index", "docs", "-c", url, "--retries", "1"), ("collections", "list", "-c", url)):
            with pytest.raises(CollectionError, match=r"did not answer in time .* Set a longer timeout"):
                run(*command, "--timeout", "1")

    def test_a_key_that_travels_in_the_open(self, folder: Path) -> None:
        said = error("collections", "list", "-c", "http://nowhere.invalid:6333", "--api-key", "secret")
        first, second = said.splitlines()
        assert first.startswith("warning: the API key is sent to nowhere.invalid unencrypted.")
        assert second.startswith("error: Qdrant at http://nowhere.invalid:6333 cannot be reached")
        assert "secret" not in said

    def test_retries(self, url: str, server: LoopbackQdrant) -> None:
        server.fail(status=503)
        run("index", "rows.jsonl", "-c", url)
        server.fail(status=503)
        with pytest.raises(CollectionError, match="Try again later"):
            run("index", "rows.jsonl", "-c", url, "--retries", "1")

    def test_grpc(self, url: str, server: LoopbackQdrant, monkeypatch: pytest.MonkeyPatch) -> None:
        with LoopbackGrpc(server) as wire:
            monkeypatch.setattr(
                "jcv2_plugin.engines.deadlines.QdrantClient", functools.partial(QdrantClient, grpc_port=wire.port)
            )
            assert not server.sent("GRPC")
            assert run_json("search", "-c", url, "harbour 7", "-k", "1", "--grpc")[0]["id"] == "7"
            assert server.sent("GRPC", "Query")


class TestIndex:
    def test_only_what_changed(self, url: str, folder: Path, client: QdrantClient) -> None:
        again = run_json("index", "rows.jsonl", "-c", url)
        assert (again["unchanged"], again["removed"]) == (30, 0)
        write_rows(folder / "rows.jsonl", range(28))
        assert run_json("index", "rows.jsonl", "-c", url)["removed"] == 2
        assert run_json("index", "docs", "-c", url, "--prune")["documents"] == 30
        assert run_json("search", "-c", url, "rice?", "-k", "1")[0]["metadata"]["source"] == "docs/food.md"
        assert set(client.get_collection("documents").payload_schema) == {"_file", "metadata.source"}

    def test_a_server_in_strict_mode(self, folder: Path) -> None:
        strict = models.StrictModeConfig(
            enabled=True, unindexed_filtering_retrieve=False, unindexed_filtering_update=False
        )
        with LoopbackQdrant(strict_mode=strict) as server:
            write_rows(folder / "rows.jsonl", range(5))
            run("index", "rows.jsonl", "-c", server.url, *MINI)
            write_rows(folder / "rows.jsonl", range(3))
            assert run_json("index", "rows.jsonl", "-c", server.url)["removed"] == 2

    def test_shards_and_copies(self, folder: Path, server: LoopbackQdrant, client: QdrantClient) -> None:
        run("index", "docs", "-c", server.url, *MINI, "--shards", "3", "--replicas", "2")
        params = client.get_collection("documents").config.params
        assert (params.shard_number, params.replication_factor) == (3, 2)
        run("index", "docs", "-c", server.url, "--shards", "3", "--replicas", "2")
        for option, value in (("--shards", "2"), ("--replicas", "1"), ("--shard-key", "a")):
            with pytest.raises(CollectionMismatchError, match=option):
                run("index", "docs", "-c", server.url, option, value)

    @pytest.mark.parametrize("given, key", [("tenant", "tenant"), ("7", 7)])
    def test_a_shard_of_its_own(
        self, folder: Path, server: LoopbackQdrant, client: QdrantClient, given: str, key: str | int
    ) -> None:
        command = ("index", "docs", "-c", server.url, "--shard-key", given)
        run(*command, *MINI)
        assert client.get_collection("documents").config.params.sharding_method == models.ShardingMethod.CUSTOM
        assert client.count("documents", shard_key_selector=key).count == 2
        (folder / "docs" / "food.md").unlink()
        pruned = run_json(*command, "--prune")
        assert (pruned["removed"], pruned["documents"]) == (1, 1)
        assert run_json("index", "docs", "-c", server.url, "--shard-key", "other")["written"] == 1
        assert client.count("documents", shard_key_selector="other").count == 1


class TestEval:
    def test_collections_are_kept_and_used_again(self, folder: Path) -> None:
        texts = {"s": "The ferry sails at noon.", "f": "Rice is cooked in water."}
        (folder / "set" / "qrels").mkdir(parents=True)
        for name, rows in (("corpus", texts), ("queries", {"q": "when does the ship leave?"})):
            lines = [json.dumps({"_id": own_id, "text": text}) + "\n" for own_id, text in rows.items()]
            (folder / "set" / f"{name}.jsonl").write_text("".join(lines))
        (folder / "set" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ts\t1\n")
        found = run("eval", "set", "--model", "mini", "--dim", "32", "--dim", "64", "--json")
        with LoopbackQdrant(api_key="right") as server:
            with pytest.raises(CollectionAccessError):
                run("eval", "set", "-c", server.url, "--model", "mini")
            command = ("eval", "set", "-c", server.url, "--model", "mini", "--api-key", "right")
            assert run(*command, "--dim", "32", "--dim", "64", "--json") == found
            at_server: dict[str, Any] = {"location": server.url, "client_options": {"api_key": "right"}}
            with ColbertCollection.open(**at_server, name="jcv2-eval-64") as collection:
                assert (collection.count(), collection.dim) == (2, 64)
            writes = len(server.sent("PUT", "/points"))
            assert run_json(*command, "--dim", "32")["ndcg@10"] == 1.0
            assert len(server.sent("PUT", "/points")) == writes
            with pytest.raises(CollectionMismatchError, match=r"'jcv2-eval-32' at .* created with storage='float16'"):
                run(*command, "--dim", "32", "--storage", "int8")
            options: dict[str, Any] = {"first_stage": "none", "long_documents": "truncate"}
            with ColbertCollection.create(**at_server, name="mine-32", encoder="mini", dim=32, **options) as mine:
                mine.add(["Another document."])
                with pytest.raises(CollectionMismatchError, match=r"'mine-32' at .* holds 1 other documents than set"):
                    run(*command, "--dim", "32", "--name", "mine")
                assert mine.count() == 1


class TestCollections:
    def test_those_that_are_ours_by_their_names(self, url: str, client: QdrantClient) -> None:
        vectors = models.VectorParams(size=2, distance=models.Distance.DOT)
        client.create_collection("foreign", vectors_config=vectors)
        client.create_collection("broken", vectors_config=vectors, metadata={"jcv2": {"format": 99}})
        run("migrate", "-c", url, "--first-stage", "none", "--keep-old")
        with ColbertCollection.open(url) as collection:
            schema = collection.schema
            client.create_collection("documents.3", vectors_config=vectors, metadata={"jcv2": schema.to_dict()})
        listed = {one.pop("name"): one for one in run_json("collections", "list", "-c", url)}
        states = {name: one["state"] for name, one in listed.items()}
        assert states == {
            "broken": "unreadable",
            "documents": None,
            "documents.1": "kept by a migration of documents",
            "documents.3": "of an unfinished migration of documents",
        }
        assert listed["documents"] == {
            "model": "mini", "dim": 32, "storage": "float16", "first_stage": "none", "documents": 30, "state": None
        }  # fmt: skip
        assert listed["documents.1"]["first_stage"] == "hybrid"
        assert "kept by a migration" in run("collections", "list", "-c", url)
        assert run_json("collections", "info", "-c", url, "--name", "documents.1")["documents"] == 30

    def test_drop(self, url: str, client: QdrantClient) -> None:
        run("migrate", "-c", url, "--first-stage", "none", "--keep-old")
        for name, match in (("documents.2", "--name documents"), ("nothing", r"There are: \['documents'")):
            with pytest.raises(CollectionError, match=match):
                run("collections", "drop", "-c", url, "--name", name, "--yes")
        run("collections", "drop", "-c", url, code=2)
        _, said = run_both("collections", "drop", "-c", url, "--yes")
        assert said.splitlines() == [
            f"Dropped the collection 'documents' at {url}.",
            "Its migrations have left documents.1. Drop each of them by its own name, with --name.",
        ]
        assert client.get_aliases().aliases == []
        assert [one.name for one in client.get_collections().collections] == ["documents.1"]
        run("collections", "drop", "-c", url, "--name", "documents.1", "--yes")
        assert client.get_collections().collections == []
        with pytest.raises(CollectionNotFoundError):
            run("collections", "drop", "-c", url, "--yes")

    def test_what_is_not_to_be_dropped(self, url: str, client: QdrantClient) -> None:
        client.create_collection("foreign", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
        with pytest.raises(CollectionMismatchError, match="not created by jcv2-plugin"):
            run("collections", "drop", "-c", url, "--name", "foreign", "--yes")
        alias = models.CreateAlias(collection_name="documents.1", alias_name="production")
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
        for name, other in (("documents", "production"), ("production", "documents")):
            with pytest.raises(CollectionError, match=rf"has other aliases, .*: \['{other}'\]"):
                run("collections", "drop", "-c", url, "--name", name, "--yes")
        assert run_json("info", "-c", url, "--name", "production")["documents"] == 30


class TestUpkeep:
    def test_migrate_and_keep_the_old_one(self, url: str) -> None:
        _, said = run_both("migrate", "-c", url, "--dim", "64", "--keep-old")
        assert said.endswith("The old collection is kept as documents.1.\n")
        assert run_json("verify", "-c", url, "--sample", "3")["ok"]
        assert run_json("info", "-c", url, "--name", "documents.1")["dim"] == 32

    def test_from_a_server_to_a_folder_and_back(self, url: str, folder: Path) -> None:
        run("snapshot", "-c", url, "documents.snapshot")
        run("restore", "documents.snapshot", "-c", "folder")
        run("snapshot", "-c", "folder", "folder.snapshot")
        with pytest.raises(CollectionExistsError):
            run("restore", "folder.snapshot", "-c", url)
        _, said = run_both("restore", "folder.snapshot", "-c", url, "--name", "back")
        assert said == f"The collection 'back' at {url}: 30 documents at 32 dims of mini.\n"
        assert run_json("index", "rows.jsonl", "-c", url, "--name", "back")["unchanged"] == 30
        run("restore", "folder.snapshot", "-c", url, "--overwrite")
        assert run_json("verify", "-c", url, "--sample", "30")["ok"]

    def test_a_restore_that_fails_halfway_is_unfinished_until_it_is_repeated(
        self, url: str, server: LoopbackQdrant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("jcv2_plugin.collection.snapshot._FLOATS_A_PART", 3000)
        run("snapshot", "-c", url, "documents.snapshot")
        restore = ("restore", "documents.snapshot", "-c", url, "--name", "half", "--retries", "1")
        with monkeypatch.context() as patch:
            patch.setattr(server, "check_key", refuse_after(server, 2, "/points"))
            with pytest.raises(CollectionError):
                run(*restore)
        with pytest.raises(CollectionUnfinishedError, match="restoration was interrupted"):
            run("info", "-c", url, "--name", "half")
        run(*restore)
        assert run_json("verify", "-c", url, "--name", "half")["ok"]


def refuse_after(server: LoopbackQdrant, times: int, path: str) -> object:
    """A check of keys that lets so many writes pass, and lets the next one fail."""
    from loopback_qdrant import Recorded

    check, passed = server.check_key, []

    def checked(request: Recorded, *, reads: bool) -> None:
        check(request, reads=reads)
        if request.method == "PUT" and request.path.endswith(path):
            passed.append(request)
            if len(passed) == times:
                server.fail(status=400, path_contains=path)

    return checked
