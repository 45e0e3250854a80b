"""Searching, explaining, evaluating, and what the command says of errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import MINI, error, jcv2, run, run_both, run_json, start
from typer.main import get_command
from typer.testing import CliRunner

from jcv2_plugin import ColbertCollection
from jcv2_plugin.cli import app
from jcv2_plugin.cli.lazy import LazyCommand
from jcv2_plugin.errors import CollectionMismatchError

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_the_command_itself_says(name: str) -> None:
    listed = COMMANDS[name]
    assert isinstance(listed, LazyCommand)
    summary, *_ = listed.load().help.split("\n\n")
    assert " ".join(summary.split()) == listed.help


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
        metadata = {
            "text": "3", "number": 3, "fraction": 1.5, "true": True, "date": "2020", "big": "1e999", "least": -(2**63),
            "a b": "x", "rdfs:label": "x", "a/b": 7, "a.b": "dotted", "c": {"d": "nested"}, "ü-1": "x",
        }  # fmt: skip
        row = {"id": "typed", "text": "A row with metadata of all types.", "metadata": metadata}
        (indexed / "typed.jsonl").write_text(json.dumps(row))
        run("index", "typed.jsonl", "-c", "store")
        matching = ["text=3", "number=3", "fraction=1.5", "true=true", "date=2020", "big=1e999", f"least={-(2**63)}"]
        matching += ["a b=x", "rdfs:label=x", "a/b=7", "a.b=dotted", "c.d=nested", "ü-1=x"]
        conditions = [part for one in matching for part in ("--where", one)]
        assert [hit["id"] for hit in run_json("search", "-c", "store", "a row", *conditions)] == ["typed"]
        for condition in ("number=4", "a.b=x"):
            assert run_json("search", "-c", "store", "a row", "--where", condition) == [], condition
        refused = {
            "number=1e300": "quotation marks",
            "nonsense": "KEY=VALUE",
            "=x": "KEY=VALUE",
            'a"b=x': "another key",
        }
        refused |= {"a\\b=x": "another key", '"a=x': "JSON string", 'a="x': "JSON string", 'a="x"y': "goes on"}
        for condition, said in refused.items():
            told = run_both("search", "-c", "store", "anything", "--where", condition, code=2)[1]
            assert said in " ".join(told.replace("\u2502", " ").split()), condition

    def test_quotation_marks_make_a_value_a_text_and_a_key_a_name(self, indexed: Path) -> None:
        kinds: dict[str, dict[str, Any]] = {
            "texts": {"code": "1234567e10", "flag": "true", "a=b": "x", "said": 'so "x"'},
            "others": {"code": 7, "flag": True, "a": {"b": 1}},
            "padded": {"code": "007"},
        }
        rows = [json.dumps({"id": id, "text": f"A row of {id}.", "metadata": of}) for id, of in kinds.items()]
        (indexed / "typed.jsonl").write_text("\n".join(rows))
        run("index", "typed.jsonl", "-c", "store")
        for condition, wanted in {
            'code="1234567e10"': {"texts"},
            'flag="true"': {"texts"},
            "flag=true": {"texts", "others"},
            'code="7"': set(),
            "code=7": {"others"},
            "code=007": {"padded"},
            '"a=b"=x': {"texts"},
            '"a.b"=1': set(),
            "a.b=1": {"others"},
            r'said="so \"x\""': {"texts"},
        }.items():
            found = run_json("search", "-c", "store", "a row", "-k", "9", "--where", condition)
            assert {hit["id"] for hit in found} == wanted, condition

    def test_another_first_stage_and_none(self, indexed: Path) -> None:
        stages = [("--first-stage", stage) for stage in ("hybrid", "pooled", "bm25", "none")]
        options = [*stages, ("--exact",), ("--candidates", "1")]
        found = [run_json("search", "-c", "store", "how is rice cooked?", "-k", "1", *one)[0]["id"] for one in options]
        assert len(set(found)) == 1
        said = error("search", "-c", "store", "rice?", "--first-stage", "muvera")
        assert "has the first stage 'hybrid', so a search can use" in said
        assert said.endswith("or migrate the collection to another first stage.\n")
        for option in (("--first-stage", "bm25"), ("--candidates", "3")):
            run("search", "-c", "store", "rice?", "--exact", *option, code=2)
        run("search", "-c", "store", "rice?", "--candidates", "0", code=2)


class TestExplain:
    def test_matches_and_heat_map(self, indexed: Path) -> None:
        output = run("explain", "-c", "store", "when does the ferry sail?", "--html", "out/heat.html")
        assert "docs/ships.md#" in output
        assert "ferry" in output
        assert "<html" in (indexed / "out" / "heat.html").read_text()

    def test_a_chosen_document_and_a_text(self, indexed: Path) -> None:
        chosen = run_json("search", "-c", "store", "rice?", "-k", "1")[0]["id"]
        assert chosen in run("explain", "-c", "store", "ferry?", "--id", chosen)
        text = ("--text", "The ferry sails.", "--model", "mini", "--dim", "32")
        assert "ferry" in run("explain", "ferry?", *text)
        for neither_or_both in ((), (*text, "-c", "store")):
            run("explain", "ferry?", *neither_or_both, code=2)


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

    def test_errors_print_no_password(self, dataset: Path) -> None:
        for address in ("http://user:s3cret@nowhere.invalid:6333", "user:s3cret@nowhere.invalid:6333"):
            said = error("eval", str(dataset), "-c", address, "--model", "mini", "--retries", "1")
            assert "nowhere.invalid" in said
            assert "s3cret" not in said

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
        others = {"--storage": "float32", "--long-documents": "split", "--first-stage": "bm25", "--pool-factor": "2"}
        for other in others.items():
            with pytest.raises(CollectionMismatchError, match="was created with"):
                run(*arguments, *other)
        with ColbertCollection.open(dataset.parent / "kept" / "32") as collection:
            collection.add(["A document of another set."])
        with pytest.raises(
            CollectionMismatchError, match="holds 1 other documents than tiny: they would change the figures"
        ):
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

    def test_what_cannot_be(self, dataset: Path) -> None:
        run("eval", str(dataset), "--model", "mini", "--candidates", "2", code=2)

    def test_queries_that_are_documents_and_documents_that_are_missing(self, dataset: Path) -> None:
        with (dataset / "queries.jsonl").open("a") as file:
            file.write(json.dumps({"_id": "f", "text": "Rice is cooked in water."}) + "\n")
        with (dataset / "qrels" / "test.tsv").open("a") as file:
            file.write("f\ts\t1\n3\tlost\t1\n")
        arguments = ("eval", str(dataset), "--model", "mini", "--dim", "32", "--bm25")
        counted = [("own_documents_left_out", 1), ("missing_documents", 1)]
        lines = [json.loads(line) for line in run(*arguments, "--json").splitlines()]
        assert [[(key, line[key]) for key, _ in counted] for line in lines] == [counted, counted]
        ranked = [json.loads(line) for line in run(*arguments, "--json", "--no-ignore-identical-ids").splitlines()]
        assert [line["own_documents_left_out"] for line in ranked] == [0, 0]
        assert ranked[0]["mrr@10"] < lines[0]["mrr@10"]
        said = run(*arguments)
        assert "Queries that are documents too, left out of their own results: 1" in said
        assert "Judged documents that the corpus lacks, counted as not found: 1" in said

    def test_quality_of_mini_on_real_text(self, data_dir: Path) -> None:
        output = run("eval", str(data_dir / "xquad-en"), "--split", "mini", "--model", "mini", "--dim", "64", "--json")
        assert json.loads(output)["ndcg@10"] >= 0.96


class TestErrors:
    """One message on stderr, without a traceback, and status 1."""

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ("search -c nowhere anything", "There is no collection in "),
            ("index docs -c store --model mini --storage int3", "storage must be one of "),
            ("index docs -c store --model mini --document-length 1", ""),
            ("index docs -c store --model mini --dim 7", ""),
        ],
    )
    def test_errors_are_one_message(self, folder: Path, arguments: str, message: str) -> None:
        said = error(*arguments.split())
        assert said.startswith(f"error: {message}")
        assert said.count("\n") == 1

    def test_a_hub_that_cannot_be_reached(self, folder: Path) -> None:
        said = error("index", "docs", "-c", "store")
        assert "jinaai/jina-colbert-v2" in said
        assert "jcv2-plugin[mini]" in said
        assert not (folder / "store").exists()

    def test_in_a_shell(self, indexed: Path) -> None:
        done = start("search", "-c", "store", "rice?", "-k", 1, "--json", cwd=indexed)
        printed, said = done.communicate(120)
        assert [hit["metadata"]["source"] for hit in json.loads(printed)] == ["docs/food.md"]
        assert (done.returncode, said) == (0, "")
        failed = jcv2("search", "-c", "nowhere", "anything", cwd=indexed)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert failed.stderr.startswith("error: There is no collection in")


HOSTILE = "x\x1b[31m\x9b\u202e\n2. 9.99  forged"


def test_documents_do_not_control_the_terminal(folder: Path) -> None:
    text = "The harbour \x1b]0;title\x07 \u202e at noon. [red]h[/zz]"
    row = {"id": HOSTILE, "text": text, "metadata": {"m": HOSTILE}}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    run("index", "rows.jsonl", "-c", "[red]h[/zz]", *MINI)
    for command in (("search", "harbour"), ("search", "harbour", "--json"), ("explain", "harbour"), ("info",)):
        shown = run(*command, "-c", "[red]h[/zz]")
        assert not [char for char in shown if not char.isprintable() and char != "\n"]
        assert "forged" not in [line[9:] for line in shown.splitlines() if line.startswith("2. 9.99")]
    assert run_json("search", "harbour", "-c", "[red]h[/zz]")[0]["id"] == HOSTILE
    assert "[red]h[/zz].html" in run("explain", "harbour", "-c", "[red]h[/zz]", "--html", "[red]h[/zz].html")
    assert "\x1b" not in error("search", "x", "-c", "no\x1b[2J")


@pytest.mark.parametrize(
    "command", [(f"--{HOSTILE}",), (HOSTILE,), ("search", "x", f"--{HOSTILE}"), ("info", "-c", "c", HOSTILE)]
)
def test_usage_errors_do_not_control_the_terminal(folder: Path, command: tuple[str, ...]) -> None:
    """Names of files may be among the arguments."""
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 2
    assert r"x\x1b[31m\x9b\u202e" in said.stderr
    assert not [char for char in said.stderr if not char.isprintable() and char != "\n"]


@pytest.mark.parametrize(
    "address", ["http://user:pa/ss@host:x", "user:pass@host:6333", "user:pass@host", "http://u:a://pass@host:x"]
)
@pytest.mark.parametrize("command", [("search", "x"), ("info",), ("index", "docs"), ("collections", "list")])
def test_passwords_are_not_printed(folder: Path, address: str, command: tuple[str, ...]) -> None:
    said = error(*command, "-c", address)
    assert "ss@" not in said
    assert "pass" not in said
    assert "pa/" not in said
    assert "host" in said


@pytest.mark.parametrize(
    "address",
    ["http://host:6333?api-key=s3cret", "http://host/p#s3cret", "http://u:s3?cret@host", "host:6333?api-key=s3cret",
     "http://host?key=a@s3cret", "http://u:p@host?api-key=s3cret"],
)  # fmt: skip
@pytest.mark.parametrize("command", [("search", "x"), ("index", "docs"), ("collections", "list")])
def test_queries_of_urls_are_not_printed(folder: Path, address: str, command: tuple[str, ...]) -> None:
    said = error(*command, "-c", address)
    assert "s3cret" not in said
    assert "cret" not in said.replace("secret", "")


def test_a_key_that_cannot_be_sent_is_not_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("s3cret\n", "s3cret\u00e9", "s3 cret"):
        monkeypatch.setenv("QDRANT_API_KEY", key)
        said = error("collections", "list", "-c", "http://127.0.0.1:9")
        assert "cannot be sent" in said
        assert "s3" not in said
