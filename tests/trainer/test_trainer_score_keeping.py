"""Heads that keep MaxSim: the objective against a slow reference, and what training by it gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from torch.nn import functional as F

from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_trainer.heads import score_keeping
from jcv2_trainer.heads.principal import TokenStates, half_states, load_backbone, principal_heads
from jcv2_trainer.heads.score_keeping import FittedHeads, fit_heads, keep_scores, score_error

ROOT = Path(__file__).parents[2]
DIMS = (64, 16, 384)


def states(count: int, hidden: int = 12, seed: int = 0) -> TokenStates:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    spectrum = torch.linspace(1, 0.2, hidden)
    return [
        F.normalize(torch.randn(length, hidden, generator=generator) * spectrum, dim=-1).half() for length in lengths
    ]


@pytest.fixture(scope="module")
def texts() -> tuple[list[str], list[str]]:
    """Paragraphs of our documentation; the first six words of each stand for a query."""
    found = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        paragraphs = path.read_text("utf-8").split("\n\n")
        found += [one for one in paragraphs if len(one.split()) > 25 and "```" not in one and "|" not in one]
    found = found[::2]
    assert len(found) > 60
    return [" ".join(one.split()[:6]) for one in found], [" ".join(one.split()[6:60]) for one in found]


@pytest.fixture(scope="module")
def fitted(texts) -> FittedHeads:
    """Heads on two thirds of the texts, as principal components and trained."""
    backbone = load_backbone("mini")
    queries, passages = (list(one[: 2 * len(one) // 3]) for one in texts)
    return fit_heads(backbone, queries, passages, DIMS, steps=60)


def test_the_objective_is_that_of_a_slow_reference():
    queries, passages = states(3, seed=1), states(5, seed=2)
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
    (batch,) = score_keeping._batches(list(queries), list(passages), 1, seed=0)
    starts = [sum(batch.query_lengths[:index]) for index in range(len(batch.query_lengths))]
    ends = [start + length for start, length in zip(starts, batch.query_lengths, strict=True)]
    passage_list = torch.split(batch.passages.double(), batch.passage_lengths)
    errors, squares = [], []
    for start, end in zip(starts, ends, strict=True):
        whole = torch.zeros(len(passage_list), dtype=torch.float64)
        for token in batch.queries[start:end].double():
            full = torch.stack([(one @ token).max() for one in passage_list])
            cut = torch.stack(
                [
                    (F.normalize(one @ weight.double().T, dim=-1) @ F.normalize(weight.double() @ token, dim=0)).max()
                    for one in passage_list
                ]
            )
            error = (cut - cut.mean()) - (full - full.mean())
            squares.append(float(error.square().sum()))
            whole += error
        errors.append(float(whole.square().mean()))
    expected = sum(squares) / len(squares) + 0.5 * sum(errors) / len(errors)
    assert float(score_keeping.score_keeping_loss(batch, weight)) == pytest.approx(expected, rel=1e-4)


def test_pooled_passages_are_compared_with_the_whole_states():
    queries, passages = states(3, seed=1), states(5, seed=2)
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
    (batch,) = score_keeping._batches(list(queries), list(passages), 1, seed=0)
    plain, _ = batch.best(weight, (1, 2))
    assert torch.equal(plain, batch.best(weight)[0])
    asked = F.normalize(batch.queries @ weight.T, dim=-1)
    read = list(F.normalize(batch.passages @ weight.T, dim=-1).split(batch.passage_lengths))
    best = torch.stack([(asked @ one.T).max(dim=1).values for one in HierarchicalTokenPooling(2).pool(read)], dim=1)
    error = best - best.mean(dim=1, keepdim=True) - batch.wanted
    expected = error.square().sum(dim=1).mean() + 0.5 * score_keeping.sums(error, batch.query_lengths).square().mean()
    assert float(score_keeping.score_keeping_loss(batch, weight, (2,))) == pytest.approx(float(expected), rel=1e-5)
    both = (float(score_keeping.score_keeping_loss(batch, weight)) + float(expected)) / 2
    assert float(score_keeping.score_keeping_loss(batch, weight, (1, 2))) == pytest.approx(both, rel=1e-5)


def test_heads_trained_for_pooling_lose_less_of_maxsim_when_pooled():
    queries, passages = states(30, seed=1), [F.normalize(one, dim=-1) for one in states(60, seed=2)]
    start = principal_heads(torch.eye(12, dtype=torch.float64), (12, 4))
    plain, aware = (keep_scores(start, queries, passages, steps=80, pool_factors=one) for one in ((1,), (1, 2)))
    assert torch.equal(plain.weight(12), start.weight(12))
    assert not torch.equal(aware.weight(12), start.weight(12))
    for dim in (12, 4):
        lost = [
            sum(
                float(score_keeping.score_keeping_loss(batch, one.weight(dim), (2,)))
                for batch in score_keeping._batches(queries, passages, 8, seed=9)
            )
            for one in (plain, aware)
        ]
        assert lost[1] < lost[0]


def test_trained_heads_lose_less_of_maxsim_on_other_texts(fitted, texts):
    backbone = load_backbone("mini")
    queries, passages = (list(one[2 * len(one) // 3 :]) for one in texts)
    other = fit_heads(backbone, queries, passages, (384,), steps=0)
    assert other.errors[384] < 1e-5  # a rotation loses nothing
    held_out = [half_states(backbone, some) for some in (queries, passages)]
    for dim, least in ((64, 0.85), (16, 0.9)):
        heads = (fitted.components, fitted.heads)
        principal, trained = (score_error(one.weight(dim), *held_out) for one in heads)
        print(f"{dim} dims: {principal:.4f} -> {trained:.4f}")
        assert trained < least * principal


def test_a_head_of_full_size_is_left_alone(fitted):
    assert torch.equal(fitted.components.weight(384), fitted.heads.weight(384))
    assert fitted.heads.dims == DIMS
    assert fitted.errors[384] < fitted.errors[64] < fitted.errors[16]


def test_the_same_seed_gives_the_same_heads_and_another_other_ones():
    heads = MatryoshkaHeads(12, (4,), weights={4: torch.eye(12)[:4]})
    queries, passages = states(9, seed=1), states(12, seed=2)
    first, second, third = (keep_scores(heads, queries, passages, steps=3, seed=seed).weight(4) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(heads.weight(4), torch.eye(12)[:4])


@pytest.mark.parametrize("queries, passages", [(0, 4), (3, 2), (1, 1)])
def test_too_few_texts_are_refused(queries, passages):
    heads = principal_heads(torch.eye(12, dtype=torch.float64), (4,))
    with pytest.raises(ValueError, match=f"got {queries} and {passages}"):
        keep_scores(heads, states(queries), states(passages), steps=1)
