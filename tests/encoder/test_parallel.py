from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.parallel import MOST_WORKERS, side_by_side

TEXTS = [f"Document {number} says {'many words ' * (number % 17)}." for number in range(60)]


@pytest.fixture
def threads():
    """Torch told to use three threads, whatever the machine has; put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_results_come_in_order_and_all_items_are_worked_at(threads):
    assert list(side_by_side(lambda number: number * number, iter(range(100)), threads)) == [n * n for n in range(100)]


@pytest.mark.parametrize("items", [0, 1])
def test_few_items_are_done_where_they_are_asked_for(threads, items):
    here = threading.get_ident()
    assert list(side_by_side(lambda _: threading.get_ident(), range(items), threads)) == [here] * items


def test_each_worker_has_its_share_of_torchs_threads(threads):
    assert set(side_by_side(lambda _: torch.get_num_threads(), range(9), threads)) == {1}
    assert set(side_by_side(lambda _: torch.get_num_threads(), range(2), 5)) == {2}
    assert torch.get_num_threads() == threads


def test_threads_that_others_start_meanwhile_have_all_of_torchs_threads(threads):
    found = []
    results = side_by_side(lambda number: number, range(9), threads)
    next(results)
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [threads]
    assert len(list(results)) == 8


def test_several_are_worked_at_at_once(threads):
    together = threading.Barrier(threads, timeout=20)  # broken unless three workers come to it
    list(side_by_side(lambda _: together.wait(), range(threads), threads))


def test_items_are_taken_as_they_are_needed(threads):
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = side_by_side(lambda number: number, items(), threads)
    assert next(results) == 0
    assert len(taken) <= 2 * threads + 1
    results.close()
    assert len(taken) <= 2 * threads + 1


def test_no_more_workers_than_pythons_own_part_allows():
    before = threading.active_count()
    results = side_by_side(lambda number: number, range(100), 64)
    next(results)
    assert threading.active_count() - before <= MOST_WORKERS
    results.close()
    assert threading.active_count() == before


def test_an_error_is_raised_and_what_was_not_begun_is_left(threads):
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise ValueError("two")
        return number

    with pytest.raises(ValueError, match="two"):
        list(side_by_side(work, range(1000), threads))
    assert len(begun) < 20
    assert torch.get_num_threads() == threads


def test_vectors_are_the_same_however_many_threads_there_are(mini: JinaColbertEncoder, threads):
    several = mini.document_vectors(TEXTS, 64)
    torch.set_num_threads(1)
    alone = mini.document_vectors(TEXTS, 64)
    assert max(np.abs(one - other).max() for one, other in zip(several, alone, strict=True)) < 1e-5


@pytest.fixture
def seen(mini: JinaColbertEncoder, monkeypatch) -> set[str]:
    """The names, without numbers, of the threads that run the model."""
    found: set[str] = set()
    forward = type(mini).forward

    def spy(self, *args, **kwargs):
        found.add(threading.current_thread().name.rpartition("_")[0])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(mini), "forward", spy)
    return found


def test_encode_deals_batches_out_to_threads(mini: JinaColbertEncoder, threads, seen):
    mini.document_vectors(TEXTS, 64)
    assert seen == {"jcv2-batches"}
    seen.clear()
    mini.query_vectors(["one question"], 64)
    assert "jcv2-batches" not in seen


def test_autocast_reaches_the_batches(mini: JinaColbertEncoder, threads):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mini.encode_document(TEXTS, dim=64)
    outside = mini.encode_document(TEXTS, dim=64)
    assert max((one.float() - other).abs().max().item() for one, other in zip(inside, outside, strict=True)) > 1e-4


def test_a_runtime_with_own_threads_gets_one_batch_at_a_time(mini: JinaColbertEncoder, threads, seen, monkeypatch):
    monkeypatch.setattr(type(mini[0]), "runs_own_threads", True, raising=False)
    mini.document_vectors(TEXTS, 64)
    assert seen
    assert "jcv2-batches" not in seen


def test_a_module_put_into_training_is_taken_out_of_it(mini: JinaColbertEncoder):
    mini.backbone.model.encoder.layer[2].attention.train()
    first, second = mini.document_vectors(TEXTS[:2], 64), mini.document_vectors(TEXTS[:2], 64)
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert not any(module.training for module in mini.modules())
