"""``jcv2 import-qdrant``: from folders and servers, into new collections and old ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import MINI, ids, run, run_both, run_json
from loopback_qdrant import LoopbackQdrant
from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection, Document
from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.import_qdrant import source_server
from jcv2_plugin.collection import qdrant_import
from jcv2_plugin.errors import (
    CollectionLockedError,
    CollectionMismatchError,
    CollectionNotFoundError,
    InvalidOptionError,
)


def bodies(point_id: str, payload: Mapping[str, Any], *, text_key: str = "body") -> Document | None:
    """The layout of these tests."""
    if text_key not in payload:
        return None
    return Document(payload[text_key], point_id, {"topic": payload.get("topic")})


@pytest.fixture(autouse=True)
def layout(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [EntryPoint("bodies", f"{__name__}:bodies", qdrant_import.LAYOUTS)]
    monkeypatch.setattr(qdrant_import, "entry_points", lambda group: found)


def fill(client: QdrantClient, number: int, *, name: str = "dense", key: str = "body") -> None:
    client.create_collection(name, vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE))
    rows = [{key: f"Report {n} tells of harbour {n}.", "topic": "ships"} for n in range(number)]
    client.upsert(name, [models.PointStruct(id=n, vector=[1.0, n], payload=row) for n, row in enumerate(rows)])


@pytest.fixture
def theirs(folder: Path) -> Path:
    """Of qdrant-client's local mode, with seven documents."""
    client = QdrantClient(path=str(folder / "theirs"))
    fill(client, 7)
    client.close()
    return folder / "theirs"


FROM = ("import-qdrant", "--from-path", "theirs", "--from-collection", "dense", "--layout", "bodies")


class TestFolder:
    def test_into_a_new_collection_and_again(self, theirs: Path) -> None:
        first = run_json(*FROM, "-c", "store", *MINI, "--storage", "float32", "--payload-index", "topic=keyword")
        assert first.pop("seconds") >= 0
        counts = {"read": 7, "written": 7, "unchanged": 0, "skipped": 0, "first_skipped": [], "documents": 7}
        assert first == counts
        assert ids("store") == {str(n) for n in range(7)}
        described = run_json("info", "-c", "store")
        assert (described["model"], described["dim"], described["storage"]) == ("mini", 32, "float32")
        assert described["dtype_on_this_cpu"] == "float32"
        again = run_json(*FROM, "-c", "store")
        assert (again["written"], again["unchanged"]) == (0, 7)
        hits = run_json(
            "search", "-c", "store", "which report tells of harbour 5?", "--where", "topic=ships", "-k", "1"
        )
        assert [hit["id"] for hit in hits] == ["5"]

    def test_into_one_that_is_there(self, theirs: Path, indexed: Path) -> None:
        before = ids("store")
        output, said = run_both(*FROM, "-c", "store")
        assert output == ""
        assert said.splitlines()[0].startswith("7 points read: 7 documents written, 0 unchanged, 0 skipped, in ")
        assert said.splitlines()[1:] == ["mini at 64 dims; 9 documents in the collection."]
        assert ids("store") == before | {str(n) for n in range(7)}
        with pytest.raises(CollectionMismatchError, match="was created with --dim 64, not with 32"):
            run(*FROM, "-c", "store", "--dim", "32")

    def test_the_source_is_only_read(self, theirs: Path) -> None:
        def files() -> dict[str, bytes]:
            return {str(file): file.read_bytes() for file in theirs.rglob("*") if file.is_file()}

        before = files()
        run(*FROM, "-c", "store", *MINI)
        assert files() == before

    def test_an_option_of_the_layout(self, theirs: Path) -> None:
        client = QdrantClient(path=str(theirs))
        fill(client, 3, name="other", key="content")
        client.close()
        other = ("import-qdrant", "--from-path", "theirs", "--from-collection", "other", "--layout", "bodies")
        _, said = run_both(*other, "-c", "store", *MINI, code=1)
        assert "3 points read: 0 documents written, 0 unchanged, 3 skipped" in said
        assert "skipped 0: no document in its payload, whose keys are 'content', 'topic'" in said
        assert said.splitlines()[-1].startswith("No point has a document. Check --layout")
        assert run_json(*other, "-c", "store", "--option", "text_key=content")["written"] == 3

    def test_some_are_skipped(self, theirs: Path) -> None:
        client = QdrantClient(path=str(theirs))
        rows = [models.PointStruct(id=100 + n, vector=[1.0, 0.0], payload={"body": " "}) for n in range(12)]
        client.upsert("dense", rows)
        client.close()
        output, said = run_both(*FROM, "-c", "store", *MINI, "--json")
        assert json.loads(output)["first_skipped"][0] == {"point_id": "100", "reason": "its text is blank"}
        assert said.splitlines()[-2:] == ["skipped 109: its text is blank", "... and 2 more."]

    def test_no_files_are_looked_for_in_what_comes_from_none(self, theirs: Path) -> None:
        run(*FROM, "-c", "store", *MINI)
        with ColbertCollection.open("store") as collection:
            assert "_file" not in collection.engine._shard.info().payload_schema  # type: ignore[attr-defined]


class TestServer:
    @pytest.fixture
    def filled(self, folder: Path, server: LoopbackQdrant) -> LoopbackQdrant:
        client = QdrantClient(url=server.url, check_compatibility=False)
        fill(client, 5)
        client.close()
        return server

    def test_from_a_server_to_itself(self, filled: LoopbackQdrant) -> None:
        source = ("import-qdrant", "--from-url", filled.url, "--from-collection", "dense", "--layout", "bodies")
        done = run_json(*source, "-c", filled.url, "--name", "ours", *MINI)
        assert (done["written"], done["documents"]) == (5, 5)
        with pytest.raises(CollectionMismatchError):
            run(*source, "-c", filled.url, "--name", "ours", "--dim", "64")

    def test_no_such_collection_leaves_nothing_behind(self, filled: LoopbackQdrant, folder: Path) -> None:
        wrong = ("import-qdrant", "--from-url", filled.url, "--from-collection", "dance", "--layout", "bodies")
        with pytest.raises(CollectionNotFoundError, match=r"no collection 'dance'; there are \['dense'\]"):
            run(*wrong, "-c", "store", *MINI)
        assert not (folder / "store").exists()

    def test_which_key_goes_where(self) -> None:
        target = Connection("https://me:word@one:6333", api_key="key", timeout=9, grpc=True)

        def key(url: str, given: str | None) -> str | None:
            source = source_server(url, given, target)
            assert (source.timeout, source.grpc) == (9, True)
            return source.api_key

        assert key("https://one:6333", None) == "key"
        assert key("https://other:6333", None) is None
        assert key("http://one:6333", None) is None
        assert key("https://one:6333", "own") == key("https://other:6333", "own") == "own"


class TestRefused:
    @pytest.mark.parametrize("more", [(), ("--from-url", "http://host:6333", "--from-path", "theirs")])
    def test_one_source(self, theirs: Path, more: tuple[str, ...]) -> None:
        run("import-qdrant", *more, "--from-collection", "dense", "--layout", "bodies", "-c", "store", code=2)

    @pytest.mark.parametrize("more", [("--option", "nonsense"), ("--option", "=x"), ("--payload-index", "topic")])
    def test_wrong_options(self, theirs: Path, more: tuple[str, str]) -> None:
        run(*FROM, "-c", "store", *MINI, *more, code=2)
        assert not Path("store").exists()

    def test_a_folder_is_no_url(self, theirs: Path) -> None:
        run("import-qdrant", "--from-url", "theirs", *FROM[3:], "-c", "store", code=2)

    def test_layouts_and_options_that_there_are_not(self, theirs: Path) -> None:
        with pytest.raises(InvalidOptionError, match=r"no layout 'dance'. Installed are \['bodies'\]"):
            run(*FROM[:-1], "dance", "-c", "store")
        with pytest.raises(InvalidOptionError, match=r"no option 'key'. Its options are \['text_key'\]"):
            run(*FROM, "-c", "store", "--option", "key=x")

    def test_a_folder_that_is_none_is_not_made(self, folder: Path) -> None:
        for name in ("nowhere", "docs"):
            with pytest.raises(CollectionNotFoundError, match=r"no folder of QdrantClient\(path=\.\.\.\)"):
                run("import-qdrant", "--from-path", name, *FROM[3:], "-c", "store", *MINI)
        assert not (folder / "nowhere").exists()
        assert not (folder / "docs" / "meta.json").exists()

    def test_a_folder_in_use(self, theirs: Path) -> None:
        client = QdrantClient(path=str(theirs))
        try:
            with pytest.raises(CollectionLockedError, match="is open in another process"):
                run(*FROM, "-c", "store", *MINI)
        finally:
            client.close()


class TestOurOwnLayouts:
    @pytest.fixture(autouse=True)
    def layout(self) -> None:
        """Those that are installed."""

    def test_langchains(self, theirs: Path) -> None:
        pytest.importorskip("langchain_core")
        client = QdrantClient(path=str(theirs))
        fill(client, 2, name="chain", key="page_content")
        client.close()
        command = ("import-qdrant", "--from-path", "theirs", "--from-collection", "chain", "--layout", "langchain")
        output, said = run_both(*command, "-c", "store", *MINI)
        assert output == ""
        assert said.startswith("2 points read: 2 documents written")
        assert ids("store") == {"0", "1"}
