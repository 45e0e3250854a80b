"""Mining hard negatives: what is turned down, where candidates come from, and runs that are stopped."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import starting
from training_samples import read_jsonl as read
from training_samples import write_jsonl as write
from typer.testing import CliRunner

from jcv2_plugin import ColbertCollection
from jcv2_plugin.errors import Jcv2Error, UnknownDimError
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.bm25 import bm25_run
from jcv2_trainer.cli.app import app
from jcv2_trainer.data.check import check_file
from jcv2_trainer.data.reading import DataError, read_jsonl
from jcv2_trainer.mining.mine import MineRecipe, Survey, choose_negatives, mine
from jcv2_trainer.mining.resumable import OutOfMemoryError, OutputError, ResumableOutput, short_of_memory
from jcv2_trainer.mining.sources import Bm25Source, CollectionSource, Found, ModelSource, passage_key, passages
from jcv2_trainer.recipes import RecipeError, load_recipe

CITIES = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Greece": "Athens",
    "Norway": "Oslo",
    "Finland": "Helsinki",
}
CORPUS = [f"{city} is the capital of {country} and its largest city." for country, city in CITIES.items()]
CORPUS += [f"The cuisine of {country} is known for its bread and its soups." for country in CITIES]
ROWS = [
    {
        "query": f"What is the capital of {country}?",
        "positive": f"{city} is the capital of {country} and its largest city.",
        "lang": "en",
        "source": "made",
        "note": number,
    }
    for number, (country, city) in enumerate(CITIES.items())
]


def recipe(**changes) -> MineRecipe:
    return load_recipe(MineRecipe, "mine", overrides=changes)


FREE = {"relative_margin": -1e9, "negatives": 5}
"""No margin; what ranks next to the positive is taken."""


@pytest.fixture
def data(tmp_path) -> Path:
    return write(tmp_path / "data.jsonl", ROWS)


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write(tmp_path / "corpus.jsonl", [{"text": text} for text in CORPUS])


@pytest.fixture(scope="module")
def memory(mini):
    with ColbertCollection.create(":memory:", encoder=mini, dim=64) as collection:
        collection.add(CORPUS)
        yield collection


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


# What is turned down


def chosen(hits, positive_score=10.0, *, row=None, known=(), draw=None, **changes):
    counts: Counter[str] = Counter()
    row = row or {"query": "q", "positive": "the right one"}
    negatives = choose_negatives(
        row, Found(hits, positive_score), {passage_key(one) for one in known}, recipe(**changes), counts, draw
    )
    return negatives, dict(counts)


def test_no_positive_of_the_query_is_a_negative_however_its_white_space_is():
    hits = [(" the  right\tone\n", 9.0), ("also right", 8.5), ("q", 8.2), ("wrong", 8.0)]
    assert chosen(hits) == (["also right", "wrong"], {"positives": 2})
    assert chosen(hits, known=["also\nright "]) == (["wrong"], {"positives": 3})


def test_a_passage_is_taken_once():
    hits = [("wrong", 8.0), ("wrong ", 8.0), ("wrong", 7.0), ("bad", 6.0)]
    assert chosen(hits) == (["wrong", "bad"], {"duplicates": 2})


@pytest.mark.parametrize(
    "changes, hits, positive, left, counts",
    [
        (
            {},
            {"right too": 9.6, "at the limit": 9.5, "hard": 9.0},
            10,
            ["at the limit", "hard"],
            {"relative_margin": 1},
        ),
        ({"relative_margin": -1.0}, {"right too": 10.5, "hard": 9.0}, 10, ["right too", "hard"], {}),
        ({}, {"close": -10.2, "far": -11.0}, -10, ["far"], {"relative_margin": 1}),
        ({}, {"right too": 8.5, "hard": 7.9}, 10, ["right too", "hard"], {}),
        ({"absolute_margin": 2.0}, {"right too": 8.5, "hard": 7.9}, 10, ["hard"], {"absolute_margin": 1}),
        ({"max_score": 8.0}, {"right too": 8.5, "hard": 7.9}, 10, ["hard"], {"max_score": 1}),
    ],
)
def test_margins_drop_planted_false_negatives(changes, hits, positive, left, counts):
    assert chosen(list(hits.items()), positive, **changes) == (left, counts)


def test_ranks_are_counted_without_positives_and_repetitions():
    hits = [("the right one", 9.4), ("1", 9.0), ("1", 9.0), ("2", 8.0), ("3", 7.0), ("4", 6.0)]
    negatives, counts = chosen(hits, range_min=1, range_max=3, negatives=2)
    assert negatives == ["2", "3"]
    assert counts == {"positives": 1, "duplicates": 1, "range_min": 1}


def test_random_sampling_draws_from_all_that_is_left_and_keeps_their_order():
    hits = [(str(number), 9.0 - number / 100) for number in range(50)]
    negatives, _ = chosen(hits, draw=random.Random(1), sampling="random", range_max=40)
    assert len(negatives) == 7
    assert negatives == sorted(negatives, key=int)
    assert negatives != [str(number) for number in range(7)]
    assert int(negatives[-1]) < 40


@pytest.mark.parametrize(
    "own, keep, expected",
    [
        (["mine", "the right one ", "mine"], True, ["mine", "new"]),
        (["mine", "the right one ", "mine"], False, ["mine", "new"]),  # as the first two hits
        (["a", "b", "c"], True, ["a", "b", "c"]),
        (["a", "b", "c"], False, ["mine", "new"]),
    ],
)
def test_own_negatives_are_kept_before_new_ones_but_not_if_they_are_right(own, keep, expected):
    row = {"query": "q", "positive": "the right one", "negatives": own}
    hits = [("mine", 9.0), ("new", 8.0), ("newer", 7.0)]
    assert chosen(hits, row=row, keep_existing=keep, negatives=2)[0] == expected


def test_a_survey_knows_all_positives_of_a_query(tmp_path):
    rows = [("q", "one"), ("p", "two"), (" q ", "three"), ("q", "one")]
    survey = Survey(write(tmp_path / "a.jsonl", [{"query": query, "positive": right} for query, right in rows]))
    assert survey.rows == 4
    assert survey.positives("q") == {passage_key("one"), passage_key("three")}
    assert survey.positives("p") == {passage_key("two")}
    assert survey.positives("unknown") == set()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"range_max": 5}, "hold fewer than 7"),
        ({"relative_margin": 1.0}, "relative_margin"),
        ({"max_score": float("nan")}, "max_score"),
        ({"sampling": "best"}, "sampling"),
    ],
)
def test_recipes_out_of_range_are_refused(changes, said):
    with pytest.raises(RecipeError, match=said):
        recipe(**changes)


# Where they come from


def test_a_collection_gives_the_passages_that_rank_next_to_the_positive(memory, data, tmp_path):
    report = mine(data, tmp_path / "out.jsonl", memory, recipe(**FREE))
    rows = read(tmp_path / "out.jsonl")
    assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS
    for row in rows:
        hits = [hit.text for hit in memory.search(row["query"], 6)]
        assert row["negatives"] == [text for text in hits if text != row["positive"]][:5]
    assert report.rows == report.counts["full"] == 10
    assert report.counts["negatives"] == 50
    assert check_file(tmp_path / "out.jsonl").errors == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "out.jsonl"]


def test_a_positive_that_a_collection_lacks_is_scored_as_if_it_were_there(memory):
    source = CollectionSource(memory)
    query, text = ROWS[0]["query"], CORPUS[12]
    known = next(hit.score for hit in memory.search(query, 20) if hit.text == text)
    (found,) = source.find([query], [text], 1, False)
    assert text not in [one for one, _ in found.hits]
    assert found.positive_score == pytest.approx(known, abs=2e-3)  # the stored vectors are float16
    (found,) = source.find([query], [text], 20, True)
    assert found.positive_score == known


def test_bm25_gives_the_scores_of_the_baseline_to_passages_in_the_index_and_others(tmp_path, data, corpus):
    with Bm25Source(corpus).opened(data, "en", tmp_path, None) as find:
        found = find([row["query"] for row in ROWS], [row["positive"] for row in ROWS], 20, False)
        (other,) = find(["capital capital of Rome"], ["Rome, capital of capitals"], 20, False)
        nothing = find(["...", "zebra"], ["zebra", "zebra"], 20, False)
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", [{"_id": str(number), "text": text} for number, text in enumerate(CORPUS)])
    write(folder / "queries.jsonl", [{"_id": str(number), "text": row["query"]} for number, row in enumerate(ROWS)])
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"{n}\t{n}\t1\n" for n in range(10))
    )
    expected = bm25_run(BeirDataset.read(folder), "en", 20)
    for number, one in enumerate(found):
        scores = {str(CORPUS.index(text)): score for text, score in one.hits}
        assert scores == pytest.approx(expected[str(number)], rel=1e-5)
        assert one.positive_score == pytest.approx(expected[str(number)][str(number)], rel=1e-5)
    assert other.positive_score > 0
    assert [(one.hits, one.positive_score) for one in nothing] == [([], 0.0), ([], 0.0)]


def test_bm25_mines_from_the_files_own_passages(data, tmp_path):
    rows = [{**row, "negatives": [CORPUS[10 + number]]} for number, row in enumerate(ROWS)]
    report = mine(write(data, rows), tmp_path / "out.jsonl", Bm25Source(), recipe(negatives=3))
    assert all(set(row["negatives"]) <= {*CORPUS} - {row["positive"]} for row in read(tmp_path / "out.jsonl"))
    assert (report.counts["full"], report.counts["negatives"]) == (10, 30)


def test_bm25_takes_the_language_of_the_rows_or_the_one_given(tmp_path):
    rows = [{"query": "東京の首都", "positive": "東京は日本の首都である", "lang": "ja"}]
    corpus = write(tmp_path / "corpus.jsonl", [{"text": "京都は古い首都であった"}, {"text": "寿司は美味しい"}])
    data = write(tmp_path / "data.jsonl", rows)
    mine(data, tmp_path / "ja.jsonl", Bm25Source(corpus), recipe(**FREE))
    assert read(tmp_path / "ja.jsonl")[0]["negatives"] == ["京都は古い首都であった"]
    report = mine(data, tmp_path / "en.jsonl", Bm25Source(corpus), recipe(lang="en", **FREE))
    assert report.counts["empty"] == 1
    odd = write(tmp_path / "odd.jsonl", [{**rows[0], "lang": "Japanese"}])
    with pytest.raises(Jcv2Error, match=r"'Japanese' is not a language.*--lang"):
        mine(odd, tmp_path / "odd-out.jsonl", Bm25Source(corpus), recipe())


def test_a_model_ranks_a_corpus_file_in_an_index_that_is_gone_afterwards(data, corpus, memory, tmp_path):
    indexed: list[int] = []
    source = ModelSource("mini", corpus, dim=64)
    mine(data, tmp_path / "out.jsonl", source, recipe(**FREE), index_progress=indexed.append)
    mine(data, tmp_path / "other.jsonl", memory, recipe(**FREE))
    same = [
        set(one["negatives"]) == set(other["negatives"])
        for one, other in zip(read(tmp_path / "out.jsonl"), read(tmp_path / "other.jsonl"), strict=True)
    ]
    assert sum(same) >= 9  # ties apart
    assert sum(indexed) == len(CORPUS)
    assert not (tmp_path / "out.jsonl.index").exists()
    with pytest.raises(UnknownDimError):
        mine(data, tmp_path / "more.jsonl", ModelSource("mini", corpus, dim=77), recipe())
    assert not list(tmp_path.glob("more*"))


def test_a_corpus_has_texts_with_their_titles_once(tmp_path, data):
    records = [{"text": "a"}, {"text": " a "}, {"text": "b", "title": "T"}, {"text": "c", "title": None}, {"text": ""}]
    assert list(passages(write(tmp_path / "c.jsonl", records), data)) == ["a", "T b", "c"]
    with pytest.raises(DataError, match=r"c\.jsonl:1: 'text' must be a text, got None"):
        list(passages(write(tmp_path / "c.jsonl", [{"passage": "a"}]), data))
    with pytest.raises(DataError, match="no passages"):
        list(passages(write(tmp_path / "c.jsonl", []), data))


# What is written


def test_stale_scores_are_removed_and_fitting_ones_kept(tmp_path, corpus):
    rows = [
        {**ROWS[0], "negatives": [CORPUS[1]], "scores": [2.0, 1.0]},
        {**ROWS[1], "negatives": CORPUS[4:6], "scores": [2.0, 1.0, 0.5]},
    ]
    data = write(tmp_path / "data.jsonl", rows)
    settings = recipe(keep_existing=True, relative_margin=-1e9, negatives=2)
    report = mine(data, tmp_path / "out.jsonl", Bm25Source(corpus), settings)
    first, second = read(tmp_path / "out.jsonl")
    assert "scores" not in first
    assert first["negatives"][0] == CORPUS[1]
    assert second == rows[1]
    assert report.counts["stale_scores"] == 1


def test_rows_without_negatives_are_written_as_pairs_or_left_out(data, tmp_path, corpus):
    rows = [ROWS[0], {**ROWS[1], "query": "zebra", "negatives": ["x"], "scores": [1.0, 0.0]}, ROWS[2]]
    write(data, rows)
    report = mine(data, tmp_path / "a.jsonl", Bm25Source(corpus), recipe(**FREE))
    assert [row.get("negatives") is None for row in read(tmp_path / "a.jsonl")] == [False, True, False]
    assert "scores" not in read(tmp_path / "a.jsonl")[1]
    assert report.counts["empty"] == 1
    report = mine(data, tmp_path / "b.jsonl", Bm25Source(corpus), recipe(drop_empty=True, **FREE))
    assert [row["note"] for row in read(tmp_path / "b.jsonl")] == [0, 2]
    assert (report.rows, report.counts["dropped"]) == (3, 1)


def test_other_names_of_fields_are_read_and_the_result_may_be_compressed(tmp_path, corpus):
    rows = [{"anchor": row["query"], "positive": row["positive"], "negative": "old"} for row in ROWS]
    mine(write(tmp_path / "data.jsonl", rows), tmp_path / "out.jsonl.gz", Bm25Source(corpus), recipe(**FREE))
    written = [row for _, row in read_jsonl(tmp_path / "out.jsonl.gz")]
    assert [row["query"] for row in written] == [row["query"] for row in ROWS]
    assert all("old" not in row["negatives"] and "negative" not in row for row in written)


def test_a_bad_row_is_named_before_anything_is_written(data, tmp_path, corpus):
    write(data, [*ROWS, {"query": "q", "positive": " "}])
    with pytest.raises(DataError, match=r"data\.jsonl:11: \[empty-text\] positive: .*jcv2-finetune check"):
        mine(data, tmp_path / "out.jsonl", Bm25Source(corpus), recipe())
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(DataError, match="has no rows"):
        mine(write(data, []), tmp_path / "out.jsonl", Bm25Source(corpus), recipe())


# Runs that are stopped


class Stopped(Exception):
    pass


def stop_after(batches: int):
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == batches:
            raise Stopped

    return progress


def test_a_stopped_run_goes_on_and_gives_the_same_file(data, corpus, tmp_path):
    settings = recipe(batch_size=3, sampling="random", **FREE)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    expected = mine(data, whole, Bm25Source(corpus), settings)
    with pytest.raises(Stopped):
        mine(data, out, Bm25Source(corpus), settings, progress=stop_after(2))
    partial = tmp_path / "out.jsonl.partial"
    assert not out.exists()
    assert len(read(partial)) == 6
    with partial.open("ab") as file:
        file.write(b'{"query": "torn')
    with pytest.raises(OutputError, match="--resume"):
        mine(data, out, Bm25Source(corpus), settings)
    done: list[tuple[int, int]] = []
    smaller = settings.model_copy(update={"batch_size": 2})
    report = mine(data, out, Bm25Source(corpus), smaller, resume=True, progress=lambda one, of: done.append((one, of)))
    assert out.read_bytes() == whole.read_bytes()
    assert done == [(8, 10), (10, 10)]
    assert report.resumed_at == 6
    assert report.counts == expected.counts
    assert not list(tmp_path.glob("out.jsonl.*"))


def test_a_stopped_run_keeps_what_a_model_has_encoded(data, corpus, tmp_path):
    source, settings = ModelSource("mini", corpus, dim=64), recipe(batch_size=3, **FREE)
    out = tmp_path / "out.jsonl"

    def interrupt(done: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        mine(data, out, source, settings, index_progress=interrupt)
    with ColbertCollection.open(path=tmp_path / "out.jsonl.index") as index:
        assert index.count() == len(CORPUS)
    with pytest.raises(OutputError, match="--resume"):
        mine(data, out, source, settings)
    mine(data, out, source, settings, resume=True)
    assert not list(tmp_path.glob("out.jsonl.*"))


def same_size_and_time(data: Path, corpus: Path) -> None:
    status = data.stat()
    data.write_bytes(data.read_bytes().replace(b"Madrid", b"Lisboa"))
    os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change, settings, said",
    [
        (lambda data, corpus: write(data, ROWS[:9]), {}, r"data\.jsonl has changed since the run started.*--force"),
        (same_size_and_time, {}, r"data\.jsonl has changed since the run started"),
        (lambda data, corpus: write(corpus, [{"text": "a"}]), {}, r"corpus\.jsonl has changed"),
        (lambda data, corpus: None, {"relative_margin": 0.1}, r"relative_margin 0\.05, not 0\.1"),
    ],
)
def test_a_run_does_not_go_on_with_another_input_or_other_settings(change, settings, said, data, corpus, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(Stopped):
        mine(data, out, Bm25Source(corpus), recipe(batch_size=3), progress=stop_after(1))
    change(data, corpus)
    with pytest.raises(OutputError, match=said):
        mine(data, out, Bm25Source(corpus), recipe(**settings), resume=True)
    assert len(read(tmp_path / "out.jsonl.partial")) == 3  # still there
    mine(data, out, Bm25Source(corpus), recipe(), force=True)
    assert len(read(out)) == len(read(data))


def test_no_link_is_followed(data, corpus, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out.jsonl.gz.packing").symlink_to(victim)
    mine(data, tmp_path / "out.jsonl.gz", Bm25Source(corpus), recipe())
    for name in ("out.jsonl.partial", "out.jsonl.partial.json"):
        (tmp_path / name).symlink_to(victim)
        for options in ({"resume": True}, {"force": True}):
            with pytest.raises(OutputError, match="is a link"):
                mine(data, tmp_path / "out.jsonl", Bm25Source(corpus), recipe(), **options)
        (tmp_path / name).unlink()
    assert victim.read_text() == "precious"


def test_what_is_left_of_a_run_may_be_damaged(data, corpus, tmp_path):
    out, source = tmp_path / "out.jsonl", Bm25Source(corpus)
    with pytest.raises(Stopped):
        mine(data, out, source, recipe(batch_size=3), progress=stop_after(1))
    partial, state = tmp_path / "out.jsonl.partial", tmp_path / "out.jsonl.partial.json"
    kept = partial.read_bytes()
    partial.write_bytes(kept[:-10])
    with pytest.raises(OutputError, match=r"lists .*--force"):
        mine(data, out, source, recipe(), resume=True)
    partial.write_bytes(kept)
    state.write_text("{")
    with pytest.raises(OutputError, match=r"cannot be resumed, because.*--force"):
        mine(data, out, source, recipe(), resume=True)
    mine(data, out, source, recipe(), force=True)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from jcv2_trainer.mining.mine import MineRecipe, mine
from jcv2_trainer.mining.sources import Bm25Source
from jcv2_trainer.recipes import load_recipe
settings = load_recipe(MineRecipe, "mine", overrides={"batch_size": 2, "relative_margin": -1e9, "negatives": 5})
def progress(done, total):
    print(done, flush=True)
    time.sleep(0.02)
mine(Path(sys.argv[1]), Path(sys.argv[2]), Bm25Source(), settings, resume=True, progress=progress)
"""


@pytest.mark.parametrize("kills", [3 if os.environ.get("JCV2_TEST_ALL") else 1])
def test_a_killed_run_loses_a_batch_at_most(kills, tmp_path):
    rows = [{**row, "query": f"{row['query']} {number}"} for number in range(20) for row in ROWS]
    data, out = write(tmp_path / "data.jsonl", rows), tmp_path / "out.jsonl"
    reached = 0
    for _ in range(kills):
        process = starting.start(KILLED, data, out)
        for line in process.stdout:
            assert int(line) > reached
            if int(line) >= reached + 40:
                reached = int(line)
                process.kill()
                process.communicate()
                break
        state = json.loads((tmp_path / "out.jsonl.partial.json").read_text())
        assert reached <= state["rows"] <= reached + 4
        assert not out.exists()
        reached = state["rows"]
    report = mine(data, out, Bm25Source(), recipe(**FREE), resume=True)
    assert report.resumed_at == reached
    mine(data, tmp_path / "whole.jsonl", Bm25Source(), recipe(**FREE))
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_two_runs_do_not_write_one_file(data, corpus, tmp_path):
    def again(done: int, total: int) -> None:
        with pytest.raises(OutputError, match="Another run is writing"):
            mine(data, tmp_path / "out.jsonl", Bm25Source(corpus), recipe(), resume=True)

    mine(data, tmp_path / "out.jsonl", Bm25Source(corpus), recipe(), progress=again)
    assert len(read(tmp_path / "out.jsonl")) == 10


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried ..."), RuntimeError("other")])
def test_too_little_memory_names_the_option(error):
    expected = RuntimeError if "other" in str(error) else OutOfMemoryError
    said = "other" if "other" in str(error) else r"--resume and --batch-size 16"
    with pytest.raises(expected, match=said), short_of_memory(32):
        raise error


# The command


def test_the_command_mines_from_a_folder_and_sums_up(mini, data, tmp_path):
    with ColbertCollection.create(path=tmp_path / "edge", encoder=mini, dim=64) as collection:
        arguments = ["mine", data, "--out", tmp_path / "out.jsonl", "--collection", tmp_path / "edge", "--negatives", 3]
        collection.add(CORPUS[:1])
        collection.delete([hit.id for hit in collection.search("Paris", 1)])
    assert "has no documents. Index the corpus first" in run(*arguments).output
    with ColbertCollection.open(path=tmp_path / "edge", encoder=mini) as collection:
        collection.add(CORPUS)
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.output)
    assert (summary["rows"], summary["counts"]["full"] + summary["counts"]["short"]) == (10, 10)
    result = run(*arguments)
    assert result.exit_code == 2
    assert "out.jsonl already exists. Choose another --out, or replace it with --force." in result.output
    assert "error: " in run(*arguments[:-3], tmp_path / "none", "--force").output


def test_the_command_says_what_became_of_the_rows(corpus, tmp_path):
    rows = [{**ROWS[0], "negatives": ["old"], "scores": [1, 2]}, {**ROWS[1], "query": "zebra"}]
    data, out = write(tmp_path / "data.jsonl", rows), tmp_path / "out.jsonl"
    result = run("mine", data, "--out", out, "--with", "bm25", "--corpus", corpus, "--negatives", 2)
    assert result.exit_code == 0, result.output
    assert "2 rows, 2 negatives." in result.output
    assert "rows with 2 negatives or more 1, with fewer 0, with none 1 (written as pairs)" in result.output
    assert "scores removed from 1 row, as they belonged to other negatives" in result.output
    assert "known positives 1" in result.output
    assert "--range-max" not in result.output
    write(data, [{**ROWS[0], "positive": "zebra"}])
    result = run("mine", data, "--out", tmp_path / "none.jsonl", "--with", "bm25", "--corpus", corpus)
    assert "A larger --range-max or a smaller --relative-margin finds more." in result.output


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "Choose where negatives come from"),
        (["--with", "bm25", "--model", "mini"], "needs no --model"),
        (["--collection", "x", "--corpus", "y"], "cannot be combined with --collection"),
        (["--with", "bm25", "--range-max", "3"], "hold fewer than 7"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(data, tmp_path, arguments, said):
    result = run("mine", data, "--out", tmp_path / "out.jsonl", *arguments)
    assert result.exit_code in (1, 2)
    assert said in " ".join((result.output + repr(result.exception)).replace("│", " ").split())
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize(
    "name, said",
    [("out.parquet", "must end in .jsonl"), ("data.jsonl", "is the input"), ("folder.jsonl", "is a folder")],
)
def test_the_command_refuses_a_path_it_cannot_write_to(data, tmp_path, name, said):
    (tmp_path / "folder.jsonl").mkdir()
    result = run("mine", data, "--out", tmp_path / name, "--with", "bm25", "--force")
    assert result.exit_code == 2
    assert said in result.output


def test_ctrl_c_says_how_to_go_on(data, tmp_path, monkeypatch):
    append = ResumableOutput.append

    def interrupted(self: ResumableOutput, *written: Any) -> None:
        append(self, *written)
        if self.rows == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(ResumableOutput, "append", interrupted)
    result = run("mine", data, "--out", tmp_path / "out.jsonl", "--with", "bm25", "--batch-size", 2)
    assert result.exit_code == 130
    assert "out.jsonl.partial. Continue with --resume" in result.output
    assert "rows/s" not in result.output  # no bar in a pipe
    assert len(read(tmp_path / "out.jsonl.partial")) == 4


def test_help_loads_nothing_heavy():
    script = (
        "import sys, jcv2_trainer.cli.app\n"
        "loaded = {'torch', 'transformers', 'qdrant_client', 'bm25s'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_recipe_of_few_lines_is_not_written_out(tmp_path):
    """An error quotes values, and YAML's aliases make a hundred million of these lines, or billions of some more."""
    lines = ["range_min: &a0 [x]"]
    for number, name in enumerate(["range_max", "sampling", "seed", "negatives", "max_score"]):
        lines.append(f"{name}: &a{number + 1} [{', '.join([f'*a{number}'] * 40)}]")
    (tmp_path / "r.yaml").write_text("\n".join(lines))
    started = time.process_time()
    with pytest.raises(RecipeError, match=r"max_score: .*, got \[\[\["):
        load_recipe(MineRecipe, "mine", tmp_path / "r.yaml")
    assert time.process_time() - started < 1
    (tmp_path / "r.yaml").write_text("seed: " + ":".join(["59"] * 3000))
    with pytest.raises(RecipeError, match=r"seed: .* less than 4294967296, got "):
        load_recipe(MineRecipe, "mine", tmp_path / "r.yaml")
