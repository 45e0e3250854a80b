"""The list of subcommands. Each has its own module, which is imported when the command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from jcv2_plugin import __version__
from jcv2_plugin.cli.lazy import LazyGroup


class _Commands(LazyGroup):
    package = "jcv2_plugin.cli"
    homes = {  # noqa: RUF012 -- as in the base
        "index": ("index:index", "Index files. Run it again to encode only what has changed."),
        "search": ("search:search", "Print the best passages, with the words that matched highlighted."),
        "explain": ("explain:explain", "Show which document token each query token matched, and how well."),
        "eval": ("evaluate:evaluate", "Evaluate a model on a BEIR dataset, searching a stored collection."),
        "info": ("collections:info", "Print a collection's settings and its number of documents."),
        "migrate": ("migrate:migrate", "Change a collection's dimension, model, storage or first stage while in use."),
        "verify": ("verify:verify", "Check every document of a collection. Exit with status 1 if anything is wrong."),
        "snapshot": ("snapshot:snapshot", "Write a collection to one file, which can be restored without encoding."),
        "restore": ("snapshot:restore", "Restore a collection from a snapshot, in a folder or on a server."),
        "collections": ("collections:collections_app", "List, describe and drop collections."),
        "import-qdrant": (
            "import_qdrant:import_qdrant",
            "Encode the documents of another Qdrant collection, such as LangChain's or LlamaIndex's, into one of ours.",
        ),
        "plan": ("plan:plan", "Add up the disk, memory, shards and encoding time that a collection will need."),
        "quantize": ("quantize:quantize", "Create an int8 version of a model, for CPUs."),
        "serve": ("serve:serve", "Serve a model over HTTP: token vectors, and reranking."),
        "study": (
            "study:study_app",
            "Measure models on your own test sets, and write reports with charts.",
        ),
    }


app = typer.Typer(
    cls=_Commands,
    name="jcv2",
    help="Late-interaction retrieval with Jina-ColBERT-v2 and similar models, stored in Qdrant.",
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
    from jcv2_plugin.console import clean_logs

    clean_logs()
