"""``jcv2 plan``: estimate how large a collection will be."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from jcv2_plugin.cli.options import FIRST_STAGES_HELP, POOL_HELP, STORAGES_HELP, Device, Json
from jcv2_plugin.collection import planning
from jcv2_plugin.collection.planning import Plan, Workload, parse_number
from jcv2_plugin.console import err, out, quiet_libraries

_GIB = 2**30
_PROBE_SECONDS = 3.0
_SENTENCE = "The harbour master keeps a ledger of every ship that calls, with its cargo and the hour of the tide. "


def plan(
    docs: Annotated[str, typer.Option("--docs", help="Documents, such as 7000, 2.5M or 100M.")],
    tokens: Annotated[float, typer.Option(min=1, help="Average number of tokens per document.")] = 120,
    dim: Annotated[int, typer.Option(min=1, help="Matryoshka dimension.")] = 128,
    profile: Annotated[str, typer.Option("--profile", "--storage", help=f"{STORAGES_HELP}.")] = "float16",
    first_stage: Annotated[str, typer.Option(help=f"{FIRST_STAGES_HELP}.")] = "hybrid",
    pool_factor: Annotated[float, typer.Option(min=1, help=f"{POOL_HELP}.")] = 1.0,
    text_bytes: Annotated[
        float | None, typer.Option(help="Bytes of text and metadata per document. Default: estimated from --tokens.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of each shard.")] = 1,
    node_memory: Annotated[float, typer.Option(help="Memory per node, in GiB.")] = 64,
    node_disk: Annotated[float, typer.Option(help="Disk space per node, in GiB.")] = 1000,
    tokens_per_second: Annotated[float | None, typer.Option(help="Throughput of one encoder, if known.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model, by name or folder, to measure the throughput of on this machine.")
    ] = None,
    encoders: Annotated[int, typer.Option(min=1, help="Number of encoders, such as GPUs.")] = 1,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Add up the disk, memory, shards and encoding time that a collection will need.

    Sizes are based on measurements of Qdrant's engine; see docs/scaling.md.
    """
    speed = tokens_per_second
    if speed is None and model is not None:
        speed = measure_speed(model, tokens, device)
    names: dict[str, Any] = {"storage": profile, "first_stage": first_stage}
    workload = Workload(
        documents=parse_number(docs),
        tokens=tokens,
        dim=dim,
        pool_factor=pool_factor,
        text_bytes=text_bytes,
        replicas=replicas,
        node_memory=node_memory * _GIB,
        node_disk=node_disk * _GIB,
        tokens_per_second=speed,
        workers=encoders,
        **names,
    )
    made = planning.plan(workload)
    if as_json:
        typer.echo(json.dumps({**made.to_dict(), "tokens_per_second": speed}))
        return
    _print(workload, made, speed)


def measure_speed(model: str, tokens: float, device: str | None) -> float:
    """Measure for a few seconds how many tokens per second a model encodes, in texts of about ``tokens`` tokens."""
    from jcv2_plugin.encoder.named import load_encoder

    quiet_libraries()
    encoder = load_encoder(model, device=device)
    each = encoder.token_counter()(_SENTENCE)
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
    """Format a number of bytes for reading, such as ``1.5 GiB``."""
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
    table.add_row(*(Text(cell, "bold") for cell in ("one copy", size(made.total_disk), size(made.total_memory))))
    pooled = f", pooled by {workload.pool_factor:g}" if workload.pool_factor > 1 else ""
    nodes = f"with {workload.replicas} of each: {made.nodes} nodes"
    shards = f"shards: 1 ({made.limited_by}); {nodes}"
    if made.shards > 1:
        total = size(made.total_disk * workload.replicas)
        shards = f"shards: {made.shards} or more (by {made.limited_by}); {nodes}, {total} of disk in all"
    encoding = "encoding: not known. Give --tokens-per-second, or --model to measure it here"
    if made.encoding_hours is not None:
        encoders = f"{workload.workers} encoder(s) of {speed:,.0f} tokens/s"
        encoding = f"encoding: {made.encoding_hours:,.1f} hours with {encoders}"
    reads = f"a search reads up to {size(made.query_bytes)} of token vectors"
    for line in (
        f"{workload.documents:,} documents of {workload.tokens:g} tokens: {made.vectors:,} vectors of {workload.dim}, "
        f"{workload.storage}{pooled}",
        table,
        shards,
        f"{reads}; with {size(made.cached_vectors)} more memory per copy, none from disk",
        encoding,
    ):
        out.print(line, soft_wrap=True)
    for warning in made.warnings:
        err.print(f"warning: {warning}", soft_wrap=True, markup=False)
