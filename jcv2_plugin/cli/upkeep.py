"""``jcv2 verify``, ``jcv2 snapshot`` and ``jcv2 restore``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.folders import journal_of
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.snapshot import read_info
from jcv2_plugin.console import out, progress_bar, quiet_libraries, remark


def run_verify(connection: Connection, *, sample: int, device: str | None, as_json: bool) -> None:
    """Verify a collection; exit status 1 if anything is wrong."""
    with connection.open(device=device) as collection:
        if sample:
            quiet_libraries()
        with progress_bar("Reading", collection.count()) as advance:
            report = collection.verify(sample=sample, progress=advance)
    if as_json:
        typer.echo(json.dumps({"ok": report.ok, **asdict(report)}))
    else:
        compared = f", the largest 1 - cosine {report.worst:.2g}" if report.encoded else ""
        out.print(
            f"{report.documents} documents counted, {report.read} read with {report.vectors} vectors; "
            f"{report.encoded} encoded anew{compared}.",
            soft_wrap=True,
        )
        for problem in report.problems:
            out.print(f"- {problem}", markup=False, soft_wrap=True)
        out.print(_sum(len(report.problems)))
    if not report.ok:
        raise typer.Exit(1)


def _sum(problems: int) -> str:
    if not problems:
        return "No problems."
    return "1 problem." if problems == 1 else f"{problems} problems."


def run_snapshot(file: Path, connection: Connection) -> None:
    """Write a collection to a file."""
    with connection.open() as collection, progress_bar("Writing", collection.count()) as advance:
        info = collection.snapshot(file, progress=advance)
    size = file.stat().st_size / 1e6
    remark(f"{file}: {info.documents} documents, {size:,.1f} MB.")


def run_restore(file: Path, connection: Connection, *, overwrite: bool) -> None:
    """Make a collection of a snapshot."""
    info = read_info(file)
    begun = False
    try:
        with progress_bar("Restoring", info.documents) as advance:

            def stored(documents: int) -> None:
                nonlocal begun
                begun = True
                advance(documents)

            ColbertCollection.restore(
                file, connection.location, overwrite=overwrite, progress=stored, **connection.arguments
            ).close()
    except BaseException as error:
        if begun or isinstance(error, KeyboardInterrupt):
            complete = "is not" if begun else "may not be"
            remark(f"Stopped: {connection.place} {complete} complete. Run the command again with --overwrite.")
        raise
    if not connection.is_server:
        # Of a run into what was there before.
        journal_of(connection.folder).unlink(missing_ok=True)
    schema = info.schema
    place = connection.place
    remark(f"{place[0].upper()}{place[1:]}: {info.documents} documents at {schema.dim} dims of {schema.model}.")
