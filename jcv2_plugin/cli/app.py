"""The subcommands and their options. What they need is imported when they run, so that ``--help`` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jcv2_plugin import __version__
from jcv2_plugin.cli.collections_app import collections_app
from jcv2_plugin.cli.hand_over_app import hand_over
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
from jcv2_plugin.cli.plan_app import plan
from jcv2_plugin.cli.quantize_app import quantize
from jcv2_plugin.cli.study_app import study_app
from jcv2_plugin.cli.upkeep_app import migrate, restore, snapshot, verify

app = typer.Typer(
    name="jcv2",
    help="Late-interaction retrieval with Jina-ColBERT-v2 and its kin, stored in Qdrant.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"jcv2 {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def index(
    paths: Annotated[
        list[str], typer.Argument(help="Files and folders: .md .txt .rst .py .html, and .jsonl; - is JSONL from stdin.")
    ],
    collection: Collection,
    model: Annotated[
        str | None,
        typer.Option(help=f"A model by name or folder, for a new collection; {OFFICIAL} if not given."),
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Matryoshka dimension, for a new collection.")] = None,
    chunk_tokens: Annotated[int, typer.Option(help="Largest passage, in tokens.")] = 200,
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
    shard_key: Annotated[str | None, typer.Option(help="The shard to write to, on a server with custom ones.")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Shards, for a new collection on a server.")] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Copies of each shard, for a new collection on a server.")
    ] = None,
    workers: Workers = 0,
    journal: Annotated[
        Path | None,
        typer.Option(help="A file that remembers how far the run got; a folder's ingest.journal if not given."),
    ] = None,
    prune: Annotated[bool, typer.Option(help="Also remove documents whose files are gone from the folders.")] = False,
    strict: Annotated[bool, typer.Option(help="Stop at an unreadable text file instead of skipping it.")] = False,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
    retries: Retries = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Index files; run it again and only what changed is encoded.

    Text files are split into passages; .jsonl files hold a document a line, as {"_id", "title", "text"} (BEIR)
    or {"id", "text", "metadata"}.
    """
    from jcv2_plugin.cli.connection import Connection
    from jcv2_plugin.cli.indexing import IndexOptions, run_index
    from jcv2_plugin.cli.opening import Wanted

    run_index(
        paths,
        Connection(collection, name, api_key, timeout, grpc, retries),
        Wanted(
            model=model,
            dim=dim,
            storage=storage,
            first_stage=first_stage,
            pool_factor=pool_factor,
            document_length=document_length,
            payload_indexes=tuple(payload_index or ()),
            shard_key=shard_key,
            shards=shards,
            replicas=replicas,
            device=device,
        ),
        IndexOptions(
            chunk_tokens=chunk_tokens,
            workers=workers,
            journal=journal,
            prune=prune,
            strict=strict,
            as_json=as_json,
        ),
    )


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="The question.")],
    collection: Collection,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many passages.")] = 5,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="key=value: only documents with this metadata. Repeatable."),
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="How many candidates the first stage finds; 300 or more if not given.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Rank all documents, without the first stage.")] = False,
    first_stage: Annotated[
        str | None, typer.Option(help="Another first stage than the collection's, of those it stores.")
    ] = None,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
    as_json: Json = False,
) -> None:
    """Print the best passages, with the words that matched highlighted."""
    from jcv2_plugin.cli.connection import Connection
    from jcv2_plugin.cli.searching import run_search

    run_search(
        query,
        Connection(collection, name, api_key, timeout, grpc),
        k=k,
        where=where or [],
        candidates=candidates,
        exact=exact,
        first_stage=first_stage,
        as_json=as_json,
    )


@app.command()
def explain(
    query: Annotated[str, typer.Argument(help="The question.")],
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="A collection to take the document from.")
    ] = None,
    id: Annotated[str | None, typer.Option(help="The document; the best hit if not given.")] = None,
    text: Annotated[str | None, typer.Option(help="Instead of a collection: a text.")] = None,
    model: Annotated[str, typer.Option(help="The model for --text.")] = OFFICIAL,
    dim: Annotated[int | None, typer.Option(help="The dimension for --text.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a heat map to this file.")] = None,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
) -> None:
    """Show which document token each query token matched, and how well."""
    from jcv2_plugin.cli.connection import Connection
    from jcv2_plugin.cli.searching import run_explain

    run_explain(
        query,
        None if collection is None else Connection(collection, name, api_key, timeout, grpc),
        document_id=id,
        text=text,
        model=model,
        dim=dim,
        html=html,
    )


@app.command("eval")
def evaluate(
    dataset: Annotated[Path, typer.Argument(help="A BEIR folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.")],
    model: Annotated[str, typer.Option(help="A model by name or folder.")] = OFFICIAL,
    dim: Annotated[list[int] | None, typer.Option(help="Matryoshka dimension; repeatable.")] = None,
    split: Annotated[str, typer.Option(help="Which qrels.")] = "test",
    bm25: Annotated[bool, typer.Option("--bm25", help="Also evaluate BM25.")] = False,
    storage: Annotated[str, typer.Option(help=f"{STORAGES_HELP}.")] = "float16",
    first_stage: Annotated[
        str, typer.Option(help=f"{FIRST_STAGES_HELP}; with none, as published figures, MaxSim ranks everything.")
    ] = "none",
    candidates: Annotated[
        int | None, typer.Option(min=1, help="How many candidates the first stage finds; at least 400 if not given.")
    ] = None,
    pool_factor: Annotated[float, typer.Option(help=f"{POOL_HELP}.")] = 1.0,
    document_length: Annotated[int | None, typer.Option(help="The model's window, in tokens.")] = None,
    long_documents: Annotated[
        str, typer.Option(help="split, truncate (as published figures do) or error.")
    ] = "truncate",
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", help="Keep the collection in this folder, and reuse it."),
    ] = None,
    device: Device = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON per dim with ndcg@10, recall@100, mrr@10.")
    ] = False,
) -> None:
    """Evaluate a model on a BEIR folder, searching a stored collection."""
    from jcv2_plugin.cli.evaluating import EvalOptions, run_eval

    run_eval(
        dataset,
        EvalOptions(
            model=model,
            dims=tuple(dim or ()),
            split=split,
            bm25=bm25,
            storage=storage,
            first_stage=first_stage,
            candidates=candidates,
            pool_factor=pool_factor,
            document_length=document_length,
            long_documents=long_documents,
            collection=collection,
            device=device,
            as_json=as_json,
        ),
    )


@app.command()
def info(
    collection: Collection,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
    as_json: Json = False,
) -> None:
    """Print what a collection was made with, and how many documents it has."""
    from jcv2_plugin.cli.connection import Connection
    from jcv2_plugin.cli.searching import run_info

    run_info(Connection(collection, name, api_key, timeout, grpc), as_json=as_json)


for _command in (migrate, verify, snapshot, restore):
    app.command()(_command)
app.add_typer(collections_app, name="collections")
app.command()(hand_over)
app.command()(plan)
app.command()(quantize)
app.add_typer(study_app, name="study")
