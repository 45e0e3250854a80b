"""New heads start from old ones, and tied heads are one matrix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_samples import as_dataset, make_rows, settings, tiny_encoder

from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_trainer.data.collator import PackedCollator
from jcv2_trainer.heads.matryoshka import TiedHeads, with_dims
from jcv2_trainer.loss.calibration import best_scale
from jcv2_trainer.loss.objective import MatryoshkaLateInteractionLoss
from jcv2_trainer.training.card import curve

STATES, OLD = 48, 16


@pytest.fixture
def heads() -> MatryoshkaHeads:
    torch.manual_seed(0)
    return MatryoshkaHeads(STATES, (OLD,))


@pytest.fixture
def states() -> torch.Tensor:
    """Token states with a spectrum, as real ones have."""
    torch.manual_seed(1)
    scales = torch.linspace(3, 0.1, STATES)
    return torch.nn.functional.normalize(torch.randn(4000, STATES) * scales, dim=-1)


def moment(states: torch.Tensor) -> torch.Tensor:
    return states.double().T @ states.double() / len(states)


def products(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    vectors = states[:300] @ weight.T
    return vectors @ vectors.T


class TestNewHeads:
    def test_old_heads_stay_as_they_are(self, heads, states):
        new = with_dims(heads, (24, OLD, 8), moment(states))
        assert new.dims == (24, OLD, 8)
        assert torch.equal(new.weight(OLD), heads.weight(OLD))

    def test_a_rotation_keeps_all_products(self, heads, states):
        rotated = TiedHeads.of(heads, moment(states)).weight(OLD)
        assert not torch.allclose(rotated, heads.weight(OLD), atol=1e-2)
        torch.testing.assert_close(products(states, rotated), products(states, heads.weight(OLD)), rtol=1e-4, atol=1e-5)

    def test_a_smaller_head_keeps_more_of_the_products_than_a_slice(self, heads, states):
        whole = products(states, heads.weight(OLD))
        started = with_dims(heads, (8,), moment(states)).weight(8)
        kept = (products(states, started) - whole).norm()
        sliced = (products(states, heads.weight(OLD)[:8]) - whole).norm()
        assert kept < 0.7 * sliced

    def test_a_larger_head_nearly_keeps_the_products_and_can_learn(self, heads, states):
        started = with_dims(heads, (32,), moment(states)).weight(32)
        whole = products(states, heads.weight(OLD))
        assert (products(states, started) - whole).norm() / whole.norm() < 0.1
        assert torch.equal(started[:OLD], heads.weight(OLD))
        fresh = started[OLD:]
        assert fresh.norm(dim=1).min() > 0
        torch.testing.assert_close(fresh @ heads.weight(OLD).T, torch.zeros(16, OLD), atol=1e-5, rtol=0)

    def test_more_than_there_are_states(self, heads, states):
        with pytest.raises(ValueError, match="48 components"):
            with_dims(heads, (OLD, 49), moment(states))


class TestTied:
    def test_every_head_is_a_prefix_of_one_matrix(self, heads, states):
        tied = TiedHeads.of(with_dims(heads, (OLD, 8), moment(states)), moment(states))
        assert [name for name, _ in tied.named_parameters()] == [f"linears.{OLD}.weight"]
        features = {"token_embeddings": states[:5]}
        both = tied(dict(features), dim=(OLD, 8))["token_embeddings"]
        untied = tied.untied()
        torch.testing.assert_close(both, untied(dict(features), dim=(OLD, 8))["token_embeddings"])
        assert torch.equal(untied.weight(OLD)[:8], untied.weight(8))


class TestCalibration:
    @pytest.fixture
    def encoder(self, tmp_path: Path):
        return tiny_encoder(tmp_path / "model")

    def test_the_factor_has_the_least_loss_of_its_neighbours(self, encoder):
        rows = make_rows(32, negatives=1)
        rows = [{**row, "positive": f"{row['query']} {row['positive']}"} for row in rows]  # something to find
        chosen = settings(batch_size=32, distillation_weight=0.0)
        collator = PackedCollator(encoder, negatives=chosen.negatives)
        best = best_scale(encoder, as_dataset(rows), chosen, collator)
        batch = collator.collate(rows)
        encoder.eval()

        def loss(scale: float) -> float:
            objective = MatryoshkaLateInteractionLoss(encoder, settings(scale=scale), [1, 0])
            with torch.no_grad():
                return float(objective(batch))

        least = best / 2  # training takes twice that
        assert loss(least) < loss(least * 2)
        assert loss(least) < loss(least / 2)

    def test_without_negatives_nothing_is_known(self, encoder):
        chosen = settings(batch_size=1)
        rows = as_dataset(make_rows(3, negatives=0))
        one_by_one = as_dataset([{**row, "lang": str(index)} for index, row in enumerate(rows)])
        assert best_scale(encoder, one_by_one, chosen, PackedCollator(encoder)) == 1.0


class TestCurve:
    def test_it_shows_every_dimension_of_both(self):
        picture = curve({8: 0.5, 16: 0.6}, {16: 0.8, 8: 0.7})
        assert picture.count(">●<") == picture.count(">■<") == 2 + 1
        assert ">16 (32 B)<" in picture

    def test_one_dimension_and_equal_figures(self):
        assert "nan" not in curve({16: 1.0}, {16: 1.0}).replace("dominant", "")
