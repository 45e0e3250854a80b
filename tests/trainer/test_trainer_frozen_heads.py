"""Heads trained on a frozen backbone's states."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from sentence_transformers.util.similarity import maxsim
from torch.nn import functional as F
from training_samples import write_jsonl as write
from typer.testing import CliRunner

from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_trainer.cli.app import app
from jcv2_trainer.data.lines import DataError
from jcv2_trainer.heads.frozen import (
    Example,
    FrozenTexts,
    dev_ndcg,
    maxsim_scores,
    moment_of,
    pooled_scores,
    train_heads,
    whitened_heads,
)
from jcv2_trainer.heads.principal import TokenStates, half_states, load_backbone, pack, principal_heads

HIDDEN = 12
LENGTHS = [3, 1, 5]


def packed(lengths: list[int], seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), HIDDEN, generator=generator, dtype=dtype)


def padded(states: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    return list(torch.split(states, lengths))


class TestScores:
    def test_are_maxsim_of_the_heads_vectors(self) -> None:
        weight = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(0))
        queries, passages = packed([2, 4], 1), packed(LENGTHS, 2)
        scores = maxsim_scores(weight, queries, [2, 4], passages, LENGTHS)
        asked, read = (F.normalize(states @ weight.T, dim=-1) for states in (queries, passages))
        expected = maxsim(padded(asked, [2, 4]), padded(read, LENGTHS))
        torch.testing.assert_close(scores, expected)

    def test_have_the_gradient_of_a_dense_product_and_maximum(self) -> None:
        queries, passages = packed([2, 4], 1), packed(LENGTHS, 2)
        upstream = torch.randn(2, 3, generator=torch.Generator().manual_seed(3))
        gradients = []
        for sparse in (True, False):
            weight = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(0)).requires_grad_()
            if sparse:
                scores = maxsim_scores(weight, queries, [2, 4], passages, LENGTHS)
            else:
                asked, read = (F.normalize(states @ weight.T, dim=-1) for states in (queries, passages))
                best = torch.stack([part.max(dim=1).values for part in (asked @ read.T).split(LENGTHS, dim=1)], dim=1)
                scores = torch.stack([part.sum(dim=0) for part in best.split([2, 4])])
            (scores * upstream).sum().backward()  # type: ignore[no-untyped-call]
            gradients.append(weight.grad)
        torch.testing.assert_close(*gradients)

    def test_of_pooled_passages_are_those_of_the_vectors_that_are_stored(self) -> None:
        weight = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(0)).requires_grad_()
        lengths = [12, 1, 30]
        queries, passages = packed([2, 4], 1), packed(lengths, 2)
        asked, read = (F.normalize(states @ weight.T, dim=-1) for states in (queries, passages))
        scores_by_factor = pooled_scores(weight, queries, [2, 4], passages, lengths, (1, 2, 4))
        for factor, scores in zip((1, 2, 4), scores_by_factor, strict=True):
            stored = padded(read, lengths)
            stored = HierarchicalTokenPooling(factor).pool(stored) if factor > 1 else stored
            expected = maxsim(padded(asked, [2, 4]), stored)
            torch.testing.assert_close(scores, expected)
            gradients = [torch.autograd.grad(one.sum(), weight, retain_graph=True)[0] for one in (scores, expected)]
            torch.testing.assert_close(*gradients)


class TestStart:
    def test_is_principal_components_with_other_lengths(self) -> None:
        states = packed([200], 5) * torch.linspace(3, 0.5, HIDDEN)
        moment = states.double().T @ states.double() / 200
        start, components = whitened_heads(moment, (6, 3), 0.2, 0.25), principal_heads(moment, (6,))
        weight = start.weight(6)
        torch.testing.assert_close(F.normalize(weight, dim=1), components.weight(6))
        lengths = weight.norm(dim=1)
        assert lengths[0] == pytest.approx(0.2)
        assert lengths[1] == pytest.approx(1)
        values = torch.linalg.eigvalsh(moment).flip(0)
        assert lengths[5] == pytest.approx(float((values[5] / values[1]) ** -0.25), rel=1e-4)
        assert torch.equal(start.weight(3), weight[:3])


def triplets(count: int, lang: str) -> list[dict[str, Any]]:
    return [
        {
            "query": f"{lang} question {number}",
            "positive": f"{lang} passage {number}",
            "negatives": [f"{lang} passage {number + other}" for other in (1, 2, 3, 4)],
            "lang": lang,
            "source": "made",
        }
        for number in range(count)
    ]


def read(files: list[Path], **changes: int) -> FrozenTexts:
    options = {"rows": 100, "negatives": 2, "dev_every": 4, "dev_rows": 100, "seed": 1, **changes}
    return FrozenTexts.read(files, **options)


class TestTexts:
    def test_the_dev_set_shares_no_positive_and_no_question(self, tmp_path: Path) -> None:
        rows = triplets(60, "de") + triplets(60, "ar-de")
        rows += [{**row, "positive": rows[number]["positive"]} for number, row in enumerate(rows[5:20])]
        texts = read([write(tmp_path / "rows.jsonl", rows)])
        assert len(texts.dev) > 10
        assert len(texts.examples) > 60
        assert {one.language for one in texts.examples} == {"de"}  # that of the passages
        assert {one.positive for one in texts.dev}.isdisjoint(one.positive for one in texts.examples)
        assert {one.query for one in texts.dev}.isdisjoint(one.query for one in texts.examples)
        assert all(len(one.negatives) == 4 for one in texts.dev)
        assert all(len(one.negatives) == 2 for one in texts.examples)

    def test_rows_are_capped_but_pairs_about_drawn_passages_come_on_top(self, tmp_path: Path) -> None:
        rows = triplets(40, "de")
        about = [{"query": f"more {row['query']}", "positive": row["positive"], "lang": "de", "source": "made"}
                 for row in rows]  # fmt: skip
        other = [{"query": f"other {n}", "positive": f"unseen {n}", "lang": "de", "source": "made"} for n in range(30)]
        files = [write(tmp_path / "pairs.jsonl", about + other), write(tmp_path / "triplets.jsonl", rows)]
        texts = read(files, rows=10, dev_every=0)
        assert sum(bool(one.negatives) for one in texts.examples) == 10
        assert not any(text.startswith("unseen") for text in texts.passages)
        drawn = {texts.passages[one.positive] for one in texts.examples if one.negatives}
        pairs = {texts.queries[one.query] for one in texts.examples if not one.negatives}
        assert {f"more {text.replace('passage', 'question')}" for text in drawn} <= pairs

    def test_all_answers_to_a_question_are_known(self, tmp_path: Path) -> None:
        rows = triplets(8, "de")
        rows.append({**rows[0], "positive": rows[5]["positive"]})
        texts = read([write(tmp_path / "rows.jsonl", rows)], dev_every=0)
        assert not texts.dev
        asked = texts.queries.index("de question 0")
        assert {texts.passages[index] for index in texts.known[asked]} == {"de passage 0", "de passage 5"}
        with pytest.raises(DataError, match="no row to train on"):
            read([write(tmp_path / "rows.jsonl", [])])


def task(count: int = 40) -> tuple[FrozenTexts, TokenStates, TokenStates]:
    """Questions and passages that agree in faint components and differ at random in loud ones."""
    generator = torch.Generator().manual_seed(0)
    faint = torch.randn(count, 1, 4, generator=generator)

    def states(tokens: int) -> TokenStates:
        loud = 3 * torch.randn(count, tokens, HIDDEN - 4, generator=generator)
        both = torch.cat([loud, faint.expand(-1, tokens, -1)], dim=2)
        return list(F.normalize(both, dim=-1).half())

    numbers = random.Random(1)
    rows = [
        Example(one, one, tuple(numbers.sample([other for other in range(count) if other != one], 5)), "made", "de")
        for one in range(count)
    ]
    texts = FrozenTexts([""] * count, [""] * count, rows[: count // 2], rows[count // 2 :])
    for one in rows:
        texts.known[one.query].add(one.positive)
    return texts, states(3), states(6)


class TestTraining:
    def test_heads_learn_what_tells_passages_apart(self) -> None:
        texts, queries, passages = task()
        start = whitened_heads(moment_of(queries, passages, 40, 0), (12, 4, 2))
        heads = train_heads(start, texts, queries, passages, steps=160, batch_size=12, learning_rate=2e-2)
        before, after = (
            dev_ndcg({dim: one.weight(dim) for dim in one.dims}, texts, queries, passages)["made, de"]
            for one in (start, heads)
        )
        assert max(before.values()) < 0.3
        assert after[12] > 0.9
        assert after[4] > 0.6
        assert after[2] > before[2] + 0.1

    def test_smaller_heads_learn_from_the_largest_and_a_seed_gives_the_same(self) -> None:
        texts, queries, passages = task()
        start = whitened_heads(moment_of(queries, passages, 40, 0), (4, 12))
        alone, same, taught, seeded = (
            train_heads(start, texts, queries, passages, steps=5, batch_size=12, distillation=share, seed=seed)
            for share, seed in ((0.0, 0), (0.0, 0), (0.5, 0), (0.0, 1))
        )
        assert torch.equal(alone.weight(12), taught.weight(12))
        assert not torch.equal(alone.weight(4), taught.weight(4))
        assert torch.equal(alone.weight(4), same.weight(4))
        assert not torch.equal(alone.weight(4), seeded.weight(4))

    def test_pooled_passages_are_learnt_too(self) -> None:
        texts, queries, passages = task()
        start = whitened_heads(moment_of(queries, passages, 40, 0), (12, 4))
        options: dict[str, Any] = {"steps": 120, "batch_size": 12, "learning_rate": 2e-2}
        plain, same, aware = (
            train_heads(start, texts, queries, passages, pool_factors=factors, **options)
            for factors in ((1,), (1.0,), (1, 3))
        )
        assert all(torch.equal(plain.weight(dim), same.weight(dim)) for dim in (12, 4))
        for dim in (12, 4):
            before, after = (
                dev_ndcg({dim: one.weight(dim)}, texts, queries, passages, 3)["made, de"][dim] for one in (start, aware)
            )
            assert after > before + 0.2
            assert not torch.equal(plain.weight(dim), aware.weight(dim))

    def test_the_largest_head_can_stay_and_teach_the_others_on_texts_without_labels(self) -> None:
        texts, queries, passages = task()
        start = whitened_heads(moment_of(queries, passages, 40, 0), (12, 6))
        unlabelled = [part[:4] for part in task(60)[2]]
        options: dict[str, Any] = {"steps": 60, "batch_size": 12, "learning_rate": 1e-2, "distillation": 1.0}
        taught, kept = (
            train_heads(start, texts, queries, passages, train_largest=False, unlabelled=more, **options)
            for more in ([], unlabelled)
        )
        assert torch.equal(start.weight(12), taught.weight(12))
        assert torch.equal(start.weight(12), kept.weight(12))

        def error(heads: MatryoshkaHeads) -> float:
            with torch.no_grad():
                wanted, found = (
                    maxsim_scores(one, *pack(queries), *pack(unlabelled)) for one in (start.weight(12), heads.weight(6))
                )
            return float((found - found.mean(1, keepdim=True) - wanted + wanted.mean(1, keepdim=True)).square().mean())

        assert error(kept) < 0.9 * error(start)
        assert error(kept) < error(taught)

    def test_too_few_texts_without_labels_are_refused(self) -> None:
        texts, queries, passages = task()
        start = whitened_heads(moment_of(queries, passages, 40, 0), (12, 4))
        with pytest.raises(DataError, match="at least 40 texts without labels, or none; got 3"):
            train_heads(start, texts, queries, passages, steps=1, unlabelled=passages[:3])


def test_states_are_those_of_the_prompt_and_the_text() -> None:
    backbone = load_backbone("mini")
    (part,) = half_states(backbone, ["late interaction"], "query: ")
    with torch.inference_mode():
        states = backbone(backbone.preprocess(["query: late interaction"]))["token_embeddings"][0]
    torch.testing.assert_close(part.float(), F.normalize(states, dim=-1), atol=1e-3, rtol=0)


class TestCommand:
    def run(self, data: Path, out: Path, *more: Any) -> Any:
        options = ["--model", "mini", "--dims", "16,8", "--steps", "3", "--batch-size", "4", "--dev-every", "4"]
        return CliRunner().invoke(app, ["heads", str(data), "--out", str(out), *options, *map(str, more)])

    def test_writes_heads_and_says_what_they_gained(self, tmp_path: Path) -> None:
        data, out = write(tmp_path / "rows.jsonl", triplets(16, "en")), tmp_path / "heads"
        result = self.run(data, out)
        assert result.exit_code == 0, result.output
        assert "rows that were held out" in result.stdout
        assert re.search(r"^ +8 dimensions  0\.\d{4} -> 0\.\d{4}$", result.stdout, re.MULTILINE)
        heads = MatryoshkaHeads.load(str(out))
        assert (heads.in_features, heads.dims, heads.normalize) == (384, (16, 8), True)
        assert self.run(data, out).exit_code == 2
        assert self.run(data, out, "--force").exit_code == 0

    def test_the_largest_head_is_kept_and_others_learn_from_texts_too(self, tmp_path: Path) -> None:
        data, raw = write(tmp_path / "rows.jsonl", triplets(16, "en")), tmp_path / "raw.txt"
        raw.write_text("\n\n".join(f"Rain {number} falls." for number in range(50)), encoding="utf-8")
        for name, more in (("plain", ()), ("kept", ("--keep-largest",)), ("both", ("--keep-largest", "--texts", raw))):
            result = self.run(data, tmp_path / name, *more)
            assert result.exit_code == 0, result.output
        plain, kept, both = (MatryoshkaHeads.load(str(tmp_path / name)) for name in ("plain", "kept", "both"))
        assert torch.equal(kept.weight(16), both.weight(16))
        assert not torch.equal(kept.weight(16), plain.weight(16))
        assert not torch.equal(kept.weight(8), both.weight(8))
        raw.write_text("Rain falls.", encoding="utf-8")
        result = self.run(data, tmp_path / "few", "--texts", raw)
        assert result.exit_code == 2
        assert "at least 40 texts without labels" in result.output

    def test_figures_are_given_for_each_pooling_factor(self, tmp_path: Path) -> None:
        data, out = write(tmp_path / "rows.jsonl", triplets(16, "en")), tmp_path / "heads"
        result = self.run(data, out, "--pool-factors", "2,1.5")
        assert result.exit_code == 0, result.output
        for factor in ("", ", pooled by 1.5", ", pooled by 2"):
            figures = rf"^ +8 dimensions{re.escape(factor)}  0\.\d{{4}} -> 0\.\d{{4}}$"
            assert re.search(figures, result.stdout, re.MULTILINE), factor

    @pytest.mark.parametrize("command", ["heads", "principal-heads"])
    @pytest.mark.parametrize("factors", ["0.5", "1,1", "two", "100", ""])
    def test_factors_that_make_no_sense_are_refused(self, tmp_path: Path, command: str, factors: str) -> None:
        data, out = write(tmp_path / "rows.jsonl", triplets(4, "en")), tmp_path / "heads"
        result = CliRunner().invoke(app, [command, str(data), "--out", str(out), "--pool-factors", factors])
        assert result.exit_code == 2
        assert "--pool-factors must be distinct numbers" in result.output
        assert not out.exists()

    def test_too_large_a_head_is_refused(self, tmp_path: Path) -> None:
        result = self.run(write(tmp_path / "rows.jsonl", triplets(4, "en")), tmp_path / "heads", "--dims", "512")
        assert result.exit_code == 2
        assert "no head of 512 can be fitted" in result.output
        assert not (tmp_path / "heads").exists()
