"""Documents of foreign Qdrant collections: what is taken, what is left, and that nothing is encoded twice."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import server_site
from collection_samples import DIM, contents
from qdrant_client import QdrantClient, models

from jcv2_plugin import ColbertCollection, Document, JinaColbertEncoder, import_qdrant
from jcv2_plugin.collection import qdrant_import
from jcv2_plugin.collection.qdrant_import import Skipped, layouts, load_layout
from jcv2_plugin.engines import qdrant as client_engine
from jcv2_plugin.errors import (
    CollectionNotFoundError,
    InvalidDocumentError,
    InvalidOptionError,
)

UUID = "0b6a1a30-0000-4000-8000-{:012d}"


def fill(client: QdrantClient, name: str, payloads: list[dict[str, Any] | None], *, uuids: bool = False) -> None:
    """A collection of dense vectors, as another library writes it."""
    client.create_collection(name, vectors_config=models.VectorParams(size=4, distance=models.Distance.COSINE))
    points = [
        models.PointStruct(id=UUID.format(n) if uuids else n, vector=[1.0, 0.5, float(n), 0.1], payload=payload or {})
        for n, payload in enumerate(payloads)
    ]
    client.upsert(name, points)


def payloads(number: int) -> list[dict[str, Any] | None]:
    return [{"body": f"Report {n} of the harbour master.", "about": {"n": n}} for n in range(number)]


def document_of(point_id: str, payload: Mapping[str, Any]) -> Document | None:
    if "body" not in payload:
        return None
    return Document(payload["body"], f"mine-{point_id}", payload.get("about", {}))


@pytest.fixture
def source() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


@pytest.fixture
def target(mini: JinaColbertEncoder, tmp_path: Path) -> Iterator[ColbertCollection]:
    with ColbertCollection.create(tmp_path / "c", encoder=mini, dim=DIM) as made:
        yield made


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were encoded."""
    seen: list[str] = []
    encode = JinaColbertEncoder.document_vectors

    def document_vectors(self: JinaColbertEncoder, texts: Any, *rest: Any) -> Any:
        seen.extend(texts)
        return encode(self, texts, *rest)

    monkeypatch.setattr(JinaColbertEncoder, "document_vectors", document_vectors)
    return seen


class TestImport:
    @pytest.mark.parametrize("into", ["edge", "memory", "same client"])
    def test_all_documents_come_over_and_are_found(
        self, source: QdrantClient, mini: JinaColbertEncoder, tmp_path: Path, into: str
    ) -> None:
        locations: dict[str, Any] = {"edge": {"path": tmp_path / "c"}, "memory": {"url": ":memory:"}}
        fill(source, "dense", payloads(23))
        before = source.scroll("dense", limit=100, with_vectors=True)
        location = locations.get(into, {"client": source})
        with ColbertCollection.create(**location, encoder=mini, dim=DIM) as target:
            report = import_qdrant(source, "dense", target, document_of)
            assert (report.read, report.written, report.unchanged, report.skipped) == (23, 23, 0, 0)
            expected = {f"mine-{n}": (f"Report {n} of the harbour master.", {"n": n}) for n in range(23)}
            assert contents(target) == expected
            assert target.search("report 17", 1)[0].id == "mine-17"
        assert source.scroll("dense", limit=100, with_vectors=True) == before, "the source is only read"

    def test_again_nothing_is_encoded(
        self, source: QdrantClient, target: ColbertCollection, encoded: list[str]
    ) -> None:
        fill(source, "dense", payloads(9))
        import_qdrant(source, "dense", target, document_of)
        assert len(encoded) == 9
        encoded.clear()
        source.set_payload("dense", {"body": "Another text."}, points=[4])
        source.upsert("dense", [models.PointStruct(id=99, vector=[1, 0, 0, 0], payload={"body": "A new one."})])
        report = import_qdrant(source, "dense", target, document_of)
        assert (report.written, report.unchanged) == (2, 8)
        assert sorted(encoded) == ["A new one.", "Another text."]

    def test_a_run_that_was_stopped_goes_on(
        self, source: QdrantClient, target: ColbertCollection, encoded: list[str]
    ) -> None:
        fill(source, "dense", payloads(20))

        def stopping(done: int) -> None:
            if len(encoded) >= 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            import_qdrant(source, "dense", target, document_of, batch_documents=4, progress=stopping)
        stored = target.count()
        assert 4 <= stored < 20
        encoded.clear()
        report = import_qdrant(source, "dense", target, document_of, batch_documents=4)
        assert (report.written, report.unchanged) == (20 - stored, stored)
        assert len(encoded) == 20 - stored

    def test_without_an_id_it_is_the_points(
        self, source: QdrantClient, target: ColbertCollection, encoded: list[str]
    ) -> None:
        fill(source, "numbers", payloads(3))
        fill(source, "uuids", payloads(3), uuids=True)
        for _ in range(2):
            for name in ("numbers", "uuids"):
                import_qdrant(source, name, target, lambda _, payload: Document(payload["body"]))
        assert set(target.ids()) == {"0", "1", "2", *(UUID.format(n) for n in range(3))}
        assert len(encoded) == 6

    def test_a_filter(self, source: QdrantClient, target: ColbertCollection) -> None:
        fill(source, "dense", payloads(10))
        few = models.Filter(must=[models.FieldCondition(key="about.n", range=models.Range(gte=7))])
        report = import_qdrant(source, "dense", target, document_of, filter=few)
        assert (report.read, report.written) == (3, 3)
        assert set(target.ids()) == {"mine-7", "mine-8", "mine-9"}

    def test_an_alias(self, source: QdrantClient, target: ColbertCollection) -> None:
        fill(source, "dense.7", payloads(2))
        alias = models.CreateAlias(collection_name="dense.7", alias_name="dense")
        source.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
        assert import_qdrant(source, "dense", target, document_of).written == 2

    def test_pages_are_read_without_vectors(
        self, source: QdrantClient, target: ColbertCollection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client_engine, "_SCROLL_PAGE", 7)
        fill(source, "dense", payloads(20))
        pages: list[tuple[Any, Any]] = []
        scroll = source.scroll

        def watched(name: str, **options: Any) -> Any:
            pages.append((name, options["with_vectors"], options["limit"]))
            return scroll(name, **options)

        monkeypatch.setattr(source, "scroll", watched)
        assert import_qdrant(source, "dense", target, document_of).written == 20
        assert [one for one in pages if one[0] == "dense"] == [("dense", False, 7)] * 3


class TestSkipped:
    def test_they_are_counted_and_the_first_are_named(self, source: QdrantClient, target: ColbertCollection) -> None:
        rows: list[dict[str, Any] | None] = [{"body": "A text."}, {"title": "x", "extra": 1}, {"body": " \n"}, None]
        rows.append({f"key{n}": n for n in range(9)})
        fill(source, "dense", [*rows, *({"other": n} for n in range(20))])
        report = import_qdrant(source, "dense", target, document_of)
        assert (report.read, report.written, report.skipped) == (25, 1, 24)
        assert report.first_skipped[:3] == [
            Skipped("1", "no document in its payload, whose keys are 'extra', 'title'"),
            Skipped("2", "its text is blank"),
            Skipped("3", "no document in its payload, whose keys are none"),
        ]
        assert report.first_skipped[3].reason.endswith("'key6', 'key7', ...")
        assert len(report.first_skipped) == 10
        assert target.count() == 1

    @pytest.mark.parametrize("every", [1, 3, 100])
    def test_progress_adds_up_to_all_points(self, source: QdrantClient, target: ColbertCollection, every: int) -> None:
        fill(source, "dense", [row if n % every == 0 else None for n, row in enumerate(payloads(25))])
        progress: list[int] = []
        report = import_qdrant(source, "dense", target, document_of, batch_documents=4, progress=progress.append)
        assert sum(progress) == report.read == 25
        assert report.written + report.skipped == 25


class TestRefused:
    def test_no_such_source(self, source: QdrantClient, target: ColbertCollection) -> None:
        fill(source, "dense", payloads(1))
        with pytest.raises(
            CollectionNotFoundError, match=r"no collection 'dance'; there are \['dense'.*Check the name of the source"
        ):
            import_qdrant(source, "dance", target, document_of)

    @pytest.mark.parametrize("name", ["documents", "documents.1"])
    def test_into_itself(self, mini: JinaColbertEncoder, source: QdrantClient, name: str) -> None:
        with ColbertCollection.create(client=source, encoder=mini, dim=DIM) as target:
            target.add(["A text."], ids=["a"])
            with pytest.raises(InvalidOptionError, match="both source and target"):
                import_qdrant(source, name, target, document_of)
            assert set(target.ids()) == {"a"}

    def test_the_same_name_elsewhere_is_another(self, mini: JinaColbertEncoder, source: QdrantClient) -> None:
        fill(source, "documents.1", payloads(2))
        with ColbertCollection.create(":memory:", encoder=mini, dim=DIM) as target:
            assert import_qdrant(source, "documents.1", target, document_of).written == 2

    def test_what_is_no_function(self, source: QdrantClient, target: ColbertCollection) -> None:
        layout: Any = "langchain"
        with pytest.raises(InvalidOptionError, match=r"document_of must be a function.*load_layout"):
            import_qdrant(source, "dense", target, layout)

    def test_a_function_that_gives_something_else(self, source: QdrantClient, target: ColbertCollection) -> None:
        fill(source, "dense", payloads(1))
        wrong: Any = lambda _, payload: payload["body"]  # noqa: E731
        with pytest.raises(InvalidDocumentError, match=r"returned str for the point '0'"):
            import_qdrant(source, "dense", target, wrong)

    def test_a_document_that_cannot_be_stored(self, source: QdrantClient, target: ColbertCollection) -> None:
        fill(source, "dense", payloads(8))
        bad = {"n": float("nan")}
        with pytest.raises(InvalidDocumentError, match=r"Document 5 \(id '5'\): metadata\['n'\] is nan"):
            import_qdrant(
                source,
                "dense",
                target,
                lambda point, payload: Document(payload["body"], point, bad if point == "5" else {}),
                batch_documents=4,
            )
        assert set(target.ids()) == {"0", "1", "2", "3"}


class TestServer:
    @server_site.REST
    def test_from_a_server(
        self, mini: JinaColbertEncoder, loopback: server_site.Site, target: ColbertCollection, waits: list[float]
    ) -> None:
        client = QdrantClient(url=loopback.url, **loopback.client_options)
        fill(loopback.client, "dense", payloads(12))
        loopback.loopback.fail(status=503, path_contains="croll")
        report = import_qdrant(client, "dense", target, document_of)
        assert (report.read, report.written, len(waits), target.count()) == (12, 12, 1, 12)
        with pytest.raises(InvalidOptionError, match="both source and target"):
            import_qdrant(client, loopback.name, loopback.create(mini), document_of)
        client.close()


def numbered(point_id: str, payload: Mapping[str, Any], *, key: str = "body", prefix: str = "") -> Document | None:
    return Document(prefix + payload[key], point_id)


class TestLayouts:
    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = [
            EntryPoint("numbered", f"{__name__}:numbered", qdrant_import.LAYOUTS),
            EntryPoint("broken", "no_such_package.layout:document_of", qdrant_import.LAYOUTS),
        ]
        monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
        monkeypatch.setattr(
            qdrant_import, "entry_points", lambda group: found if group == qdrant_import.LAYOUTS else []
        )

    def test_by_name(self, source: QdrantClient, target: ColbertCollection) -> None:
        assert layouts() == ["broken", "numbered"]
        fill(source, "dense", [{"text": "One."}])
        import_qdrant(source, "dense", target, load_layout("numbered", {"key": "text", "prefix": "No. "}))
        assert contents(target) == {"0": ("No. One.", {})}
        assert load_layout("numbered") is numbered

    def test_no_such_layout(self) -> None:
        with pytest.raises(InvalidOptionError, match=r"no layout 'other'. Installed are \['broken', 'numbered'\]"):
            load_layout("other")

    def test_no_such_option(self) -> None:
        with pytest.raises(InvalidOptionError, match=r"no option 'text'. Its options are \['key', 'prefix'\]"):
            load_layout("numbered", {"text": "body"})


class TestOurOwnLayouts:
    def test_they_are_installed(self) -> None:
        assert set(layouts()) >= {"langchain", "llama-index"}

    def test_what_is_missing_is_named_with_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "langchain_jcv2.qdrant_import", None)
        with pytest.raises(InvalidOptionError, match=r"pip install 'jcv2-plugin\[langchain\]'"):
            load_layout("langchain")
