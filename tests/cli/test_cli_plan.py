"""``jcv2 plan``."""

from __future__ import annotations

import json

import pytest
from cli_helpers import run as run_command

from jcv2_plugin.cli.plan import size
from jcv2_plugin.collection.planning import Workload, plan
from jcv2_plugin.errors import InvalidOptionError


def run(*arguments: str) -> str:
    """What ``jcv2 plan`` prints."""
    return run_command("plan", *arguments)


def test_json_is_the_plan() -> None:
    found = json.loads(run("--docs", "100M", "--tokens", "120", "--dim", "64", "--profile", "int8", "--json"))
    expected = plan(Workload(documents=100_000_000, tokens=120, dim=64, storage="int8"))
    assert found == {**json.loads(json.dumps(expected.to_dict())), "tokens_per_second": None}
    assert found["vectors"] == 12_000_000_000
    assert found["shards"] > 1


def test_what_is_printed_for_people() -> None:
    shown = run("--docs", "2M", "--tokens", "150", "--pool-factor", "1.5", "--profile", "turbo4", "--replicas", "2")
    assert "2,000,000 documents of 150 tokens: 200,000,000 vectors of 128, turbo4, pooled by 1.5" in shown
    assert "--tokens-per-second" in shown
    hours = run("--docs", "3.6M", "--tokens", "100", "--tokens-per-second", "50000", "--encoders", "2")
    assert "encoding: 1.0 hours with 2 encoder(s) of 50,000 tokens/s" in hours


def test_the_speed_of_a_model_is_measured_here() -> None:
    found = json.loads(run("--docs", "1k", "--tokens", "20", "--dim", "64", "--model", "mini", "--json"))
    assert found["tokens_per_second"] > 100
    assert found["encoding_hours"] == pytest.approx(1000 * 20 / found["tokens_per_second"] / 3600)


def test_bad_numbers() -> None:
    with pytest.raises(InvalidOptionError, match="'many' is not a positive number"):
        run("--docs", "many")
    with pytest.raises(InvalidOptionError, match="storage must be one of"):
        run("--docs", "5", "--profile", "int3")


@pytest.mark.parametrize(
    ("amount", "text"), [(17, "17 B"), (2048, "2.0 KiB"), (5 * 2**30, "5.0 GiB"), (300 * 2**40, "300 TiB")]
)
def test_sizes_as_people_read_them(amount: float, text: str) -> None:
    assert size(amount) == text
