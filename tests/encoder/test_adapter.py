"""LoRA adapters merged without peft: the same weights as with it, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from official_checkpoint import write_checkpoint

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.adapter import CONFIG, WEIGHTS, merge_adapter
from jcv2_plugin.errors import ModelLayoutError
from jcv2_trainer.training.prepare import add_lora, merge_lora, save_lora

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model(tmp_path) -> Path:
    write_checkpoint(tmp_path / "model", dtype=torch.float32)
    return tmp_path / "model"


def backbone(model: Path) -> torch.nn.Module:
    return JinaColbertEncoder.from_pretrained(str(model), device="cpu").backbone.model


def with_random_lora(model: Path) -> torch.nn.Module:
    tuned = backbone(model)
    add_lora(tuned, rank=4)
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return tuned


@pytest.fixture
def adapter(model, tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    """An adapter of random matrices, and the weights that peft makes with it."""
    tuned = with_random_lora(model)
    save_lora(tuned, tmp_path / "adapter")
    merge_lora(tuned)
    return tmp_path / "adapter", dict(tuned.state_dict())


def test_the_weights_are_those_that_peft_makes(model, adapter):
    folder, expected = adapter
    plain = backbone(model)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    merge_adapter(plain, folder)
    after = plain.state_dict()
    assert set(after) == set(expected)
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert len(changed) == 12  # six linear layers in each of two blocks, and not the pooler


def test_peft_reads_the_folder(model, adapter):
    peft = pytest.importorskip("peft")
    folder, expected = adapter
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 4)
    loaded = peft.PeftModel.from_pretrained(backbone(model), str(folder)).merge_and_unload()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_half_precision_is_enough_for_the_file(model, adapter, tmp_path):
    _, expected = adapter
    tuned = with_random_lora(model)
    save_lora(tuned, tmp_path / "half", torch.float16)
    plain = backbone(model)
    merge_adapter(plain, tmp_path / "half")
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=2e-3)
    sizes = [(path / WEIGHTS).stat().st_size for path in (tmp_path / "half", tmp_path / "adapter")]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file(model, adapter, name):
    (adapter[0] / name).unlink()
    with pytest.raises(ModelLayoutError, match=name):
        merge_adapter(backbone(model), adapter[0])


def test_an_adapter_of_another_model(adapter, tmp_path):
    for hidden, layers, said in ((32, 2, "do not fit"), (64, 1, "no layer")):
        folder = tmp_path / f"{hidden}-{layers}"
        write_checkpoint(folder, dtype=torch.float32, hidden=hidden, layers=layers)
        with pytest.raises(ModelLayoutError, match=said):
            merge_adapter(backbone(folder), adapter[0])
