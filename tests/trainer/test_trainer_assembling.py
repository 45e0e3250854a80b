"""Encoders made of backbones: as jina-colbert-v2 is prepared, whole, and ready for training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from test_trainer_rotary import SIZES, write_bert, write_xlm_roberta
from training_samples import make_rows, write_rows, write_word_bert
from transformers import AutoTokenizer, ModernBertConfig, ModernBertModel
from typer.testing import CliRunner

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.official import DOCUMENT_MARKER, QUERY_MARKER, is_official_layout
from jcv2_plugin.errors import InvalidOptionError, ModelLayoutError, ModelNotFoundError
from jcv2_trainer.cli.app import app
from jcv2_trainer.errors import TrainingError
from jcv2_trainer.heads.principal import captured, load_backbone, second_moment
from jcv2_trainer.training.assemble import Assembly, add_markers, assemble
from jcv2_trainer.training.rotary import to_rotary

pytestmark = pytest.mark.usefixtures("one_thread")

DIMS = (16, 8, 32)
SETTINGS = Assembly(dims=DIMS, query_length=12, document_length=30, texts=40)
TEXT = "late interaction compares every query token."


def write_gapless_bert(folder: Path) -> Path:
    """With a row of embeddings to spare, as many have."""
    pieces = [*".,!?;:-()", "late", "interaction", "compares", "every", "query", "document", "##ing"]
    pieces += [f"{part}{one}" for one in "abcdefghijklmnopqrstuvwxyz" for part in ("", "##")]
    return write_word_bert(folder, pieces, spare=1, **SIZES)


def write_unmarked_xlm_roberta(folder: Path) -> Path:
    """As published: the tokenizer of the official checkpoint's samples, without the two markers."""
    write_xlm_roberta(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads((folder / name).read_text())
        content.pop("additional_special_tokens", None)
        content.pop("added_tokens_decoder", None)
        if added := content.get("added_tokens"):
            content["added_tokens"] = [one for one in added if one["content"] not in (QUERY_MARKER, DOCUMENT_MARKER)]
        (folder / name).write_text(json.dumps(content))
    return folder


WRITERS = {
    "bert": write_gapless_bert,
    "xlm-roberta": write_unmarked_xlm_roberta,
    "xlm-roberta with markers": write_xlm_roberta,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", make_rows(30, negatives=0))


@pytest.fixture(scope="module", params=WRITERS)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model converted to rotary positions, with a WordPiece and with a Unigram tokenizer."""
    folder = tmp_path_factory.mktemp("backbone")
    to_rotary(WRITERS[request.param](folder / "plain"), folder / "rotary")
    return folder / "rotary"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS["bert"](tmp_path_factory.mktemp("bert") / "plain")


@pytest.fixture(scope="module")
def made(backbone: Path, data: Path) -> Path:
    out = backbone.parent / "encoder"
    assemble(str(backbone), data, out, SETTINGS)
    return out


def load(folder: Path) -> JinaColbertEncoder:
    return JinaColbertEncoder.from_pretrained(str(folder), device="cpu")


def tokens(encoder: Any, role: str, text: str) -> list[str]:
    return encoder.tokenizer.convert_ids_to_tokens(encoder.tokenizer(encoder.prompts[role] + text)["input_ids"])


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_the_encoder_is_prepared_as_the_official_one(made: Path) -> None:
    assert not is_official_layout(made)
    encoder = load(made)
    assert encoder.dims == DIMS
    assert (encoder.query_length, encoder.document_length, encoder.skiplist) == (12, 30, "stanford")
    expansion = {"strategy": "fixed", "attend": True, "length": 12}
    assert expansion.items() <= encoder.backbone.query_expansion.items()
    assert encoder.prompts == {"query": f"{QUERY_MARKER} ", "document": f"{DOCUMENT_MARKER} "}
    assert encoder.encode_query(TEXT, dim=8).shape == (12, 8)
    vectors = encoder.encode_document([TEXT], dim=32)[0]
    assert vectors.norm(dim=-1).allclose(torch.ones(len(vectors)), atol=1e-5)
    assert encoder.backbone.model.dtype == torch.float32


def test_a_marked_text_is_the_marker_and_the_texts_tokens(backbone: Path, made: Path) -> None:
    plain, encoder = AutoTokenizer.from_pretrained(backbone), load(made)
    first, *words, last = plain.convert_ids_to_tokens(plain(TEXT)["input_ids"])
    assert tokens(encoder, "query", TEXT) == [first, QUERY_MARKER, *words, last]
    assert tokens(encoder, "document", TEXT) == [first, DOCUMENT_MARKER, *words, last]
    assert {QUERY_MARKER, DOCUMENT_MARKER, plain.mask_token} <= set(encoder.tokenizer.all_special_tokens)


def test_the_backbone_is_unchanged_but_for_the_markers(backbone: Path, made: Path) -> None:
    old, new = load_backbone(str(backbone)).model, load(made).backbone.model
    before, after = old.state_dict(), new.state_dict()
    for name in before:
        if "pooler" not in name and "word_embeddings" not in name:
            assert torch.equal(before[name], after[name]), name
    table, grown = old.get_input_embeddings().weight, new.get_input_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    ids = sorted(tokenizer.get_vocab().values())
    assert torch.equal(table[ids], grown[ids])
    added = json.loads((made / "training.json").read_text())["added_tokens"]
    assert added == [one for one in (QUERY_MARKER, DOCUMENT_MARKER) if one not in tokenizer.get_vocab()]
    if added:
        markers = load(made).tokenizer.convert_tokens_to_ids([QUERY_MARKER, DOCUMENT_MARKER])
        separator = table[tokenizer.sep_token_id].detach()
        assert torch.equal(grown[markers].detach(), separator.expand(2, -1))
    assert new.config.vocab_size == len(grown)


def test_heads_hold_the_most_of_the_marked_texts_states(made: Path, data: Path) -> None:
    encoder, report = load(made), json.loads((made / "training.json").read_text())
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    texts = [encoder.prompts["document"] + row["positive"] for row in rows]
    texts += [encoder.prompts["query"] + row["query"] for row in rows]
    moment = second_moment(encoder.backbone, texts)
    for dim in DIMS:
        best = float(torch.linalg.eigvalsh(moment)[-dim:].sum())
        assert captured(moment, encoder.heads.weight(dim)) > best - 0.05
        assert report["captured"][str(dim)] == pytest.approx(best, abs=0.05)
    assert report["captured"]["32"] == pytest.approx(1)
    assert (report["stage"], report["queries"], report["positives"], report["data"]) == (
        "assemble",
        20,
        20,
        "pairs.jsonl",
    )


def test_the_same_files_again(backbone: Path, made: Path, data: Path) -> None:
    out = made.parent / "again"
    assemble(str(backbone), data, out, SETTINGS)
    names = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert [name for name in names if (out / name).read_bytes() != (made / name).read_bytes()] == []
    for name in names:
        if name.suffix in (".json", ".md") and name.name != "training.json":
            assert str(made.parent) not in (out / name).read_text(), name
    assert "heads are not trained" in (out / "README.md").read_text()


def test_plain_sentence_transformers_reads_an_export(made: Path, tmp_path: Path) -> None:
    encoder = load(made)
    encoder.export(tmp_path / "export", 8)
    plain = MultiVectorEncoder(str(tmp_path / "export"), device="cpu")
    for role in ("query", "document"):
        theirs = getattr(plain, f"encode_{role}")([TEXT])[0]
        ours = getattr(encoder, f"encode_{role}")([TEXT], dim=8)[0]
        torch.testing.assert_close(torch.as_tensor(theirs), torch.as_tensor(ours), atol=1e-5, rtol=0)


def test_pairs_trains_all_of_it(made: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    options = ["--max-steps", 2, "--batch-size", 8, "--dev-share", 0, "--learning-rate", 1e-2, "--device", "cpu"]
    result = invoke("pairs", data, "--model", made, "--out", out, *options)
    assert result.exit_code == 0, result.output
    before, after = load(made), load(out)
    assert after.dims == DIMS
    assert all(not torch.equal(before.heads.weight(dim), after.heads.weight(dim)) for dim in DIMS)
    markers = before.tokenizer.convert_tokens_to_ids([QUERY_MARKER, DOCUMENT_MARKER])
    old, new = (one.backbone.model.get_input_embeddings().weight.detach()[markers] for one in (before, after))
    assert (old != new).any(dim=1).all()
    assert not torch.equal(new[0], new[1])  # though they may have started alike


# Other backbones and settings


def test_rows_to_spare_are_used_and_given_the_start(bert: Path) -> None:
    transformer = load_backbone(str(bert))
    table = transformer.model.get_input_embeddings().weight.detach().clone()
    assert len(table) == 1 + len(transformer.tokenizer)  # one row to spare
    assert add_markers(transformer) == [QUERY_MARKER, DOCUMENT_MARKER]
    grown = transformer.model.get_input_embeddings().weight
    assert len(grown) == 1 + len(table)
    assert torch.equal(grown[:-2], table[:-1])
    assert torch.equal(grown[-2:], table[[transformer.tokenizer.sep_token_id] * 2])
    before = grown.detach().clone()
    assert add_markers(transformer) == []
    assert torch.equal(transformer.model.get_input_embeddings().weight, before)


def test_a_marker_never_shares_an_id(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "gap")  # 68 tokens, the last of which has the id 68
    with pytest.raises(ModelLayoutError, match="share the id 68 with another token"):
        add_markers(load_backbone(str(folder)))


def test_modernbert(bert: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "modern"
    tokenizer = AutoTokenizer.from_pretrained(bert)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "cls", "sep")}
    config = ModernBertConfig(vocab_size=90, intermediate_size=64, max_position_embeddings=64, **sizes, **ids)
    ModernBertModel(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    report = assemble(str(folder), data, tmp_path / "out", SETTINGS)
    assert report.added_tokens == [QUERY_MARKER, DOCUMENT_MARKER]
    encoder = load(tmp_path / "out")
    assert len(encoder.backbone.model.get_input_embeddings().weight) == 90
    assert encoder.backbone.model.dtype == torch.float32
    assert encoder.encode_query(TEXT).shape == (12, 16)


def test_without_markers_or_a_skip_list(bert: Path, data: Path, tmp_path: Path) -> None:
    options = ["--dims", "8,4", "--query-length", 9, "--document-length", 20, "--texts", 10]
    result = invoke(
        "assemble", bert, "--data", data, "--out", tmp_path / "out", *options, "--no-markers", "--skiplist", "none"
    )
    assert result.exit_code == 0, result.output
    assert "Its heads are not trained" in result.stdout
    assert "new tokens" not in result.stdout
    assert result.stderr == ""
    encoder = load(tmp_path / "out")
    assert QUERY_MARKER not in encoder.tokenizer.get_vocab()
    assert not any(encoder.prompts.values())
    assert encoder.skiplist is None
    assert (encoder.dims, encoder.query_length, encoder.document_length) == ((8, 4), 9, 20)


# What cannot be made


def changed(source: Path, target: Path, *, without: str) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if without not in name}
    assert len(kept) < len(tensors)
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_missing_weights_are_no_random_ones(bert: Path, data: Path, tmp_path: Path) -> None:
    folder = changed(bert, tmp_path / "cut", without="layer.1.output.dense")
    with pytest.raises(ModelLayoutError, match=r"lacks weights: .*layer\.1\.output\.dense.*2 in all"):
        assemble(str(folder), data, tmp_path / "out", SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut"]


def test_a_tokenizer_without_a_mask_is_refused(bert: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "maskless"
    load_backbone(str(bert)).model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelLayoutError, match="no mask token, with which queries are padded"):
        assemble(str(folder), data, tmp_path / "out", SETTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": (8, 33)}, "states of 32 components, so no head of 33.*--dims of at most 32"),
        ({"query_length": 3}, "query_length must be between 4 and 40 .*got 3"),
        ({"document_length": 300}, "document_length must be between 4 and 40 .*got 300"),
    ],
)
def test_more_than_the_backbone_has(bert: Path, data: Path, tmp_path: Path, changes: Any, message: str) -> None:
    settings = SETTINGS.model_copy(update=changes)
    with pytest.raises(InvalidOptionError, match=message):
        assemble(str(bert), data, tmp_path / "out", settings)
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_is_replaced(bert: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assemble(str(bert), data, out, SETTINGS)
    with pytest.raises(TrainingError, match="replace it with --force"):
        assemble(str(bert), data, out, SETTINGS)
    assemble(str(bert), data, out, SETTINGS.model_copy(update={"dims": (4,)}), force=True)
    assert load(out).dims == (4,)
    with pytest.raises(TrainingError, match="not the result of a training"):
        assemble(str(bert), data, bert.parent, SETTINGS, force=True)
    with pytest.raises(TrainingError, match=r"is already an encoder with heads\. Train it with: jcv2-finetune pairs"):
        assemble(str(out), data, tmp_path / "other", SETTINGS)
    with pytest.raises(TrainingError, match="is the backbone itself"):
        assemble(str(out), data, out, SETTINGS, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_is_no_backbone(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="neither a folder nor a shipped model"):
        assemble(str(tmp_path / "missing"), data, tmp_path / "out", SETTINGS)
    result = invoke("assemble", tmp_path, "--data", data, "--out", tmp_path / "out", "--dims", "8")
    assert result.exit_code == 2
    assert "cannot be read as a transformers model" in result.stderr


def test_a_backbone_is_no_encoder(backbone: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLayoutError, match=r"has no projection head \(missing \['linear.weight'\]\)"):
        load(backbone)
    result = invoke("pairs", data, "--model", backbone, "--out", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 2
    assert "has no projection head" in result.stderr
    assert "jcv2-finetune assemble" in result.stderr
