"""Conversion to rotary positions: exact in everything but positions, and nothing half written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from official_checkpoint import write_checkpoint, write_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from jcv2_plugin.encoder.backbone import text_transformer
from jcv2_plugin.errors import ModelLayoutError, ModelNotFoundError
from jcv2_trainer.heads.principal import load_backbone
from jcv2_trainer.training.rotary import to_rotary

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES |= {"max_position_embeddings": 40, "initializer_range": 0.3}
TEXT = "Late interaction compares every query token."


def write_wordpiece(folder: Path) -> int:
    words = ("late", "interaction", "compares", "every", "query", "token", "with", "document")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *words, "##s", "##ing"]
    pieces += [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    BertTokenizer(tokenizer_object=tokenizer, model_max_length=40).save_pretrained(folder)
    return len(pieces)


def write_bert(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    BertForMaskedLM(BertConfig(**{**SIZES, "vocab_size": write_wordpiece(folder), **changes})).save_pretrained(folder)
    return folder


def write_xlm_roberta(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    torch.manual_seed(2)
    sizes = {**SIZES, "vocab_size": write_tokenizer(folder), "type_vocab_size": 1, "layer_norm_eps": 1e-5, **changes}
    model = XLMRobertaForMaskedLM(XLMRobertaConfig(**sizes))
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(folder)
    return folder


WRITERS = {"bert": write_bert, "xlm-roberta": write_xlm_roberta}


@pytest.fixture(scope="module", params=WRITERS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp("source") / "plain")


@pytest.fixture(scope="module")
def rotary(source: Path) -> Path:
    """The source, converted."""
    to_rotary(source, source.parent / "rotary")
    return source.parent / "rotary"


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without_positions(folder: Path) -> Any:
    """The source with its position table zeroed."""
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    torch.nn.init.zeros_(model.base_model.embeddings.position_embeddings.weight)
    return model


def test_everything_but_positions_is_the_same(source: Path, tmp_path: Path) -> None:
    done = to_rotary(source, tmp_path / "rotary")
    plain, rotary = without_positions(source), AutoModelForMaskedLM.from_pretrained(tmp_path / "rotary").eval()
    assert rotary.config.model_type == "jina_embeddings_v3"
    assert not done.fresh_head
    assert done.parameters == sum(parameter.numel() for parameter in rotary.parameters())
    ids = AutoTokenizer.from_pretrained(tmp_path / "rotary")(TEXT, return_tensors="pt")["input_ids"]
    assert ids.shape[1] > 8
    with torch.inference_mode():
        single = torch.tensor([[7]])  # which is not rotated
        torch.testing.assert_close(rotary(input_ids=single).logits, plain(input_ids=single).logits)
        turned = rotary(input_ids=ids).logits
        rotary.roberta.rotary_emb.inv_freq.zero_()  # no rotation
        old = plain(input_ids=ids, output_hidden_states=True)
        new = rotary(input_ids=ids, output_hidden_states=True)
    for one, other in zip(old.hidden_states, new.hidden_states, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
    torch.testing.assert_close(new.logits, old.logits, rtol=0, atol=1e-4)
    assert (turned - old.logits).abs().max() > 0.01


def test_relatives_of_xlm_roberta(tmp_path: Path) -> None:
    source = write_xlm_roberta(tmp_path / "plain")
    converted = []
    for kind in ("xlm-roberta", "roberta", "camembert"):
        edit_config(source, model_type=kind)
        assert to_rotary(source, tmp_path / kind).model_type == kind
        converted.append(load_file(tmp_path / kind / "model.safetensors"))
    for one in converted[1:]:
        assert one.keys() == converted[0].keys()
        assert all(torch.equal(one[name], converted[0][name]) for name in one)


def test_the_configuration_and_tokenizer(source: Path, tmp_path: Path) -> None:
    to_rotary(source, tmp_path / "rotary", rope_theta=500.0, max_positions=100)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "rotary"))
    assert new["rope_parameters"] == {"rope_type": "default", "rope_theta": 500.0}
    assert new["max_position_embeddings"] == 100
    for key in ("vocab_size", "type_vocab_size", "layer_norm_eps", "hidden_act", "pad_token_id", "eos_token_id"):
        assert new[key] == old[key], key
    before, after = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(tmp_path / "rotary")
    assert type(before) is type(after)
    assert after.model_max_length == 100
    assert after(TEXT)["input_ids"] == before(TEXT)["input_ids"]
    long = AutoTokenizer.from_pretrained(tmp_path / "rotary")(" ".join(["query"] * 99), truncation=True)["input_ids"]
    assert len(long) == 100


def test_the_result_is_a_backbone(rotary: Path) -> None:
    for backbone in (text_transformer(rotary, {}), load_backbone(str(rotary))):
        assert backbone.model.config.rope_parameters["rope_theta"] == 10000.0
        assert backbone.max_seq_length == 8194
        states = backbone(backbone.preprocess([TEXT, "query"]))["token_embeddings"]
        assert (states.shape[0], states.shape[2]) == (2, 32)


def test_a_model_without_head_gets_the_same_one_each_time(source: Path, rotary: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(source, tmp_path / "bare")
    AutoModel.from_pretrained(source).save_pretrained(bare)
    for name in ("one", "again"):
        done = to_rotary(bare, tmp_path / name)
        assert done.fresh_head
        assert "no masked-language head" in done.notes[0]
    same, *both = (load_file(path / "model.safetensors") for path in (rotary, tmp_path / "one", tmp_path / "again"))
    assert all(torch.equal(both[0][name], same[name]) for name in same if not name.startswith("lm_head"))
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


def test_weights_keep_their_type_and_ties(tmp_path: Path) -> None:
    source = write_xlm_roberta(tmp_path / "plain", tie_word_embeddings=False)
    model = AutoModelForMaskedLM.from_pretrained(source).bfloat16()
    model.save_pretrained(source)
    to_rotary(source, tmp_path / "rotary")
    rotary = AutoModelForMaskedLM.from_pretrained(tmp_path / "rotary")
    assert rotary.dtype == torch.bfloat16
    assert torch.equal(rotary.lm_head.decoder.weight, model.lm_head.decoder.weight)
    assert not torch.equal(rotary.lm_head.decoder.weight, rotary.roberta.embeddings.word_embeddings.weight)


def test_a_head_of_another_activation_is_said(tmp_path: Path) -> None:
    done = to_rotary(write_bert(tmp_path / "plain", hidden_act="relu"), tmp_path / "rotary")
    assert "'relu'" in done.notes[0]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_type": "deberta-v2"}, "'deberta-v2' .* bert, camembert, roberta, xlm-roberta"),
        ({"model_type": "modernbert"}, "'modernbert' already has rotary positions"),
        ({"position_embedding_type": "rotary"}, "already has rotary positions"),
        ({"position_embedding_type": "relative_key"}, "'relative_key'"),
        ({"is_decoder": True}, "decoder"),
        ({"vocab_size": 20}, "cannot be read"),
        ({"num_attention_heads": 32}, "even number"),
    ],
)
def test_other_architectures_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    source = write_bert(tmp_path / "plain")
    edit_config(source, **changes)
    with pytest.raises(ModelLayoutError, match=said):
        to_rotary(source, tmp_path / "rotary")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]


def test_rotary_models_are_refused(rotary: Path, tmp_path: Path) -> None:
    for folder in (rotary, write_checkpoint(tmp_path / "official")):
        with pytest.raises(ModelLayoutError, match="already"):
            to_rotary(folder, tmp_path / "twice")


def test_broken_sources_are_refused(tmp_path: Path) -> None:
    source = write_bert(tmp_path / "plain")
    weights = source / "model.safetensors"
    whole = load_file(weights)

    def refuse(said: str, folder: Path = source, error: type[Exception] = ModelLayoutError) -> None:
        with pytest.raises(error, match=said):
            to_rotary(folder, tmp_path / "rotary")

    refuse("not a folder", tmp_path / "nowhere", ModelNotFoundError)
    save_file({name: tensor for name, tensor in whole.items() if "layer.1" not in name}, weights, {"format": "pt"})
    refuse("lacks weights")
    weights.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    refuse("cannot be read")
    weights.rename(source / "pytorch_model.bin")
    refuse("pickle")
    (source / "pytorch_model.bin").unlink()
    save_file(whole, weights, {"format": "pt"})
    (source / "tokenizer.json").unlink()
    refuse("no tokenizer")
    write_tokenizer(source)
    refuse("do not belong together")
    (source / "config.json").write_text("[")
    refuse(r"config\.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]


def test_an_occupied_folder_is_left_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "rotary"
    out.mkdir()
    to_rotary(source, out)
    with pytest.raises(FileExistsError, match="not empty"):
        to_rotary(source, out)
    assert (out / "model.safetensors").exists()
    with pytest.raises(ValueError, match="rope_theta"):
        to_rotary(source, tmp_path / "other", rope_theta=0.5)
