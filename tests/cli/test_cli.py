from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import SHIPS, jcv2, run, run_json

import jcv2_plugin
from jcv2_plugin import ColbertCollection
from jcv2_plugin.cli import _AS_OPTIONS
from jcv2_plugin.collection.sources import SourceError
from jcv2_plugin.errors import CollectionMismatchError, CollectionNotFoundError


def sources(collection: Path) -> list[str]:
    with ColbertCollection.open(collection) as opened:
        return sorted(document.metadata["source"] for document in opened.scroll())


class TestIndex:
    def test_only_what_changed_is_encoded_again(self, folder: Path) -> None:
        arguments = ("index", "docs", "-c", "store", "--model", "mini", "--dim", "32")
        first = run_json(*arguments)
        assert (first["files"], first["written"], first["unchanged"], first["documents"]) == (2, 2, 0, 2)
        assert run_json("index", "docs", "-c", "store")["unchanged"] == 2
        (folder / "docs" / "new.txt").write_text("A new file.")
        third = run_json(*arguments)
        assert (third["files"], third["written"], third["unchanged"]) == (3, 1, 2)

    def test_an_edit_leaves_the_passages_after_it_alone(self, folder: Path) -> None:
        parts = [f"# Part {n}\n\n" + f"Ship number {n} sails on the sea. " * 6 for n in range(12)]
        (folder / "docs" / "ships.md").write_text("\n\n".join(parts))
        arguments = ("index", "docs/ships.md", "-c", "store", "--model", "mini", "--dim", "32", "--chunk-tokens", "60")
        before = run_json(*arguments)
        parts[0] = "# A new beginning\n\nThis is another text altogether, and longer than it was. " * 2
        (folder / "docs" / "ships.md").write_text("\n\n".join(parts))
        after = run_json(*arguments)
        assert before["written"] == 12
        assert after["unchanged"] == 11
        assert after["written"] <= 2
        assert after["removed"] == 1

    def test_a_file_that_is_no_text_is_left_out_with_a_word(self, folder: Path) -> None:
        (folder / "docs" / "latin.txt").write_bytes("Größe".encode("latin-1"))
        (folder / "docs" / "UPPER.MD").write_text("# Upper\n\nSuffixes may be written in capitals.")
        result = run_json("index", "docs", "-c", "store", "--model", "mini", "--dim", "32")
        assert (result["files"], result["skipped_files"], result["written"]) == (3, 1, 3)
        with pytest.raises(SourceError, match="latin"):
            run("index", "docs", "-c", "store", "--strict")

    def test_an_id_that_comes_twice_is_named_with_its_files(self, folder: Path) -> None:
        for name in ("a", "b"):
            (folder / f"{name}.jsonl").write_text('{"id": "1", "text": "Text of a row."}\n')
        with pytest.raises(SourceError, match=r"b\.jsonl: the id '1' comes a second time \(first in a\.jsonl\)"):
            run("index", "a.jsonl", "b.jsonl", "-c", "store", "--model", "mini", "--dim", "32")

    def test_rows_that_are_gone_from_a_file_are_removed(self, folder: Path) -> None:
        rows = [json.dumps({"id": str(n), "text": f"Row {n}.", "metadata": {"source": "elsewhere"}}) for n in range(3)]
        (folder / "rows.jsonl").write_text("\n".join(rows))
        assert run_json("index", "rows.jsonl", "-c", "store", "--model", "mini", "--dim", "32")["written"] == 3
        (folder / "rows.jsonl").write_text("\n".join(rows[:2]))
        assert run_json("index", "rows.jsonl", "-c", "store")["removed"] == 1
        (folder / "rows.jsonl").unlink()
        assert run_json("index", ".", "-c", "store", "--prune")["documents"] == 2

    def test_passages_that_are_gone_are_removed(self, folder: Path) -> None:
        long = "\n\n".join(f"# Part {n}\n\n" + "Ships sail on the sea. " * 8 for n in range(5))
        (folder / "docs" / "ships.md").write_text(long)
        before = run_json("index", "docs", "-c", "store", "--model", "mini", "--dim", "32", "--chunk-tokens", "60")
        (folder / "docs" / "ships.md").write_text(SHIPS)
        after = run_json("index", "docs", "-c", "store", "--chunk-tokens", "60")
        assert after["removed"] == before["documents"] - 1
        assert after["documents"] == 2

    def test_files_that_are_gone_are_removed_when_asked(self, indexed: Path) -> None:
        (indexed / "docs" / "food.md").unlink()
        assert run_json("index", "docs", "-c", "store")["documents"] == 2
        pruned = run_json("index", "docs", "-c", "store", "--prune")
        assert (pruned["removed"], pruned["documents"]) == (1, 1)

    def test_pruning_leaves_everything_else(self, folder: Path) -> None:
        (folder / "outside").mkdir()
        (folder / "outside" / "o.md").write_text("# Outside\n\nNot of this folder.")
        (folder / "docs" / "rows.jsonl").write_text('{"id": "row", "text": "A row of a file."}\n')
        run("index", "outside", "docs", "-c", "store", "--model", "mini", "--dim", "32")
        with ColbertCollection.open(folder / "store") as collection:
            collection.add(["Added by hand."], ids=["hand"], metadata=[{"source": "docs/by-hand"}])
        (folder / "docs" / "food.md").unlink()
        assert run_json("index", "./docs/../docs", "-c", "store", "--prune")["removed"] == 1
        assert sources(folder / "store") == ["docs/by-hand", "docs/rows.jsonl", "docs/ships.md", "outside/o.md"]
        for file in (folder / "docs").iterdir():
            file.unlink()
        assert run_json("index", "docs", "-c", "store", "--prune")["removed"] == 2
        assert sources(folder / "store") == ["docs/by-hand", "outside/o.md"]

    def test_another_model_or_dim_is_refused(self, indexed: Path) -> None:
        options = (("--dim", "128"), ("--model", "other"), ("--document-length", "99"), ("--storage", "float32"))
        for option, value in options:
            with pytest.raises(CollectionMismatchError, match=f"was made with {option}"):
                run("index", "docs", "-c", "store", option, value)

    def test_jsonl(self, folder: Path) -> None:
        rows = [{"_id": str(n), "title": "", "text": f"Text number {n}."} for n in range(5)]
        (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert run_json("index", "corpus.jsonl", "-c", "store", "--model", "mini", "--dim", "32")["written"] == 5


class TestSearch:
    def test_the_passage_is_printed_with_its_source(self, indexed: Path) -> None:
        output = run("search", "-c", "store", "when does the ship leave?", "-k", "1")
        assert "docs/ships.md#" in output
        assert "The ferry sails at noon" in output
        assert "Rice" not in output

    def test_json(self, indexed: Path) -> None:
        hits = run_json("search", "-c", "store", "how is rice cooked?")
        assert [hit["metadata"]["source"] for hit in hits] == ["docs/food.md", "docs/ships.md"]
        assert hits[0]["id"].startswith("docs/food.md#")

    def test_where(self, indexed: Path) -> None:
        hits = run_json("search", "-c", "store", "how is rice cooked?", "--where", "source=docs/ships.md")
        assert [hit["metadata"]["source"] for hit in hits] == ["docs/ships.md"]
        metadata = {"text": "3", "number": 3, "fraction": 1.5, "true": True, "date": "2020"}
        row = {"id": "typed", "text": "A row with metadata of all types.", "metadata": metadata}
        (indexed / "typed.jsonl").write_text(json.dumps(row))
        run("index", "typed.jsonl", "-c", "store")
        for condition in ("text=3", "number=3", "fraction=1.5", "true=true", "date=2020"):
            hits = run_json("search", "-c", "store", "a row", "--where", condition)
            assert [hit["id"] for hit in hits] == ["typed"], condition
        assert run_json("search", "-c", "store", "a row", "--where", "number=4") == []
        run("search", "-c", "store", "anything", "--where", "nonsense", code=2)

    def test_another_first_stage(self, indexed: Path) -> None:
        found = [
            run_json("search", "-c", "store", "how is rice cooked?", "--first-stage", stage, "-k", "1")[0]["id"]
            for stage in ("hybrid", "pooled", "bm25", "none")
        ]
        assert len(set(found)) == 1
        done = jcv2("search", "-c", "store", "rice?", "--first-stage", "muvera", cwd=indexed)
        assert (done.returncode, done.stdout) == (1, "")
        assert "first_stage='hybrid', so a search may use" in done.stderr
        assert done.stderr.endswith("or give the collection another: jcv2 migrate --first-stage.\n")
        for option in (("--first-stage", "bm25"), ("--candidates", "3")):
            run("search", "-c", "store", "rice?", "--exact", *option, code=2)

    def test_info(self, indexed: Path) -> None:
        described = run_json("info", "-c", "store")
        assert (described["model"], described["dim"], described["documents"]) == ("mini", 64, 2)
        assert "float16" in run("info", "-c", "store")

    def test_no_collection(self, folder: Path) -> None:
        with pytest.raises(CollectionNotFoundError):
            run("search", "-c", "nowhere", "anything")


class TestExplain:
    def test_matches_and_heat_map(self, indexed: Path) -> None:
        output = run("explain", "-c", "store", "when does the ferry sail?", "--html", "out/heat.html")
        assert "docs/ships.md#" in output
        assert "ferry" in output
        assert "<html" in (indexed / "out" / "heat.html").read_text()

    def test_a_chosen_document_and_a_text(self, indexed: Path) -> None:
        chosen = run_json("search", "-c", "store", "rice?", "-k", "1")[0]["id"]
        assert chosen in run("explain", "-c", "store", "ferry?", "--id", chosen)
        assert "ferry" in run("explain", "ferry?", "--text", "The ferry sails.", "--model", "mini", "--dim", "32")
        run("explain", "ferry?", code=2)


class TestEval:
    @pytest.fixture
    def dataset(self, folder: Path) -> Path:
        tiny = folder / "tiny"
        (tiny / "qrels").mkdir(parents=True)
        texts = {"s": "The ferry sails at noon.", "f": "Rice is cooked in water.", "m": "A piano has many keys."}
        queries = {"1": "when does the ship leave?", "2": "what is cooked?", "3": "which instrument has keys?"}
        rows = [{"_id": key, "title": "", "text": text} for key, text in texts.items()]
        (tiny / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows = [{"_id": key, "text": text} for key, text in queries.items()]
        (tiny / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        judged = "".join(f"{query}\t{doc}\t1\n" for query, doc in (("1", "s"), ("2", "f"), ("3", "m")))
        (tiny / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
        return tiny

    def test_json_has_a_line_for_each_dim(self, dataset: Path) -> None:
        output = run("eval", str(dataset), "--model", "mini", "--dim", "64", "--dim", "128", "--bm25", "--json")
        lines = [json.loads(line) for line in output.splitlines()]
        assert [line.get("dim") for line in lines] == [64, 128, None]
        for line in lines[:2]:
            assert (line["ndcg@10"], line["recall@100"], line["mrr@10"]) == (1.0, 1.0, 1.0)

    def test_the_table_and_a_kept_collection(self, dataset: Path) -> None:
        arguments = ("eval", str(dataset), "--model", "mini", "--dim", "32", "--collection", "kept")
        assert "ndcg@10" in run(*arguments)
        assert (dataset.parent / "kept" / "32" / "jcv2.json").exists()
        assert "1.0000" in run(*arguments)
        others = (
            ("--storage", "float32"),
            ("--long-documents", "split"),
            ("--first-stage", "bm25"),
            ("--pool-factor", "2"),
        )
        for more in others:
            with pytest.raises(CollectionMismatchError, match="was made with"):
                run(*arguments, *more)
        with ColbertCollection.open(dataset.parent / "kept" / "32") as collection:
            collection.add(["A document of another set."])
        with pytest.raises(CollectionMismatchError, match="would spoil the figures"):
            run(*arguments)

    def test_with_a_first_stage(self, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[int | None, bool | None]] = []
        search = ColbertCollection.search_many

        def watched(self: ColbertCollection, *arguments: Any, **more: Any) -> Any:
            asked.append((more["candidates"], more["exact"]))
            return search(self, *arguments, **more)

        monkeypatch.setattr(ColbertCollection, "search_many", watched)
        arguments = ("eval", str(dataset), "--model", "mini", "--dim", "32")
        staged = ("--first-stage", "hybrid", "--candidates", "2", "--storage", "int8", "--pool-factor", "2")
        figures = run_json(*arguments, *staged)
        assert figures["ndcg@10"] == 1.0
        described = {key: figures[key] for key in ("storage", "first_stage", "candidates", "pool_factor")}
        assert described == {"storage": "int8", "first_stage": "hybrid", "candidates": 2, "pool_factor": 2.0}
        assert "mini, 32 dims, int8, pooled by 2, first stage hybrid" in run(*arguments, *staged)
        # Published figures rank everything.
        assert run_json(*arguments)["first_stage"] == "none"
        assert asked == [(2, False), (2, False), (None, True)]

    @pytest.mark.parametrize("option", [("--candidates", "2"), ("--collection", "http://host:6333")])
    def test_what_cannot_be(self, dataset: Path, option: tuple[str, str]) -> None:
        run("eval", str(dataset), "--model", "mini", *option, code=2)

    def test_quality_of_mini_on_real_text(self, data_dir: Path) -> None:
        output = run("eval", str(data_dir / "xquad-en"), "--split", "mini", "--model", "mini", "--dim", "64", "--json")
        assert json.loads(output)["ndcg@10"] >= 0.96


class TestProcess:
    """As typed in a shell: no traceback, messages on stderr, results on stdout, quiet in a pipe."""

    def test_errors_are_one_message(self, folder: Path) -> None:
        done = jcv2("search", "-c", "nowhere", "anything", cwd=folder)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("error: There is no collection in")
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("options", [("--storage", "int3"), ("--document-length", "1"), ("--dim", "7")])
    def test_bad_options_are_one_message(self, folder: Path, options: tuple[str, str]) -> None:
        done = jcv2("index", "docs", "-c", "store", "--model", "mini", *options, cwd=folder)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr

    def test_the_hub_out_of_reach_says_how_to_go_on(self, folder: Path) -> None:
        done = jcv2("index", "docs", "-c", "store", cwd=folder)
        assert done.returncode == 1
        assert "jinaai/jina-colbert-v2" in done.stderr
        assert "jcv2-plugin[mini]" in done.stderr
        assert not (folder / "store").exists()

    def test_results_are_all_there_is_on_stdout(self, indexed: Path) -> None:
        done = jcv2("search", "-c", "store", "rice?", "-k", "1", "--json", cwd=indexed)
        assert [hit["metadata"]["source"] for hit in json.loads(done.stdout)] == ["docs/food.md"]
        assert done.stderr == ""

    def test_what_errors_advise_can_be_typed(self) -> None:
        package = Path(jcv2_plugin.__file__).parent
        sources = " ".join(file.read_text() for file in package.rglob("*.py") if "cli" not in file.parts)
        # As it is put together: lines that follow each other, and braces that are written twice.
        text = re.sub(r'"\s+f?"', "", sources).replace("{{", "{").replace("}}", "}")
        for argument in _AS_OPTIONS:
            assert argument in text, argument
