"""Heads from principal components: their algebra, and the command that fits them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_plugin.encoder.shipped import shipped_model
from jcv2_plugin.errors import ModelLayoutError, ModelNotFoundError
from jcv2_plugin.files import new_folder
from jcv2_trainer.cli.app import app
from jcv2_trainer.heads.principal import captured, load_backbone, principal_heads, second_moment

TEXTS = [
    "Who wrote the first computer program?",
    "Ada Lovelace published an algorithm for the analytical engine in 1843, " * 4,
    "Rain.",
    "A token vector is compared with every other; the best match of each query token counts.",
]
DIMS = (24, 8, 16)


@pytest.fixture(scope="module")
def backbone() -> Any:
    return load_backbone("mini")


@pytest.fixture(scope="module")
def moment(backbone) -> torch.Tensor:
    return second_moment(backbone, TEXTS)


def weight(heads: MatryoshkaHeads, dim: int) -> torch.Tensor:
    return heads.get_parameter(f"linears.{dim}.weight").detach()


@pytest.mark.parametrize("tokens_per_batch", [1, 512, 4096])
def test_the_second_moment_is_that_of_each_text_by_itself(backbone, tokens_per_batch):
    states = []
    for text in TEXTS:
        with torch.inference_mode():
            output = backbone(backbone.preprocess([text], task="document"))
        states.append(F.normalize(output["token_embeddings"][0].double(), dim=-1))
    rows = torch.cat(states)
    moment = second_moment(backbone, TEXTS, tokens_per_batch=tokens_per_batch)
    torch.testing.assert_close(moment, rows.T @ rows / len(rows), atol=1e-6, rtol=0)
    assert float(moment.trace()) == pytest.approx(1)


def test_progress_counts_every_text_once(backbone):
    done: list[int] = []
    second_moment(backbone, TEXTS, tokens_per_batch=16, progress=done.append)
    assert sum(done) == len(TEXTS)
    assert len(done) > 1


def test_rows_are_orthonormal_and_smaller_heads_are_the_leading_rows(moment):
    heads = principal_heads(moment, DIMS)
    assert heads.dims == DIMS
    largest = weight(heads, 24)
    torch.testing.assert_close(largest @ largest.T, torch.eye(24), atol=1e-5, rtol=0)
    for dim in DIMS:
        assert torch.equal(weight(heads, dim), largest[:dim])


def test_no_random_rotation_captures_more(moment):
    heads = principal_heads(moment, DIMS)
    generator = torch.Generator().manual_seed(3)
    for dim in DIMS:
        best = captured(moment, weight(heads, dim))
        assert best == pytest.approx(float(torch.linalg.eigvalsh(moment)[-dim:].sum()), abs=1e-5)
        for _ in range(5):
            noise = torch.randn(moment.shape[0], dim, generator=generator, dtype=torch.float64)
            rotation = torch.linalg.qr(noise).Q.T
            assert 0 < captured(moment, rotation) < best <= 1


def test_signs_do_not_depend_on_the_solver():
    moment = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    assert torch.equal(weight(principal_heads(moment, (2,)), 2), torch.eye(4)[:2])


def test_what_cannot_be_fitted(backbone, moment):
    with pytest.raises(ValueError, match="There are no texts"):
        second_moment(backbone, [])
    with pytest.raises(ValueError, match="384 components, so no head of 385"):
        principal_heads(moment, (8, 385))


def test_a_backbone_is_read_by_name_or_from_a_folder(backbone):
    shipped = shipped_model("mini")
    assert shipped is not None
    other = load_backbone(str(shipped.backbone_source().folder))
    texts = TEXTS[:2]
    torch.testing.assert_close(second_moment(backbone, texts), second_moment(other, texts))


def test_a_backbone_that_is_none_is_refused(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"neither a folder nor a shipped model \(.*mini.*\)"):
        load_backbone(str(tmp_path / "missing"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLayoutError, match="cannot be read as a transformers model"):
        load_backbone(str(tmp_path))


# The command


@pytest.fixture
def pairs(tmp_path) -> Path:
    rows = [
        {"query": f"question number {i}?", "positive": f"{text} {i}", "lang": "en"} for i, text in enumerate(TEXTS * 3)
    ]
    rows.append({"query": "eine Frage", "positive": "eine Antwort", "lang": "de"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["principal-heads", *[str(one) for one in arguments]])


def fit(pairs: Path, out: Path, *more: Any) -> Any:
    sample = ["--model", "mini", "--dims", "16,8", "--texts", 9, "--lang", "en", "--steps", 0]
    return invoke(pairs, "--out", out, *sample, *more)


def test_the_command_writes_heads_that_load(pairs, tmp_path):
    out = tmp_path / "new/heads"
    result = fit(pairs, out)
    assert result.exit_code == 0, result.output
    assert "from 4 queries and 5 positives" in result.stdout
    assert result.stderr == ""  # no bars in a pipe
    heads = MatryoshkaHeads.load(str(out))
    assert (heads.in_features, heads.dims, heads.normalize) == (384, (16, 8), True)
    assert torch.equal(weight(heads, 8), weight(heads, 16)[:8])
    assert [path.name for path in out.parent.iterdir()] == ["heads"]
    assert fit(pairs, tmp_path / "same").exit_code == fit(pairs, tmp_path / "other", "--seed", 14).exit_code == 0
    first, same, other = (
        (folder / "model.safetensors").read_bytes() for folder in (out, tmp_path / "same", tmp_path / "other")
    )
    assert first == same != other


def test_the_command_trains_heads_to_keep_scores(pairs, tmp_path):
    result = fit(pairs, tmp_path / "heads", "--steps", 5)
    assert result.exit_code == 0, result.output
    assert "as a share of their variance:" in result.stdout
    assert result.stdout.splitlines()[-1].split()[:3] == ["8", "dimensions", "lose"]
    heads = MatryoshkaHeads.load(str(tmp_path / "heads"))
    assert not torch.equal(weight(heads, 8), weight(heads, 16)[:8])


def test_only_heads_are_replaced_and_only_with_force(pairs, tmp_path):
    out = tmp_path / "heads"
    out.mkdir()
    assert fit(pairs, out).exit_code == 0  # an empty folder may be taken
    before = (out / "model.safetensors").read_bytes()
    for target, more, said in (
        (out, [], "already contains heads. Choose another --out, or replace them with --force."),
        (out, ["--force", "--dims", "385"], "no head of 385 can be fitted. Give --dims of at most 384"),
        (tmp_path, ["--force"], "contains other files than heads (heads)"),
        (pairs, ["--force"], "is not a folder"),
    ):
        result = fit(pairs, target, *more)
        assert result.exit_code == 2
        assert said in result.stderr
    assert (out / "model.safetensors").read_bytes() == before
    assert fit(pairs, out, "--dims", "4", "--force").exit_code == 0
    assert MatryoshkaHeads.load(str(out)).dims == (4,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads", "pairs.jsonl"]


def test_the_old_heads_come_back_when_the_new_cannot_replace_them(tmp_path, monkeypatch):
    out = tmp_path / "heads"
    out.mkdir()
    (out / "config.json").write_text("old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise PermissionError(f"not allowed: {target}")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(PermissionError), new_folder(out, lambda path: None) as folder:
        (folder / "config.json").write_text("new")
    assert (out / "config.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--lang", "fr"], "no row with lang 'fr'. It has: en (12 rows), de (1 rows)."),
        (["--model", "no/such/model"], "'no/such/model' is neither a folder nor a shipped model"),
        (["--dims", "8,8"], "distinct positive integers"),
        (["--dims", "0"], "distinct positive integers"),
        (["--dims", "²"], "distinct positive integers"),
        (["--texts", "1"], "greater than or equal to 2 | is not in the range x>=2"),  # as this version of typer says it
    ],
)
def test_what_cannot_be_fitted_is_said_without_a_traceback(pairs, tmp_path, arguments, said):
    result = fit(pairs, tmp_path / "heads", *arguments)
    assert result.exit_code == 2
    shown = " ".join(result.stderr.replace("│", " ").split())
    assert any(one in shown for one in said.split(" | ")), shown
    assert "Traceback" not in result.output
    assert not (tmp_path / "heads").exists()
