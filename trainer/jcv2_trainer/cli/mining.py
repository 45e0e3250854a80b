"""The commands ``mine`` and ``score``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jcv2_plugin.console import to_json
from jcv2_trainer.cli.commands import (
    Device,
    RecipeFile,
    failing_politely,
    progress_bar,
    quiet_libraries,
    recipe_command,
    say,
)
from jcv2_trainer.mining import mine as mining
from jcv2_trainer.mining import score as scoring
from jcv2_trainer.mining.mine import MineRecipe, MineReport
from jcv2_trainer.mining.score import ScoreRecipe, ScoreReport
from jcv2_trainer.mining.sources import Bm25Source, CollectionSource, ModelSource, Source

if TYPE_CHECKING:
    from jcv2_plugin.collection.collection import ColbertCollection

Data = Annotated[
    Path, typer.Argument(help="Pairs or triplets: JSON lines (also .gz, .xz, .bz2, .zst), Parquet, or a folder.")
]
Out = Annotated[Path, typer.Option(help="File to write: .jsonl, or .jsonl with .gz, .xz, .bz2 or .zst.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run, if there is one.")]
Force = Annotated[bool, typer.Option("--force", help="Replace --out and, without --resume, discard an unfinished run.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]

_REJECTED = {
    "known positives": "positives",
    "repeated": "duplicates",
    "above range_min": "range_min",
    "within relative_margin": "relative_margin",
    "within absolute_margin": "absolute_margin",
    "above max_score": "max_score",
}


@recipe_command(MineRecipe, "mine")
def mine(
    data: Data,
    out: Out,
    settings: MineRecipe,
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", help="Search this collection: a folder or the URL of a Qdrant server."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the collection on a server.")] = "documents",
    api_key: Annotated[
        str | None, typer.Option(envvar="QDRANT_API_KEY", help="API key of the server.", show_envvar=True)
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help='Search this file, with a record {"text": TEXT} for each passage. Without it and --collection, the '
            "passages are the positives and negatives of DATA."
        ),
    ] = None,
    by: Annotated[
        Literal["model", "bm25"] | None,
        typer.Option("--with", help="What ranks the passages of a file. Defaults to the model, if one is given."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model, by name or folder. With --collection, it must be the collection's.")
    ] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="One of the model's dimensions.")] = None,
    device: Device = None,
    recipe: RecipeFile = None,
    resume: Resume = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Mine hard negatives for each row: passages that rank high for its query and are not its positive.

    A row's scores are removed if its negatives change, since they belong to the old ones. An interrupted run can be
    resumed with --resume. To disable a margin, write "relative_margin: null" in a --recipe.

    The exit status is 2 on an error, and 130 after Ctrl-C.
    """
    if collection is None:
        source = _file_source(corpus, by, model, dim, device)
        with _run(out) as bar, progress_bar("passages") as indexed:
            report = mining.mine(
                data, out, source, settings, resume=resume, force=force, progress=bar, index_progress=indexed.update
            )
    else:
        for option, given in (("--corpus", corpus is not None), ("--with bm25", by == "bm25")):
            if given:
                raise typer.BadParameter(f"{option} cannot be combined with --collection. Leave one of them out.")
        with _run(out) as bar, _opened(collection, name, api_key, model, dim, device) as opened:
            report = mining.mine(
                data, out, CollectionSource(opened), settings, resume=resume, force=force, progress=bar
            )
    _show(out, report, as_json, _mined(report, settings, out))


def _file_source(corpus: Path | None, by: str | None, model: str | None, dim: int | None, device: str | None) -> Source:
    if by == "bm25":
        if model is not None or dim is not None:
            raise typer.BadParameter("--with bm25 needs no --model or --dim. Leave them out, or use --with model.")
        return Bm25Source(corpus)
    if model is None:
        raise typer.BadParameter(
            "Choose where negatives come from: --collection LOCATION, --model NAME or --with bm25."
        )
    quiet_libraries()
    return ModelSource(model, corpus, dim, device)


def _opened(
    location: str, name: str, api_key: str | None, model: str | None, dim: int | None, device: str | None
) -> ColbertCollection:
    from jcv2_plugin.collection.collection import ColbertCollection

    quiet_libraries()
    options = {"api_key": api_key} if api_key and "://" in location else None
    return ColbertCollection.open(location, encoder=model, dim=dim, name=name, device=device, client_options=options)


@contextmanager
def _run(out: Path) -> Iterator[Any]:
    """Handle errors and Ctrl-C, and yield a function that advances a progress bar."""
    with failing_politely(partial(_stopped, out)), progress_bar("rows") as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance


def _stopped(out: Path) -> str:
    partial_file = out.with_name(out.name + ".partial")
    kept = f" The finished rows are in {partial_file}. Continue with --resume." if partial_file.exists() else ""
    return f"Stopped.{kept}"


def _show(out: Path, report: MineReport | ScoreReport, as_json: bool, lines: Iterator[str]) -> None:
    if as_json:
        typer.echo(to_json({"out": str(out), **asdict(report)}))
        return
    resumed = f" ({report.resumed_at:,} of them in an earlier run)" if report.resumed_at else ""
    say(f"{out}: {_rows(report.rows)}{resumed}, {next(lines)}")
    for line in lines:
        say(f"  {line}")


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _mined(report: MineReport, settings: MineRecipe, out: Path) -> Iterator[str]:
    counts = report.counts
    yield f"{counts['negatives']:,} negatives."
    fate = "left out" if settings.drop_empty else "written as pairs"
    yield (
        f"rows with {settings.negatives} negatives or more {counts['full']:,}, with fewer {counts['short']:,}, "
        f"with none {counts['empty']:,} ({fate})"
    )
    if parts := [f"{label} {counts[key]:,}" for label, key in _REJECTED.items() if counts[key]]:
        yield f"rejected candidates: {', '.join(parts)}"
    if (counts["short"] or counts["empty"]) and counts["relative_margin"]:
        yield "A larger --range-max or a smaller --relative-margin finds more."
    if counts["stale_scores"]:
        yield (
            f"scores removed from {_rows(counts['stale_scores'])}, as they belonged to other negatives. Score again "
            f"with: jcv2-finetune score {out} --teacher NAME --out FILE"
        )


@recipe_command(ScoreRecipe, "score")
def score(
    data: Data,
    out: Out,
    teacher: Annotated[
        str,
        typer.Option(
            help="A cross-encoder, by name or folder, such as jinaai/jina-reranker-v2-base-multilingual (which needs "
            "--trust-remote-code)."
        ),
    ],
    settings: ScoreRecipe,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run the Python code in the teacher's repository, with all your permissions."
        ),
    ] = False,
    device: Device = None,
    recipe: RecipeFile = None,
    resume: Resume = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Score the passages of each row with a teacher, for distillation.

    The scores are logits, for the positive and then for each negative. An interrupted run can be resumed with --resume.

    The exit status is 2 on an error, and 130 after Ctrl-C.
    """
    quiet_libraries()
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code, "device": device}
    with _run(out) as bar:
        report = scoring.score(data, out, teacher, settings, **trust, resume=resume, force=force, progress=bar)
    _show(out, report, as_json, _scored(report, teacher))


def _scored(report: ScoreReport, teacher: str) -> Iterator[str]:
    yield f"{report.pairs:,} passages scored by {teacher!r}."
    if report.kept:
        yield f"scores kept in {_rows(report.kept)}"
    if report.lone:
        yield f"nothing to distil in {_rows(report.lone)} without negatives. Mine some first."
