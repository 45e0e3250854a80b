"""The memory-mapped dataset of training files: its cache, its filters, and the dev set drawn from it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import starting
from hypothesis import given, settings
from hypothesis import strategies as st
from training_samples import write_jsonl

from jcv2_trainer.data.check import text_key
from jcv2_trainer.data.datasets_io import COLUMNS, cached_rows, split_dev, training_dataset
from jcv2_trainer.data.reading import DataError

ROWS: list[dict[str, Any]] = [
    {"query": "eins", "positive": "uno ", "lang": "de", "source": "s"},
    {"query": "two", "positive": "dos", "negatives": ["tres", "cuatro"], "scores": [3, 2, 1.5], "lang": "en"},
    {"query": "three", "positive": "tres"},
]
BAD = {"query": "", "positive": "x", "lang": "en"}


def keyed(queries: list[int], positives: list[int]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"query_key": queries, "positive_key": positives},
        features=datasets.Features({name: datasets.Value("int64") for name in ("query_key", "positive_key")}),
    )


def test_rows_of_several_files_become_one_memory_mapped_dataset(tmp_path):
    paths = [write_jsonl(tmp_path / "a.jsonl", ROWS[:1]), write_jsonl(tmp_path / "b.jsonl", ROWS[1:])]
    dataset, skipped = training_dataset(paths, tmp_path / "cache", on_bad="stop")
    assert tuple(dataset.column_names) == COLUMNS
    assert dataset[1] == {
        "query": "two",
        "positive": "dos",
        "negatives": ["tres", "cuatro"],
        "scores": [3.0, 2.0, 1.5],
        "lang": "en",
        "source": "",
        "query_key": text_key("two"),
        "positive_key": text_key("dos"),
    }
    assert dataset[0]["positive"] == "uno "
    assert dataset[0]["positive_key"] == text_key("uno")
    assert (dataset[2]["negatives"], dataset[2]["scores"]) == ([], [])
    assert skipped == {}
    assert text_key(" who?\n") == text_key("who?") == -6842697743792414695  # in every process
    assert all(Path(one["filename"]).is_relative_to(tmp_path / "cache") for one in dataset.cache_files)
    assert dataset.cache_files


def test_an_unchanged_file_is_not_read_again_and_its_counts_are_kept(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, BAD])
    first, skipped = training_dataset([path], tmp_path / "cache", on_bad="skip")
    assert skipped == {"empty-text": 1}
    status = path.stat()
    path.write_bytes(b"!" * status.st_size)  # unreadable, but to all appearances the same file
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second, again = training_dataset([path], tmp_path / "cache", on_bad="skip")
    assert (second.to_list(), again) == (first.to_list(), skipped)


def test_a_changed_file_is_read_again(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    training_dataset([path], tmp_path / "cache", on_bad="stop")
    status = path.stat()
    write_jsonl(path, [*ROWS[:2], {**ROWS[2], "query": "drei!"}])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert path.stat().st_size == status.st_size
    assert training_dataset([path], tmp_path / "cache", on_bad="stop")[0][2]["query"] == "drei!"
    write_jsonl(path, ROWS[:1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert len(training_dataset([path], tmp_path / "cache", on_bad="stop")[0]) == 1
    (tmp_path / "folder").mkdir()
    for files, name in enumerate(("a", "b"), start=1):
        write_jsonl(tmp_path / "folder" / f"{name}.jsonl", ROWS)
        assert len(training_dataset([tmp_path / "folder"], tmp_path / "cache", on_bad="stop")[0]) == 3 * files


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)

    def rows(counts: Any) -> Iterator[dict[str, Any]]:
        yield {"query": "q"}
        write_jsonl(path, ROWS * 2)

    with pytest.raises(DataError, match=r"a\.jsonl changed while being read"):
        cached_rows([path], tmp_path / "cache", {}, {"query": "string"}, rows)


def test_languages_are_filtered_and_the_others_counted(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, BAD])
    dataset, skipped = training_dataset([path], tmp_path / "cache", on_bad="skip", languages=["de", "en"])
    assert list(dataset["lang"]) == ["de", "en"]
    assert skipped == {"empty-text": 1, "other-language": 1}
    unmarked, _ = training_dataset([path], tmp_path / "cache", on_bad="skip", languages=[""])
    assert list(unmarked["query"]) == ["three"]
    assert len(training_dataset([path], tmp_path / "cache", on_bad="skip")[0]) == 3


def test_nothing_left_says_why(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, BAD])
    with pytest.raises(DataError) as caught:
        training_dataset([path], tmp_path / "cache", on_bad="skip", languages=["fr"])
    assert "a.jsonl: no row is left to train on. Skipped: other-language 3, empty-text 1." in str(caught.value)
    assert "The requested languages are fr; the files have: de 1, en 1, (none) 1." in str(caught.value)
    with pytest.raises(ValueError, match="languages must be a list"):
        training_dataset([path], tmp_path / "cache", on_bad="skip", languages=[])
    with pytest.raises(ValueError, match="at least one training file"):
        training_dataset([], tmp_path / "cache", on_bad="skip")


def test_a_bad_row_stops_and_leaves_nothing_that_is_taken_as_whole(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, BAD])
    for _ in range(2):
        with pytest.raises(DataError, match=r"a\.jsonl:4: \[empty-text\]"):
            training_dataset([path], tmp_path / "cache", on_bad="stop")
    assert [one for one in (tmp_path / "cache").iterdir() if one.is_dir()] == []
    assert len(training_dataset([path], tmp_path / "cache", on_bad="skip")[0]) == 3


def test_a_process_killed_while_writing_leaves_nothing_that_is_taken_as_whole(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS * 2000)
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from jcv2_trainer.data.datasets_io import training_dataset\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"  # bytes; a larger file ends the process
        "training_dataset([Path(sys.argv[1])], Path(sys.argv[2]), on_bad='stop')"
    )
    died = starting.run(code, path, tmp_path / "cache")
    assert died.returncode == -signal.SIGXFSZ
    assert list((tmp_path / "cache").glob("**/rows.arrow"))  # it was in the middle of it
    assert len(training_dataset([path], tmp_path / "cache", on_bad="stop")[0]) == 6000
    assert len(list((tmp_path / "cache").glob("**/rows.arrow"))) == 1


def test_a_damaged_cache_is_written_anew(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS * 1000)
    training_dataset([path], tmp_path / "cache", on_bad="stop")
    [rows], [counts] = ((tmp_path / "cache").glob(f"*/{name}") for name in ("rows.arrow", "counts.json"))
    with pa.OSFile(str(rows)) as source:
        pa.ipc.open_stream(source).read_next_batch()
        first_batch = source.tell()
    for file, size in ((rows, first_batch), (rows, first_batch + 50), (rows, 0), (counts, 5)):
        os.truncate(file, size)
        assert len(training_dataset([path], tmp_path / "cache", on_bad="stop")[0]) == 3000


def test_two_that_want_the_same_rows_write_them_once(tmp_path, capfd):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    begun: list[int] = []

    def rows(counts: Any) -> Iterator[dict[str, Any]]:
        begun.append(1)
        time.sleep(0.2)
        counts["seen"] += 1
        yield {"query": "q"}

    def load(_: int) -> Any:
        return cached_rows([path], tmp_path / "cache", {}, {"query": "string"}, rows)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(load, range(2)))
    assert [(dataset.to_list(), counts) for dataset, counts in found] == [([{"query": "q"}], {"seen": 1})] * 2
    assert begun == [1]
    assert capfd.readouterr() == ("", "")  # no bars in a pipe


KEYS = st.lists(st.tuples(st.integers(-8, 8), st.integers(-8, 8)), max_size=60)


@settings(max_examples=50, deadline=None)
@given(KEYS, st.floats(0, 0.9), st.integers(0, 20), st.integers(0, 3))
def test_a_dev_set_shares_no_query_and_no_positive_with_the_train_rows(pairs, share, most, seed):
    queries, positives = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    dataset = keyed(queries, positives)
    train, dev = split_dev(dataset, share, most, seed)
    assert train == sorted(set(train) - set(dev))
    assert dev == sorted(set(dev))
    for keys in (queries, positives):
        assert not {keys[row] for row in train} & {keys[row] for row in dev}
    target = min(most, max(1, round(share * len(pairs)))) if share else 0
    assert len(dev) <= target
    lost = set(range(len(pairs))) - set(train) - set(dev)
    assert len(lost) <= target
    assert {queries[row] for row in lost} <= {queries[row] for row in dev}
    assert split_dev(dataset, share, most, seed) == (train, dev)


def test_the_dev_set_has_its_size_where_rows_are_unrelated_and_the_seed_draws_it():
    dataset = keyed(list(range(2000)), list(range(5000, 7000)))
    train, dev = split_dev(dataset)
    assert (len(train), len(dev)) == (1900, 100)
    assert len(split_dev(dataset, share=0.5, most=300)[1]) == 300
    assert split_dev(dataset, seed=14)[1] != dev
    assert split_dev(dataset.select(range(10)))[1]
    assert split_dev(dataset, share=0)[1] == split_dev(dataset, most=0)[1] == []
    # One query with most of the rows does not cost them.
    train, dev = split_dev(keyed([0] * 900 + list(range(1, 101)), list(range(1000))))
    assert (len(train), len(dev)) == (950, 50)
    assert min(dev) >= 900


def test_nonsense_shares_are_refused():
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="share must be at least 0"):
            split_dev(keyed([1], [2]), share=share)
    with pytest.raises(ValueError, match="most must not be negative"):
        split_dev(keyed([1], [2]), most=-1)
