"""The dev set, and the sampler's reading of a dataset that is a selection."""

from __future__ import annotations

import pytest
from training_samples import as_dataset, make_rows

from jcv2_trainer.data.reading import DataError
from jcv2_trainer.data.sampler import GroupedBatchSampler
from jcv2_trainer.training.dev import DevSet


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_dev_file_without_rows_is_refused(tmp_path, content):
    path = tmp_path / "dev.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"dev\.jsonl has no rows"):
        DevSet.read(path)


def test_batches_of_a_selection_are_those_of_its_own_rows():
    rows = [*make_rows(9, source="a"), *make_rows(9, seed=1, source="b")]
    chosen = list(range(17, 0, -2))
    selection = as_dataset(rows).select(chosen)
    alone = as_dataset([rows[index] for index in chosen])
    assert list(GroupedBatchSampler(selection, 4)) == list(GroupedBatchSampler(alone, 4))
