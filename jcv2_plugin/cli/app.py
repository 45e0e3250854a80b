"""The subcommands and their options. What they need is imported when they run, so that ``--help`` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jcv2_plugin import __version__

app = typer.Typer(
    name="jcv2",
    help="Late-interaction retrieval with Jina-ColBERT-v2 and its kin, stored in Qdrant.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

OFFICIAL = "jinaai/jina-colbert-v2"
Collection = Annotated[
    str, typer.Option("--collection", "-c", help="A folder (embedded Qdrant Edge) or a Qdrant server's URL.")
]
Name = Annotated[str, typer.Option(help="The collection's name on a server; a folder holds just one.")]
ApiKey = Annotated[str | None, typer.Option(envvar="QDRANT_API_KEY", help="For a server.", show_envvar=True)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the best there is by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead.")]


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
    paths: Annotated[list[str], typer.Argument(help="Files and folders: .md .txt .rst .py .html, and .jsonl.")],
    collection: Collection,
    model: Annotated[
        str | None,
        typer.Option(help=f"A model by name or folder, for a new collection; {OFFICIAL} if not given."),
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Matryoshka dimension, for a new collection.")] = None,
    chunk_tokens: Annotated[int, typer.Option(help="Largest passage, in tokens.")] = 200,
    storage: Annotated[str | None, typer.Option(help="float16 (default) or float32, for a new collection.")] = None,
    document_length: Annotated[int | None, typer.Option(help="The model's window, for a new collection.")] = None,
    prune: Annotated[bool, typer.Option(help="Also remove documents whose files are gone from the folders.")] = False,
    strict: Annotated[bool, typer.Option(help="Stop at an unreadable text file instead of skipping it.")] = False,
    name: Name = "documents",
    api_key: ApiKey = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Index files; run it again and only what changed is encoded.

    Text files are split into passages; .jsonl files hold a document a line, as {"_id", "title", "text"} (BEIR)
    or {"id", "text", "metadata"}.
    """
    from jcv2_plugin.cli.indexing import IndexOptions, run_index

    run_index(
        paths,
        IndexOptions(
            collection=collection,
            model=model,
            dim=dim,
            chunk_tokens=chunk_tokens,
            storage=storage,
            document_length=document_length,
            prune=prune,
            strict=strict,
            name=name,
            api_key=api_key,
            device=device,
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
    name: Name = "documents",
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Print the best passages, with the words that matched highlighted."""
    from jcv2_plugin.cli.searching import run_search

    run_search(query, collection, k=k, where=where or [], name=name, api_key=api_key, as_json=as_json)


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
) -> None:
    """Show which document token each query token matched, and how well."""
    from jcv2_plugin.cli.searching import run_explain

    run_explain(
        query,
        collection,
        document_id=id,
        text=text,
        model=model,
        dim=dim,
        html=html,
        name=name,
        api_key=api_key,
    )


@app.command("eval")
def evaluate(
    dataset: Annotated[Path, typer.Argument(help="A BEIR folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.")],
    model: Annotated[str, typer.Option(help="A model by name or folder.")] = OFFICIAL,
    dim: Annotated[list[int] | None, typer.Option(help="Matryoshka dimension; repeatable.")] = None,
    split: Annotated[str, typer.Option(help="Which qrels.")] = "test",
    bm25: Annotated[bool, typer.Option("--bm25", help="Also evaluate BM25.")] = False,
    storage: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
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
            document_length=document_length,
            long_documents=long_documents,
            collection=collection,
            device=device,
            as_json=as_json,
        ),
    )


@app.command()
def info(collection: Collection, name: Name = "documents", api_key: ApiKey = None, as_json: Json = False) -> None:
    """Print what a collection was made with, and how many documents it has."""
    from jcv2_plugin.cli.searching import run_info

    run_info(collection, name=name, api_key=api_key, as_json=as_json)
