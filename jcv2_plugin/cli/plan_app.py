"""``jcv2 plan`` and its options."""

from __future__ import annotations

from typing import Annotated

import typer

from jcv2_plugin.cli.options import FIRST_STAGES_HELP, POOL_HELP, STORAGES_HELP, Device, Json


def plan(
    docs: Annotated[str, typer.Option("--docs", help="Documents, such as 7000, 2.5M or 100M.")],
    tokens: Annotated[float, typer.Option(min=1, help="Tokens a document, on average.")] = 120,
    dim: Annotated[int, typer.Option(min=1, help="Matryoshka dimension.")] = 128,
    profile: Annotated[str, typer.Option("--profile", "--storage", help=f"{STORAGES_HELP}.")] = "float16",
    first_stage: Annotated[str, typer.Option(help=f"{FIRST_STAGES_HELP}.")] = "hybrid",
    pool_factor: Annotated[float, typer.Option(min=1, help=f"{POOL_HELP}.")] = 1.0,
    text_bytes: Annotated[
        float | None, typer.Option(help="Bytes of text and metadata a document; estimated from --tokens if not given.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of each shard.")] = 1,
    node_memory: Annotated[float, typer.Option(help="GiB of memory a node.")] = 64,
    node_disk: Annotated[float, typer.Option(help="GiB of disk a node.")] = 1000,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="What one encoder encodes, where you know it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model, by name or folder, whose speed is measured here for some seconds.")
    ] = None,
    encoders: Annotated[int, typer.Option(min=1, help="Encoders at work, such as GPUs.")] = 1,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Add up the disk, memory, shards and encoding time that a collection will need.

    Sizes are those measured on Qdrant's engine; see docs/scaling.md.
    """
    from jcv2_plugin.cli.planning import PlanOptions, run_plan

    run_plan(
        PlanOptions(
            docs=docs,
            tokens=tokens,
            dim=dim,
            profile=profile,
            first_stage=first_stage,
            pool_factor=pool_factor,
            text_bytes=text_bytes,
            replicas=replicas,
            node_memory=node_memory,
            node_disk=node_disk,
            tokens_per_second=tokens_per_second,
            model=model,
            encoders=encoders,
            device=device,
            as_json=as_json,
        )
    )
