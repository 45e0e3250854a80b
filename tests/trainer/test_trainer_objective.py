"""The loss: against a slow reference, against sentence-transformers, cached against plain, and head by head."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sentence_transformers.multi_vector_encoder.losses import (
    MultiVectorDistillKLDivLoss,
    MultiVectorMultipleNegativesRankingLoss,
)
from torch.nn.parallel import DistributedDataParallel
from training_samples import make_rows, settings, tiny_encoder, with_keys

from jcv2_plugin import JinaColbertEncoder
from jcv2_trainer.data.collator import NO_CANDIDATE, Batch, PackedCollator
from jcv2_trainer.loss.objective import MatryoshkaLateInteractionLoss

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objective") / "model"


@pytest.fixture
def encoder(checkpoint) -> JinaColbertEncoder:
    return tiny_encoder(checkpoint)


def batch_of(encoder, rows, **options: Any) -> Batch:
    return PackedCollator(encoder, **{"tokens_per_batch": 96, **options}).collate(rows)


def loss_and_gradients(encoder, batch, chosen, weights=None) -> tuple[float, dict[str, torch.Tensor]]:
    encoder.zero_grad()
    encoder.train()
    loss = MatryoshkaLateInteractionLoss(encoder, chosen, weights)(batch)
    loss.backward()
    gradients = {name: one.grad.clone() for name, one in encoder.named_parameters() if one.grad is not None}
    return float(loss.detach()), gradients


def vectors(encoder, texts, task, dim) -> list[np.ndarray]:
    encode = encoder.encode_query if task == "query" else encoder.encode_document
    return [np.asarray(one, dtype=np.float64) for one in encode(texts, dim=dim, convert_to_numpy=True)]


def max_sim(query, document) -> float:
    return float((query @ document.T).max(axis=1).sum())


def score_matrix(encoder, rows, dim) -> np.ndarray:
    """Of each query with each positive."""
    documents = vectors(encoder, [row["positive"] for row in rows], "document", dim)
    queries = vectors(encoder, [row["query"] for row in rows], "query", dim)
    return np.array([[max_sim(query, document) for document in documents] for query in queries])


class TestAgainstAReference:
    def test_contrastive_loss_is_the_mean_over_heads_and_queries(self, encoder):
        rows = make_rows(5, negatives=2)
        documents = [text for row in rows for text in (row["positive"], *row["negatives"])]
        expected = []
        for dim in encoder.dims:
            encoded = vectors(encoder, documents, "document", dim)
            for index, query in enumerate(vectors(encoder, [row["query"] for row in rows], "query", dim)):
                scores = [0.7 * max_sim(query, document) for document in encoded]
                expected.append(-log_softmax(scores)[3 * index])
        loss, _ = loss_and_gradients(encoder, batch_of(encoder, rows), settings(scale=0.7))
        assert loss == pytest.approx(np.mean(expected), rel=1e-5)

    def test_symmetric_loss_asks_the_positives_too(self, encoder):
        rows = make_rows(4, negatives=0)
        scores = score_matrix(encoder, rows, encoder.dims[0])
        forward, backward = (np.mean([-log_softmax(both[i])[i] for i in range(4)]) for both in (scores, scores.T))
        loss, _ = loss_and_gradients(encoder, batch_of(encoder, rows), settings("pairs", cached=False), [1, 0])
        assert loss == pytest.approx((forward + backward) / 2, rel=1e-5)

    def test_distillation_compares_each_query_with_its_own_candidates(self, encoder):
        rows = make_rows(4, negatives=3, scores=True)
        expected = []
        for dim in encoder.dims:
            for row in rows:
                query = vectors(encoder, [row["query"]], "query", dim)[0]
                documents = vectors(encoder, [row["positive"], *row["negatives"]], "document", dim)
                student = log_softmax([0.5 * max_sim(query, document) for document in documents])
                teacher = log_softmax(np.array(row["scores"]) / 2)
                expected.append((np.exp(teacher) * (teacher - student)).sum())
        chosen = settings(contrastive_weight=0.0, scale=0.5, teacher_temperature=2.0)
        loss, _ = loss_and_gradients(encoder, batch_of(encoder, rows), chosen)
        assert loss == pytest.approx(np.mean(expected), rel=1e-5)
        untaught = make_rows(2, negatives=1, seed=1)  # without a teacher, and with fewer negatives
        together, gradients = loss_and_gradients(encoder, batch_of(encoder, [*rows, *untaught]), chosen)
        assert together == pytest.approx(loss, rel=1e-5)
        assert all(one.isfinite().all() for one in gradients.values())


class TestFalseNegatives:
    def test_an_equal_text_counts_once_and_missing_negatives_are_marked(self, encoder):
        rows = make_rows(3, negatives=1)
        repeated = [rows[0], with_keys({**rows[1], "negatives": rows[0]["negatives"]}), {**rows[2], "negatives": []}]
        batch = batch_of(encoder, repeated)
        assert batch.documents.count == 4
        assert batch.candidates.tolist() == [[0, 1], [2, 1], [3, NO_CANDIDATE]]

    def test_another_positive_of_the_query_is_no_negative(self, encoder):
        rows = make_rows(3, negatives=0)
        same = with_keys({**rows[1], "query": rows[0]["query"]})
        both = [rows[0], same, rows[2]]
        known = {rows[0]["query_key"]: [rows[0]["positive_key"], rows[1]["positive_key"]]}
        loss, _ = loss_and_gradients(encoder, batch_of(encoder, both, known=known), settings(), [1, 0])
        scores = score_matrix(encoder, both, encoder.dims[0])
        expected = [
            -log_softmax(scores[0][[0, 2]])[0],
            -log_softmax(scores[1][[1, 2]])[0],
            -log_softmax(scores[2])[2],
        ]
        assert loss == pytest.approx(np.mean(expected), rel=1e-5)

    def test_a_known_positive_among_the_negatives_of_others_is_left_out(self, encoder):
        rows = make_rows(2, negatives=1)
        rows[1] = with_keys({**rows[1], "negatives": ["another answer to the first question"]})
        answer = with_keys({**rows[0], "positive": "another answer to the first question"})
        known = {rows[0]["query_key"]: [rows[0]["positive_key"], answer["positive_key"]]}
        plain, _ = loss_and_gradients(encoder, batch_of(encoder, rows), settings())
        aware, _ = loss_and_gradients(encoder, batch_of(encoder, rows, known=known), settings())
        assert aware < plain


class TestGradientCache:
    @pytest.mark.parametrize("stage, dropout", [("pairs", 0.1), ("triplets", 0.0)])
    def test_loss_and_gradients_are_those_of_the_plain_way(self, checkpoint, stage, dropout):
        encoder = tiny_encoder(checkpoint, dropout=dropout)
        rows = make_rows(8, negatives=2 if stage == "triplets" else 0, scores=stage == "triplets")
        batch = batch_of(encoder, rows)
        assert len(batch.documents.features) > 3
        found = {}
        for cached in (False, True):
            torch.manual_seed(3)
            found[cached] = loss_and_gradients(encoder, batch, settings(stage, cached=cached))
        plain, cached = found[False], found[True]
        assert cached[0] == pytest.approx(plain[0], rel=1e-6)
        assert set(plain[1]) == set(cached[1])
        for name, gradient in plain[1].items():
            error = (cached[1][name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
            assert error < 1e-5, name

    def test_only_one_pass_holds_its_activations(self, checkpoint):
        """Between the passes, no more than their token vectors and inputs is kept for the backward pass."""
        encoder = tiny_encoder(checkpoint).train()
        batch = batch_of(encoder, make_rows(8))
        kept = {}
        for cached in (False, True):
            sizes: list[int] = []
            objective = MatryoshkaLateInteractionLoss(encoder, settings(cached=cached))

            def keep(one: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
                sizes.append(one.numel())
                return one

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
                objective.encode(batch)
            kept[cached] = sum(sizes)
        assert kept[True] < kept[False] / 20


class TestHeads:
    def test_one_backbone_pass_serves_all_heads(self, encoder):
        batch = batch_of(encoder, make_rows(4))
        calls = []
        hook = encoder.backbone.register_forward_hook(lambda *_: calls.append(1))
        loss_and_gradients(encoder, batch, settings(cached=False))
        hook.remove()
        assert len(calls) == len(batch.queries.features) + len(batch.documents.features)

    def test_a_heads_gradient_is_that_of_its_own_loss(self, encoder):
        batch = batch_of(encoder, make_rows(4, scores=True))
        _, both = loss_and_gradients(encoder, batch, settings(), [1, 1])
        for position, dim in enumerate(encoder.dims):
            alone = [0.0, 0.0]
            alone[position] = 1.0
            _, gradients = loss_and_gradients(encoder, batch, settings(), alone)
            name = next(name for name in both if f"linears.{dim}." in name)
            torch.testing.assert_close(gradients[name] / 2, both[name], rtol=1e-4, atol=1e-7)
            other = next(name for name in both if "linears." in name and f"linears.{dim}." not in name)
            assert gradients[other].abs().max() == 0


class TestAgainstSentenceTransformers:
    """The same batch by their losses, on a plain model of one head."""

    def features(self, encoder, rows) -> list[dict[str, Any]]:
        queries, *documents = zip(*((row["query"], row["positive"], *row["negatives"]) for row in rows), strict=True)
        columns = [(queries, "query"), *((texts, "document") for texts in documents)]
        return [
            {**encoder.preprocess(list(texts), prompt=encoder.prompts[task], task=task), "task": task}
            for texts, task in columns
        ]

    @pytest.mark.parametrize("distilled", [False, True])
    def test_equal_loss_and_gradients(self, checkpoint, distilled):
        encoder = tiny_encoder(checkpoint, dims=(16,)).train()
        rows = make_rows(6, negatives=3, scores=True)
        features = self.features(encoder, rows)
        if distilled:
            labels = torch.tensor([row["scores"] for row in rows])
            # They multiply by the temperature's square.
            theirs = MultiVectorDistillKLDivLoss(encoder, temperature=2.0)(features, labels) / 4
            chosen = settings(contrastive_weight=0.0, scale=0.5, teacher_temperature=2.0)
        else:
            theirs = MultiVectorMultipleNegativesRankingLoss(encoder)(features, None)
            chosen = settings(distillation_weight=0.0)
        encoder.zero_grad()
        theirs.backward()
        their_gradients = {name: one.grad.clone() for name, one in encoder.named_parameters() if one.grad is not None}
        ours, our_gradients = loss_and_gradients(encoder, batch_of(encoder, rows), chosen)
        assert ours == pytest.approx(theirs.item(), abs=1e-5)
        for name, gradient in their_gradients.items():
            torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-3, atol=1e-6)


class TestPacking:
    def test_little_is_padded_and_every_text_is_encoded_once(self, encoder):
        batch = batch_of(encoder, make_rows(16, negatives=7), tokens_per_batch=512)
        real = sum(int(one["attention_mask"].sum()) for one in batch.documents.features)
        computed = sum(one["attention_mask"].numel() for one in batch.documents.features)
        assert real / computed > 0.85
        assert sorted(row for part in batch.documents.rows for row in part) == list(range(batch.documents.count))

    def test_passages_are_cut_to_the_training_length(self, encoder):
        batch = batch_of(encoder, make_rows(4), document_length=8)
        assert max(one["input_ids"].shape[1] for one in batch.documents.features) == 8

    def test_negatives_are_drawn_by_row_and_epoch(self, encoder):
        rows = make_rows(6, negatives=7)
        first = PackedCollator(encoder, negatives=2)
        again = PackedCollator(encoder, negatives=2)
        later = PackedCollator(encoder, negatives=2, epoch=1)
        alone = [first._candidates(row) for row in rows]
        assert [again._candidates(row) for row in reversed(rows)] == alone[::-1]
        assert [later._candidates(row) for row in rows] != alone


def share_of_a_process(rank: int, folder: Path, rows: list[dict[str, Any]], port: int) -> None:
    """Compute the loss on half of the rows, and save the gradients."""
    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, rank == 0)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    encoder = tiny_encoder(folder / "model")
    batch = batch_of(encoder, rows[rank::2], tokens_per_batch=[96, 48][rank])  # more forward passes in one of them
    for stage in ("pairs", "triplets"):
        for cached in (False, True):
            encoder.zero_grad()
            loss = MatryoshkaLateInteractionLoss(encoder, settings(stage, cached=cached, pool_factors=[1, 2]))
            loss.model = DistributedDataParallel(encoder, find_unused_parameters=True, broadcast_buffers=False)
            loss(batch).backward()
            gradients = {name: one.grad for name, one in encoder.named_parameters() if one.grad is not None}
            torch.save(gradients, folder / f"{stage}-{cached}-{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not os.environ.get("JCV2_TEST_ALL"), reason="starts two processes; set JCV2_TEST_ALL=1")
def test_two_processes_have_the_gradients_of_one(checkpoint):
    encoder, rows = tiny_encoder(checkpoint), make_rows(8, negatives=2, scores=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(share_of_a_process, (checkpoint.parent, rows, port), 2)
    for stage in ("pairs", "triplets"):
        _, expected = loss_and_gradients(
            encoder, batch_of(encoder, rows), settings(stage, cached=False, pool_factors=[1, 2])
        )
        for cached in (False, True):
            for rank in (0, 1):
                found = torch.load(checkpoint.parent / f"{stage}-{cached}-{rank}", weights_only=True)
                assert found.keys() == expected.keys()
                for name, gradient in expected.items():
                    torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
