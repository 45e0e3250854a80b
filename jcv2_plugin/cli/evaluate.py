"""``jcv2 eval``: evaluate a model on a BEIR folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from jcv2_plugin.cli.connection import WritingConnection
from jcv2_plugin.cli.options import FIRST_STAGES_HELP, POOL_HELP, STORAGES_HELP, Device
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.console import name, print_table, progress_bar, quiet_libraries, to_json
from jcv2_plugin.encoder import DEFAULT_MODEL
from jcv2_plugin.errors import CollectionMismatchError, CollectionNotFoundError
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.bm25 import bm25_run
from jcv2_plugin.evaluation.metrics import METRICS, evaluate_collection, evaluate_run

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder

_ANOTHER = "Choose another folder, or on a server another --name."


@dataclass(frozen=True)
class Kept(WritingConnection):
    """Where the collections are kept, one for each dimension. By default they are temporary."""

    location: Annotated[
        str,
        typer.Option(
            "--collection",
            "-c",
            help="Folder or URL of a Qdrant server to keep the collections in, and to reuse them.",
            show_default=False,
        ),
    ] = ""
    name: Annotated[
        str,
        typer.Option(
            help="Name of the collections on the server, to which the dimension is added.",
            rich_help_panel="Options for Qdrant servers",
        ),
    ] = "jcv2-eval"

    def at(self, dim: int) -> Kept:
        """Return the location of the collection of a dimension."""
        if self.is_server:
            return replace(self, name=f"{self.name}-{dim}")
        return replace(self, location=str(self.folder / str(dim)))


@dataclass(frozen=True)
class Evaluated:
    """Options for the model and the collection to evaluate."""

    model: Annotated[str, typer.Option(help="Name or folder of the model, or address of an encoder.")] = DEFAULT_MODEL
    storage: Annotated[str, typer.Option(help=f"{STORAGES_HELP}.")] = "float16"
    first_stage: Annotated[
        str, typer.Option(help=f"{FIRST_STAGES_HELP}. With none, MaxSim ranks all documents, as in published figures.")
    ] = "none"
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Number of candidates from the first stage. Default: at least 400.")
    ] = None
    pool_factor: Annotated[float, typer.Option(help=f"{POOL_HELP}.")] = 1.0
    document_length: Annotated[int | None, typer.Option(help="The model's window, in tokens.")] = None
    long_documents: Annotated[
        str, typer.Option(help="Long documents: split, truncate (as in published figures) or error.")
    ] = "truncate"
    device: Device = None

    def __post_init__(self) -> None:
        if self.candidates is not None and self.first_stage == "none":
            raise typer.BadParameter(
                "Without a first stage there are no candidates. Add --first-stage hybrid, or another one.",
                param_hint="--candidates",
            )

    def settings(self) -> dict[str, Any]:
        """Return keyword arguments for ``ColbertCollection.create``."""
        return {name: getattr(self, name) for name in ("storage", "first_stage", "pool_factor", "long_documents")}


def evaluate(
    dataset: Annotated[Path, typer.Argument(help="Folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/*.tsv.")],
    options: Evaluated,
    connection: Kept,
    dim: Annotated[list[int] | None, typer.Option(help="Matryoshka dimension. Repeatable.")] = None,
    split: Annotated[str, typer.Option(help="Name of the qrels file.")] = "test",
    ignore_identical_ids: Annotated[
        bool | None,
        typer.Option(
            help="Leave a query's own document out of its results: the one with the query's id. "
            "Default: if it also has the query's text, as for published figures.",
            show_default=False,
        ),
    ] = None,
    bm25: Annotated[bool, typer.Option("--bm25", help="Also evaluate BM25.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help=f"Print one line of JSON per dimension with {', '.join(METRICS)}.")
    ] = False,
) -> None:
    """Evaluate a model on a BEIR dataset, searching a stored collection."""
    from jcv2_plugin.encoder.named import load_encoder

    read = BeirDataset.read(dataset, split=split)
    own = len(read.own_documents(ignore_identical_ids))
    of_set = {"dataset": read.name, "own_documents_left_out": own, "missing_documents": len(read.missing)}
    quiet_libraries()
    encoder = load_encoder(
        options.model, dims=dim or None, device=options.device, document_length=options.document_length
    )
    rows: list[tuple[str, dict[str, float]]] = []
    for one in dim or encoder.dims[:1]:
        with _collection(read, encoder, one, options, connection) as collection:
            figures = _evaluate_dim(collection, read, options, ignore_identical_ids)
        rows.append((f"{options.model}, {one} dims{_settings(options)}", figures))
        if as_json:
            names = ("storage", "first_stage", "candidates", "pool_factor")
            described = {name: getattr(options, name) for name in names}
            typer.echo(to_json({"model": options.model, "dim": one, **of_set, **described, **figures}))
    if bm25:
        figures = evaluate_run(bm25_run(read, ignore_identical_ids=ignore_identical_ids), read.qrels)
        rows.append(("BM25", figures))
        if as_json:
            typer.echo(to_json({"model": "bm25", **of_set, **figures}))
    if not as_json:
        _print_table(f"{name(read.name)}: {len(read.corpus)} documents, {len(read.queries)} queries", rows)
        if own:
            typer.echo(f"Queries that are documents too, left out of their own results: {own}")
        if read.missing:
            typer.echo(f"Judged documents that the corpus lacks, counted as not found: {len(read.missing)}")


def _settings(options: Evaluated) -> str:
    """Return the settings that differ from those of published figures, for the table."""
    pooled = f", pooled by {options.pool_factor:g}" if options.pool_factor != 1 else ""
    stage = f", first stage {options.first_stage}" if options.first_stage != "none" else ""
    storage = f", {options.storage}" if options.storage != "float16" else ""
    return f"{storage}{pooled}{stage}"


def _evaluate_dim(
    collection: ColbertCollection, dataset: BeirDataset, options: Evaluated, ignore_identical_ids: bool | None
) -> dict[str, float]:
    with progress_bar(f"Indexing at {collection.dim} dims", len(dataset.corpus)) as advance:
        collection.ingest(dataset.documents(), progress=advance)
    with progress_bar("Searching", len(dataset.queries)) as advance:
        metrics = evaluate_collection(
            collection,
            dataset,
            progress=advance,
            candidates=options.candidates,
            exact=options.first_stage == "none",
            ignore_identical_ids=ignore_identical_ids,
        )
    return metrics.as_dict()


@contextmanager
def _collection(
    dataset: BeirDataset, encoder: Encoder, dim: int, options: Evaluated, kept: Kept
) -> Iterator[ColbertCollection]:
    with ExitStack() as stack:
        if not kept.location:
            kept = replace(kept, location=stack.enter_context(tempfile.TemporaryDirectory(prefix="jcv2-eval-")))
        one = kept.at(dim)
        try:
            collection = stack.enter_context(one.open(encoder=encoder, dim=dim))
        except CollectionNotFoundError:
            made = ColbertCollection.create(
                one.location, encoder=encoder, dim=dim, **options.settings(), **one.arguments
            )
            collection = stack.enter_context(made)
        for name, wanted in options.settings().items():
            if (found := getattr(collection.schema, name)) != wanted:
                raise CollectionMismatchError(
                    f"{one.title} was created with {name}={found!r}, not {wanted!r}. {_ANOTHER}"
                )
        if others := sum(own_id not in dataset.corpus for own_id in collection.ids()):  # before anything is written
            raise CollectionMismatchError(
                f"{one.title} holds {others} other documents than {dataset.name}: they would change the figures. "
                f"{_ANOTHER}"
            )
        yield collection


def _print_table(title: str, rows: list[tuple[str, dict[str, float]]]) -> None:
    table = Table("", *METRICS, title=title, title_justify="left")
    for label, figures in rows:
        table.add_row(name(label), *(f"{figures[key]:.4f}" for key in METRICS))
    print_table(table)
