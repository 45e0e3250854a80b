"""The examples run as they are, offline, and find what they should.

Those of a framework run in one process, since most of an example's time is the framework's import; the two processes
run side by side. Each runs this file as a program, which prints a JSON line for each example.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import starting

EXAMPLES = Path(__file__).parents[2] / "examples"
FRAMEWORKS = ("langchain", "llama_index")
FILES = [f"{one}/{file.name}" for one in FRAMEWORKS for file in sorted((EXAMPLES / one).glob("*.py"))]
MOST_LINES = 59

Results = dict[str, dict[str, Any]]


def of(*names: str) -> pytest.MarkDecorator:
    """Run a test on what these examples print."""
    return pytest.mark.parametrize("printed", names, indirect=True)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Results]]]:
    """Both frameworks' examples, started together: those that the tests of this session ask for."""
    wanted = {item.callspec.params.get("printed") for item in request.session.items if hasattr(item, "callspec")}
    with ThreadPoolExecutor(len(FRAMEWORKS)) as pool:
        asked = {one: [name for name in FILES if name in wanted and name.startswith(one)] for one in FRAMEWORKS}
        yield {one: pool.submit(run, names) for one, names in asked.items()}


def run(names: list[str]) -> Results:
    if not names:
        return {}
    done = starting.run(f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')", *names, timeout=600)
    assert done.returncode == 0, done.stderr
    results = {row.pop("name"): row for row in map(json.loads, done.stdout.splitlines())}
    return {name: {**row, "stderr": done.stderr} for name, row in results.items()}


@pytest.fixture
def printed(request: pytest.FixtureRequest, runs: dict[str, Future[Results]]) -> str:
    """What an example printed; it must have ended well and cleaned up."""
    result = runs[request.param.partition("/")[0]].result()[request.param]
    assert not result["failure"], f"{result['failure']}\n{result['stderr']}"
    assert not result["left"], f"It leaves {result['left']} in its reader's folder."
    return str(result["printed"])


def after(printed: str, heading: str) -> list[str]:
    """The lines that follow a heading, up to an empty one."""
    return [line.strip() for line in printed.partition(f"{heading}\n")[2].partition("\n\n")[0].splitlines()]


def answers(printed: str) -> dict[str, str]:
    """The lines of the form ``name: what``."""
    return dict(line.split(": ", 1) for line in printed.splitlines() if ": " in line)


def test_every_example_is_tested_here_and_short():
    assert sorted(re.findall(r'"((?:langchain|llama_index)/\w+\.py)"', Path(__file__).read_text("utf-8"))) == FILES
    lengths = {name: len((EXAMPLES / name).read_text("utf-8").splitlines()) for name in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def found_by(printed: str) -> list[str]:
    """The ids of what was found, each on the line after its question."""
    return re.findall(r"^  relevance 0\.\d\d  (\w+): ", printed, re.MULTILINE)


@of("langchain/cross_lingual.py")
def test_questions_in_four_languages_find_english_notices(printed):
    assert found_by(printed) == ["buses", "refunds", "dogs", "bicycles"]
    matches = answers(printed)["Best matches"]
    assert "último -> last" in matches
    assert "autobús -> bus" in matches
    assert answers(printed)["Added"] == "dining"
    assert answers(printed)["In English only"] != "dining"


@of("llama_index/cross_lingual.py")
def test_questions_find_rules_in_five_languages_none_of_which_is_theirs(printed):
    assert found_by(printed) == ["en", "de", "fr", "es", "zh"]
    assert answers(printed)["In Chinese only"] == "zh"
    assert answers(printed)["The query engine's source"] == "fr"


@of("langchain/chain.py")
def test_a_chain_answers_from_the_best_passage(printed):
    assert "Answer:   Bicycles belong in the shed" in printed
    assert after(printed, "Sources:")[0].endswith("bicycles")


@of("llama_index/query_engine.py")
def test_a_query_engine_answers_from_the_best_passage(printed):
    assert "kettle" in after(printed, "All rooms:")[0]
    assert {line.split()[1] for line in after(printed, "The bathroom only:")} == {"drain:", "mirror:"}
    assert answers(printed)["The query engine's source"] == "kettle"


@of("langchain/chat_history.py", "llama_index/chat_engine.py")
def test_a_chat_understands_a_question_by_what_was_said_before(printed):
    replies = re.findall(r"^House: (.*)$", printed, re.MULTILINE)
    assert len(replies) == 2
    assert all(reply.startswith("The washing machines") for reply in replies)
    assert answers(printed)["Without the history"].startswith("If the boiler breaks")


FOUND = "How is a document scored against a query?"


@of("langchain/index_folder.py")
def test_a_langchain_store_keeps_in_step_with_a_folder(printed):
    counts = re.findall(r"^(\d+) passages added, (\d+) known, (\d+) removed$", printed, re.MULTILINE)
    (first, *_, none), (second, known, removed) = [tuple(map(int, run)) for run in counts]
    assert first > 50
    assert none == 0
    assert second == 1
    assert removed > 0
    assert known >= first - removed
    assert any("late-interaction.md: " in line for line in after(printed, FOUND))


@of("llama_index/index_folder.py")
def test_a_llama_index_index_keeps_in_step_with_a_folder(printed):
    documents, passages = map(int, re.search(r"(\d+) documents in (\d+) passages", printed).groups())
    assert passages > 50
    assert f"1 document written, {documents} as they were" in printed
    assert any("late-interaction.md: " in line for line in after(printed, FOUND))


@of("langchain/filters.py", "llama_index/filters.py")
def test_filters_select_by_metadata(printed):
    found = {title: set(re.findall(r"(\w+) \(", names)) for title, names in answers(printed).items()}
    everything = {"frost", "storm", "wages", "crane"}
    expected = {"All letters": everything, "About work": {"wages", "crane"}}
    langchain = {
        "Weather of 1911": {"storm"},
        "Before 1912": {"frost", "storm", "wages"},
        "Of no work": {"frost", "storm"},
    }
    llama_index = {
        "Of 1911": {"storm", "wages"},
        "Early or about a loss": {"frost", "storm"},
        "Not about work": {"frost", "storm"},
        "Of 1911, and early or about work": {"wages"},
    }
    assert found == {**expected, **(langchain if "Before 1912" in found else llama_index)}


@of("langchain/rerank_bm25.py", "llama_index/rerank_bm25.py")
def test_reranking_puts_first_what_bm25_found_third(printed):
    before, ranked = after(printed, "BM25 alone:"), after(printed, "Ranked by MaxSim:")
    assert [line.find("If money was taken twice") >= 0 for line in before] == [False, False, True, False]
    assert "If money was taken twice" in ranked[0]
    assert len(ranked) == 2


@of("langchain/switch_dimension.py", "llama_index/switch_dimension.py")
def test_a_collection_goes_on_after_the_switch_to_64_dimensions(printed):
    shown = re.findall(r"^(\d+) numbers a token: (\w+), \w+ ([\d.]+)$", printed, re.MULTILINE)
    assert [(dim, best) for dim, best, _ in shown] == [("128", "rice"), ("64", "rice"), ("64", "rice")]
    assert shown[0][2] != shown[1][2] == shown[2][2]
    assert re.search(r"^Migrated 4 ", printed, re.MULTILINE)


@of("langchain/finetune.py", "llama_index/finetune.py")
def test_a_finetuned_model_is_served_and_answers_more(printed):
    before, trained = re.findall(r"^[\w-]+: (\d) of 5 questions answered$", printed, re.MULTILINE)
    assert int(before) < int(trained) >= 4


@of("langchain/served_encoder.py", "llama_index/served_encoder.py")
def test_a_served_model_indexes_and_searches(printed):
    assert re.findall(r"^(?:When|Where) .*\? (\w+)$", printed, re.MULTILINE) == ["pool", "keys"]
    assert answers(printed).get("Reranked", "Lockers").startswith("Lockers")
    assert "The server ended with status 0." in printed


@of("langchain/multi_query.py")
def test_a_multi_query_chain_finds_what_one_question_misses(printed):
    assert after(printed, "Asked:")[:3] == [
        "Where do I leave my bike?",
        "When is the boiler serviced?",
        "What does the washing machine take?",
    ]
    assert set(answers(printed)["Found"].split(", ")) == {"bicycles", "boiler", "laundry"}
    assert ", " not in answers(printed)["Found by the one question"]


@of("langchain/agent_tool.py")
def test_an_agent_calls_the_retriever_as_a_tool(printed):
    found = answers(printed)
    assert found["Tool"] == "shop_rules('query',)"
    assert found["Called with"] == found["Question"]
    assert found["Sources"] == "['warranty']"
    assert found["The shop's rules say"].startswith("Electric tools have a warranty")


def run_example(name: str) -> dict[str, Any]:
    """Run an example as a main program in an empty folder. What the processes that it starts print is caught too."""
    path = str(EXAMPLES / name)
    failure = ""
    stdout = os.dup(1)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        os.chdir(folder)
        os.dup2(printed.fileno(), 1)
        sys.argv = [path]
        try:
            runpy.run_path(path, run_name="__main__")
        except BaseException:
            failure = traceback.format_exc()
        finally:
            sys.stdout.flush()
            os.dup2(stdout, 1)
            os.close(stdout)
        left = os.listdir(folder)
        os.chdir(EXAMPLES)
        printed.seek(0)
        return {"name": name, "printed": printed.read(), "failure": failure, "left": left}


if __name__ == "__main__":
    for one in sys.argv[1:]:
        print(json.dumps(run_example(one)), flush=True)
