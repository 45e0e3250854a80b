"""``jcv2 hand-over`` and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jcv2_plugin.cli.options import (
    FIRST_STAGES_HELP,
    OFFICIAL,
    POOL_HELP,
    STORAGES_HELP,
    ApiKey,
    Collection,
    Device,
    Grpc,
    Json,
    Name,
    Retries,
    Timeout,
    Workers,
)


def hand_over(
    collection: Collection,
    from_collection: Annotated[str, typer.Option(help="The other collection's name.")],
    layout: Annotated[str, typer.Option(help="How its payloads are laid out, such as langchain or llama-index.")],
    from_url: Annotated[str | None, typer.Option(help="The Qdrant server where it is.")] = None,
    from_path: Annotated[
        Path | None,
        typer.Option(help="Instead of a server: a folder that qdrant-client keeps, QdrantClient(path=...)."),
    ] = None,
    from_api_key: Annotated[
        str | None,
        typer.Option(
            envvar="QDRANT_FROM_API_KEY",
            show_envvar=True,
            help="For that server; --api-key if not given and both are on one.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the layout, such as content_key=text. Repeatable."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"A model by name or folder, for a new collection; {OFFICIAL} if not given."),
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Matryoshka dimension, for a new collection.")] = None,
    storage: Annotated[
        str | None, typer.Option(help=f"{STORAGES_HELP}; for a new collection, float16 if not given.")
    ] = None,
    first_stage: Annotated[
        str | None, typer.Option(help=f"{FIRST_STAGES_HELP}; for a new collection, hybrid if not given.")
    ] = None,
    pool_factor: Annotated[float | None, typer.Option(help=f"{POOL_HELP}; for a new collection.")] = None,
    document_length: Annotated[int | None, typer.Option(help="The model's window, for a new collection.")] = None,
    payload_index: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=KIND", help="Index metadata for filters, such as topic=keyword. Repeatable."),
    ] = None,
    workers: Workers = 0,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
    retries: Retries = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Encode the documents of another Qdrant collection, such as LangChain's or LlamaIndex's, into one of ours.

    The other collection is only read. Stopped, the same command goes on; repeated, it encodes only what is new or has
    changed.
    """
    from jcv2_plugin.cli.connection import Connection
    from jcv2_plugin.cli.handing_over import Source, run_hand_over
    from jcv2_plugin.cli.opening import Wanted

    target = Connection(collection, name, api_key, timeout, grpc, retries)
    run_hand_over(
        Source.of(from_url, from_path, from_collection, from_api_key, target),
        layout,
        option or [],
        target,
        Wanted(
            model=model,
            dim=dim,
            storage=storage,
            first_stage=first_stage,
            pool_factor=pool_factor,
            document_length=document_length,
            payload_indexes=tuple(payload_index or ()),
            shard_key=None,
            shards=None,
            replicas=None,
            device=device,
            by_file=False,
        ),
        workers=workers,
        as_json=as_json,
    )
