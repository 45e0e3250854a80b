from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jcv2_plugin.encoder.batching import occupied_columns, plan_batches, take_rows


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 600), max_size=60),
    st.integers(1, 2000),
    st.one_of(st.none(), st.integers(1, 10)),
)
def test_every_text_comes_once_within_the_limits(lengths: list[int], budget: int, most: int | None) -> None:
    batches = list(plan_batches(lengths, budget, most))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
        assert most is None or len(batch) <= most


def test_equal_lengths_take_the_fewest_batches() -> None:
    assert sorted(len(batch) for batch in plan_batches([10] * 7, 30)) == [1, 3, 3]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=9))
def test_no_other_way_to_cut_the_sorted_lengths_costs_less(lengths: list[int]) -> None:
    budget, overhead = 320, 10

    def cost(batches: list[list[int]]) -> float:
        padded = [len(batch) * max(batch) for batch in batches]
        legal = all(size <= budget or len(batch) == 1 for size, batch in zip(padded, batches, strict=True))
        return sum(padded) + overhead * len(batches) if legal else float("inf")

    ordered = sorted(lengths, reverse=True)
    ways = []
    for cuts in itertools.product((False, True), repeat=len(ordered) - 1):
        batches = [[ordered[0]]]
        for cut, length in zip(cuts, ordered[1:], strict=True):
            batches.append([length]) if cut else batches[-1].append(length)
        ways.append(cost(batches))
    assert cost([[lengths[i] for i in batch] for batch in plan_batches(lengths, budget)]) == min(ways)


@pytest.mark.parametrize("arguments", [(0, None), (-1, None), (10, 0)])
def test_limits_must_be_positive(arguments: tuple) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        list(plan_batches([1], *arguments))


def test_expansion_tokens_count_as_occupied() -> None:
    features = {
        "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]),
        "query_expansion_positions": torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]]),
    }
    first, last = occupied_columns(features)
    assert first.tolist() == [0, 0]
    assert last.tolist() == [3, 3]


def test_left_padding_is_cut_on_the_left() -> None:
    features = {"attention_mask": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]), "input_ids": torch.arange(8).view(2, 4)}
    first, last = occupied_columns(features)
    taken = take_rows({**features, "modality": "text"}, [0], int(first[0]), int(last[0]))
    assert taken["input_ids"].tolist() == [[2, 3]]
    assert taken["modality"] == "text"
