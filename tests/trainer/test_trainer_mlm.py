"""Masked-language training: packing, whole words, resuming, and what is said when it cannot be done."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from official_checkpoint import build_tokenizer, write_tokenizer
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3ForMaskedLM,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from jcv2_plugin.errors import ModelLayoutError, ModelNotFoundError
from jcv2_trainer.cli.app import app
from jcv2_trainer.data.lines import DataError
from jcv2_trainer.data.mlm import IGNORED, Rows, WordMasker, pack, read_texts, word_starts
from jcv2_trainer.errors import TrainingError
from jcv2_trainer.heads.principal import load_backbone
from jcv2_trainer.recipes import load_recipe
from jcv2_trainer.recipes.settings import MlmRecipe
from jcv2_trainer.training import mlm as training
from jcv2_trainer.training.mlm import MlmReport, _predict_masked_only, train_mlm

pytestmark = pytest.mark.usefixtures("one_thread")

PLACES = ("Paris", "Berlin", "France", "Germany")
THINGS = ("capital", "city", "country", "monument")


def sentences(count: int, seed: int = 0) -> list[str]:
    """A language in which the place says the thing and the number."""
    drawn = random.Random(seed)
    numbers = [drawn.randrange(4) for _ in range(count)]
    return [f"{PLACES[n]} is the {THINGS[n]} of the {n} large documents, and {PLACES[n]} has many." for n in numbers]


def write_model(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    rope = {"max_position_embeddings": 600, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    config = JinaEmbeddingsV3Config(**{"vocab_size": write_tokenizer(folder), **sizes, **rope, **changes})
    torch.manual_seed(3)
    JinaEmbeddingsV3ForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "rotary")


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without dropout."""
    folder = tmp_path_factory.mktemp("models") / "steady"
    return write_model(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "corpus.txt"
    path.write_text("\n".join(sentences(400)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    return AutoTokenizer.from_pretrained(model)


def recipe(**changes: Any) -> MlmRecipe:
    small = {"sequence_length": 32, "batch_size": 4, "max_steps": 6, "dev_size": 8, "bf16": False}
    return load_recipe(MlmRecipe, "mlm", overrides={**small, "learning_rate": 1e-3, **changes})


def difference(one: Path, other: Path) -> float:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


# Words


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    encoded = tokenizer.encode(text, add_special_tokens=False)
    words: list[list[str]] = []
    for token, begins in zip(encoded.tokens, word_starts(text, encoded.word_ids, encoded.offsets), strict=True):
        words = [*words, [token]] if begins else [*words[:-1], [*words[-1], token]]
    return ["".join(word) for word in words]


@pytest.mark.parametrize("split", [None, True, False])
def test_words_of_sentencepiece(split: bool | None) -> None:
    tokenizer = build_tokenizer()
    if split is not None:  # without it a pre-token is the whole text
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=split)
    words = ["▁Late", "▁interactions,", "▁(mostly)", "▁of", "▁rivers."]
    assert words_of(tokenizer, "Late interactions, (mostly) of rivers.") == words


def test_words_of_wordpiece_and_bytes() -> None:
    pieces = ["[UNK]", "late", "inter", "##action", "##s", ",", "is", "東", "京"]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    assert words_of(tokenizer, "late interactions, is") == ["late", "inter##action##s", ",", "is"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    assert words_of(tokenizer, "late café, no") == ["late", "ĠcafÃ©", ",", "Ġno"]


def test_each_piece_of_a_script_without_spaces_is_a_word() -> None:
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("東京", -3.0), ("は", -3.0), ("首都", -3.0), ("▁Tok", -3.0), ("yo", -3.0)]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("都市", -3.0), ("▁です", -3.0)], unk_id=0))
    for first in ([pre_tokenizers.WhitespaceSplit()], []):
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, pre_tokenizers.Metaspace("▁", "always")])
        assert words_of(tokenizer, "東京は首都 Tokyo都市 です") == ["▁東京", "は", "首都", "▁Tokyo", "都市", "▁です"]


# Packing


@pytest.mark.parametrize("documents", [400, 1])
def test_packing_loses_and_pads_nothing_and_is_done_once(tokenizer: Any, documents: int, tmp_path: Path) -> None:
    texts = [" ".join(sentences(400 // documents, seed)) for seed in range(documents)]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(texts))
    packed, counts = pack([corpus], tokenizer, 32, True, tmp_path)
    values = np.array(packed["values"][:])
    ids = values >> 1
    assert (ids[:, 0] == 0).all()
    assert (ids[:, -1] == 2).all()
    assert (values[:, 1] & 1).all()
    assert 1 not in ids
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    expected: list[int] = []
    for document in tokens:
        expected += [2, *document] if len(expected) % 30 else document  # a row's end separates as well
    found = ids[:, 1:-1].reshape(-1).tolist()
    assert found == expected[: len(found)]
    assert len(expected) - len(found) <= 30
    assert counts == {"documents": documents, "tokens": sum(map(len, tokens))}
    for length, folders in ((32, 1), (64, 2)):
        pack([corpus], tokenizer, length, True, tmp_path)
        assert len(list(tmp_path.glob("rows-*"))) == folders


def test_texts_of_every_format(tmp_path: Path) -> None:
    lines = [" one two", "", "\u00a0\u200b", "three"]
    plain = "\n".join(lines).encode()
    rows = "\n".join(json.dumps({"text": line, "other": 1}) for line in lines).encode()
    files = {"a.txt": plain, "a.txt.gz": gzip.compress(plain), "a.txt.zst": zstandard.compress(plain), "a.jsonl": rows}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert list(read_texts(tmp_path / name)) == ["one two", "three"], name


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", b'{"text": "a"}\n{"query": "b"}\n', r"a\.jsonl:2: 'text' must be a text, got None"),
        ("a.jsonl", b'{"text": ', r"a\.jsonl:1: not valid JSON"),
        ("a.txt", b"a\n\xff\n", r"a\.txt:2: not UTF-8"),
        ("a.txt.gz", b"a", r"a\.txt\.gz: cannot be read"),
    ],
)
def test_unreadable_texts(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        list(read_texts(tmp_path / name))


# Masking


@pytest.mark.parametrize("whole_word", [True, False])
def test_masking(tokenizer: Any, corpus: Path, tmp_path: Path, whole_word: bool) -> None:
    packed, _ = pack([corpus], tokenizer, 64, whole_word, tmp_path)
    rows = Rows(packed, np.arange(len(packed)), seed=5)
    batch = WordMasker(tokenizer, 0.3)([rows[index] for index in range(len(rows))])
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    values = np.array(packed["values"][:])
    original, words = values >> 1, np.cumsum(values & 1, axis=1)
    masked = labels != IGNORED
    assert (labels[masked] == original[masked]).all()
    assert (ids[~masked] == original[~masked]).all()
    special = np.isin(original, tokenizer.all_special_ids)
    assert not (masked & special).any()
    assert not np.isin(ids[masked], [0, 1, 2]).any()
    assert 0.27 < masked.sum() / (~special).sum() < 0.33
    shares = [(ids == tokenizer.mask_token_id)[masked].mean(), (ids == original)[masked].mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1], atol=0.03)
    partly = sum(
        len(set(masked[row][(words[row] == word) & ~special[row]])) > 1
        for row in range(len(words))
        for word in range(1, words[row, -1] + 1)
    )
    assert partly == 0
    if whole_word:
        assert words.max() < 60  # there are words of several tokens
    again = WordMasker(tokenizer, 0.3)([rows[index] for index in range(len(rows))])
    assert torch.equal(again["input_ids"], batch["input_ids"])
    rows.epoch = 1
    other = WordMasker(tokenizer, 0.3)([rows[index] for index in range(len(rows))])
    assert not torch.equal(other["labels"], batch["labels"])


def test_a_row_always_has_something_to_predict(tokenizer: Any) -> None:
    masker = WordMasker(tokenizer, 1e-9)
    _, labels = masker.mask(np.array([0, 21, 41, 40, 4], np.uint32), np.random.default_rng(0))
    assert (labels != IGNORED).sum() in (1, 2)
    _, labels = masker.mask(np.array([0, 4, 4], np.uint32), np.random.default_rng(0))
    assert (labels == IGNORED).all()


# Training


def test_the_loss_is_that_of_transformers(model: Path, tokenizer: Any, tmp_path: Path) -> None:
    bert = BertForMaskedLM(BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    for network in (AutoModelForMaskedLM.from_pretrained(model), bert):
        network.eval()
        ids, labels = torch.randint(5, 170, (3, 20)), torch.randint(5, 170, (3, 20))
        labels[torch.rand(3, 20) < 0.7] = IGNORED
        expected = network(input_ids=ids, labels=labels).loss
        _predict_masked_only(network)
        torch.testing.assert_close(network(input_ids=ids, labels=labels).loss, expected)
        half = network(input_ids=ids, labels=labels, num_items_in_batch=2 * (labels != IGNORED).sum()).loss
        torch.testing.assert_close(half, expected / 2)


def test_training_lowers_the_loss(
    steady: Path, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[tuple[int, int]] = []
    settings = recipe(max_steps=80, batch_size=8, learning_rate=1e-2)
    on_step = lambda step, total: steps.append((step, total))  # noqa: E731
    report = train_mlm([corpus], steady, tmp_path / "out", settings, on_step=on_step)
    assert steps == [(step, 80) for step in range(1, 81)]
    assert (report.finished, report.steps, report.held_out) == (True, 80, 3)
    assert report.start_loss is not None
    assert report.final_loss is not None
    assert report.start_loss > 5
    assert report.final_loss < 3.5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / "training.json").read_text())["final_loss"] == report.final_loss
    backbone = load_backbone(str(tmp_path / "out"))
    assert backbone.model.config.rope_parameters["rope_theta"] == 10000.0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 514
    assert "{'loss'" not in capfd.readouterr().out


def interrupted(corpus: Path, model: Path, out: Path, settings: MlmRecipe, step: int) -> MlmReport:
    def interrupt(done: int, total: int) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return train_mlm([corpus], model, out, settings, on_step=interrupt)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(sentences(28)))  # an epoch of 4 steps and a bit
    settings = recipe(accumulate=2, batch_size=2)
    straight = train_mlm([corpus], model, tmp_path / "straight", settings)
    assert straight.finished
    assert straight.history[-1]["epoch"] > 1
    stopped = interrupted(corpus, model, tmp_path / "out", settings, 3)
    assert (stopped.steps, stopped.finished, stopped.final_loss) == (3, False, None)
    run = tmp_path / "out.run"
    assert not (tmp_path / "out").exists()
    # A checkpoint that was being written when the machine went down.
    (run / "checkpoint-5").mkdir()
    (run / "checkpoint-5" / "trainable.safetensors").write_bytes(b"")
    resumed = train_mlm([corpus], model, tmp_path / "out", settings, resume=True)
    assert (resumed.steps, resumed.finished) == (6, True)
    assert resumed.start_loss == straight.start_loss
    assert resumed.final_loss == pytest.approx(straight.final_loss, abs=1e-6)
    assert difference(tmp_path / "straight", tmp_path / "out") < 1e-6
    assert difference(tmp_path / "straight", model) > 1e-4
    assert not run.exists()


def test_accumulation_is_a_larger_batch(steady: Path, corpus: Path, tmp_path: Path) -> None:
    train_mlm([corpus], steady, tmp_path / "one", recipe(max_steps=3, batch_size=8))
    # What is too large for memory may be split when a run goes on.
    interrupted(corpus, steady, tmp_path / "out", recipe(max_steps=3, batch_size=8), 1)
    halved = recipe(max_steps=3, batch_size=4, accumulate=2, gradient_checkpointing=True)
    train_mlm([corpus], steady, tmp_path / "out", halved, resume=True)
    assert difference(tmp_path / "one", tmp_path / "out") < 1e-5


def test_runs_are_not_mixed_up(model: Path, corpus: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other.txt"
    other.write_text("\n".join(sentences(300)))

    def refuse(said: str, text: Path = corpus, resume: bool = False, **changes: Any) -> None:
        with pytest.raises(TrainingError, match=said):
            train_mlm([text], model, out, recipe(**changes), resume=resume)

    refuse("no checkpoint", resume=True)
    interrupted(corpus, model, out, recipe(), 1)
    refuse("--resume")
    refuse("mask_share", resume=True, mask_share=0.15)
    refuse("sequences per step", resume=True, batch_size=2)
    refuse("texts", other, resume=True)
    assert train_mlm([other], model, out, recipe(max_steps=1), force=True).finished
    refuse("--force")


def test_memory_that_runs_out_is_explained(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "held_out_loss", lambda *_: torch.empty(2**50))
    with pytest.raises(TrainingError) as raised:
        train_mlm([corpus], model, tmp_path / "out", recipe(batch_size=1024))
    for word in ("--batch-size 512 with --accumulate 2", "--gradient-checkpointing", "--bf16", "--sequence-length"):
        assert word in str(raised.value)


def test_numbers_that_blow_up_are_named(model: Path, corpus: Path, tmp_path: Path) -> None:
    settings = recipe(max_steps=8).model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"At step \d+, the .* became NaN or infinite.*learning rate"):
        train_mlm([corpus], model, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text, words", [("\n \n", "no text"), ("Paris is the capital.", "do not fill two sequences")])
def test_too_little_text(text: str, words: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        train_mlm([tmp_path / "a.txt"], model, tmp_path / "out", recipe())
    with pytest.raises(DataError, match="does not exist"):
        train_mlm([tmp_path / "b.txt"], model, tmp_path / "out", recipe())
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_trained(model: Path, corpus: Path, tmp_path: Path) -> None:
    out, bare = tmp_path / "out", tmp_path / "bare"

    def refuse(error: type[Exception], said: str, folder: Path = bare, **changes: Any) -> None:
        with pytest.raises(error, match=said):
            train_mlm([corpus], folder, out, recipe(**changes))

    refuse(ModelNotFoundError, "not a folder", tmp_path / "nowhere")
    refuse(TrainingError, "600 positions", model, sequence_length=601)
    bare.mkdir()
    refuse(ModelLayoutError, r"config\.json")
    AutoModel.from_pretrained(model).save_pretrained(bare)
    refuse(ModelLayoutError, "no tokenizer")
    write_tokenizer(bare)
    refuse(ModelLayoutError, "masked-language head")
    (bare / "tokenizer_config.json").write_text("[]")
    refuse(ModelLayoutError, "tokenizer cannot be read")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (bare / name).unlink()
    PreTrainedTokenizerFast(tokenizer_object=build_tokenizer(), cls_token="<s>").save_pretrained(bare)
    refuse(ModelLayoutError, "no mask token")
    out.mkdir()
    (out / "thesis.tex").write_text("")
    refuse(TrainingError, "not empty", model)


# Commands


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "200"})


def test_the_commands(corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    plain = tmp_path / "plain"
    plain.mkdir()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=write_tokenizer(plain), pad_token_id=1, **sizes)).save_pretrained(plain)
    done = invoke("convert", plain, tmp_path / "rotary", "--max-positions", 100)
    assert done.exit_code == 0, done.output
    assert "bert with rotary positions (theta 10000, up to 100 tokens)" in done.output
    assert invoke("convert", tmp_path / "rotary", tmp_path / "twice").exit_code == 2
    wrong = invoke("convert", plain, tmp_path / "other", "--rope-theta", "0")
    assert wrong.exit_code == 2
    assert "rope_theta must be above 1" in wrong.output
    (tmp_path / "recipe.yaml").write_text("sequence_length: 48\nmax_steps: 9\n")
    flags = ["--model", tmp_path / "rotary", "--out", tmp_path / "out", "--recipe", tmp_path / "recipe.yaml"]
    trained = invoke("mlm", corpus, corpus, *flags, "--max-steps", 2, "--batch-size", 2, "--bf16")
    assert trained.exit_code == 0, trained.output
    assert "trained for 2 steps" in trained.output
    assert "sequences of 48 tokens, from 800 documents" in trained.output
    assert " before, " in trained.output
    assert len(trained.output.splitlines()) == 2
    weights = load_file(tmp_path / "out" / "model.safetensors").values()
    assert all(tensor.dtype == torch.float32 for tensor in weights)
    again = invoke("mlm", corpus, *flags)
    assert again.exit_code == 2
    assert "error: " in again.output
    assert "--force" in again.output
    shown = invoke("mlm", "--help").output
    for field in MlmRecipe.model_fields:
        assert f"--{field.replace('_', '-')}" in shown
