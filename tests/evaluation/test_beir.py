"""BEIR folders: what is read from them, and what is said about those that are broken."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jcv2_plugin import Document
from jcv2_plugin.evaluation.beir import BeirDataset, BeirFormatError, Passage, iter_corpus

CORPUS = [
    {"_id": "d1", "title": "Sea", "text": "The sea is salt."},
    {"_id": "d2", "title": "", "text": "No title here."},
    {"_id": "d3", "text": "Nor here."},
    {"_id": "d4", "title": "Title alone", "text": ""},
]
QUERIES = [
    {"_id": "q1", "text": "Is the sea salt?"},
    {"_id": "q2", "text": "What has no title?"},
    {"_id": "unjudged", "text": "Who asks?"},
]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\td2\t1\nq2\td3\t0\n"


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound data set, for a test to break."""
    path = tmp_path / "tiny"
    (path / "qrels").mkdir(parents=True)
    (path / "corpus.jsonl").write_text(lines(CORPUS), encoding="utf-8")
    (path / "queries.jsonl").write_text(lines(QUERIES), encoding="utf-8")
    (path / "qrels" / "test.tsv").write_text(QRELS, encoding="utf-8")
    return path


def test_reads_corpus_queries_and_judgments(folder: Path) -> None:
    dataset = BeirDataset.read(folder)
    assert dataset.name == "tiny"
    assert dataset.corpus == {
        "d1": Passage("Sea", "The sea is salt."),
        "d2": Passage("", "No title here."),
        "d3": Passage("", "Nor here."),
        "d4": Passage("Title alone", ""),
    }
    assert dataset.queries == {"q1": "Is the sea salt?", "q2": "What has no title?"}
    assert dataset.qrels == {"q1": {"d1": 2}, "q2": {"d2": 1, "d3": 0}}
    assert dataset.language is None
    assert dataset.skipped == ()


def test_documents_join_title_and_text(folder: Path) -> None:
    expected = [
        Document("Sea The sea is salt.", "d1", {"title": "Sea"}),
        Document("No title here.", "d2", {}),
        Document("Nor here.", "d3", {}),
        Document("Title alone", "d4", {"title": "Title alone"}),
    ]
    assert list(BeirDataset.read(folder).documents()) == expected
    assert list(iter_corpus(folder)) == expected


def test_the_stream_reads_no_further_than_asked(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a") as file:
        file.write("not json\n")
    reader = iter_corpus(folder)
    assert [next(reader).id for _ in range(4)] == ["d1", "d2", "d3", "d4"]
    with pytest.raises(BeirFormatError, match=r"corpus\.jsonl, line 5 is not JSON"):
        next(reader)


def test_another_split(folder: Path) -> None:
    # The same judgment twice is one.
    (folder / "qrels" / "mini.tsv").write_text("query-id\tcorpus-id\tscore\n" + 2 * "unjudged\td4\t1\n")
    dataset = BeirDataset.read(folder, split="mini")
    assert dataset.queries == {"unjudged": "Who asks?"}
    assert dataset.qrels == {"unjudged": {"d4": 1}}


@pytest.mark.parametrize("key", ["lang", "language"])
def test_language_comes_from_meta(folder: Path, key: str) -> None:
    (folder / "meta.json").write_text(json.dumps({key: "zh"}))
    assert BeirDataset.read(folder).language == "zh"


def test_documents_without_text_are_counted_and_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty = [{"_id": f"e{number}", "title": " ", "text": "\n"} for number in range(6)]
    (folder / "corpus.jsonl").write_text(lines(CORPUS + empty))
    (folder / "qrels" / "test.tsv").write_text(QRELS + "q1\te0\t1\n")  # A judged one is no error.
    with caplog.at_level(logging.WARNING):
        dataset = BeirDataset.read(folder)
    assert list(dataset.corpus) == ["d1", "d2", "d3", "d4"]
    assert dataset.skipped == tuple(f"e{number}" for number in range(6))
    assert dataset.qrels["q1"] == {"d1": 2, "e0": 1}
    assert "6 of 10 documents have no text" in caplog.text
    assert "'e4' and 1 more" in caplog.text

    reader = iter_corpus(folder)
    assert len(list(reader)) == 4
    assert len(reader.skipped) == 6


def test_byte_order_marks_blank_lines_and_windows_line_ends(folder: Path) -> None:
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        path = folder / name
        text = path.read_text(encoding="utf-8").replace("\n", "\r\n") + "\r\n"
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    dataset = BeirDataset.read(folder)
    assert list(dataset.corpus) == ["d1", "d2", "d3", "d4"]
    assert dataset.qrels == {"q1": {"d1": 2}, "q2": {"d2": 1, "d3": 0}}


def append(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(text)

    return change


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


HEADER = "query-id\tcorpus-id\tscore\n"
BROKEN = {
    "no corpus": (remove("corpus.jsonl"), r"no corpus\.jsonl in .*tiny.*A BEIR folder holds"),
    "no queries": (remove("queries.jsonl"), r"no queries\.jsonl in .*A BEIR folder holds"),
    "no split at all": (remove("qrels/test.tsv"), r"no qrels/test\.tsv in .*A BEIR folder holds"),
    "corpus: bad JSON": (append("corpus.jsonl", '{"_id": \n'), r"corpus\.jsonl, line 5 is not JSON"),
    "corpus: bad UTF-8": (write("corpus.jsonl", b'{"_id": "\xff"}\n'), r"corpus\.jsonl, line 1 is not JSON in UTF-8"),
    "corpus: no object": (append("corpus.jsonl", "[1]\n"), r"line 5 must be a JSON object, got \[1\]"),
    "corpus: no id": (
        append("corpus.jsonl", '{"text": "a"}\n'),
        r"line 5: the field '_id' is missing; there is 'text'",
    ),
    "corpus: no text": (
        append("corpus.jsonl", '{"_id": "x"}\n'),
        r"line 5: the field 'text' is missing; there is '_id'",
    ),
    "corpus: nothing": (append("corpus.jsonl", "{}\n"), r"line 5: the field 'text' is missing; there is no field"),
    "corpus: id is a number": (append("corpus.jsonl", '{"_id": 7, "text": "a"}\n'), r"'_id' must be a string, got 7"),
    "corpus: empty id": (append("corpus.jsonl", '{"_id": "", "text": "a"}\n'), r"line 5: '_id' is empty"),
    "corpus: NUL in an id": (append("corpus.jsonl", '{"_id": "d1\\u0000", "text": "a"}\n'), r"line 5: .*'d1\\x00' has"),
    "qrels: NUL in an id": (append("qrels/test.tsv", "q1\td1\0\t1\n"), r"line 5: the id 'd1\\x00' has a NUL"),
    "corpus: id twice": (append("corpus.jsonl", '{"_id": "d1", "text": "a"}\n'), r"corpus.*'d1' comes twice"),
    "corpus: empty": (write("corpus.jsonl", "\n"), r"corpus\.jsonl has no document with any text"),
    "queries: bad JSON": (append("queries.jsonl", "?\n"), r"queries\.jsonl, line 4 is not JSON"),
    "queries: no text": (append("queries.jsonl", '{"_id": "q3"}\n'), r"queries\.jsonl, line 4: the field 'text'"),
    "queries: text is null": (append("queries.jsonl", '{"_id": "q3", "text": null}\n'), r"'text' must be a string"),
    "queries: id twice": (append("queries.jsonl", '{"_id": "q1", "text": "a"}\n'), r"line 4: the id 'q1' comes twice"),
    "queries: blank": (write("queries.jsonl", '{"_id": "q1", "text": " "}\n'), r"line 1: the query 'q1' .* no text"),
    "queries: empty": (write("queries.jsonl", ""), r"queries\.jsonl has no queries"),
    "qrels: empty": (write("qrels/test.tsv", ""), r"test\.tsv has no judgments"),
    "qrels: header alone": (write("qrels/test.tsv", HEADER), r"test\.tsv has no judgments"),
    "qrels: no header": (write("qrels/test.tsv", "q1\td1\t1\n"), r"test\.tsv, line 1: expected the header query-id"),
    "qrels: spaces": (append("qrels/test.tsv", "q1 d1 1\n"), r"test\.tsv, line 5: expected three columns"),
    "qrels: TREC's four": (append("qrels/test.tsv", "q1\t0\td1\t1\n"), r"line 5: expected three columns"),
    "qrels: no id": (append("qrels/test.tsv", "q1\t\t1\n"), r"line 5: expected three columns"),
    "qrels: score": (append("qrels/test.tsv", "q1\td2\thigh\n"), r"line 5: the score must be an integer, got 'high'"),
    "qrels: many digits": (append("qrels/test.tsv", f"q1\td2\t1{'0' * 5000}\n"), r"must be an integer, got '1000+\.$"),
    "qrels: score of 2**31": (append("qrels/test.tsv", "q1\td2\t2147483648\n"), "at most 1,000,000, got '2147483648'"),
    "qrels: score of -10**400": (append("qrels/test.tsv", f"q1\td2\t-1{'0' * 400}\n"), "a score is at most 1,000,000"),
    "qrels: bad UTF-8": (write("qrels/test.tsv", HEADER.encode() + b"q\xff\td1\t1\n"), r"line 2 is not UTF-8"),
    "qrels: contradiction": (append("qrels/test.tsv", "q1\td1\t0\n"), r"line 5: document 'd1' is judged 0 .* 2 before"),
    "qrels: unknown query": (append("qrels/test.tsv", "q9\td1\t1\n"), r"names 1 queries that are not in .*: 'q9'\."),
    "meta: bad JSON": (write("meta.json", "{"), r"meta\.json is not JSON"),
    "meta: language": (write("meta.json", '{"lang": ["en"]}'), r"language must be a string .*\['en'\]"),
}


@pytest.mark.parametrize("change, message", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_broken_is_named(folder: Path, change: Callable[[Path], None], message: str) -> None:
    change(folder)
    with pytest.raises(BeirFormatError, match=message):
        BeirDataset.read(folder)


def test_missing_documents_are_counted_and_the_first_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing = [f"x{number}" for number in range(8)]
    append("qrels/test.tsv", "".join(f"q1\t{one}\t1\n" for one in missing))(folder)
    dataset = BeirDataset.read(folder)
    assert dataset.missing == tuple(missing)
    assert dataset.qrels["q1"] == {"d1": 2, **dict.fromkeys(missing, 1)}
    (said,) = caplog.messages
    assert "names 8 documents that are not in" in said
    assert said.endswith("'x0', 'x1', 'x2', 'x3', 'x4' and 3 more. They count as not found, as in published figures.")


def test_judgments_of_another_corpus(folder: Path) -> None:
    write("qrels/test.tsv", HEADER + "q1\tx1\t1\nq2\tx2\t1\n")(folder)
    with pytest.raises(BeirFormatError, match=r"names 2 documents .*: 'x1', 'x2'\. That is all of them: use the"):
        BeirDataset.read(folder)


def test_queries_that_are_documents_too(folder: Path) -> None:
    queries = [
        {"_id": "d1", "text": "The  sea is salt."},  # as the document but for its title and a blank
        {"_id": "d2", "text": "Who asks?"},
        {"_id": "d3", "text": "Nor here."},
        {"_id": "d4", "text": "Title alone"},
        {"_id": "q5", "text": "No title here."},
    ]
    (folder / "queries.jsonl").write_text(lines(queries))
    (folder / "qrels" / "test.tsv").write_text(HEADER + "d1\td2\t1\nd2\td3\t1\nd3\td3\t1\nd4\td4\t0\nq5\td2\t1\n")
    dataset = BeirDataset.read(folder)
    # Not d3, which is its own answer.
    assert dataset.own_documents() == {"d1", "d4"}
    assert dataset.own_documents(True) == {"d1", "d2", "d3", "d4"}
    assert dataset.own_documents(False) == frozenset()


def test_a_missing_split_names_those_there_are(folder: Path) -> None:
    with pytest.raises(BeirFormatError, match=r"no qrels/dev\.tsv in .*the splits test; take one"):
        BeirDataset.read(folder, split="dev")


@pytest.mark.parametrize("read", [BeirDataset.read, iter_corpus])
def test_a_missing_folder(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(BeirFormatError, match=r"no folder .*nowhere\. A BEIR folder holds"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name, documents, queries, judgments, language, skipped",
    [
        ("xquad-en", 240, 1190, 1190, "en", 0),
        ("cranfield", 1398, 225, 1837, "en", 2),
        ("cosqa-dev", 6267, 500, 500, "en-python", 0),
    ],
)
def test_real_sets(
    data_dir: Path, name: str, documents: int, queries: int, judgments: int, language: str, skipped: int
) -> None:
    dataset = BeirDataset.read(data_dir / name)
    found = sum(len(one) for one in dataset.qrels.values())
    assert (len(dataset.corpus), len(dataset.queries), found) == (documents, queries, judgments)
    assert (dataset.language, len(dataset.skipped)) == (language, skipped)
