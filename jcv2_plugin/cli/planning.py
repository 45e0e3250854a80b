"""``jcv2 plan``."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import typer
from rich.table import Table

from jcv2_plugin.collection.planning import Plan, Workload, parse_number, plan
from jcv2_plugin.console import err, out, quiet_libraries

_GIB = 2**30
_PROBE_SECONDS = 3.0
_SENTENCE = "The harbour master keeps a ledger of every ship that calls, with its cargo and the hour of the tide. "


@dataclass(frozen=True)
class PlanOptions:
    """The command's options; node sizes in GiB."""

    docs: str
    tokens: float
    dim: int
    profile: str
    first_stage: str
    pool_factor: float
    text_bytes: float | None
    replicas: int
    node_memory: float
    node_disk: float
    tokens_per_second: float | None
    model: str | None
    encoders: int
    device: str | None
    as_json: bool


def run_plan(options: PlanOptions) -> None:
    """Print what a workload needs."""
    speed = options.tokens_per_second
    if speed is None and options.model is not None:
        speed = measure_speed(options.model, options.tokens, options.device)
    names: dict[str, Any] = {"storage": options.profile, "first_stage": options.first_stage}
    workload = Workload(
        documents=parse_number(options.docs),
        tokens=options.tokens,
        dim=options.dim,
        pool_factor=options.pool_factor,
        text_bytes=options.text_bytes,
        replicas=options.replicas,
        node_memory=options.node_memory * _GIB,
        node_disk=options.node_disk * _GIB,
        tokens_per_second=speed,
        workers=options.encoders,
        **names,
    )
    made = plan(workload)
    if options.as_json:
        typer.echo(json.dumps({**made.to_dict(), "tokens_per_second": speed}))
        return
    _print(workload, made, speed)


def measure_speed(model: str, tokens: float, device: str | None) -> float:
    """Tokens a second that a model encodes here, of texts of about so many tokens, in a few seconds."""
    from jcv2_plugin.encoder.model import JinaColbertEncoder

    quiet_libraries()
    encoder = JinaColbertEncoder.from_pretrained(model, device=device)
    each = len(encoder.tokenizer(_SENTENCE, add_special_tokens=False)["input_ids"])
    text = _SENTENCE * max(1, round(tokens / each))
    dim = encoder.dims[0]
    texts, vectors, seconds = 16, 0, 0.0
    encoder.document_vectors([text] * 4, dim, "split")  # warms up
    while seconds < _PROBE_SECONDS:
        start = time.perf_counter()
        vectors += sum(len(one) for one in encoder.document_vectors([text] * texts, dim, "split"))
        seconds += time.perf_counter() - start
        texts = min(2 * texts, 1024)
    return vectors / seconds


def size(amount: float) -> str:
    """Bytes as a person reads them."""
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 1024 or unit == "PiB":
            break
        amount /= 1024
    return f"{amount:,.0f} {unit}" if amount >= 100 or unit == "B" else f"{amount:,.1f} {unit}"


def _print(workload: Workload, made: Plan, speed: float | None) -> None:
    table = Table(box=None, padding=(0, 2))
    table.add_column("")
    table.add_column("disk", justify="right")
    table.add_column("in memory", justify="right")
    for name, amount in made.disk.items():
        table.add_row(name, size(amount), size(made.memory[name]) if name in made.memory else "")
    table.add_row("[bold]one copy", f"[bold]{size(made.total_disk)}", f"[bold]{size(made.total_memory)}")
    out.print(
        f"{workload.documents:,} documents of {workload.tokens:g} tokens: {made.vectors:,} vectors of {workload.dim}, "
        f"{workload.storage}" + (f", pooled by {workload.pool_factor:g}" if workload.pool_factor > 1 else ""),
        soft_wrap=True,
    )
    out.print(table)
    out.print(
        f"shards: {made.shards} or more (by {made.limited_by}); with {workload.replicas} of each: {made.nodes} nodes, "
        f"{size(made.total_disk * workload.replicas)} of disk in all"
        if made.shards > 1
        else f"shards: 1 ({made.limited_by}); with {workload.replicas} of each: {made.nodes} nodes",
        soft_wrap=True,
    )
    out.print(
        f"a search reads up to {size(made.query_bytes)} of token vectors; with {size(made.cached_vectors)} more memory "
        "a copy, none from disk",
        soft_wrap=True,
    )
    if made.encoding_hours is None:
        out.print("encoding: not known; give --tokens-per-second, or --model to measure it here", soft_wrap=True)
    else:
        out.print(
            f"encoding: {made.encoding_hours:,.1f} hours with {workload.workers} encoder(s) of {speed:,.0f} tokens/s",
            soft_wrap=True,
        )
    for warning in made.warnings:
        err.print(f"warning: {warning}", soft_wrap=True, markup=False)
