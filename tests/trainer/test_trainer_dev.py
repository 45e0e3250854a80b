"""The sampler's reading of a dataset that is a selection, as beside a dev set."""

from __future__ import annotations

from training_samples import as_dataset, make_rows

from jcv2_trainer.data.sampler import GroupedBatchSampler


def test_batches_of_a_selection_are_those_of_its_own_rows():
    rows = [*make_rows(9, source="a"), *make_rows(9, seed=1, source="b")]
    chosen = list(range(17, 0, -2))
    selection = as_dataset(rows).select(chosen)
    alone = as_dataset([rows[index] for index in chosen])
    assert list(GroupedBatchSampler(selection, 4)) == list(GroupedBatchSampler(alone, 4))
