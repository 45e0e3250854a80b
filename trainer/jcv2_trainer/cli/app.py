"""The ``jcv2-finetune`` app, and its ``check`` command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jcv2_plugin.console import CleanGroup
from jcv2_trainer.cli.commands import say
from jcv2_trainer.cli.heads import assemble, heads, principal_heads
from jcv2_trainer.cli.mining import mine, score
from jcv2_trainer.cli.mlm import convert, mlm
from jcv2_trainer.cli.training import training_command
from jcv2_trainer.data.check import CheckReport, check_file
from jcv2_trainer.data.reading import DataError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_HELP = (
    "Train late-interaction models such as jina-colbert-v2, with a head for each Matryoshka dimension.\n\n"
    "To adapt a model to your domain, give your rows to train; no other flag is needed. Look them over with check "
    "first.\n\n"
    "The other commands are the stages of jina-colbert-v2's own recipe (arXiv 2408.16672), from a plain BERT or "
    "XLM-RoBERTa: convert it to rotary positions, warm these up with mlm, assemble an encoder with heads of six sizes, "
    "train it on pairs, then on triplets, whose negatives come from mine and whose teacher's scores from score."
)

app = typer.Typer(
    cls=CleanGroup,
    name="jcv2-finetune",
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


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
    from jcv2_plugin.console import clean_logs

    clean_logs()


def check(
    files: Annotated[list[Path], typer.Argument(help="JSON lines (also .gz, .xz, .bz2, .zst), Parquet, or folders.")],
    max_findings: Annotated[int, typer.Option(min=0, help="Findings to show of each file.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file, one a line.")] = False,
) -> None:
    """Check training files, in which each row must be a pair or a triplet.

    A row is {"query": TEXT, "positive": TEXT, "negatives": [TEXT, ...], "scores": [NUMBER, ...], "lang": TEXT,
    "source": TEXT}; all fields but the first two are optional. "anchor" is accepted for "query", and "negative" or
    "negative_1", "negative_2", ... for "negatives". A folder must be saved by datasets, or contain only JSON-lines and
    Parquet files.

    The exit status is 1 if there are errors (warnings do not count), and 2 if a file cannot be read.
    """
    from jcv2_plugin.console import CleanConsole, to_json

    console = CleanConsole()
    status = 0
    for path in files:
        try:
            report = check_file(path, max_findings)
        except DataError as error:
            say(f"error: {error}", err=True)
            status = 2
            continue
        if as_json:
            typer.echo(to_json(report.to_dict()))
        else:
            show_report(report, console)
        status = max(status, 0 if report.ok else 1)
    raise typer.Exit(status)


def show_report(report: CheckReport, console: Console) -> None:
    """Print a report, with its findings as a table on a terminal and as lines elsewhere."""
    for line in _summary(report):
        console.print(line, markup=False, soft_wrap=True)
    if console.is_terminal and report.findings:
        console.print(_table(report))
    else:
        for one in report.findings:
            start = f"{one.position}: {one.severity} [{one.kind}] "
            text = f"{one.field}: {one.message}" if one.field else one.message
            console.print(f"{start}{text}. {one.remedy}", markup=False, soft_wrap=True)
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
        position = [Text(Path(one.file).name)] * in_folder + [Text(str(one.line))]
        table.add_row(*position, kind, Text(one.field), Text(one.message), Text(one.remedy))
    return table


_COMMANDS: dict[str, Callable[..., None]] = {
    "train": training_command("train"),
    "check": check,
    "convert": convert,
    "mlm": mlm,
    "assemble": assemble,
    "pairs": training_command("pairs"),
    "triplets": training_command("triplets"),
    "mine": mine,
    "score": score,
    "heads": heads,
    "principal-heads": principal_heads,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
