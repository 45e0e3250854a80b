"""Batches: of one group, without equal texts, the same for a seed and an epoch, dealt to several processes."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from training_samples import as_dataset, make_rows, with_keys

from jcv2_trainer.data.reading import DataError
from jcv2_trainer.data.sampler import GroupedBatchSampler
from jcv2_trainer.training.dev import DevSet


def sampled(rows: list[dict[str, Any]], size: int = 4, **options: Any) -> GroupedBatchSampler:
    return GroupedBatchSampler(as_dataset(rows), size, **options)


def mixed(times: int = 1) -> list[dict[str, Any]]:
    rows = [*make_rows(10 * times, source="a"), *make_rows(7 * times, seed=1, source="b")]
    return [{**row, "lang": "de" if index % 3 == 0 else "en"} for index, row in enumerate(rows)]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_batch_has_rows_of_one_source_and_language(processes):
    rows = mixed(times=6)
    for batch in sampled(rows, processes=processes):
        assert len({(rows[index]["source"], rows[index]["lang"]) for index in batch}) == 1


def test_sources_and_languages_of_a_row_each_are_put_together():
    rows = [
        {**row, "source": f"page {index}", "lang": "de" if index < 8 else "en"}
        for index, row in enumerate(make_rows(16))
    ]
    for batch in sampled(rows):
        assert len(batch) == 4
        assert len({rows[index]["lang"] for index in batch}) == 1
    rows = [{**row, "lang": f"language {index}"} for index, row in enumerate(make_rows(8))]
    assert [len(batch) for batch in sampled(rows)] == [4, 4]


def test_few_distinct_queries_among_many_rows_take_no_quadratic_time():
    rows = [with_keys({**row, "query": f"question {index % 3}"}) for index, row in enumerate(make_rows(3000, 0))]
    started = time.process_time()
    assert sum(len(batch) for batch in sampled(rows, 100)) == 3000
    assert time.process_time() - started < 5


def test_epochs_differ_and_each_can_be_had_again():
    first, again = sampled(mixed()), sampled(mixed())
    epochs = []
    for epoch in (0, 1, 0):
        first.set_epoch(epoch)
        epochs.append(list(first))
    again.set_epoch(1)
    assert epochs[0] == epochs[2] != epochs[1] == list(again)
    assert list(sampled(mixed(), seed=14)) != epochs[0]


@pytest.mark.parametrize("size, processes", [(1, 1), (3, 2), (4, 3), (4, 5), (50, 1)])
def test_the_length_is_the_number_of_batches_and_one_process_gets_every_row_once(processes, size):
    rows = mixed()
    sampler = sampled(rows, size, processes=processes)
    batches = list(sampler)
    if processes == 1:
        assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    assert len(batches) == len(sampler)
    assert len(batches) % processes == 0
    assert all(1 <= len(batch) <= size for batch in batches)


def test_batches_side_by_side_are_those_of_one_process_with_larger_ones():
    rows = make_rows(24)
    halves = list(sampled(rows, 4, processes=2))
    wholes = list(sampled(rows, 8))
    joined = [[*halves[index], *halves[index + 1]] for index in range(0, len(halves), 2)]
    assert joined == wholes


def test_equal_texts_are_kept_apart_as_long_as_they_can_be():
    rows = make_rows(12)
    for index in range(6):
        rows[index] = with_keys({**rows[index], "query": "the same question"})
        rows[6 + index] = with_keys({**rows[6 + index], "positive": f"one of {index // 2} answers"})
    for batch in sampled(rows, 2):
        assert len({rows[index]["query_key"] for index in batch}) == len(batch)
        assert len({rows[index]["positive_key"] for index in batch}) == len(batch)
    rows = [with_keys({**row, "query": "the only question"}) for row in make_rows(5)]  # where they cannot be
    assert Counter(index for batch in sampled(rows, 4) for index in batch) == Counter(range(5))


def test_batches_of_a_selection_are_those_of_its_own_rows():
    rows = [*make_rows(9, source="a"), *make_rows(9, seed=1, source="b")]
    chosen = list(range(17, 0, -2))
    alone = [rows[index] for index in chosen]
    assert list(GroupedBatchSampler(as_dataset(rows).select(chosen), 4)) == list(sampled(alone))


def test_a_dev_file_without_rows_is_refused(tmp_path):
    (tmp_path / "dev.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"dev\.jsonl has no rows"):
        DevSet.read(tmp_path / "dev.jsonl")
