"""The command ``jcv2-finetune``: check training files, and fit heads for a backbone that has none."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jcv2_plugin.errors import Jcv2Error
from jcv2_trainer import mining_commands, training_commands
from jcv2_trainer.check import CheckReport, check_file
from jcv2_trainer.data import DataError, sample_texts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_HEADS_FILES = {"config.json", "model.safetensors"}

app = typer.Typer(
    name="jcv2-finetune",
    help="Check training data for late-interaction models, and fit heads for a backbone that has none.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


for _commands in (training_commands, mining_commands):
    _commands.register(app)


def main() -> None:
    """Run the command."""
    app()


def _version(value: bool) -> None:
    if value:
        typer.echo(f"jcv2-finetune {installed_version('jcv2-plugin')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="JSON lines (also .gz, .xz, .bz2, .zst), Parquet, or folders.")],
    max_findings: Annotated[int, typer.Option(min=0, help="Findings to show of each file.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file, one a line.")] = False,
) -> None:
    """Report what is wrong with training files, each row being a pair or a triplet.

    A row is {"query": TEXT, "positive": TEXT, "negatives": [TEXT, ...], "scores": [NUMBER, ...], "lang": TEXT,
    "source": TEXT}; all but the first two may be left out. "anchor" is read as the query, and "negative" or
    "negative_1", "negative_2", ... as the negatives. A folder is one saved by datasets, or has such files only.

    The exit status is 1 if there are errors (warnings do not count), and 2 if a file cannot be read.
    """
    from rich.console import Console

    console = Console(highlight=False)
    status = 0
    for path in files:
        try:
            report = check_file(path, max_findings)
        except DataError as error:
            typer.echo(f"error: {error}", err=True)
            status = 2
            continue
        if as_json:
            typer.echo(json.dumps(report.to_dict()))
        else:
            show_report(report, console)
        status = max(status, 0 if report.ok else 1)
    raise typer.Exit(status)


def show_report(report: CheckReport, console: Console) -> None:
    """Print a report: with a table of its findings on a terminal, one line for each elsewhere."""
    for line in _summary(report):
        console.print(line, markup=False, soft_wrap=True)
    if console.is_terminal and report.findings:
        console.print(_table(report))
    else:
        for one in report.findings:
            place = f"{one.place}: {one.severity} [{one.kind}] "
            text = f"{one.field}: {one.message}" if one.field else one.message
            console.print(f"{place}{text}. {one.remedy}", markup=False, soft_wrap=True)
    if (hidden := report.errors + report.warnings - len(report.findings)) > 0:
        console.print(f"{hidden:,} more findings are not shown; see --max-findings.")


def _summary(report: CheckReport) -> Iterator[str]:
    verdict = "ok" if report.ok else "not ok"
    faulty = report.rows - report.pairs - report.triplets
    yield (
        f"{report.path}: {verdict}. {report.rows:,} rows: {report.pairs:,} pairs, {report.triplets:,} triplets, "
        f"{faulty:,} with errors"
    )
    means = [f"{name} {mean:,.0f}" for name, mean in report.mean_characters.items()]
    for label, parts in (
        ("mean characters", means),
        ("languages", _top(report.languages)),
        ("sources", _top(report.sources)),
        ("findings", [f"{kind} {count:,}" for kind, count in report.counts.items()]),
    ):
        if parts:
            yield f"  {label}: {', '.join(parts)}"


def _top(counts: dict[str, int], shown: int = 8) -> list[str]:
    parts = [f"{name if name.isprintable() else ascii(name)} {rows:,}" for name, rows in counts.items()]
    return parts if len(parts) <= shown else [*parts[:shown], f"and {len(parts) - shown:,} more"]


def _table(report: CheckReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    in_folder = any(one.file != report.path for one in report.findings)
    unit = "/".join(sorted({one.unit for one in report.findings}))
    table = Table(*["file"] * in_folder, unit, "finding", "field", "what", "what to do", show_lines=False)
    table.columns[int(in_folder)].justify = "right"
    for one in report.findings:
        kind = Text(one.kind, style="red" if one.severity == "error" else "yellow")
        place = [Text(Path(one.file).name)] * in_folder + [Text(str(one.line))]
        table.add_row(*place, kind, Text(one.field), Text(one.message), Text(one.remedy))
    return table


@app.command("principal-heads")
def principal_heads(
    data: Annotated[Path, typer.Argument(help="A file of pairs or triplets; its texts are the sample.")],
    out: Annotated[Path, typer.Option(help="The folder to write the heads to.")],
    model: Annotated[
        str, typer.Option(help="A shipped model, for its backbone, or a folder of a transformers model.")
    ] = "mini",
    dims: Annotated[str, typer.Option(help="Dimensions of the heads, the default one first.")] = "128,32,64,96,256,384",
    texts: Annotated[int, typer.Option(min=2, help="Size of the sample: half queries, half positives.")] = 3000,
    seed: Annotated[int, typer.Option(help="Of the shuffle that draws the sample.")] = 13,
    lang: Annotated[str | None, typer.Option(help="Only rows with this lang; all if not given.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the heads that are in the folder.")] = False,
) -> None:
    """Fit heads without training: the principal components of a backbone's token states.

    The exit status is 2 if the heads cannot be fitted or written.
    """
    wanted = _parse_dims(dims)
    with _failing_politely(), _replacing(out, force) as folder:
        queries, positives = sample_texts(data, texts, seed, lang)
        kept = _fit(model, [*positives, *queries], wanted, folder)
    typer.echo(f"{out}: heads for {model!r}, from {len(queries):,} queries and {len(positives):,} positives.")
    for dim, share in kept.items():
        typer.echo(f"  {dim:>5} dimensions hold {share:.1%} of the token states' squared length")


def _fit(model: str, texts: list[str], dims: list[int], folder: Path) -> dict[int, float]:
    """Write the heads, and say which share of the states each holds."""
    from transformers.utils import logging

    from jcv2_trainer.principal_heads import captured, load_backbone, principal_heads, second_moment

    transformers_logging: Any = logging
    transformers_logging.disable_progress_bar()
    backbone = load_backbone(model)
    hidden = int(backbone.get_embedding_dimension())
    if max(dims) > hidden:
        raise Jcv2Error(
            f"The backbone {model!r} has states of {hidden} components, so no head of {max(dims)} can be fitted. "
            f"Give --dims of at most {hidden}."
        )
    with _bar("texts", len(texts)) as progress:
        moment = second_moment(backbone, texts, progress=progress)
    heads = principal_heads(moment, dims)
    heads.save(str(folder))
    return {dim: captured(moment, heads.get_parameter(f"linears.{dim}.weight")) for dim in heads.dims}


def _parse_dims(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    dims = [int(part) for part in parts if part.isdecimal()]
    if len(dims) != len(parts) or min(dims) < 1 or len(set(dims)) != len(dims):
        raise typer.BadParameter(f"--dims takes distinct positive integers, such as 128,64; got {text!r}.")
    return dims


@contextmanager
def _bar(unit: str, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on a terminal, nothing in a pipe."""
    from tqdm import tqdm

    with tqdm(total=total, unit=f" {unit}", disable=None) as bar:
        yield bar.update


@contextmanager
def _failing_politely() -> Iterator[None]:
    """Errors that have a message for the user end the command with it, and without a traceback."""
    try:
        yield
    except (Jcv2Error, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


@contextmanager
def _replacing(out: Path, force: bool) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place when all went well, and vanishes when not."""
    out = out.expanduser().resolve()
    _refuse_occupied(out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        _refuse_occupied(out, force)
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise


def _refuse_occupied(out: Path, force: bool) -> None:
    """Raise if writing to ``out`` would lose something: anything, or with ``force`` anything but heads."""
    if out.exists() and not out.is_dir():
        raise Jcv2Error(f"{out} is no folder. Choose another --out.")
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if names - _HEADS_FILES:
        raise Jcv2Error(f"{out} holds other files than heads ({min(names - _HEADS_FILES)}). Choose another --out.")
    if names and not force:
        raise Jcv2Error(f"{out} holds heads already. Choose another --out, or replace them with --force.")
