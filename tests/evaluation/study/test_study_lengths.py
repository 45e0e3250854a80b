"""Cells of time and memory run in processes of their own, within limits, and never take the study with them."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from jcv2_plugin.encoder.official import DEFAULT_ROPE_THETA
from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.evaluation.study import Cell, StudyError, Table, length_worker, lengths
from jcv2_plugin.evaluation.study.length_worker import build
from jcv2_plugin.evaluation.study.lengths import PASS_MEMORY, TO_ABSOLUTE, TO_BATCH, TO_LENGTH, TO_SDPA, LengthsStudy

NETWORK = {"layers": 2, "hidden": 16, "heads": 2, "dtype": "float32", "longest": 64, "rope_theta": DEFAULT_ROPE_THETA}


def study(**changes: Any) -> LengthsStudy:
    small: dict[str, Any] = {"attention": ("eager", "sdpa"), "layers": 1, "hidden": 16, "heads": 2, "device": "cpu"}
    return LengthsStudy(**{"lengths": (16, 64), "batches": (1, 2), **small, **changes})


def cell(positions: str = "rotary", attention: str = "eager", tokens: int = 64, batch: int = 2) -> Cell:
    return Cell({"positions": positions, "attention": attention, "tokens": tokens, "batch": batch, "seed": 0})


@pytest.mark.parametrize("positions", ["rotary", "absolute"])
def test_kinds_of_attention_are_of_one_network(positions: str) -> None:
    ids = torch.randint(5, 1000, (2, 64))
    outputs = []
    for attention in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = build(NETWORK, positions, attention).eval()
        assert model.config._attn_implementation == attention
        with torch.inference_mode():
            outputs.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state)
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)


def test_rotary_and_absolute_networks_differ_by_their_positions_alone() -> None:
    sizes = [sum(one.numel() for one in build(NETWORK, kind, "sdpa").parameters()) for kind in ("rotary", "absolute")]
    assert sizes[1] - sizes[0] == (64 + 2) * 16


def test_a_cell_is_compared_with_what_differs_in_one_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_this_process(job: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {"outcome": "measured", "rounds": []}
        with torch.inference_mode():
            length_worker._measure(job, result, threading.Event())
        return result

    monkeypatch.setattr(lengths, "_run", in_this_process)
    monkeypatch.setattr(length_worker, "_say", lambda result: None)
    measured = study().measure(cell())
    assert measured.values["outcome"] == "measured"
    assert int(measured.values["rounds"] or 0) >= 1
    for name in (TO_SDPA, TO_ABSOLUTE, TO_BATCH, TO_LENGTH):
        assert float(measured.values[name] or 0) > 0, name
        assert len(measured.samples[name]) == measured.values["rounds"]
    assert measured.values[PASS_MEMORY] is not None
    assert "ms" not in measured.values  # a CPU's times are ratios
    assert study().measure(cell("absolute", "sdpa", 16, 1)).samples == {}
    assert study().measure(cell("rotary", "sdpa", 16, 1)).samples.keys() == {TO_ABSOLUTE}


@pytest.mark.parametrize(
    ("changes", "outcome"), [({"seconds": 0.001}, "over 0.001 s"), ({"memory_mib": 1}, "over 1 MiB")]
)
def test_a_cell_too_large_is_reported_and_not_the_end(changes: dict[str, Any], outcome: str) -> None:
    large = study(layers=4, hidden=64, lengths=(2048,), **changes)
    measured = large.measure(cell("absolute", tokens=2048, batch=1))
    assert measured.values["outcome"] == outcome
    assert measured.values[TO_SDPA] is None
    assert any(
        f"1 cells have no figures: {outcome}." in one for one in large.report(large.settings, [measured]).findings
    )


def test_what_fails_otherwise_is_an_error_with_its_message() -> None:
    broken = study()
    broken.dtype = "float33"
    with pytest.raises(StudyError, match=r"(?s)failed with status 1:.*float33"):
        broken.measure(cell())


def test_flash_is_skipped_with_the_reason() -> None:
    outcome = study(attention=("flash_attention_2",)).measure(cell(attention="flash_attention_2")).values["outcome"]
    assert outcome == "skipped: flash-attn needs a CUDA device, not cpu"
    assert study(device="cuda", dtype="float32")._flash_missing() == "flash-attn needs bfloat16 or float16"


def test_the_report_holds_ratios_and_says_what_was_not_measured() -> None:
    made = study(attention=("eager", "sdpa", "flash_attention_2"))
    cells = []
    for number, one in enumerate(made.cells()):
        names = made._references({name: value for name, value in one.parameters.items() if name != "seed"})
        flash = one.parameters["attention"] == "flash_attention_2"
        samples = {} if flash else {name: {"0": 1.25, "1": 1.5, "2": 4.0} for name in names}
        values = {name: 1.5 if name in samples else None for name in (TO_SDPA, TO_ABSOLUTE, TO_BATCH, TO_LENGTH)}
        values |= {PASS_MEMORY: None if flash else 10.0 * (number + 1)}
        cells.append(one.measured({"outcome": "skipped: no" if flash else "measured", **values}, samples))
    report = made.report(made.settings, cells)
    tables = {item.title: item for item in report.items() if isinstance(item, Table)}
    row = ["eager, rotary, batch 1", "1.50 [1.25, 4.00]", "1.50 [1.25, 4.00]"]
    assert tables["Time, to SDPA"].rows[0] == row
    rotary = [f"{kind}, rotary, batch {batch}" for kind in ("eager", "sdpa") for batch in (1, 2)]
    assert [row[0] for row in tables["Time, to absolute positions"].rows] == rotary
    assert len(tables["Cells without figures"].rows) == 8
    assert "eager attention takes 1.50 times as long as SDPA at 64 tokens, batch 2." in report.findings
    assert "8 cells have no figures: skipped: no." in report.findings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": ("fast",)}, "attention"),
        ({"positions": ()}, "positions"),
        ({"hidden": 30, "heads": 4}, "twice the heads"),
        ({"dtype": "int3"}, "dtype"),
        ({"lengths": ()}, "at least one length"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        study(**changes)
