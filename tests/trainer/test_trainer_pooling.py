"""Training with pooled passages: their vectors, the loss against a plain reference, and what a run reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from torch.nn import functional as F
from training_samples import make_rows, settings, tiny_encoder, write_rows

from jcv2_plugin import JinaColbertEncoder
from jcv2_trainer.data.collator import Batch, PackedCollator
from jcv2_trainer.loss.objective import MatryoshkaLateInteractionLoss
from jcv2_trainer.loss.pooling import pooled
from jcv2_trainer.recipes import RecipeError
from jcv2_trainer.training.dev import DevEvaluator, DevSet
from jcv2_trainer.training.requests import Request
from jcv2_trainer.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

FACTORS = (1.0, 1.5, 2.0, 4.0)
LENGTHS = [1, 2, 3, 4, 40, 0, 9, 200]


def documents(lengths: list[int] = LENGTHS, dim: int = 8) -> torch.Tensor:
    return F.normalize(torch.randn(sum(lengths), dim, generator=torch.Generator().manual_seed(0)), dim=-1)


class TestVectors:
    def test_are_those_that_the_encoder_stores(self) -> None:
        flat = documents()
        for factor, (vectors, lengths) in zip(FACTORS, pooled(flat, LENGTHS, FACTORS), strict=True):
            expected = list(flat.split(LENGTHS))
            if factor > 1:
                expected = HierarchicalTokenPooling(factor).pool(expected)
            assert lengths == [len(one) for one in expected]
            torch.testing.assert_close(vectors, torch.cat(expected))

    def test_equal_tokens_leave_fewer_clusters_and_no_gaps(self) -> None:
        same = documents([3]).repeat(10, 1)
        ((vectors, lengths),) = pooled(same, [30], [2])
        (expected,) = HierarchicalTokenPooling(2).pool([same])
        assert lengths == [len(expected)] < [15]
        torch.testing.assert_close(vectors, expected)

    def test_pass_gradients_through_means_but_not_through_clusters(self) -> None:
        flat = documents([20], dim=4).double().requires_grad_()
        upstream = torch.randn(10, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

        def loss(vectors: torch.Tensor) -> torch.Tensor:
            ((means, lengths),) = pooled(vectors, [20], [2])
            assert lengths == [10]
            return (means * upstream).sum()

        assert torch.autograd.gradcheck(loss, flat, eps=1e-7)
        loss(flat).backward()
        assert flat.grad is not None
        assert (flat.grad.abs().sum(dim=1) > 0).all()

    def test_that_are_not_finite_stay_so_for_the_trainer_to_explain(self) -> None:
        flat = documents([6])
        flat[2] = torch.nan
        ((vectors, _),) = pooled(flat, [6], [2])
        assert vectors.isnan().any()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pooling") / "model"


@pytest.fixture
def encoder(checkpoint: Path) -> JinaColbertEncoder:
    return tiny_encoder(checkpoint)


def batch_of(encoder: JinaColbertEncoder, rows: list[dict[str, Any]]) -> Batch:
    return PackedCollator(encoder, tokens_per_batch=96).collate(rows)


def loss_and_gradients(
    encoder: JinaColbertEncoder, batch: Batch, name: str = "triplets", **changes: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    encoder.zero_grad()
    encoder.train()
    loss = MatryoshkaLateInteractionLoss(encoder, settings(name, **changes))(batch)
    loss.backward()
    named = encoder.named_parameters()
    return loss.item(), {name: one.grad.clone() for name, one in named if one.grad is not None}


def scores(encoder: JinaColbertEncoder, query: str, texts: list[str], dim: int, factor: float) -> list[float]:
    """MaxSim with the vectors that a collection would store."""
    (asked,) = encoder.query_vectors([query], dim)
    read = encoder.document_vectors(texts, dim, pool_factor=factor)
    return [float((asked.astype(np.float64) @ one.T).max(axis=1).sum()) for one in read]


class TestLoss:
    @pytest.mark.parametrize("cached", [False, True])
    def test_is_the_mean_over_heads_and_factors(self, encoder: JinaColbertEncoder, cached: bool) -> None:
        rows = make_rows(4, negatives=2, scores=True)
        texts = [text for row in rows for text in (row["positive"], *row["negatives"])]
        expected = []
        for dim in encoder.dims:
            for factor in FACTORS:
                for index, row in enumerate(rows):
                    everything = log_softmax(scores(encoder, row["query"], texts, dim, factor))
                    own = log_softmax(scores(encoder, row["query"], texts[3 * index : 3 * index + 3], dim, factor))
                    teacher = log_softmax(row["scores"])
                    expected.append((np.exp(teacher) * (teacher - own)).sum() - everything[3 * index])
        loss, _ = loss_and_gradients(encoder, batch_of(encoder, rows), pool_factors=FACTORS, cached=cached)
        assert loss == pytest.approx(np.mean(expected), rel=1e-5)

    def test_gradients_are_the_mean_of_each_factors_alone(self, encoder: JinaColbertEncoder) -> None:
        batch = batch_of(encoder, make_rows(4, negatives=2, scores=True))
        alone = [loss_and_gradients(encoder, batch, pool_factors=[factor])[1] for factor in (1, 2, 4)]
        _, together = loss_and_gradients(encoder, batch, pool_factors=[1, 2, 4])
        assert set(together) == set(alone[0])
        for name, gradient in together.items():
            torch.testing.assert_close(gradient, sum(one[name] for one in alone) / 3, rtol=1e-4, atol=1e-6)
        assert any(not torch.allclose(alone[0][name], alone[2][name], rtol=1e-2) for name in together)

    def test_one_alone_is_the_loss_without_pooling(self, encoder: JinaColbertEncoder) -> None:
        for name in ("pairs", "triplets"):
            batch = batch_of(encoder, make_rows(4, negatives=2, scores=True))
            plain, factors = (loss_and_gradients(encoder, batch, name, **one) for one in ({}, {"pool_factors": [1]}))
            assert plain[0] == factors[0]
            assert all(torch.equal(one, factors[1][key]) for key, one in plain[1].items())

    def test_takes_one_pass_of_the_backbone(self, encoder: JinaColbertEncoder) -> None:
        batch = batch_of(encoder, make_rows(4))
        calls: list[int] = []
        hook = encoder.backbone.register_forward_hook(lambda *_: calls.append(1))
        loss_and_gradients(encoder, batch, pool_factors=[1, 2, 4], cached=False)
        hook.remove()
        assert len(calls) == len(batch.queries.features) + len(batch.documents.features)

    def test_is_logged_by_head_and_factor(self, encoder: JinaColbertEncoder) -> None:
        objective = MatryoshkaLateInteractionLoss(encoder, settings(pool_factors=[1, 2]))
        total = objective(batch_of(encoder, make_rows(4)))
        assert set(objective.last) == {"loss_16", "loss_16_pool_2", "loss_8", "loss_8_pool_2"}
        assert total.item() == pytest.approx(np.mean([float(one) for one in objective.last.values()]), rel=1e-6)


@pytest.mark.parametrize("factors", ["", "0.5", "1,1", "2,2.0", "100", "nan", "two", [], [0], 2, ["1", None]])
def test_factors_that_make_no_sense_are_refused(factors: Any) -> None:
    with pytest.raises(RecipeError, match=r"pool_factors.*Change the field in the recipe, or give its flag"):
        settings(pool_factors=factors)


def test_factors_are_read_from_a_flag_or_a_list() -> None:
    assert settings().pool_factors == (1,)
    assert settings(pool_factors="1, 1.5,4").pool_factors == settings(pool_factors=[1, 1.5, 4]).pool_factors


def test_a_dev_set_is_measured_with_the_vectors_that_a_collection_stores(encoder: JinaColbertEncoder) -> None:
    rows = make_rows(12, negatives=1)
    dev = DevSet.of_rows(rows)
    found = DevEvaluator(dev, encoder.dims).pooled_metrics(encoder, [1, 3])
    texts = list(dev.documents.values())
    for factor, dim in ((1, 16), (3, 8)):
        for query, text in dev.queries.items():
            own = scores(encoder, text, texts, dim, factor)
            (relevant,) = (list(dev.documents).index(key) for key in dev.qrels[query])
            rank = sum(one > own[relevant] for one in own)
            expected = 1 / np.log2(rank + 2) if rank < 10 else 0
            assert found[factor][dim].per_query[query]["ndcg@10"] == pytest.approx(expected)


QUICK: dict[str, Any] = {"pool_factors": [1, 2], "max_steps": 4, "batch_size": 4, "evaluations": 4, "patience": 0}


def test_a_run_reports_each_factor_and_is_resumed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_encoder(checkpoint).save_pretrained(str(tmp_path / "model"))
    data = write_rows(tmp_path / "rows.jsonl", make_rows(40, negatives=3, scores=True))

    def request(name: str, **changes: Any) -> Request:
        chosen = settings("train", **QUICK, head_learning_rate=0.01, log_every=1)
        return Request([data], str(tmp_path / "model"), tmp_path / name, chosen, device="cpu", **changes)

    whole = train(request("whole"))
    assert set(whole.pooled_before) == set(whole.pooled_after) == {"2"}
    assert whole.pooled_after["2"].keys() == whole.after.keys() == {16, 8}
    text = (tmp_path / "whole" / "README.md").read_text("utf-8")
    before, after = whole.pooled_before["2"][8], whole.pooled_after["2"][8]
    assert f"| 8 | 2 | {before:.4f} | {after:.4f} | {after - whole.after[8]:+.4f} |\n" in text
    assert "pool_factors: [1.0, 2.0]\n" in text
    stored = json.loads((tmp_path / "whole" / "training.json").read_text("utf-8"))
    assert stored["recipe"]["pool_factors"] == [1.0, 2.0]
    assert stored["pooled_after"] == {"2": {str(dim): one for dim, one in whole.pooled_after["2"].items()}}
    assert {"loss_16", "loss_16_pool_2"} <= set().union(*whole.history)

    from jcv2_trainer.training import train as module

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_write", broken)
        with pytest.raises(KeyboardInterrupt):
            train(request("out"))
    for folder in sorted((tmp_path / "out.run").glob("checkpoint-*"))[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    resumed = train(request("out", resume=True))
    assert (resumed.before, resumed.pooled_before) == (whole.before, whole.pooled_before)
    assert resumed.pooled_after["2"] == pytest.approx(whole.pooled_after["2"])
    first, second = (
        {one["step"]: one["loss_8_pool_2"] for one in run.history if "loss_8_pool_2" in one} for run in (whole, resumed)
    )
    assert len(first) == 4
    assert second == pytest.approx(first, rel=1e-5)
