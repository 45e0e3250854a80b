"""``jcv2 eval``: evaluate a model on a BEIR folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from jcv2_plugin.cli.options import FIRST_STAGES_HELP, POOL_HELP, STORAGES_HELP, Device
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.location import looks_like_server, without_credentials
from jcv2_plugin.console import name, print_table, progress_bar, quiet_libraries
from jcv2_plugin.encoder import DEFAULT_MODEL
from jcv2_plugin.errors import CollectionMismatchError
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.bm25 import bm25_run
from jcv2_plugin.evaluation.metrics import METRICS, evaluate_collection, evaluate_run

if TYPE_CHECKING:
    from jcv2_plugin.encoder.model import JinaColbertEncoder


@dataclass(frozen=True)
class Evaluated:
    """Options for the model and the collection to evaluate."""

    model: Annotated[str, typer.Option(help="Name or folder of the model.")] = DEFAULT_MODEL
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
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="Folder to keep the collections in, and to reuse them.")
    ] = None
    device: Device = None

    def __post_init__(self) -> None:
        if self.candidates is not None and self.first_stage == "none":
            raise typer.BadParameter(
                "Without a first stage there are no candidates. Add --first-stage hybrid, or another one.",
                param_hint="--candidates",
            )
        if self.collection is not None and looks_like_server(self.collection):
            raise typer.BadParameter(
                f"{without_credentials(self.collection)!r} is not a folder. Collections for evaluation are kept "
                "in folders only.",
                param_hint="--collection",
            )

    def settings(self) -> dict[str, Any]:
        """Return keyword arguments for ``ColbertCollection.create``."""
        return {name: getattr(self, name) for name in ("storage", "first_stage", "pool_factor", "long_documents")}


def evaluate(
    dataset: Annotated[Path, typer.Argument(help="Folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/*.tsv.")],
    options: Evaluated,
    dim: Annotated[list[int] | None, typer.Option(help="Matryoshka dimension. Repeatable.")] = None,
    split: Annotated[str, typer.Option(help="Name of the qrels file.")] = "test",
    bm25: Annotated[bool, typer.Option("--bm25", help="Also evaluate BM25.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help=f"Print one line of JSON per dimension with {', '.join(METRICS)}.")
    ] = False,
) -> None:
    """Evaluate a model on a BEIR dataset, searching a stored collection."""
    from jcv2_plugin.encoder.model import JinaColbertEncoder

    read = BeirDataset.read(dataset, split=split)
    quiet_libraries()
    encoder = JinaColbertEncoder.from_pretrained(
        options.model, dims=dim or None, device=options.device, document_length=options.document_length
    )
    rows: list[tuple[str, dict[str, float]]] = []
    for one in dim or encoder.dims[:1]:
        figures = _evaluate_dim(read, encoder, one, options)
        rows.append((f"{options.model}, {one} dims{_settings(options)}", figures))
        if as_json:
            names = ("storage", "first_stage", "candidates", "pool_factor")
            described = {name: getattr(options, name) for name in names}
            typer.echo(json.dumps({"model": options.model, "dim": one, "dataset": read.name, **described, **figures}))
    if bm25:
        figures = evaluate_run(bm25_run(read), read.qrels)
        rows.append(("BM25", figures))
        if as_json:
            typer.echo(json.dumps({"model": "bm25", "dataset": read.name, **figures}))
    if not as_json:
        _print_table(f"{name(read.name)}: {len(read.corpus)} documents, {len(read.queries)} queries", rows)


def _settings(options: Evaluated) -> str:
    """Return the settings that differ from those of published figures, for the table."""
    pooled = f", pooled by {options.pool_factor:g}" if options.pool_factor != 1 else ""
    stage = f", first stage {options.first_stage}" if options.first_stage != "none" else ""
    storage = f", {options.storage}" if options.storage != "float16" else ""
    return f"{storage}{pooled}{stage}"


def _evaluate_dim(dataset: BeirDataset, encoder: JinaColbertEncoder, dim: int, options: Evaluated) -> dict[str, float]:
    with _collection(encoder, dim, options) as collection:
        with progress_bar(f"Indexing at {dim} dims", len(dataset.corpus)) as advance:
            collection.ingest(dataset.documents(), progress=advance)
        if collection.count() > len(dataset.corpus):
            raise CollectionMismatchError(
                f"{options.collection!r} holds {collection.count()} documents, {dataset.name} has "
                f"{len(dataset.corpus)}: other documents would change the figures. Choose another folder."
            )
        with progress_bar("Searching", len(dataset.queries)) as advance:
            metrics = evaluate_collection(
                collection,
                dataset,
                progress=advance,
                candidates=options.candidates,
                exact=options.first_stage == "none",
            )
    return metrics.as_dict()


@contextmanager
def _collection(encoder: JinaColbertEncoder, dim: int, options: Evaluated) -> Iterator[ColbertCollection]:
    settings = options.settings()
    if options.collection is None:
        with (
            tempfile.TemporaryDirectory(prefix="jcv2-eval-") as folder,
            ColbertCollection.create(Path(folder) / str(dim), encoder=encoder, dim=dim, **settings) as made,
        ):
            yield made
        return
    path = Path(options.collection) / str(dim)
    if path.exists():
        with ColbertCollection.open(path, encoder=encoder, dim=dim) as opened:
            for name, wanted in settings.items():
                if (found := getattr(opened.schema, name)) != wanted:
                    raise CollectionMismatchError(
                        f"{str(path)!r} was created with {name}={found!r}, not {wanted!r}. Choose another folder."
                    )
            yield opened
    else:
        with ColbertCollection.create(path, encoder=encoder, dim=dim, **settings) as made:
            yield made


def _print_table(title: str, rows: list[tuple[str, dict[str, float]]]) -> None:
    table = Table("", *METRICS, title=title, title_justify="left")
    for label, figures in rows:
        table.add_row(name(label), *(f"{figures[key]:.4f}" for key in METRICS))
    print_table(table)
