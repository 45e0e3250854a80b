"""The commands ``mine`` and ``score``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jcv2_trainer.cli.commands import failing_politely, quiet_libraries
from jcv2_trainer.cli.recipe_flags import recipe_command
from jcv2_trainer.mining.mine import MineRecipe, MineReport, mine
from jcv2_trainer.mining.score import ScoreRecipe, ScoreReport, score
from jcv2_trainer.mining.sources import Bm25Source, CollectionSource, ModelSource, Source

if TYPE_CHECKING:
    from jcv2_plugin.collection.collection import ColbertCollection

Data = Annotated[
    Path,
    typer.Argument(help="Rows of pairs or triplets: JSON lines (also .gz, .xz, .bz2, .zst), Parquet, or a folder."),
]
Out = Annotated[Path, typer.Option(help="The file to write: .jsonl, or that and .gz, .xz, .bz2 or .zst.")]
RecipeFile = Annotated[Path | None, typer.Option(help="YAML with fields of the recipe.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the best there is by default.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped, if there is one.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace --out, and, without --resume, discard a run that was stopped.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands ``mine`` and ``score`` to an app."""
    app.command("mine")(recipe_command(MineRecipe, "mine")(_mine))
    app.command("score")(recipe_command(ScoreRecipe, "score")(_score))


def _mine(
    data: Data,
    out: Out,
    settings: MineRecipe,
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", help="Find them in a collection: a folder or a Qdrant server's URL."),
    ] = None,
    name: Annotated[
        str, typer.Option(help="The collection's name on a server; a folder holds just one.")
    ] = "documents",
    api_key: Annotated[
        str | None, typer.Option(envvar="QDRANT_API_KEY", help="For a server.", show_envvar=True)
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help='Find them in a file with a record {"text": TEXT} for each passage. Without it and --collection '
            "the passages are the positives and negatives of DATA."
        ),
    ] = None,
    by: Annotated[
        Literal["model", "bm25"] | None,
        typer.Option("--with", help="What ranks the passages of a file; by default the model, if one is given."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model, by name or folder. A collection has its own, which this one must be."),
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
    with (
        failing_politely(partial(_stopped, out)),
        _bar(" passages") as indexed,
        _bar(" rows") as progress,
        _source(collection, name, api_key, corpus, by, model, dim, device) as source,
    ):
        report = mine(
            data, out, source, settings, resume=resume, force=force, progress=progress.to, index_progress=indexed.by
        )
    if as_json:
        typer.echo(json.dumps({"out": str(out), **asdict(report)}))
        return
    for line in _mined(out, report, settings):
        typer.echo(line)


@contextmanager
def _source(
    location: str | None,
    name: str,
    api_key: str | None,
    corpus: Path | None,
    by: str | None,
    model: str | None,
    dim: int | None,
    device: str | None,
) -> Iterator[Source]:
    if location is not None:
        for option, value in (("--corpus", corpus), ("--with bm25", by == "bm25" or None)):
            if value is not None:
                raise typer.BadParameter(f"{option} is for passages of a file; leave out it or --collection.")
        with _opened(location, name, api_key, model, dim, device) as collection:
            yield CollectionSource(collection)
    elif by == "bm25":
        if model is not None or dim is not None:
            raise typer.BadParameter("--with bm25 needs no --model or --dim; leave them out, or take --with model.")
        yield Bm25Source(corpus)
    elif model is not None:
        quiet_libraries()
        yield ModelSource(model, corpus, dim, device)
    else:
        raise typer.BadParameter("Say what finds the negatives: --collection LOCATION, --model NAME or --with bm25.")


def _opened(
    location: str, name: str, api_key: str | None, model: str | None, dim: int | None, device: str | None
) -> ColbertCollection:
    from jcv2_plugin.collection.collection import ColbertCollection

    quiet_libraries()
    options = {"api_key": api_key} if api_key and "://" in location else None
    return ColbertCollection.open(location, encoder=model, dim=dim, name=name, device=device, client_options=options)


def _mined(out: Path, report: MineReport, settings: MineRecipe) -> Iterator[str]:
    counts = report.counts
    resumed = f" ({report.resumed_at:,} of them before)" if report.resumed_at else ""
    yield f"{out}: {_rows(report.rows)}{resumed} with {counts['negatives']:,} negatives."
    fate = "left out" if settings.drop_empty else "written as pairs"
    yield (
        f"  rows with {settings.negatives} negatives or more {counts['full']:,}, with fewer {counts['short']:,}, "
        f"with none {counts['empty']:,} ({fate})"
    )
    turned_down = {
        "known positives": "positives",
        "repeated": "duplicates",
        "above range_min": "range_min",
        "within relative_margin": "relative_margin",
        "within absolute_margin": "absolute_margin",
        "above max_score": "max_score",
    }
    parts = [f"{label} {counts[key]:,}" for label, key in turned_down.items() if counts[key]]
    if parts:
        yield f"  candidates turned down: {', '.join(parts)}"
    if (counts["short"] or counts["empty"]) and counts["relative_margin"]:
        yield "  more are found with a larger --range-max or a smaller --relative-margin"
    if counts["stale_scores"]:
        yield (
            f"  scores removed from {_rows(counts['stale_scores'])}, as they belonged to other negatives. Score anew "
            f"with: jcv2-finetune score {out} --teacher NAME --out FILE"
        )


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _score(
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
            "--trust-remote-code",
            help="Run the Python code in the teacher's repository, with all that you may do on this machine.",
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
    with failing_politely(partial(_stopped, out)), _bar(" rows") as progress:
        report = score(
            data,
            out,
            teacher,
            settings,
            trust_remote_code=trust_remote_code,
            device=device,
            resume=resume,
            force=force,
            progress=progress.to,
        )
    if as_json:
        typer.echo(json.dumps({"out": str(out), **asdict(report)}))
        return
    for line in _scored(out, report, teacher):
        typer.echo(line)


def _scored(out: Path, report: ScoreReport, teacher: str) -> Iterator[str]:
    resumed = f" ({report.resumed_at:,} of them before)" if report.resumed_at else ""
    yield f"{out}: {_rows(report.rows)}{resumed}, {report.pairs:,} passages scored by {teacher!r}."
    if report.kept:
        yield f"  scores kept in {_rows(report.kept)}"
    if report.lone:
        yield f"  without negatives, so with nothing to distil: {_rows(report.lone)}. Mine some first."


class _Bar:
    """A progress bar that appears at the first update, on a terminal only."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: Any = None

    def to(self, done: int, total: int) -> None:
        """Advance to ``done`` of ``total``."""
        if self._bar is None:
            self._open(total)
        self._bar.update(done - self._bar.n)

    def by(self, done: int) -> None:
        """Advance by ``done``."""
        if self._bar is None:
            self._open(None)
        self._bar.update(done)

    def _open(self, total: int | None) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit=self._unit, disable=None)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def _bar(unit: str) -> Iterator[_Bar]:
    bar = _Bar(unit)
    try:
        yield bar
    finally:
        bar.close()


def _stopped(out: Path) -> str:
    partial_file = out.with_name(out.name + ".partial")
    kept = f" What is done is in {partial_file}; go on with --resume." if partial_file.exists() else ""
    return f"Stopped.{kept}"
