"""Cells of time and memory run in processes of their own, within limits, and never take the study with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jcv2_plugin.encoder.official import DEFAULT_ROPE_THETA
from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.evaluation.study import Cell, Measured, StudyError, Table, lengths, run_study
from jcv2_plugin.evaluation.study.length_worker import build
from jcv2_plugin.evaluation.study.lengths import LengthsStudy, Limits, Network, _watch, flash_missing
from jcv2_plugin.evaluation.study.lengths_report import PASS_MEMORY, TO_ABSOLUTE, TO_BATCH, TO_LENGTH, TO_SDPA
from jcv2_plugin.evaluation.study.record import read, results_of

SMALL = Network(1, 16, 2, "float32", "cpu")


def study(**changes: Any) -> LengthsStudy:
    options: dict[str, Any] = {"lengths": (16, 64), "batches": (1, 2), "attention": ("eager", "sdpa"), **changes}
    return LengthsStudy(SMALL, Limits(60, 4096), **options)


def cell(positions: str = "rotary", attention: str = "eager", tokens: int = 64, batch: int = 2) -> Cell:
    return Cell({"positions": positions, "attention": attention, "tokens": tokens, "batch": batch, "seed": 0})


@pytest.mark.parametrize("positions", ["rotary", "absolute"])
def test_kinds_of_attention_are_of_one_network(positions: str) -> None:
    network = {"layers": 2, "hidden": 16, "heads": 2, "dtype": "float32", "longest": 64}
    network["rope_theta"] = DEFAULT_ROPE_THETA
    ids = torch.randint(5, 1000, (2, 64))
    outputs = []
    for attention in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = build(network, positions, attention).eval()
        assert model.config._attn_implementation == attention
        with torch.inference_mode():
            outputs.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state)
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)


def test_rotary_and_absolute_networks_differ_by_their_positions_alone() -> None:
    network = {"layers": 2, "hidden": 16, "heads": 2, "dtype": "float32", "longest": 64, "rope_theta": 1e4}
    sizes = [
        sum(parameter.numel() for parameter in build(network, positions, "sdpa").parameters())
        for positions in ("rotary", "absolute")
    ]
    assert sizes[1] - sizes[0] == (64 + 2) * 16


def test_a_cell_is_compared_with_what_differs_in_one_thing() -> None:
    measured = study().measure(cell())
    assert measured.values["outcome"] == "measured"
    assert int(measured.values["rounds"] or 0) >= 1
    for name in (TO_SDPA, TO_ABSOLUTE, TO_BATCH, TO_LENGTH):
        assert float(measured.values[name] or 0) > 0, name
        assert len(measured.samples[name]) == measured.values["rounds"]
    assert measured.values[PASS_MEMORY] is not None
    assert "ms" not in measured.values  # a CPU's times are ratios


def test_what_there_is_to_compare_with() -> None:
    def compared(one: Cell) -> set[str]:
        return set(study()._references({k: v for k, v in one.parameters.items() if k != "seed"}))

    assert compared(cell()) == {TO_SDPA, TO_ABSOLUTE, TO_BATCH, TO_LENGTH}
    assert compared(cell("absolute", "sdpa", 16, 1)) == set()
    assert compared(cell("rotary", "sdpa", 16, 1)) == {TO_ABSOLUTE}


def test_a_cell_too_large_is_reported_and_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "_POLL_SECONDS", 0.005)
    large = LengthsStudy(
        Network(2, 64, 2, "float32", "cpu"),
        Limits(60, 700),
        lengths=(8192,),
        batches=(1,),
        attention=("eager",),
        positions=("absolute",),
    )
    run_study(large, tmp_path)
    (only,) = results_of(read(tmp_path / "lengths.json"))
    assert only.values["outcome"] == "over 700 MiB"
    assert only.values[TO_SDPA] is None
    assert "over 700 MiB" in (tmp_path / "lengths.html").read_text()
    assert not (tmp_path / "lengths.svg").exists()


def _process(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program, *arguments])


def test_a_process_over_its_time_is_stopped_once_it_has_begun(tmp_path: Path) -> None:
    process = _process("import sys, time, pathlib; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)", f"{tmp_path}/r")
    try:
        assert _watch(process, tmp_path / "r", Limits(0.3, 4096), on_cpu=True) == "over 0.3 s"
    finally:
        process.kill()
        process.wait()


def test_time_to_start_does_not_count(tmp_path: Path) -> None:
    process = _process("import time; time.sleep(0.6)")
    assert _watch(process, tmp_path / "never", Limits(0.1, 4096), on_cpu=True) is None
    assert process.wait() == 0


def test_a_process_over_its_memory_is_stopped(tmp_path: Path) -> None:
    process = _process("import time; kept = bytearray(300 * 2**20); time.sleep(60)")
    try:
        assert _watch(process, tmp_path / "never", Limits(60, 256), on_cpu=True) == "over 256 MiB"
    finally:
        process.kill()
        process.wait()


def test_what_fails_otherwise_is_an_error_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = study()
    broken.network = Network(1, 16, 2, "float33", "cpu")
    with pytest.raises(StudyError, match=r"(?s)failed with status 1:.*float33"):
        broken.measure(cell())


def test_flash_is_skipped_with_the_reason() -> None:
    assert flash_missing(SMALL) == "flash-attn needs a CUDA device, not cpu"
    assert flash_missing(Network(1, 16, 2, "float32", "cuda")) == "flash-attn needs bfloat16 or float16"
    skipped = study(attention=("flash_attention_2",)).measure(cell(attention="flash_attention_2"))
    assert skipped.values["outcome"] == "skipped: flash-attn needs a CUDA device, not cpu"


def test_the_report_holds_ratios_and_says_what_was_not_measured() -> None:
    made = study(attention=("eager", "sdpa", "flash_attention_2"))
    results = []
    for number, one in enumerate(made.cells()):
        values: dict[str, Any] = {"outcome": "measured", "rounds": 3, PASS_MEMORY: 10.0 * (number + 1)}
        samples = {}
        if one.parameters["attention"] == "flash_attention_2":
            values.update({"outcome": "skipped: no", PASS_MEMORY: None})
        for name in (TO_SDPA, TO_ABSOLUTE, TO_BATCH, TO_LENGTH):
            values[name] = None
            if values["outcome"] == "measured" and name in made._references(dict(one.parameters)):
                samples[name] = {"0": 1.25, "1": 1.5, "2": 4.0}
                values[name] = 1.5
        measured = Measured(values, samples)
        results.append(lengths.Result(one.parameters, measured.values, measured.samples))
    report = made.report(results)
    tables = {item.title: item for section in report.sections for item in section.items if isinstance(item, Table)}
    assert tables["Time, to SDPA"].rows[0] == [
        "eager, rotary, batch 1",
        "1.50 [1.25, 4.00]",
        "1.50 [1.25, 4.00]",
    ]
    assert [row[0] for row in tables["Time, to absolute positions"].rows] == [
        f"{kind}, rotary, batch {batch}" for kind in ("eager", "sdpa") for batch in (1, 2)
    ]
    assert len(tables["Cells without figures"].rows) == 8
    assert any("8 cells have no figures: skipped: no." in finding for finding in report.findings)


def test_bad_options_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="attention"):
        study(attention=("fast",))
    with pytest.raises(InvalidOptionError, match="positions"):
        study(positions=())
    with pytest.raises(InvalidOptionError, match="twice the heads"):
        Network.of(1, 30, 4, dtype=None, device="cpu")
    with pytest.raises(InvalidOptionError, match="dtype"):
        Network.of(1, 32, 4, dtype="int3", device="cpu")
