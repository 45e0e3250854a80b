"""``jcv2 eval``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.console import print_table, progress_bar, quiet_libraries
from jcv2_plugin.encoder.model import JinaColbertEncoder
from jcv2_plugin.errors import CollectionMismatchError
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.bm25 import bm25_run
from jcv2_plugin.evaluation.metrics import evaluate_collection, evaluate_run

KEYS = ("ndcg@10", "recall@100", "mrr@10")


@dataclass(frozen=True)
class EvalOptions:
    """The command's options."""

    model: str
    dims: tuple[int, ...]
    split: str
    bm25: bool
    storage: str
    first_stage: str
    candidates: int | None
    pool_factor: float
    document_length: int | None
    long_documents: str
    collection: str | None
    device: str | None
    as_json: bool


def run_eval(folder: Path, options: EvalOptions) -> None:
    """Evaluate each dim, and BM25 if asked, and print the figures."""
    _check(options)
    dataset = BeirDataset.read(folder, split=options.split)
    quiet_libraries()
    encoder = JinaColbertEncoder.from_pretrained(
        options.model,
        dims=options.dims or None,
        device=options.device,
        document_length=options.document_length,
    )
    rows: list[tuple[str, dict[str, float]]] = []
    for dim in options.dims or encoder.dims[:1]:
        figures = _evaluate_dim(dataset, encoder, dim, options)
        rows.append((f"{options.model}, {dim} dims{_settings(options)}", figures))
        row = {
            "model": options.model,
            "dim": dim,
            "dataset": dataset.name,
            "storage": options.storage,
            "first_stage": options.first_stage,
            "candidates": options.candidates,
            "pool_factor": options.pool_factor,
        }
        _print_json({**row, **figures}, options)
    if options.bm25:
        figures = evaluate_run(bm25_run(dataset), dataset.qrels)
        rows.append(("BM25", figures))
        _print_json({"model": "bm25", "dataset": dataset.name, **figures}, options)
    if not options.as_json:
        _print_table(f"{dataset.name}: {len(dataset.corpus)} documents, {len(dataset.queries)} queries", rows)


def _check(options: EvalOptions) -> None:
    if options.candidates is not None and options.first_stage == "none":
        raise typer.BadParameter(
            "Without a first stage there are no candidates. Add --first-stage hybrid, or another one.",
            param_hint="--candidates",
        )
    if options.collection is not None and "://" in options.collection:
        raise typer.BadParameter(
            f"{options.collection!r} is no folder. Collections for evaluation are kept in folders only.",
            param_hint="--collection",
        )


def _settings(options: EvalOptions) -> str:
    """What is not as for published figures, for the table."""
    pooled = f", pooled by {options.pool_factor:g}" if options.pool_factor != 1 else ""
    stage = f", first stage {options.first_stage}" if options.first_stage != "none" else ""
    storage = f", {options.storage}" if options.storage != "float16" else ""
    return f"{storage}{pooled}{stage}"


def _evaluate_dim(
    dataset: BeirDataset, encoder: JinaColbertEncoder, dim: int, options: EvalOptions
) -> dict[str, float]:
    with _collection(encoder, dim, options) as collection:
        with progress_bar(f"Indexing at {dim} dims", len(dataset.corpus)) as advance:
            collection.ingest(dataset.documents(), progress=advance)
        if collection.count() > len(dataset.corpus):
            raise CollectionMismatchError(
                f"{options.collection!r} holds {collection.count()} documents, {dataset.name} has "
                f"{len(dataset.corpus)}: others would spoil the figures. Give another folder."
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
def _collection(encoder: JinaColbertEncoder, dim: int, options: EvalOptions) -> Iterator[ColbertCollection]:
    settings: dict[str, Any] = {
        "storage": options.storage,
        "first_stage": options.first_stage,
        "pool_factor": options.pool_factor,
        "long_documents": options.long_documents,
    }
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
                    raise CollectionMismatchError(f"{str(path)!r} was made with {name}={found!r}, not {wanted!r}.")
            yield opened
    else:
        with ColbertCollection.create(path, encoder=encoder, dim=dim, **settings) as made:
            yield made


def _print_json(row: dict[str, Any], options: EvalOptions) -> None:
    if options.as_json:
        typer.echo(json.dumps(row))


def _print_table(title: str, rows: list[tuple[str, dict[str, float]]]) -> None:
    table = Table("", *KEYS, title=title, title_justify="left")
    for label, figures in rows:
        table.add_row(label, *(f"{figures[key]:.4f}" for key in KEYS))
    print_table(table)
